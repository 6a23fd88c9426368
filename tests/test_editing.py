"""The formulas of editing against the matrices that Consistency Models (arXiv:2303.01469), Algorithm 4, writes out."""

import math

import numpy as np
import pytest
import torch

from diffusers_ict import Colorize, Edit, Inpaint, SuperResolve, karras_level, karras_sigmas, slerp, start_level

V = np.array([0.2989, 0.5870, 0.1140])
HALF = torch.cat([torch.zeros(4, 8), torch.ones(4, 8)])


class KnownRows(Edit):
    """Every other row is known."""

    def project(self, x):
        known = torch.zeros_like(x)
        known[..., ::2, :] = x[..., ::2, :]
        return known


class KnownBlur(Edit):
    """What is left when the highest frequencies are cut away is known."""

    def project(self, x):
        spectrum = torch.fft.rfft2(x)
        frequency = torch.fft.fftfreq(x.shape[-2], dtype=x.dtype)[:, None].abs()
        frequency = frequency.maximum(torch.fft.rfftfreq(x.shape[-1], dtype=x.dtype))
        return torch.fft.irfft2(torch.where(frequency < 0.3, spectrum, 0), s=x.shape[-2:])


def test_means_of_many_pixels_are_kept():
    """In float32, the sum of 1,024 numbers is off by 1e-5, and so would be the mean that is taken of it."""
    y = torch.full((1, 3, 32, 32), 0.98)
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for factor in (16, 32):
        edit = SuperResolve(factor)
        kept = edit.complete_in_range(x, edit.project(y))
        means = kept.double().unfold(2, factor, factor).unfold(3, factor, factor).mean((-2, -1))
        torch.testing.assert_close(means, torch.full_like(means, 0.98), rtol=0, atol=1e-6)


EDITS = [Inpaint(HALF), Colorize(), SuperResolve(2), SuperResolve(4), KnownRows(), KnownBlur()]


def images(seed, count=3):
    return torch.rand(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def completed_basis(first):
    """An orthogonal matrix with a given first column, by Gram-Schmidt."""
    columns = [first / np.linalg.norm(first)]
    for unit in np.eye(len(first)):
        rest = unit - sum((unit @ column) * column for column in columns)
        if np.linalg.norm(rest) > 1e-6 and len(columns) < len(first):
            columns.append(rest / np.linalg.norm(rest))
    return np.stack(columns, 1)


def published(x, y, q, omega):
    """A^-1 [(A y)(1 - Omega) + (A x) Omega] for A x = x Q along the last axis."""
    return ((y @ q) * (1 - omega) + (x @ q) * omega) @ q.T


def test_colouring_equals_the_matrix_that_the_paper_prints():
    printed = np.array([[0.4471, -0.8204, 0.3563], [0.8780, 0.4785, 0], [0.1705, -0.3129, -0.9343]])
    x, y, omega = images(0), images(1), np.array([0.0, 1.0, 1.0])
    own, *lines = (t.permute(0, 2, 3, 1).numpy() for t in (Colorize().complete(x, Colorize().project(y)), x, y))
    assert np.abs(own - published(*lines, completed_basis(V), omega)).max() < 1e-14
    assert np.abs(own - published(*lines, printed, omega)).max() < 1e-3, "printed with four digits"


@pytest.mark.parametrize("factor", [2, 4])
def test_super_resolution_equals_the_orthogonal_matrix_of_a_patch(factor):
    x, y, edit, p = images(0), images(1), SuperResolve(factor), factor

    def patches(t):  # [B, C, rows, columns, p^2]
        return t.unfold(2, p, p).unfold(3, p, p).flatten(-2).numpy()

    omega = (np.arange(p * p) > 0).astype(float)
    expected = published(patches(x), patches(y), completed_basis(np.full(p * p, 1 / p)), omega)
    assert np.abs(patches(edit.complete(x, edit.project(y))) - expected).max() < 1e-14


def test_inpainting_takes_known_pixels_from_one_image_and_the_others_from_the_other():
    x, y, masks = images(0, 6), images(1, 6), torch.stack([HALF, 1 - HALF])[:, None]
    own = Inpaint(masks).complete(x, Inpaint(masks).project(y))  # one mask for each image, of which there are several
    for image, mask, a, b in zip(own, masks.repeat_interleave(3, 0), x, y):
        assert torch.equal(image, torch.where(mask == 1, a, b))


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: type(edit).__name__)
def test_every_edit_is_an_orthogonal_projector_that_knows_a_part(edit):
    x, y = images(0), images(1)
    known = edit.project(x)
    torch.testing.assert_close(edit.project(known), known, rtol=0, atol=1e-14)
    torch.testing.assert_close(edit.project(2 * x - y), 2 * known - edit.project(y), rtol=0, atol=1e-14)
    assert (known * y).sum().item() == pytest.approx((x * edit.project(y)).sum().item(), abs=1e-12)
    assert 0.03 < known.square().sum() / x.square().sum() < 0.9


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: type(edit).__name__)
def test_images_in_range_keep_what_is_known(edit):
    """Black and white pictures are the worst: most corrections leave the range."""
    x, y = 3 * images(0).float().clamp(-0.4, 0.4), images(1).float().sign()
    known = edit.project(y)
    once, settled = edit.complete(x.clamp(-1, 1), known), edit.complete_in_range(x, known)
    assert settled.abs().max() <= 1
    exact = 1e-2 if isinstance(edit, KnownBlur) else 1e-6  # distant pixels have to agree: docs/editing.md
    assert (edit.project(settled) - known).abs().max() < exact
    if not isinstance(edit, (Inpaint, KnownRows)):
        assert (edit.project(once.clamp(-1, 1)) - known).abs().max() > 0.01, "cutting alone loses it"


