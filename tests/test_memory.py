"""The estimate of memory against networks that run, and against peaks that were measured on a GPU."""

import json

import pytest
import torch
from conftest import ROOT, make_unet
from diffusers import UNet2DModel

from diffusers_ict.discriminator import ConsistencyDiscriminator
from diffusers_ict.training.estimate import describe_cards
from diffusers_ict.training.memory import CONTEXT, MARGIN, Memory, memory_of

MEASURED = ROOT / "benchmarks" / "results" / "step_speed_h200.md"
RECIPES = ROOT / "src" / "diffusers_ict" / "recipes"


def kept_by(unet: UNet2DModel, batch: int, half: bool) -> int:
    """Bytes of the tensors that a forward pass on real numbers saves, without the weights and their half copies."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    half_precision = torch.autocast("cpu", torch.bfloat16, enabled=half)
    with half_precision, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = unet(torch.randn(batch, 1, 8, 8), torch.zeros(batch)).sample
    assert result.requires_grad
    own = {p.data_ptr() for p in unet.parameters()}
    weights = sum(p.numel() for p in unet.parameters())
    return sum(size for key, size in kept.items() if key not in own) - (2 * weights if half else 0)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activations_are_those_that_a_real_pass_saves(dropout):
    unet = make_unet(dropout=dropout).train()
    for batch in (3, 16):
        estimate = batch * memory_of(unet, None, averages=1, teacher=False, half=False).per_image
        assert estimate == pytest.approx(kept_by(unet, batch, False), rel=0.03)
        half = batch * memory_of(unet, None, averages=1, teacher=False, half=True).per_image
        # CPUs normalise in half precision, which GPUs do not.
        assert kept_by(unet, batch, True) < half < estimate


def test_the_parts_are_bytes_of_every_copy_of_the_weights():
    unet = make_unet()
    size = 4 * sum(p.numel() for p in unet.parameters())
    fixed = memory_of(unet, None, averages=2, teacher=True, half=True).fixed
    assert fixed == {"weights": size, "gradients": size, "moments": 2 * size, "averages": 2 * size, "samples": size,
                     "teacher": size, "half": size // 2}  # fmt: skip


def test_the_largest_micro_batch_that_divides_the_step_is_found():
    gigabyte = 10**9
    memory = Memory({"weights": gigabyte}, per_image=gigabyte // 10, data=gigabyte)
    room = 8 * gigabyte - CONTEXT
    most = int((room - gigabyte - MARGIN * gigabyte) / (MARGIN * gigabyte / 10))
    assert most == 44
    assert [memory.batch_on(8, images) for images in (44, 45, 88, 47, 1)] == [44, 15, 44, 1, 1]
    larger = Memory({"weights": gigabyte}, gigabyte // 10, data=7 * gigabyte)
    assert larger.batch_on(8, 52) == 52, "data larger than half of the card stay on the host"
    assert Memory({"weights": 7 * gigabyte}, 1).batch_on(8, 4) is None


def test_cards_are_named_up_to_the_first_that_takes_the_whole_step():
    memory = Memory({"weights": 8 * 10**9}, per_image=10**9)
    expected = "none on 8 GB, 10 x 5 on 24 GB, 50 x 1 on 80 GB"
    assert describe_cards(memory, 50).endswith(f"steps: {expected}")


@pytest.mark.slow
def test_the_estimate_lies_up_to_a_fifth_above_the_measured_peaks():
    """Eager steps; compiled ones take less."""
    unet = UNet2DModel.from_config(json.loads((RECIPES / "act_cifar10_unet.json").read_text()))
    critic = ConsistencyDiscriminator.from_config(json.loads((RECIPES / "act_cifar10_discriminator.json").read_text()))
    rows = [line.split("|")[1:-1] for line in MEASURED.read_text().splitlines() if "| eager |" in line]
    assert len(rows) == 8
    for row in rows:
        method, precision, _, _, _, measured = (cell.strip() for cell in row)
        memory = memory_of(
            unet,
            critic if "ACT" in method else None,
            averages=1,
            teacher=method in ("CT", "ACT on CT"),
            half=precision == "bf16",
        )
        assert 1 <= memory.total(80) / 2**30 / float(measured) < 1.2, (method, precision)
