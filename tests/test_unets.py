"""Networks: the one chosen for a resolution, where dropout comes from, and dropout limited to small feature maps."""

import json

import pytest
import torch
from conftest import TINY, make_unet
from diffusers import UNet2DModel
from short_run import assert_refused, run

from diffusers_ict import ICT, ICTScheduler
from diffusers_ict.data.dataset import Images
from diffusers_ict.errors import UserError
from diffusers_ict.training import unets
from diffusers_ict.training.recipe import Recipe
from diffusers_ict.training.samples import make_pipeline
from diffusers_ict.training.start import load_start, make_objective
from diffusers_ict.training.unets import check_fits, default_unet_config, limit_dropout
from diffusers_ict.trial import check_call, check_config


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": (16, 32, 32)}, "Must provide the same number of"),
        ({"norm_num_groups": 3}, "must be divisible by num_groups"),
        ({"down_block_types": ("KDownBlock2D", "DownBlock2D")}, "cannot be used"),
        ({"down_block_types": ("NoBlock2D", "DownBlock2D")}, "NoBlock2D"),
        ({"attention_head_dim": 0}, "cannot be used"),
        ({"class_embed_type": "timestep"}, "class_embed_type of the UNet must be left out"),
        ({"class_embed_type": "identity"}, "class_embed_type of the UNet must be left out"),
        ({"layers_per_block": 10**6}, "layers_per_block of the UNet must be an integer from 1 to 64, got 1000000"),
        ({"layers_per_block": True}, "must be an integer"),
        ({"block_out_channels": (10**9, 16)}, "block_out_channels of the UNet must be an integer"),
        ({"block_out_channels": (16,) * 40}, "halves its images 39 times"),
        ({"block_out_channels": "wide"}, "must be a list of widths"),
        ({"no_such_entry": 3, "act_fn": "no such function"}, "cannot be used"),
    ],
)
def test_a_config_is_tried_before_it_is_used(changes, message, flags, config, tmp_path, capsys):
    config.write_text(json.dumps({**TINY, "num_class_embeds": None, **changes}))
    assert_refused(tmp_path, capsys, message, *flags, "--output_dir", tmp_path / "out")


@pytest.mark.parametrize("size", [10**6, -8, [16, 10**6]])
def test_sizes_that_no_image_has_are_refused_before_anything_is_built(size):
    with pytest.raises(UserError, match="sample_size of the UNet must be an integer from 1 to 16384"):
        check_config(UNet2DModel, {**TINY, "sample_size": size}, "the UNet")


def test_a_unet_without_a_middle_block_trains_with_dropout(flags, config, tmp_path):
    config.write_text(json.dumps({**TINY, "num_class_embeds": None, "mid_block_type": None}))
    own = ["--dropout", "0.1", "--dropout_resolution", "4", "--output_dir", tmp_path / "out"]
    assert run(*flags, *own, "--max_train_steps", 6) == 0


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: (x,), "raises TypeError"),
        (lambda x, timesteps, class_labels=None, return_dict=True: x, r"must return a tuple .* got \[1, 8, 8\]"),
        (lambda x, timesteps, class_labels=None, return_dict=True: (x[:, :, ::2],), r"got \[2, 1, 4, 8\]"),
    ],
)
def test_a_network_of_ones_own_is_called_once_before_it_is_trained(forward, message):
    network = torch.nn.Linear(1, 1).train()
    network.forward = forward
    with pytest.raises(UserError, match=message):
        check_call(network, (1, 8, 8), None)
    assert network.training
