"""Networks: the one chosen for a resolution, where dropout comes from, and dropout limited to small feature maps."""

import json

import pytest
import torch
from conftest import TINY, make_unet
from diffusers import UNet2DModel

from diffusers_ict import ICT, ICTScheduler
from diffusers_ict.data.dataset import Images
from diffusers_ict.errors import UserError
from diffusers_ict.training import unets
from diffusers_ict.training.recipe import Recipe
from diffusers_ict.training.samples import make_pipeline
from diffusers_ict.training.start import load_start, make_objective
from diffusers_ict.training.unets import check_fits, default_unet_config, limit_dropout


@pytest.mark.parametrize("resolution", [8, 12, 16, 28, 32, 64, 96, 128, 256])
def test_the_default_unet_suits_the_resolution(resolution):
    config = default_unet_config(resolution, 3, None)
    check_fits(config, (3, resolution, resolution), None)
    with torch.device("meta"):
        unet = UNet2DModel.from_config(config)
        x = torch.empty(1, 3, resolution, resolution)
        assert unet(x, torch.empty(1)).sample.shape == x.shape
    assert resolution / 2 ** (len(config["block_out_channels"]) - 1) <= 8


@pytest.mark.parametrize("resolution", [4, 9, 50, 257])
def test_resolutions_no_unet_suits_are_refused(resolution):
    with pytest.raises(UserError):
        default_unet_config(resolution, 3)


def test_dropout_can_be_kept_to_small_feature_maps():
    """The size at the dropout decides: a downsampler of 8 pixels drops at 4, an upsampler of 4 pixels at 8."""
    resampling = {"downsample_type": "resnet", "upsample_type": "resnet"}
    blocks = {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    }
    unet = make_unet(dropout=0.4, **resampling, **blocks)
    limit_dropout(unet, 4)
    sizes = []
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Dropout) and "attentions" not in name:
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: sizes.append((name, inputs[0].shape[-1], module.p))
            )
    unet(torch.randn(1, 1, 8, 8), 0)
    assert {size for _, size, _ in sizes} == {4, 8}
    for name, size, p in sizes:
        assert p == (0.4 if size <= 4 else 0.0), f"{name} drops {p} at {size} pixels"
    assert all(any(part in name for name, _, _ in sizes) for part in ("downsamplers", "upsamplers", "mid_block"))


@pytest.fixture
def stating(tmp_path):
    """A config file that states its dropout."""
    path = tmp_path / "stating.json"
    path.write_text(json.dumps({**TINY, "_class_name": "UNet2DModel", "dropout": 0.1}))
    return str(path)


def dropout_of(**settings) -> float:
    """Of the network that training would begin with."""
    images = Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    recipe = Recipe(**settings)
    start = load_start(recipe)
    return unets.make_unet(recipe, images, make_objective(recipe, start), start).config.dropout


def test_dropout_is_the_given_one_else_that_of_the_config_else_the_published_one(stating, config, tmp_path):
    assert dropout_of(model_config_name_or_path=stating, dropout=0.2) == 0.2
    assert dropout_of(model_config_name_or_path=stating, dropout=0.0) == 0.0
    assert dropout_of(model_config_name_or_path=stating) == 0.1
    assert dropout_of(model_config_name_or_path=str(config)) == 0.3
    assert dropout_of(model_config_name_or_path=str(config), loss="ct") == 0.0
    assert dropout_of(model_config_name_or_path=str(config), loss="ect") == 0.2
    assert dropout_of(model_config_name_or_path=str(config), loss="act", objective={"consistency": "ict"}) == 0.0
    assert dropout_of() == 0.3

    make_pipeline(make_unet(dropout=0.4), ICTScheduler()).save_pretrained(tmp_path / "saved")
    assert dropout_of(pretrained_model_name_or_path=str(tmp_path / "saved")) == 0.4
    assert dropout_of(pretrained_model_name_or_path=str(tmp_path / "saved"), dropout=0.2) == 0.2
    file = tmp_path / "saved" / "unet" / "config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "dropout"}))
    assert dropout_of(pretrained_model_name_or_path=str(tmp_path / "saved")) == 0.3


def test_a_config_that_leaves_channels_and_classes_open_takes_those_of_the_data():
    images = Images(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.arange(4) % 3, 3)
    unet = unets.make_unet(Recipe(model_config_name_or_path="small_unet.json"), images, ICT(), None)
    assert (unet.config.in_channels, unet.config.out_channels, unet.config.num_class_embeds) == (3, 3, 3)
    assert unet.config.sample_size == 16
