"""The methods that the program trains: the names of their losses, their papers, and the dropout published for them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A method and its paper.

    Attributes:
        name: as people write it; paper: address; citation: of the paper.
        dropout: published for CIFAR-10, where the UNet's config states none.
    """

    name: str
    paper: str
    citation: str
    dropout: float


METHODS = {
    "ict": Method(
        "iCT",
        "https://arxiv.org/abs/2310.14189",
        "Y. Song, P. Dhariwal. Improved Techniques for Training Consistency Models. ICLR 2024, arXiv:2310.14189.",
        dropout=0.3,  # Sec. 3.2
    ),
    "ect": Method(
        "ECT",
        "https://arxiv.org/abs/2406.14548",
        "Z. Geng, A. Pokle, W. Luo, J. Lin, J. Z. Kolter. Consistency Models Made Easy. ICLR 2025, arXiv:2406.14548.",
        dropout=0.2,  # released code
    ),
    "ct": Method(
        "CT",
        "https://arxiv.org/abs/2303.01469",
        "Y. Song, P. Dhariwal, M. Chen, I. Sutskever. Consistency Models. ICML 2023, arXiv:2303.01469.",
        dropout=0.0,
    ),
    "act": Method(
        "ACT",
        "https://arxiv.org/abs/2311.14097",
        "F. Kong et al. ACT-Diffusion: Efficient Adversarial Consistency Training. CVPR 2024, arXiv:2311.14097.",
        dropout=0.0,
    ),
}
