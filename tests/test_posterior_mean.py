"""Targets that are averaged among reference images: closed forms, and the runs that use them."""

import json
import math

import pytest
import torch
from conftest import ONE_LEVEL, TINY
from short_run import ICT, assert_bitwise_equal, assert_refused, run

from diffusers_ict.formulas.posterior_mean import posterior_mean
from diffusers_ict.objectives.base import consistency_pair


def points(*values: float) -> torch.Tensor:
    """Images of one pixel."""
    return torch.tensor(values)[:, None, None, None]


def test_two_points_in_one_dimension_have_the_closed_form():
    sigma, noise = torch.tensor([0.3, 1.0, 7.0]), points(0.4, -1.2, 0.9)
    x = points(0.5, 0.5, -0.5)
    mean = posterior_mean(x, noise, sigma, points(0.5, -0.5)[1:]).flatten()  # the first two belong to 0.5
    for got, t, z, image in zip(mean.tolist(), sigma.tolist(), noise.flatten().tolist(), (0.5, 0.5, -0.5)):
        y = image + t * z
        if image == 0.5:  # itself and -0.5: m tanh(m y / t^2)
            assert got == pytest.approx(0.5 * math.tanh(0.5 * y / t**2), abs=1e-6)
        else:  # itself twice
            assert got == pytest.approx(-0.5, abs=1e-6)


def test_it_is_the_softmax_of_squared_distances():
    generator = torch.Generator().manual_seed(0)
    x, references = (torch.rand(n, 3, 4, 4, generator=generator) * 2 - 1 for n in (8, 20))
    noise = torch.randn(8, 3, 4, 4, generator=generator)
    sigma = torch.tensor([0.002, 0.1, 0.5, 1.0, 2.0, 5.0, 20.0, 80.0], dtype=torch.float64)
    labels, theirs = torch.arange(8) % 2, torch.arange(20) % 3
    mean = posterior_mean(x, noise, sigma, references, labels, theirs)
    for i in range(8):
        images = torch.cat([x[i : i + 1], references[theirs == labels[i]]]).double().flatten(1)
        noisy = x[i].double().flatten() + sigma[i] * noise[i].double().flatten()
        shares = torch.softmax(-(noisy - images).square().sum(1) / (2 * sigma[i] ** 2), 0)
        assert torch.allclose(mean[i].double().flatten(), shares @ images, atol=2e-5)


def test_alone_an_image_is_its_own_mean_and_the_pair_is_the_usual_one():
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 4, 3, 8, 8, generator=generator).unbind()
    sigma, sigma_next = torch.tensor([0.1, 0.5, 2.0, 60.0]), torch.tensor([0.2, 0.9, 2.5, 80.0])
    none, labels = torch.empty(0, 3, 8, 8), torch.zeros(4, dtype=torch.int64)
    others = posterior_mean(x, noise, sigma_next, torch.randn(5, 3, 8, 8), labels, labels.new_ones(5))
    for mean in (posterior_mean(x, noise, sigma_next, none), others):
        assert torch.equal(mean, x)

    def f(x, sigma, labels):
        return x * 0.5

    usual = consistency_pair(f, x, noise, sigma, sigma_next)
    averaged = consistency_pair(f, x, noise, sigma, sigma_next, mean=x)
    assert torch.equal(usual.student, averaged.student)
    assert torch.equal(usual.target, averaged.target)


def test_the_cleaner_point_lies_on_the_way_to_the_mean():
    x, noise, mean = points(0.5), points(2.0), points(-0.25)
    sigma, sigma_next = torch.tensor([1.0]), torch.tensor([4.0])
    pair = consistency_pair(lambda x, sigma, labels: x, x, noise, sigma, sigma_next, mean=mean)
    assert pair.student.item() == 8.5
    # 8.5 + (1 - 4) / 4 * (8.5 + 0.25)
    assert pair.target.item() == pytest.approx(1.9375)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [None, 4])
def test_a_run_with_references_learns_otherwise_and_resumes_bit_for_bit(classes, flags, config, tmp_path):
    config.write_text(json.dumps({**TINY, **ONE_LEVEL, "num_class_embeds": classes}))
    common = [*flags, *ICT, "--max_train_steps", 10, *["--class_conditional"] * bool(classes)]
    averaged = [*common, "--reference_batch_size", 6]
    assert run(*common, "--output_dir", tmp_path / "plain") == 0
    assert run(*averaged, "--output_dir", tmp_path / "whole") == 0
    with pytest.raises(AssertionError):
        assert_bitwise_equal(tmp_path / "plain", tmp_path / "whole")
    assert run(*averaged, "--output_dir", tmp_path / "parts", "--max_train_minutes", 1e-6) == 3
    assert run(*averaged, "--output_dir", tmp_path / "parts", "--resume_from_checkpoint", "latest") == 0
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "parts")


def test_more_references_than_images_are_refused(flags, tmp_path, capsys):
    assert_refused(
        tmp_path, capsys, "--reference_batch_size must be at most", *flags, "--reference_batch_size", 10**6,
        "--output_dir", tmp_path / "out",
    )  # fmt: skip
