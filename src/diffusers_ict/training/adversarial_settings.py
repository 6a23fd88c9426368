"""The settings of ACT's discriminator."""

from dataclasses import dataclass

from ..settings import setting

AUGMENT_TAU = {"penalty": 0.05, "sign": 0.6}  # by signal


@dataclass(kw_only=True)
class AdversarialSettings:
    """The adversarial term of ACT, its discriminator, and what the discriminator sees."""

    adversarial_weight: float = setting(0.3, "ACT: w, share of the adversarial term at the largest noise")
    adversarial_weight_mid: float = setting(0.3, "ACT: w_mid, its share in the middle of the grid")
    discriminator_config_name_or_path: str | None = setting(
        None, "ACT: its config [one like the UNet's encoder]", changes="content"
    )
    discriminator_learning_rate: float = setting(
        None, "ACT: learning rate of its RAdam [that of the generator]", above=0
    )
    discriminator_beta1: float = setting(0.0, "ACT: first beta of its RAdam", at_least=0, below=1)
    discriminator_beta2: float = setting(0.9318, "ACT: second beta of its RAdam", at_least=0, below=1)
    discriminator_time_weight: bool = setting(False, "ACT: weight its losses by noise level too, as for ImageNet")
    r1_gamma: float = setting(10.0, "ACT: weight of the gradient penalty", at_least=0)
    r1_interval: int = setting(16, "ACT: steps between gradient penalties", at_least=1)
    discriminator_batch_size: int = setting(
        None,
        "ACT: fakes, and as many images, of its micro batch [train_batch_size]; published: half",
        at_least=1,
        changes="rounding",
    )
    augment: bool = setting(False, "ACT-Aug: augment what the discriminator sees")
    augment_signal: str = setting(
        "penalty",
        "ACT-Aug: signal of overfitting: the gradient penalty, or the mean sign of D on images (ADA)",
        choices=("penalty", "sign"),
    )
    augment_tau: float = setting(
        None, "ACT-Aug: signal above which augmentation grows [penalty 0.05, sign 0.6]", above=0
    )
    augment_horizon: int = setting(500_000, "ACT-Aug: images over which its strength could go from 0 to 1", at_least=1)
