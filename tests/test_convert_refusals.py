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
    DDPMPipeline,
    DDPMScheduler,
    EulerDiscreteScheduler,
)

from diffusers_ict.commands import convert
from diffusers_ict.conversion import save

SIZED = ["--resolution", "16", "--attention_head_dim", "16"]
WEIGHT = "input_blocks.1.0.in_layers.2.weight"


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


def good():
    return guided_unet.make((32, 64), (False, True), 1)


def act():
    shape = {"in_channels": 3, "out_channels": 3, "block_out_channels": (64, 32), "norm_num_groups": 32}
    unet = make_unet(**shape, attention_head_dim=8)
    return {f"model_ema.unet.{name}": weights for name, weights in unet.state_dict().items()}


def test_what_cannot_be_converted_says_why(tmp_path, capsys):
    whole = good()

    def saved(content, name="model.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    refused(tmp_path, capsys, tmp_path / "nowhere.pt", "there is no file")
    refused(tmp_path, capsys, saved({"state_dict": {"model_ema.unet.x": Harmful()}}, "x.ckpt"), "could run any code")
    refused(tmp_path, capsys, saved([1, 2]), "must hold a dictionary of tensors, and holds a list")
    refused(tmp_path, capsys, saved({"weight": torch.zeros(1)}), "its first entries are weight")
    (tmp_path / "text.pt").write_text("no checkpoint")
    refused(tmp_path, capsys, tmp_path / "text.pt", "text.pt")
    refused(tmp_path, capsys, saved(whole), "must divide 64", *SIZED[:2], "--attention_head_dim", "24")
    refused(tmp_path, capsys, saved(whole), "--intermediate_sigmas: ", *SIZED, "--intermediate_sigmas", "90")
    refused(tmp_path, capsys, saved({**whole, "encoder_kv.weight": torch.zeros(1)}), "has no place", *SIZED)
    refused(tmp_path, capsys, saved({**whole, "out.2.bias": torch.zeros(5)}), "conv_out.bias should be (3,)", *SIZED)
    less = {key: tensor for key, tensor in whole.items() if key != "input_blocks.1.0.out_layers.3.weight"}
    refused(tmp_path, capsys, saved(less), "is incomplete: it has no input_blocks.1.0.out_layers.3.weight", *SIZED)
    less = {key: tensor for key, tensor in whole.items() if key != "out.0.weight"}
    refused(tmp_path, capsys, saved(less), "conv_norm_out.weight should be (32,) and is absent", *SIZED)
    pooled = {
        key: tensor for key, tensor in whole.items() if not key.startswith(("input_blocks.2.", "output_blocks.1.2"))
    }
    refused(tmp_path, capsys, saved(pooled), "sizes must be changed by residual blocks", *SIZED)
    wide = {**whole, "output_blocks.0.0.skip_connection.weight": torch.zeros(64, 128, 3, 3)}
    refused(tmp_path, capsys, saved(wide), "shortcuts of 3x3 convolutions", *SIZED)
    refused(tmp_path, capsys, tmp_path / "no-such-repository", "stock diffusers cannot load")
    DDPMPipeline(make_unet(), EulerDiscreteScheduler()).save_pretrained(tmp_path / "euler")
    refused(tmp_path, capsys, tmp_path / "euler", "DDIMScheduler, PNDMScheduler, and it has EulerDiscreteScheduler")
    DDPMPipeline(make_unet(out_channels=2), DDPMScheduler()).save_pretrained(tmp_path / "learned")
    refused(tmp_path, capsys, tmp_path / "learned", "sees 1 and predicts 2: learned variances")
    make_unet().save_pretrained(tmp_path / "bare")
    refused(tmp_path, capsys, tmp_path / "bare", "is a network without a scheduler, which says what it was trained for")
    learned = make_unet(time_embedding_type="fourier")
    ConsistencyModelPipeline(learned, CMStochasticIterativeScheduler()).save_pretrained(tmp_path / "fourier")
    refused(tmp_path, capsys, tmp_path / "fourier", "cannot be converted: a consistency model needs")
    (tmp_path / "out").mkdir()
    refused(tmp_path, capsys, tmp_path / "fourier", "exists; name a folder that does not")


def test_what_the_weights_of_other_networks_do_not_tell_must_be_given(tmp_path, capsys):
    """A network with num_heads=4 has the same weights as one with heads of 64 channels, and other outputs."""
    torch.save(good(), tmp_path / "model.pt")
    torch.save({"state_dict": act()}, tmp_path / "act.ckpt")
    for name in ("model.pt", "act.ckpt"):
        source = tmp_path / name
        heads = "is none of the released networks, and its weights do not tell everything: give --attention_head_dim,"
        refused(tmp_path, capsys, source, heads, "--resolution", "16")
        refused(tmp_path, capsys, source, "give --resolution,", "--attention_head_dim", "16")
        refused(
            tmp_path, capsys, source, "give --resolution, the side of its images in pixels and --attention_head_dim"
        )
        for side in ("15", "0", "-8"):
            message = "--resolution must be a positive multiple of 2, by which this network divides the side of its "
            refused(tmp_path, capsys, source, message, "--resolution", side, "--attention_head_dim", "16")


NAN = torch.full((64,), float("nan"))
BAD = {
    "no output blocks": ("levels cannot be separated (4 input blocks, 0 output blocks)", "output_blocks"),
    "an integer": ("out.2.bias must be a tensor, and is of type int", {"out.2.bias": 3}),
    "nothing": ("out.2.bias must be a tensor, and is of type NoneType", {"out.2.bias": None}),
    "a name that is no text": ("must be named by text, and one is named 3", {3: torch.ones(1)}),
    "a long name": (f"holds {'x' * 80}..., which has no place", {"x" * 300: torch.ones(1)}),
    "a name of two lines": (r"holds 'x\x00\ny', which has no place", {"x\0\ny": torch.ones(1)}),
    "sparse": (f"{WEIGHT} must be a dense tensor", {WEIGHT: torch.eye(32).to_sparse()}),
    "compressed rows": ("time_embed.0.weight must be a dense", {"time_embed.0.weight": "csr"}),
    "no values": (f"{WEIGHT} is a tensor without values", {WEIGHT: torch.zeros(32, 32, 3, 3, device="meta")}),
    "not a number": ("middle_block.1.norm.bias holds values that are not finite", {"middle_block.1.norm.bias": NAN}),
    "too large": (
        "out.2.bias holds values that are not finite",
        {"out.2.bias": torch.full((3,), 1e300, dtype=torch.float64)},
    ),
    "complex": ("must hold floating point numbers, and holds complex64", {"out.2.bias": torch.zeros(3) + 0j}),
    "int8": ("must hold floating point numbers, and holds int8", {"out.2.bias": torch.zeros(3, dtype=torch.int8)}),
    "a scalar": ("must have values along at least one axis, and has the shape ()", {"out.2.bias": torch.tensor(1.0)}),
    "empty": ("must have values along at least one axis, and has the shape (0, 3)", {WEIGHT: torch.zeros(0, 3)}),
    "few axes": ("input_blocks.0.0.weight must have more axes than (32,)", {"input_blocks.0.0.weight": torch.ones(32)}),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize("name", BAD)
def test_a_checkpoint_of_bad_tensors_is_refused(name, tmp_path, capsys):
    message, change = BAD[name]
    state = good()
    if change == "output_blocks":
        state = {key: value for key, value in state.items() if not key.startswith(change)}
    else:
        state |= {key: state[key].to_sparse_csr() if value == "csr" else value for key, value in change.items()}
    torch.save(state, tmp_path / "model.pt")
    refused(tmp_path, capsys, tmp_path / "model.pt", message, *SIZED)


def test_a_bad_training_state_is_refused(tmp_path, capsys):
    prefix = "model_ema.unet."

    def saved(state):
        torch.save({"state_dict": state}, tmp_path / "act.ckpt")
        return tmp_path / "act.ckpt"

    six = {f"{prefix}conv_out.weight": torch.ones(6, 64, 3, 3)}
    without = {key: value for key, value in act().items() if key != f"{prefix}conv_out.bias"}
    refused(tmp_path, capsys, saved(without | six), "is incomplete: it has no conv_out.bias", *SIZED)
    without = {key: value for key, value in act().items() if "down_blocks" not in key}
    refused(tmp_path, capsys, saved(without), "is incomplete: it has no down_blocks", *SIZED)
    refused(tmp_path, capsys, saved(act() | {f"{prefix}conv_in.bias": NAN}), "not finite numbers", *SIZED)
    refused(tmp_path, capsys, saved(act() | {f"{prefix}conv_in.bias": "x"}), "must be a tensor", *SIZED)


def test_widths_that_group_norms_cannot_divide_are_refused(tmp_path, capsys):
    narrow = {
        key: torch.zeros([{32: 48, 64: 96, 96: 144, 192: 288}.get(n, n) for n in value.shape])
        for key, value in good().items()
    }
    torch.save(narrow, tmp_path / "model.pt")
    refused(tmp_path, capsys, tmp_path / "model.pt", "must be multiples of 32", *SIZED)


def test_damaged_files_are_refused(tmp_path, capsys):
    source = tmp_path / "model.pt"
    source.write_bytes(b"")
    refused(tmp_path, capsys, source, "model.pt is empty", *SIZED)
    torch.save(good(), source)
    whole = source.read_bytes()
    with zipfile.ZipFile(source) as archive:
        member = max(archive.infolist(), key=lambda info: info.file_size)
    for offset in (200, member.file_size // 2):  # in the values of the largest tensor
        flipped = bytearray(whole)
        flipped[member.header_offset + offset] ^= 1
        source.write_bytes(flipped)
        refused(
            tmp_path, capsys, source, f"model.pt is damaged, get it again: the checksum of {member.filename}", *SIZED
        )
    for length in (10, 1000, len(whole) // 2, len(whole) - 3):
        source.write_bytes(whole[:length])
        refused(tmp_path, capsys, source, "model.pt is damaged or incomplete, get it again", *SIZED)


def test_names_that_no_file_can_have_are_refused(tmp_path, capsys):
    long = "n" * 300
    refused(tmp_path, capsys, tmp_path / f"{long}.pt", f"{long[:80]}... cannot be read as a PyTorch file")
    refused(tmp_path, capsys, tmp_path / "a\0b.pt", r"a\x00b.pt' cannot be read as a PyTorch file")
    refused(tmp_path, capsys, long, "stock diffusers cannot load")
    refused(tmp_path, capsys, "a\0b", r"'a\x00b' cannot be the name of a repository")
    refused(tmp_path, capsys, "a\nb", r"'a\nb' cannot be the name of a repository")
    torch.save(good(), tmp_path / "model.pt")
    for name, message in (
        (long, "File name too long"),
        ("a\0b", "it has a character of value 0"),
        ("model.pt/out", "Not a directory"),
    ):
        assert convert.main([str(tmp_path / "model.pt"), str(tmp_path / name), *SIZED]) == 2
        error = capsys.readouterr().err
        assert f"cannot be the name of a folder: {message}" in error
        assert error.count("\n") == 1
        assert os.listdir(tmp_path) == ["model.pt"]


def test_the_weights_of_a_damaged_repository_are_refused(tmp_path, capsys):
    unet = make_unet()
    with torch.no_grad():
        unet.conv_in.bias[0] = float("inf")
    ConsistencyModelPipeline(unet, CMStochasticIterativeScheduler()).save_pretrained(tmp_path / "stock")
    refused(tmp_path, capsys, tmp_path / "stock", "conv_in.bias holds values that are not finite numbers")
    weights = tmp_path / "stock" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(tmp_path, capsys, tmp_path / "stock", "stock")


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_conversion_that_fails_while_saving_leaves_nothing(stop, tmp_path, capsys, monkeypatch):
    """The folder has its name only when it is complete, so a kill cannot leave half of it under that name."""
    torch.save(good(), tmp_path / "model.pt")
    before = sorted(tmp_path.rglob("*"))
    folder = tmp_path / "new" / "models" / "out"
    seen = []

    def fails(temporary: Path, **options) -> None:
        seen.extend((temporary / "unet").iterdir())
        assert not folder.exists()
        raise stop

    monkeypatch.setattr(save, "write_card", fails)
    command = [str(tmp_path / "model.pt"), str(folder), *SIZED]
    if isinstance(stop, OSError):
        assert convert.main(command) == 2
        assert capsys.readouterr().err.endswith(" cannot be written: No space left on device.\n")
    else:
        assert convert.main(command) == 130
    assert seen, "it failed before it wrote anything"
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.undo()
    assert convert.main(command) == 0
    assert sorted(path.name for path in folder.parent.iterdir()) == ["out"]
    assert "# out\n" in (folder / "README.md").read_text()
