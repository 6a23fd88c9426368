"""The mean of the images that a noisy image may have come from, among some reference images."""

import torch
from torch import Tensor

from .preconditioning import per_image


def posterior_mean(
    x: Tensor,
    noise: Tensor,
    sigma: Tensor,
    references: Tensor,
    class_labels: Tensor | None = None,
    reference_labels: Tensor | None = None,
    unlabelled: int | None = None,
) -> Tensor:
    """E[image | x + sigma z] where the image is x or one of the references of its class, all equally likely.

    That is sum_j a_j x_j with a = softmax_j(-|x + sigma z - x_j|^2 / (2 sigma^2)). The target of stable target fields
    (Xu et al., arXiv:2302.00670); stable consistency tuning (Wang et al., arXiv:2410.18958) has it for consistency
    models.
    Without references of its class it is x, bit for bit.

    Args:
        x: images in [-1, 1], [B, C, H, W]; noise: z, of the same shape; sigma: [B], above 0.
        references: [n, C, H, W].
        class_labels, reference_labels: [B] and [n], or None.
        unlabelled: the label of images of any class, all references of which count.

    Returns:
        [B, C, H, W], float32.
    """
    own, others, z = x.float().flatten(1), references.float().flatten(1), noise.float().flatten(1)
    t = sigma.float()[:, None]
    # |x + t z - x_j|^2 - |t z|^2: without the square of the noise, which is large and the same for all.
    between = (own.square().sum(1)[:, None] + others.square().sum(1) - 2 * own @ others.T).clamp(min=0)
    along = (z * own).sum(1)[:, None] - z @ others.T
    logits = -(between / (2 * t.square()) + along / t)
    if class_labels is not None and reference_labels is not None:
        other = class_labels[:, None] != reference_labels
        if unlabelled is not None:
            other &= class_labels[:, None] != unlabelled
        logits = logits.masked_fill(other, -torch.inf)
    shares = torch.cat([torch.zeros_like(t), logits], 1).softmax(1)
    return (shares[:, :1] * own + shares[:, 1:] @ others).view_as(x)


def towards_mean(cleaner: Tensor, x: Tensor, mean: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """x + sigma z moved to where the probability flow leads: x_t + (r - t) / t (x_t - mean); t, r = sigma_next, sigma.

    Args:
        cleaner: x + sigma z, [B, C, H, W]; x: the image; mean: its `posterior_mean` at sigma_next.
        sigma, sigma_next: [B].
    """
    return cleaner + per_image(1 - sigma / sigma_next, x) * (mean - x)
