"""Extractors give the features of their networks, and say what is missing."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusers_ict.errors import UserError
from diffusers_ict.evaluation import extractors, make_extractor
from diffusers_ict.hashes import weights_hash


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def inception():
    """torch-fidelity's network with weights made on the spot."""
    network = extractors._inception_class()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng([]):
        torch.manual_seed(0)
        patch.setattr(torch, "load", lambda *args, **kwargs: {})
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        return network("made", ["2048", "logits_unbiased"], feature_extractor_weights_path="none")


def test_pixels_are_themselves(images):
    features, logits = make_extractor("pixels").features(images)
    assert torch.equal(features, images.reshape(3, -1).float() / 255)
    assert logits is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_inception_is_that_of_torch_fidelity_with_local_weights(images, inception, tmp_path, kind):
    path = tmp_path / f"weights.{kind}"
    (torch.save if kind == "pth" else save_file)(inception.state_dict(), path)
    extractor = make_extractor("inception", str(path))
    features, logits = extractor.features(images)
    assert features.shape == (3, 2048)
    assert logits.shape == (3, 1008)
    assert features.std() > 0
    assert all(torch.equal(a, b) for a, b in zip((features, logits), inception(images)))
    assert extractor.frechet == "fid"
    assert len(extractor.weights) == 64
    grey, _ = extractor.features(images[:, :1])
    assert torch.equal(grey, extractor.features(images[:, :1].repeat(1, 3, 1, 1))[0])
    assert not [name for name in sys.modules if name.split(".")[0] in ("torch_fidelity", "torchvision")]


def test_inception_weights_are_read_without_running_what_they_hold(tmp_path, capsys):
    from test_convert_refusals import Harmful

    torch.save({"fc.weight": Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="cannot be read"):
        make_extractor("inception", str(tmp_path / "weights.pth"))
    assert "code of the checkpoint was run" not in capsys.readouterr().out
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="are not those of the FID Inception network"):
        make_extractor("inception", str(tmp_path / "weights.pth"))


def test_dinov2_is_the_class_token_of_the_transformers_model(images, tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    small = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    net = Dinov2Model(small).eval()
    net.save_pretrained(tmp_path / "dino")
    extractor = make_extractor("dinov2", str(tmp_path / "dino"))
    features, logits = extractor.features(images)
    assert logits is None
    assert extractor.frechet == "fd_dinov2"
    assert extractor.weights == weights_hash(net)
    from PIL import Image

    resized = [Image.fromarray(i.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC) for i in images]
    x = torch.stack([torch.from_numpy(np.array(r)).permute(2, 0, 1) for r in resized]) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = net((x - mean) / std).last_hidden_state[:, 0]
    # Pillow rounds between its two passes, so single pixels differ by one step.
    torch.testing.assert_close(features, expected, atol=5e-3, rtol=5e-3)


class Means(torch.nn.Module):
    def forward(self, x):
        x = x.float()
        return x.mean((2, 3)), x.flatten(1)[:, :5]


def test_a_file_of_ones_own_is_an_extractor(images, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n\ndef features(images, device):\n    return images.to(device).float().mean((2, 3))\n"
    )
    program = torch.export.export(Means(), (images,), dynamic_shapes=({0: torch.export.Dim("n", max=2**20)},))
    torch.export.save(program, tmp_path / "mine.pt2")
    expected = images.float().mean((2, 3))
    for name in ("mine.py", "mine.pt2"):
        extractor = make_extractor(str(tmp_path / name))
        torch.testing.assert_close(extractor.features(images)[0], expected)
        assert extractor.features(images[:2])[0].shape == (2, 3)
        assert extractor.name == name
    assert extractor.features(images)[1].shape == (3, 5)
    (tmp_path / "mine.py").write_text("def features(images, device):\n    return images.float()\n")
    with pytest.raises(UserError, match=r"mine.py must return a tensor of features \[n, d\], .* got \(3, 3, 20, 20\)"):
        make_extractor(str(tmp_path / "mine.py")).features(images)


def test_what_is_missing_is_told(images, tmp_path, monkeypatch):
    find = extractors.importlib.util.find_spec
    monkeypatch.setattr(
        extractors.importlib.util,
        "find_spec",
        lambda name: None if name in ("torch_fidelity", "transformers") else find(name),
    )
    with pytest.raises(UserError, match="pip install --no-deps torch-fidelity"):
        make_extractor("inception")
    with pytest.raises(UserError, match="pip install transformers"):
        make_extractor("dinov2")
    monkeypatch.undo()

    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(UserError, match=r"weights cannot be downloaded; give a file of https.*: no route to host"):
        make_extractor("inception")
    with pytest.raises(UserError, match="download facebook/dinov2-large"):
        make_extractor("dinov2", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"must be pixels, inception, dinov2, or a \.py or \.pt2 file, got nonsense"):
        make_extractor("nonsense")
    with pytest.raises(UserError, match="there is no file"):
        make_extractor(str(tmp_path / "nothing.py"))
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(UserError, match="cannot be loaded: ModuleNotFoundError"):
        make_extractor(str(tmp_path / "broken.py"))
    with pytest.raises(UserError, match=r"takes images of 1, 3 or 4 channels, got 2\."):
        extractors.colour(images[:, :2])
    sticker = torch.tensor([[255, 255, 255], [0, 100, 0], [10, 10, 200], [255, 51, 0]], dtype=torch.uint8)[
        None, :, None
    ]
    shown = extractors.colour(sticker)[0, :, 0].T.tolist()
    assert shown == [[255, 0, 10], [255, 224, 206], [255, 255, 255]], "opaque, a fifth of the colour, white alone"
