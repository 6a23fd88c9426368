"""The settings of an evaluation, which are also its flags."""

from dataclasses import dataclass

from ..data.settings import DataSettings
from ..settings import setting

MOST = 10_000_000  # images: the features of so many do not fit into memory


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(DataSettings):
    """Settings of an evaluation; the data settings describe the real images."""

    flip_reference: bool = setting(False, "count every real image twice, as it is and mirrored")
    reference: str | None = setting(None, "reference statistics of an earlier evaluation, instead of real images")
    metrics: list[str] = setting(
        ["fid"], "fid, kid, is, pr; for pairs also psnr, ssim, lpips, between samples and the images of the data"
    )
    steps: list[int] = setting([1, 2], "numbers of sampling steps")
    variants: list[str] | None = setting(None, "averages of the weights: published, or names of variants [all]")
    guidance_scales: list[float] = setting([1.0], "scales of guidance: 1 is off; see docs/programs.md")
    guide: str | None = setting(
        None, "average that guidance leads away from: published, or a variant [the model's output without labels]"
    )
    num_samples: int = setting(50_000, "images drawn for each row", at_least=1, below=MOST)
    labels: str = setting("data", "classes as frequent as in the data, or equally", choices=("data", "uniform"))
    seed: int = setting(0, "seed of the noise and the labels", at_least=0)
    batch_size: int = setting(250, "images at once, on each process", at_least=1)
    extractor: str | None = setting(
        None, "inception, dinov2, pixels, or a .py or .pt2 file, whose code is run [inception; for arrays, pixels]"
    )
    extractor_weights: str | None = setting(None, "a local file or folder instead of a download")
    lpips_weights: str | None = setting(None, "safetensors of VGG16 and LPIPS [those of the installed package lpips]")
    tune_sigmas: int | None = setting(None, "first search noise levels for 2 to this many steps", at_least=2, below=9)
    tune_metric: str = setting("fid", "metric by which the levels are chosen", choices=("fid", "kid", "is"))
    tune_samples: int | None = setting(None, "images for each level tried [num_samples]", at_least=1, below=MOST)
    output_dir: str | None = setting(None, "where evaluation.json goes [the model, if it is a folder]")
    cache_dir: str | None = setting(None, "where reference statistics are kept [~/.cache/diffusers-ict]")
