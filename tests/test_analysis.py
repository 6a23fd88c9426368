"""What the insight plots are made of, on functions whose consistency is known."""

import json

import numpy as np
import pytest
import torch
from conftest import write_npz
from PIL import Image
from short_run import run

from diffusers_ict import karras_sigmas
from diffusers_ict.commands import inspect_model
from diffusers_ict.evaluation import inspection


def gaussian(variance):
    """The exact consistency function of N(0, variance): f = x sqrt((v + smin^2) / (v + s^2))."""

    def f(x, sigma, labels=None):
        factor = ((variance + 0.002**2) / (variance + sigma**2)).sqrt()
        return x * factor.to(x.dtype)[:, None, None, None]

    return f


def test_estimates_along_the_noise_are_f_of_ever_noisier_images():
    f, sigmas = gaussian(0.25), karras_sigmas(11)
    x, z = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    got = inspection.estimates_along(f, x, z, sigmas)
    assert got.shape == (11, 3, 1, 4, 4)
    assert torch.equal(got[0], x + 0.002 * z), "at the smallest level f is the identity"
    factor = ((0.25 + 0.002**2) / (0.25 + sigmas[7] ** 2)).sqrt()
    torch.testing.assert_close(got[7], (x + sigmas[7].float() * z) * factor.float())


def test_the_gap_of_equal_estimates_is_0_and_of_a_step_its_height():
    estimates = torch.zeros(5, 2, 1, 3, 3)
    estimates[3:] = 0.25
    assert inspection.consistency_gap(estimates).tolist() == [0, 0, 0.25, 0]


def test_nothing_is_written_over_the_curve_of_the_gap(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, target, **options: (drawn.append(figure), target.touch()))
    gap = torch.linspace(1, 2, 10)
    inspection.plot_gap(karras_sigmas(11), gap, tmp_path / "gap.png")
    (axes,) = drawn[0].axes
    assert not axes.texts
    assert "largest: 2 at sigma 80" in axes.get_title()


def test_copies_are_told_from_new_samples():
    generator = torch.Generator().manual_seed(0)
    training = torch.randn(200, 16, generator=generator)
    new = torch.randn(100, 16, generator=generator)
    copied = training[:100] + 0.01 * torch.randn(100, 16, generator=generator)
    assert inspection.memorisation(new, training)[3] == 0.0
    _, indices, typical, copies = inspection.memorisation(torch.cat([new, copied]), training)
    assert copies == 0.5
    assert indices[100:].tolist() == list(range(100))
    by_hand = np.linalg.norm(training.numpy()[:, None] - training.numpy()[None], axis=-1) + 1e9 * np.eye(200)
    assert typical == pytest.approx(np.sort(by_hand.min(1))[99], rel=1e-3)


@pytest.mark.slow
def test_a_run_is_inspected(tmp_path, capsys):
    data = write_npz(tmp_path / "data.npz", count=80)
    own = ["--dataset_name", data, "--class_conditional", "--max_train_steps", 8, "--train_batch_size", 4]
    assert run(*own, "--logging_steps", 1, "--num_validation_images", 2, "--output_dir", tmp_path / "run") == 0
    words = [tmp_path / "run", "--dataset_name", data, "--num_samples", 60, "--output_dir", tmp_path / "seen"]
    assert inspect_model.main([str(word) for word in words]) == 0
    assert "Largest gap between neighbouring levels" in capsys.readouterr().out
    facts = json.loads((tmp_path / "seen" / "inspection.json").read_text())
    assert len(facts["gap"]) == 40
    assert facts["copies"] == 0.0, "eight steps cannot learn anything by heart"
    for name in ("along_sigma", "gap", "neighbours", "losses_by_sigma"):
        with Image.open(tmp_path / "seen" / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5, f"{name} shows nothing"
    assert inspect_model.main([str(tmp_path / "run"), "--dataset_name", str(data), "--image_mode", "RGB"]) == 2
    assert "8x8 of 1 channels, and are 8x8 of 3" in capsys.readouterr().err
