"""One dropout mask for both halves of a pair.

Student and teacher must drop the same units, or their difference is that of two masks and not that of two noise levels
(CT Sec. 5, iCT Sec. 3.1). The student's pass draws each mask and keeps it, and the teacher's pass uses it again.
Autograd keeps the mask for the backward pass in any case. Unlike two passes after the same seeding of a generator, this
can be compiled into one graph.

Covered is `torch.nn.Dropout`, the only dropout of UNet2DModel, once in a pass. Other modules that drop are refused.
What a network drops by functions (`torch.nn.functional.dropout`, attention with `dropout_p`) cannot be seen from
outside, and would get two masks: write `nn.Dropout` there.
"""

import torch
from torch import Tensor, nn

OTHERS = (nn.modules.dropout._DropoutNd, nn.MultiheadAttention, nn.RNNBase)


class reuse_masks:  # a class and not a generator function, which cannot be compiled
    """A context in which networks prepared by `share_dropout` use the masks of the pass before, once.

    It holds for the whole process, so only one thread may train.
    """

    active = False

    def __enter__(self) -> None:
        reuse_masks.active = True

    def __exit__(self, *exception: object) -> None:
        reuse_masks.active = False


class _Kept:
    """The mask of one place in a network, 0 or 1 / (1 - p); networks that share masks have this object in common."""

    mask: Tensor | None = None


class SharedDropout(nn.Dropout):
    """Dropout that can use the mask of another pass, or of another network at the same place, again."""

    kept: _Kept

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.kept = _Kept()

    def forward(self, x: Tensor) -> Tensor:
        """Zero units with probability p and scale the others by 1 / (1 - p): same shape.

        Raises:
            RuntimeError: a mask is to be used again, and there is none of this shape.
        """
        if not self.training or self.p == 0:
            return x
        if reuse_masks.active:
            mask, self.kept.mask = self.kept.mask, None
            if mask is None or mask.shape != x.shape:
                raise RuntimeError("there is no dropout mask to use again: prepare both networks by `share_dropout`.")
        else:
            # In float32 whatever x is: half precision is too coarse to compare with p, and to hold the scale.
            self.kept.mask = mask = torch.rand(x.shape, device=x.device).ge_(self.p).div_(1 - self.p)
        return (x * mask).to(x.dtype)  # one product, and one for the backward pass, where speed is that of the memory


def share_dropout(*networks: nn.Module) -> None:
    """Let networks of the same shape drop the same units, in a pass and in one under `reuse_masks` after it.

    Their `nn.Dropout` modules become `SharedDropout` where they are, as `torch.nn.utils.parametrize` changes modules;
    weights, hooks and configs stay. A single network shares masks with itself, and may be prepared several times.

    Raises:
        ValueError: the networks have different numbers of dropout modules, or others than `nn.Dropout`.
    """
    places = [_dropouts(network) for network in networks]
    if len(networks) == 1:
        places = [[module for module in places[0] if not isinstance(module, SharedDropout)]]
    for same_place in zip(*places, strict=True):
        kept = _Kept()
        for module in same_place:
            module.__class__ = SharedDropout
            module.kept = kept


def _dropouts(network: nn.Module) -> list[nn.Dropout]:
    for module in network.modules():
        drops = getattr(module, "dropout" if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) else "p", 0)
        if isinstance(module, OTHERS) and not isinstance(module, nn.Dropout) and drops > 0:
            raise ValueError(
                f"student and teacher must drop the same units, which {type(module).__name__} does not allow: use "
                f"nn.Dropout, or a dropout of 0, got {drops}."
            )
    return [module for module in network.modules() if isinstance(module, nn.Dropout)]
