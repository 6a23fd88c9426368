"""Feature networks as plain callables: uint8 images in, features out. Each library is imported where it is used."""

import importlib
import importlib.util
import io
import runpy
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import UserError, first_line
from ..files import read_tensors, sha256
from ..hashes import weights_hash
from ..progress import told
from .report import NO_FEATURES

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
DINOV2 = "facebook/dinov2-large"
WIDTHS: dict[tuple[str, str | None], list[int]] = {
    ("inception", None): [2048, 1008],
    ("dinov2", None): [1024],
}  # of what would be downloaded
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in [0, 1]


@dataclass(frozen=True)
class Extractor:
    """A feature network, with the facts that make its figures comparable.

    Attributes:
        name: in words; weights: SHA-256 of its weights, or of its file; resize: what it does to an image's size.
        network: uint8 [n, C, H, W] on `device` -> features [n, d], or a pair of features and logits [n, classes].
        frechet: the name of a Frechet distance of its features. "fid" is for the network of the papers alone.
    """

    name: str
    weights: str
    resize: str
    network: Callable[[Tensor], Any]
    device: torch.device
    frechet: str = "frechet"

    @torch.no_grad()
    def features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 [n, C, H, W] on any device -> (features, logits or None), float32 on the CPU; or a UserError."""
        try:
            out = self.network(images.to(self.device))
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # a user's file raises what it likes
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{self.name} fails for images {tuple(images.shape)}: {reason}") from error
        features, logits = out if isinstance(out, tuple) and len(out) == 2 else (out, None)
        for what, x in [("features", features)] + ([] if logits is None else [("logits", logits)]):
            if not isinstance(x, Tensor) or x.is_complex() or x.ndim != 2 or len(x) != len(images) or x.shape[1] == 0:
                shown = tuple(x.shape) if isinstance(x, Tensor) else f"an object of type {type(x).__name__}"
                raise UserError(
                    f"{self.name} must return a tensor of features [n, d], or a pair of features and logits "
                    f"[n, classes], got {shown} as {what} of {len(images)} images."
                )
        return features.float().cpu(), None if logits is None else logits.float().cpu()


def no_extractor(device: torch.device | str) -> Extractor:
    """One without features, where no metric reads any."""
    return Extractor(NO_FEATURES, "none", "none", lambda x: torch.zeros(len(x), 1), torch.device(device))


def check_extractor(name: str, pictures: bool = True) -> None:
    """Check that there is an extractor of that name, before anything is read or downloaded.

    Args:
        pictures: whether it is given pictures, or else arrays.

    Raises:
        UserError: there is none, it takes pictures alone, or something has to be installed first; says what.
    """
    if name in ("inception", "dinov2") and not pictures:
        raise UserError(f"`extractor` {name} is made for pictures, and the model draws arrays: give pixels, or a file.")
    if name == "inception" and importlib.util.find_spec("torch_fidelity") is None:
        raise UserError(
            "`extractor` inception needs torch-fidelity: pip install --no-deps torch-fidelity (without --no-deps it "
            "brings torchvision, which may replace torch)."
        )
    if name == "dinov2" and importlib.util.find_spec("transformers") is None:
        raise UserError("`extractor` dinov2 needs transformers: pip install transformers.")
    if name in ("pixels", "inception", "dinov2"):
        return
    if Path(name).suffix not in (".py", ".pt2"):
        raise UserError(f"`extractor` must be pixels, inception, dinov2, or a .py or .pt2 file, got {name}.")
    if not Path(name).is_file():
        raise UserError(f"there is no file {name} for `extractor`.")


def make_extractor(
    name: str, weights: str | None = None, device: torch.device | str = "cpu", pictures: bool = True
) -> Extractor:
    """The extractor of that name.

    Args:
        name: "pixels", "inception", "dinov2", or a file: .py with a function features(images, device), or .pt2
            (torch.export) of a module; both take uint8 [n, C, H, W] and return features, or (features, logits).
        weights: of inception, a .pth or .safetensors file; of dinov2, a folder or Hub id. By default downloaded.
        device: where it computes.
        pictures: else it is given arrays that are no pictures, float32 [n, C, H, W] as networks see them.

    Raises:
        UserError: as `check_extractor`, or weights that cannot be downloaded or read.
    """
    check_extractor(name, pictures)
    device = torch.device(device)
    if name == "pixels" and not pictures:
        return Extractor("normalised values", "none", "none", lambda x: x.flatten(1), device)
    if name == "pixels":
        return Extractor("raw pixels in [0, 1]", "none", "none", lambda x: x.flatten(1).float() / 255, device)
    if name in ("inception", "dinov2"):
        with told(f"loading the extractor {name}"):
            return (_inception if name == "inception" else _dinov2)(weights, device)
    return _from_file(Path(name), device)


def colour(images: Tensor) -> Tensor:
    """Images of three channels: grey ones are repeated, transparent ones laid on white; others are refused."""
    if images.shape[1] not in (1, 3, 4):
        raise UserError(f"this extractor takes images of 1, 3 or 4 channels, got {images.shape[1]}.")
    if images.shape[1] == 4:
        alpha = images[:, 3:].float() / 255
        images = (images[:, :3] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)
    return images.expand(-1, 3, -1, -1)


def _inception(weights: str | None, device: torch.device) -> Extractor:
    """The Inception network of published FIDs, with the resize of its TensorFlow original, by torch-fidelity."""
    network, state = _inception_class(), io.BytesIO()
    # Its constructor would download, or unpickle whatever a file holds; here it reads tensors that were read safely.
    torch.save(_inception_weights(weights), state)
    state.seek(0)
    try:
        net = network("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=state).to(device)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"`extractor_weights` are not those of the FID Inception network: {reason}") from error
    name, resize = "Inception v3 (2015-12-05) of torch-fidelity", "299x299 bilinear, as TensorFlow 1"
    return Extractor(name, weights_hash(net), resize, lambda x: net(colour(x)), device, "fid")


def _inception_class() -> Any:
    """torch-fidelity's Inception, imported without the rest of its package, which needs torchvision."""
    imported = "torch_fidelity" in sys.modules
    if not imported:
        package = importlib.util.find_spec("torch_fidelity")
        bare = sys.modules["torch_fidelity"] = types.ModuleType("torch_fidelity")
        bare.__path__ = list(package.submodule_search_locations or []) if package else []
    try:
        return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    finally:
        for name in [name for name in sys.modules if not imported and name.split(".")[0] == "torch_fidelity"]:
            del sys.modules[name]


