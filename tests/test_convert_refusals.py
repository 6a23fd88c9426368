"""What cannot be converted gets one sentence and exit code 2, and leaves nothing behind."""

import os
import zipfile
from pathlib import Path

import guided_unet
import pytest
import torch
from conftest import make_unet
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerDiscreteScheduler,
    LDMPipeline,
    VQModel,
)

from diffusers_ict.commands import convert
from diffusers_ict.conversion import save

SIZED = ["--resolution", "16", "--attention_head_dim", "16"]
EMA = "model_ema.unet."


class Harmful:
    def __reduce__(self):
        return (print, ("code of the checkpoint was run",))


def refused(tmp_path, capsys, source, message, *flags):
    before = sorted(tmp_path.rglob("*"))
    assert convert.main([str(source), str(tmp_path / "out"), *flags]) == 2
    streams = capsys.readouterr()
    assert message in streams.err
    assert streams.err.count("\n") == 1, streams.err
    assert "code of the checkpoint was run" not in streams.out
    assert sorted(tmp_path.rglob("*")) == before


def saved(tmp_path, content, name="model.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def good():
    return guided_unet.make((32, 64), (False, True), 1)


def act():
    shape = {"in_channels": 3, "out_channels": 3, "block_out_channels": (64, 32), "norm_num_groups": 32}
    unet = make_unet(**shape, attention_head_dim=8)
    return {f"{EMA}{name}": weights for name, weights in unet.state_dict().items()}


def without(state, *prefixes):
    return {key: weights for key, weights in state.items() if not key.startswith(prefixes)}


NAN = torch.full((64,), float("nan"))
NO_PLACE = r"holds 'x\x00\ny', which has no place"
SIX = {f"{EMA}conv_out.weight": torch.ones(6, 64, 3, 3)}


def trained(state):
    return {"state_dict": state}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: good() | {"out.2.bias": Harmful()}, "could run any code"),
        (lambda: good() | {3: torch.ones(1)}, "must be named by text, and one is named 3"),
        (lambda: good() | {"x\0\ny": torch.ones(1)}, NO_PLACE),
        (
            lambda: good() | {"middle_block.1.norm.bias": NAN},
            "middle_block.1.norm.bias holds values that are not finite",
        ),
        (lambda: good() | {"encoder_kv.weight": torch.zeros(1)}, "encoder_kv.weight, which has no place"),
        (lambda: good() | {"out.2.bias": torch.zeros(1).expand(1 << 40)}, "and the file holds fewer values"),
        (lambda: good() | {"out.2.bias": torch.zeros(5)}, "conv_out.bias: copying a param with shape torch.Size([5])"),
        (lambda: without(good(), "output_blocks"), "levels cannot be separated (4 input blocks, 0 output blocks)"),
        (lambda: without(good(), "out.0.weight"), 'Missing key(s) in state_dict: "conv_norm_out.weight"'),
        (lambda: trained(without(act(), f"{EMA}conv_out.bias") | SIX), 'Missing key(s) in state_dict: "conv_out.bias"'),
        (lambda: trained(without(act(), f"{EMA}conv_out")), "is not the generator of an ACT run"),
        (lambda: trained(without(act(), f"{EMA}down_blocks")), "is incomplete: it has no down_blocks"),
        (lambda: trained(act() | {f"{EMA}conv_in.bias": NAN}), "not finite numbers"),
        (lambda: trained(act() | {f"{EMA}x": Harmful()}), "could run any code"),
        (lambda: [1, 2], "must hold a dictionary of tensors, and holds a list"),
        (lambda: {"weight": torch.zeros(1)}, "its first entries are weight"),
    ],
)
def test_a_checkpoint_of_bad_tensors_is_refused(make, message, tmp_path, capsys):
    refused(tmp_path, capsys, saved(tmp_path, make()), message, *SIZED)


def test_flags_that_do_not_fit_a_checkpoint_are_refused(tmp_path, capsys):
    """A network with num_heads=4 has the same weights as one with heads of 64 channels, and other outputs."""
    whole, ckpt = saved(tmp_path, good()), saved(tmp_path, {"state_dict": act()}, "act.ckpt")
    refused(tmp_path, capsys, whole, "must divide 64", *SIZED[:2], "--attention_head_dim", "24")
    refused(tmp_path, capsys, whole, "--intermediate_sigmas: ", *SIZED, "--intermediate_sigmas", "90")
    heads = "is none of the released networks, and its weights do not tell everything: give --attention_head_dim,"
    side = "--resolution must be a positive multiple of 2, by which this network divides the side of its "
    for source in (whole, ckpt):
        refused(tmp_path, capsys, source, heads, "--resolution", "16")
        refused(tmp_path, capsys, source, "give --resolution,", "--attention_head_dim", "16")
        refused(tmp_path, capsys, source, "--resolution, the side of its images in pixels and --attention_head_dim")
        for number in ("15", "0", "-8"):
            refused(tmp_path, capsys, source, side, "--resolution", number, "--attention_head_dim", "16")
    wide = {32: 48, 64: 96, 96: 144, 192: 288}
    narrow = {key: torch.zeros([wide.get(n, n) for n in value.shape]) for key, value in good().items()}
    refused(tmp_path, capsys, saved(tmp_path, narrow), "(48) must be divisible by num_groups (32)", *SIZED)


