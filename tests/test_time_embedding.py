import math

import pytest
import torch
from conftest import make_unet

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
    weight = unet.time_embedding.linear_1.weight
    read = (weight != 0).any(0).float()
    features = unet.time_proj(c_noise(karras_sigmas(1281)).float()) * read
    kept = read.sum()
    return ((features[1:] - features[:-1]).abs().sum(1) / kept).mean().item()


def test_three_quarters_of_the_columns_are_fast():
    fast = fast_columns(make_unet(block_out_channels=(128, 128), norm_num_groups=8))
    assert fast.shape == (128,)
    assert fast.sum() == 96
    assert torch.equal(fast[:64], fast[64:])


def test_embedding_becomes_hundreds_of_times_less_sensitive():
    unet = make_unet(block_out_channels=(128, 128), norm_num_groups=8)
    assert mean_change_between_neighbours(unet) > 0.1
    zero_fast_columns(unet)
    assert mean_change_between_neighbours(unet) < 6e-4


def test_flip_and_shift_of_the_frequencies_are_read_from_the_config():
    for settings in ({"flip_sin_to_cos": False}, {"freq_shift": 1}, {"flip_sin_to_cos": False, "freq_shift": 1}):
        unet = make_unet(**settings)
        fast = fast_columns(unet)
        # A feature is slow if its phase moves by at most a quarter over one unit of ln(sigma).
        t = torch.linspace(0, 250, 1001)
        features = unet.time_proj(t)
        assert (features[:, ~fast].diff(dim=0).abs().sum(0) <= 0.25 + 1e-4).all()
        assert (features[:, fast].diff(dim=0).abs().sum(0) > 0.02).all()


def test_zeroing_keeps_the_variance_of_the_first_layer():
    unet = make_unet(block_out_channels=(128, 128), norm_num_groups=8)
    before = unet.time_embedding.linear_1.weight.square().sum().item()
    zero_fast_columns(unet)
    assert unet.time_embedding.linear_1.weight.square().sum().item() == pytest.approx(before, rel=0.05)
    assert not uses_fast_columns(unet)


def test_held_columns_stay_zero_under_an_optimizer_and_the_others_move():
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


def test_stock_diffusers_loads_and_computes_the_same(tmp_path):
    from diffusers import UNet2DModel

    unet = make_unet().eval()
    zero_fast_columns(unet)
    hold_fast_columns(unet)
    unet.save_pretrained(tmp_path)
    stock = UNet2DModel.from_pretrained(tmp_path).eval()
    x, t = torch.randn(2, 1, 8, 8), c_noise(torch.tensor([0.5, 80.0]))
    torch.testing.assert_close(stock(x, t).sample, unet(x, t).sample, rtol=0, atol=1e-5)  # loaded weights are unaligned
    assert not uses_fast_columns(stock)


@pytest.mark.parametrize("kind", ["fourier", "learned"])
def test_other_embeddings_are_refused(kind):
    unet = make_unet(time_embedding_type=kind, num_train_timesteps=10)
    with pytest.raises(ValueError, match=f"'positional'.*got '{kind}'"):
        fast_columns(unet)


def test_fastest_kept_phase_is_a_quarter():
    unet = make_unet(block_out_channels=(64, 64))
    frequencies = [10000 ** (-j / 32) for j in range(32)]
    expected = [250 * f > 0.25 for f in frequencies]
    assert fast_columns(unet)[:32].tolist() == expected
    assert math.isclose(max(f for f, fast in zip(frequencies, expected) if not fast), 0.001)
