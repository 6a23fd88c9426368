"""One dropout mask for both halves of a pair.

Student and teacher must drop the same units, or their difference is that of two masks and not that of two noise levels
(CT Sec. 5, iCT Sec. 3.2). The student's pass draws each mask and keeps it, and the teacher's pass uses it again.
Autograd keeps the mask for the backward pass in any case. Unlike two passes after the same seeding of a generator, this
can be compiled into one graph.
"""

import torch
from torch import Tensor, nn


class _Kept:
    """The mask of one place in a network, 0 or 1 / (1 - p); networks that share masks have this object in common."""

    mask: Tensor | None = None


class _Passes:
    """Whether masks are drawn, or those of the last pass are used again."""

    reusing = False


class _Reuse:
    """A class and not a generator function, which cannot be compiled."""

    def __enter__(self) -> None:
        _Passes.reusing = True

    def __exit__(self, *exception: object) -> None:
        _Passes.reusing = False


def reuse_masks() -> _Reuse:
    """A context in which networks prepared by `share_dropout` use the masks of the pass before, once."""
    return _Reuse()


class SharedDropout(nn.Dropout):
    """Dropout that can use the mask of another pass, or of another network at the same place, again."""

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
        if _Passes.reusing:
            mask, self.kept.mask = self.kept.mask, None
            if mask is None or mask.shape != x.shape:
                raise RuntimeError("there is no dropout mask to use again: prepare both networks by `share_dropout`.")
        else:
            # In float32 whatever x is: half precision is too coarse to compare with p, and to hold the scale.
            self.kept.mask = mask = torch.rand(x.shape, device=x.device).ge_(self.p).div_(1 - self.p)
        return (x * mask).to(x.dtype)  # one product, and one for the backward pass, where speed is that of the memory


def share_dropout(*networks: nn.Module) -> None:
    """Let networks of the same shape drop the same units, in a pass and in one under `reuse_masks` after it.

    Their dropout modules are replaced; weights and configs stay as they are. A single network shares masks with itself,
    and is left as it is where it is prepared already.

    Raises:
        ValueError: the networks have different numbers of dropout modules.
    """
    places = [
        [
            (parent, name, child)
            for parent in network.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.Dropout) and not (len(networks) == 1 and isinstance(child, SharedDropout))
        ]
        for network in networks
    ]
    for same_place in zip(*places, strict=True):
        kept = _Kept()
        for parent, name, child in same_place:
            shared = SharedDropout(child.p).train(child.training)
            shared.kept = kept
            setattr(parent, name, shared)