def test_strength_is_the_place_of_the_level_in_the_grid():
    grid = karras_sigmas(40)
    for index in range(40):
        assert start_level(1 - index / 39) == pytest.approx(grid[39 - index].item(), rel=1e-12)
    assert (start_level(0), start_level(1)) == (0.002, 80.0)
    assert start_level(0.59) == pytest.approx(5.39, abs=0.005)
    assert start_level(1 - 16 / 39) == pytest.approx(5.38, abs=0.005)  # both for SDEdit, in CM Appendix D
    assert start_level(1 - 20 / 39) == pytest.approx(2.24, abs=0.005)
    assert karras_level(torch.tensor([0.0, 1.0]), 0.01, 50.0, 3.0).tolist() == pytest.approx([0.01, 50.0])


def test_interpolated_noises_are_as_long_as_noise_and_turn_evenly():
    z = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    z[1] -= (z[0] * z[1]).sum() / z[0].square().sum() * z[0]
    z /= z.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    between = slerp(*z, torch.tensor([0.0, 1 / 3, 0.5, 1.0]))
    assert between.shape == (4, 3, 32, 32)
    shares = [(1, 0), (math.cos(math.pi / 6), 0.5), (math.sqrt(0.5), math.sqrt(0.5)), (0, 1)]
    for own, (a, b) in zip(between, shares):
        torch.testing.assert_close(own, a * z[0] + b * z[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(slerp(z[0], z[0], torch.tensor([0.3])), z[:1])
    assert slerp(*z.bfloat16(), torch.tensor(0.5)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Inpaint(torch.full((8, 8), 0.5)), "a mask must hold 0 and 1, got values from 0.5"),
        (lambda: Inpaint(torch.ones(7, 8)).project(images(0)), r"mask of the shape \(7, 8\) does not fit images of"),
        (lambda: Inpaint(torch.ones(2, 1, 8, 8)).project(images(0)), "does not fit images of"),
        (lambda: Inpaint(torch.ones(3, 1, 8, 8)).project(images(0)[:1]), "does not fit images of"),
        (lambda: Colorize().project(images(0)[:, :1]), "only images with 3 channels can be colourised.*have 1"),
        (lambda: SuperResolve(1), "must be an integer of at least 2, got 1"),
        (lambda: SuperResolve(3).project(images(0)), "patches of 3 pixels do not divide images of 8x8"),
        (lambda: start_level(math.nan), "strength must lie within 0 and 1, got nan"),
        (lambda: slerp(torch.ones(1, 2, 2), torch.ones(1, 2, 3), torch.ones(1)), "noises must have one shape"),
    ],
)
def test_bad_edits_get_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