def _inception_weights(path: str | None) -> dict[str, Tensor]:
    missing = f"the Inception weights cannot be downloaded; give a file of {INCEPTION_URL} as `extractor_weights`"
    try:
        if path is None:
            return torch.hub.load_state_dict_from_url(INCEPTION_URL, map_location="cpu", weights_only=True)
        return (
            read_tensors(Path(path))[0] if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
        )
    except Exception as error:  # each format has its own classes
        problem = f"`extractor_weights` {path} cannot be read" if path else missing
        raise UserError(f"{problem}: {first_line(error)}") from error


def _dinov2(weights: str | None, device: torch.device) -> Extractor:
    """The class token of DINOv2, for the FD-DINOv2 of Stein et al. (arXiv:2306.04675)."""
    from transformers import Dinov2Model

    name = weights or DINOV2
    try:
        net = Dinov2Model.from_pretrained(name, use_safetensors=True).to(device).eval()
    except (OSError, ValueError) as error:
        raise UserError(
            f"no DINOv2 model could be loaded from {name} ({first_line(error)}): download {DINOV2} on a machine that "
            "can, and give its folder as `extractor_weights`."
        ) from error
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))

    def class_token(images: Tensor) -> Tensor:
        x = interpolate(colour(images).float(), (224, 224), mode="bicubic", antialias=True, align_corners=False)
        x = x.round().clamp(0, 255) / 255  # as an image library returns it
        return net((x - mean) / std).last_hidden_state[:, 0]

    name, resize = f"DINOv2, {net.config.hidden_size} features", "224x224 bicubic, antialiased"
    return Extractor(name, weights_hash(net), resize, class_token, device, "fd_dinov2")


def _from_file(path: Path, device: torch.device) -> Extractor:
    """An extractor of a user's own, whose code is run."""
    try:
        digest = sha256(path)
        if path.suffix == ".pt2":
            network = torch.export.load(path).module().to(device)
            return Extractor(path.name, digest, f"as in {path.name}", network, device)
        function = runpy.run_path(str(path)).get("features")
        if not callable(function):
            raise ImportError("it must define a function features(images, device)")
    except (Exception, SystemExit) as error:
        raise UserError(f"`extractor` {path} cannot be loaded: {type(error).__name__}: {first_line(error)}") from error
    return Extractor(path.name, digest, f"as in {path.name}", lambda images: function(images, device), device)
