import numpy as np
import pytest
import torch
from conftest import make_unet
from diffusers import UNet2DModel

from diffusers_ict import (
    c_noise,
    fast_columns,
    hold_fast_columns,
    karras_sigmas,
    uses_fast_columns,
    zero_fast_columns,
)


def mean_change_between_neighbours(unet) -> float:
    """Of the input that the time embedding's first layer reads, over the grid of 1281 levels."""
    read = (unet.time_embedding.linear_1.weight != 0).any(0)
    features = unet.time_proj(c_noise(karras_sigmas(1281)).float())[:, read]
    return features.diff(dim=0).abs().mean().item()


def test_without_its_fast_columns_the_embedding_is_hundreds_of_times_less_sensitive():
    unet = make_unet(block_out_channels=(128, 128))
    fast = fast_columns(unet)
    # Half are cosines, of the same frequencies; the phase of those that are kept turns by at most a quarter.
    frequencies = 10000 ** (-np.arange(64) / 64)
    assert fast.tolist() == 2 * [bool(250 * f > 0.25) for f in frequencies]
    assert fast.sum() == 96, "three quarters"
    before = unet.time_embedding.linear_1.weight.square().sum().item()
    assert mean_change_between_neighbours(unet) > 0.1
    zero_fast_columns(unet)
    assert mean_change_between_neighbours(unet) < 6e-4
    assert unet.time_embedding.linear_1.weight.square().sum().item() == pytest.approx(before, rel=0.05)
    assert not uses_fast_columns(unet)


@pytest.mark.parametrize("freq_shift", [0, 1])
@pytest.mark.parametrize("flip", [True, False])
def test_flip_and_shift_of_the_frequencies_are_read_from_the_config(flip, freq_shift):
    unet = make_unet(flip_sin_to_cos=flip, freq_shift=freq_shift)
    fast = fast_columns(unet)
    # A feature is slow if its phase moves by at most a quarter over one unit of ln(sigma).
    moves = unet.time_proj(torch.linspace(0, 250, 1001)).diff(dim=0).abs().sum(0)
    assert (moves[~fast] <= 0.25 + 1e-4).all()
    assert (moves[fast] > 0.02).all()


def test_held_columns_stay_zero_under_an_optimizer_and_the_others_move_and_stock_computes_the_same(tmp_path):
    unet = make_unet()
    zero_fast_columns(unet)
    hold_fast_columns(unet)
    weight = unet.time_embedding.linear_1.weight
    before, fast = weight.detach().clone(), fast_columns(unet)
    optimizer = torch.optim.RAdam(unet.parameters(), 1e-2)
    for _ in range(8):
        unet(torch.randn(2, 1, 8, 8), torch.tensor([3.0, 700.0])).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (weight[:, fast] == 0).all()
    assert (weight[:, ~fast] != before[:, ~fast]).any()
    unet.eval().save_pretrained(tmp_path)
    stock = UNet2DModel.from_pretrained(tmp_path).eval()
    x, t = torch.randn(2, 1, 8, 8), c_noise(torch.tensor([0.5, 80.0]))
    torch.testing.assert_close(stock(x, t).sample, unet(x, t).sample, rtol=0, atol=1e-5)  # loaded weights are unaligned
    assert not uses_fast_columns(stock)


@pytest.mark.parametrize("kind", ["fourier", "learned"])
def test_other_embeddings_are_refused(kind):
    unet = make_unet(time_embedding_type=kind, num_train_timesteps=10)
    with pytest.raises(ValueError, match=f"'positional'.*got '{kind}'"):
        fast_columns(unet)