def test_damaged_files_are_refused(tmp_path, capsys):
    source = tmp_path / "model.pt"
    source.write_bytes(b"")
    refused(tmp_path, capsys, source, "model.pt is empty or cut off, get it again", *SIZED)
    whole = saved(tmp_path, good()).read_bytes()
    with zipfile.ZipFile(source) as archive:
        member = max(archive.infolist(), key=lambda info: info.file_size)
    flipped = bytearray(whole)
    flipped[member.header_offset + member.file_size // 2] ^= 1  # in the values of the largest tensor
    source.write_bytes(flipped)
    refused(tmp_path, capsys, source, f"get it again if it is damaged: the checksum of {member.filename}", *SIZED)
    for length in (10, len(whole) // 2, len(whole) - 3):
        source.write_bytes(whole[:length])
        refused(tmp_path, capsys, source, "model.pt cannot be read as a PyTorch file, get it again", *SIZED)


def test_pipelines_that_are_neither_consistency_nor_diffusion_models_of_pixels_are_refused(tmp_path, capsys):
    vqvae = VQModel(1, 1, block_out_channels=(8,), norm_num_groups=8, latent_channels=1, num_vq_embeddings=8)
    infinite = make_unet()
    infinite.conv_in.bias.data[0] = float("inf")
    stock = CMStochasticIterativeScheduler()
    for number, (pipeline, message) in enumerate(
        (
            (DDPMPipeline(make_unet(), EulerDiscreteScheduler()), "PNDMScheduler, and it has EulerDiscreteScheduler"),
            (DDPMPipeline(make_unet(out_channels=2), DDPMScheduler()), "sees 1 and predicts 2: learned variances"),
            (
                DDPMPipeline(make_unet(class_embed_type="timestep"), DDPMScheduler()),
                "class_embed_type of its UNet must be",
            ),
            (LDMPipeline(vqvae, make_unet(), DDIMScheduler()), "with a UNet alone, and it also holds vqvae"),
            (make_unet(), "is a network without a scheduler, which says what it was trained for"),
            (ConsistencyModelPipeline(make_unet(time_embedding_type="fourier"), stock), "a consistency model needs"),
            (ConsistencyModelPipeline(infinite, stock), "conv_in.bias holds values that are not finite numbers"),
        )
    ):
        pipeline.save_pretrained(tmp_path / str(number))
        refused(tmp_path, capsys, tmp_path / str(number), message)
    weights = tmp_path / str(number) / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(tmp_path, capsys, weights.parent.parent, "stock diffusers cannot load")
    refused(tmp_path, capsys, tmp_path / "no-such-repository", "stock diffusers cannot load")


def test_names_that_no_file_can_have_are_refused(tmp_path, capsys):
    long, source = "n" * 300, saved(tmp_path, good())
    refused(tmp_path, capsys, tmp_path / f"{long}.pt", f"{long[:80]}... cannot be read as a PyTorch file")
    refused(tmp_path, capsys, tmp_path / "nowhere.pt", "there is no file")
    refused(tmp_path, capsys, "a\nb", r"'a\nb' cannot be the name of a repository")
    for name, message in (
        (long, "cannot be the name of a folder: File name too long"),
        ("model.pt", "exists; name a folder that does not"),
    ):
        assert convert.main([str(source), str(tmp_path / name), *SIZED]) == 2
        assert message in capsys.readouterr().err
        assert os.listdir(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_conversion_that_fails_while_saving_leaves_nothing(stop, tmp_path, capsys, monkeypatch):
    """The folder has its name only when it is complete, so a kill cannot leave half of it under that name."""
    saved(tmp_path, good())
    before = sorted(tmp_path.rglob("*"))
    folder = tmp_path / "new" / "models" / "out"
    written = []

    def fails(temporary: Path) -> None:
        written.extend((temporary / "unet").iterdir())
        assert not folder.exists()
        raise stop

    monkeypatch.setattr(save, "write_card", fails)
    command = [str(tmp_path / "model.pt"), str(folder), *SIZED]
    assert convert.main(command) == (2 if isinstance(stop, OSError) else 130)
    assert ("cannot be written: No space left on device.\n" in capsys.readouterr().err) == isinstance(stop, OSError)
    assert written, "it failed before it wrote anything"
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.undo()
    assert convert.main(command) == 0
    assert sorted(path.name for path in folder.parent.iterdir()) == ["out"]
