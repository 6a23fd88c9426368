import json
import re

import numpy as np
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler

from diffusers_ict import CT, ICT, ICTScheduler, c_noise, karras_sigmas


def test_two_steps_go_through_the_second_sigma_of_ict_and_given_sigmas_are_used_as_they_are():
    scheduler = ICTScheduler()
    scheduler.set_timesteps(2)
    assert scheduler.sigmas.tolist() == [80.0, np.float32(0.821), np.float32(0.002)]
    assert (scheduler.init_noise_sigma, scheduler.order, len(scheduler)) == (80.0, 1, 40)
    scheduler.set_timesteps(sigmas=[80.0, 2.0, 0.5])
    np.testing.assert_array_equal(scheduler.sigmas.numpy(), np.float32([80.0, 2.0, 0.5, 0.002]))
    np.testing.assert_allclose(scheduler.timesteps.numpy(), 250 * np.log([80.0, 2.0, 0.5]), rtol=1e-12)


@pytest.mark.parametrize("sigma", [0.821, 1.526])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 40])
def test_the_stock_twin_has_the_same_levels_and_timesteps(sigma, steps):
    ours = ICTScheduler(intermediate_sigmas=[sigma])
    stock = ours.to_stock()
    assert type(stock) is CMStochasticIterativeScheduler
    ours.set_timesteps(steps)
    stock.set_timesteps(steps)
    assert torch.equal(ours.sigmas, stock.sigmas)
    assert torch.equal(ours.timesteps.float(), stock.timesteps.float())


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_steps_equal_the_stock_schedulers_bit_for_bit(steps):
    results, ours = [], ICTScheduler()
    for scheduler in (ours, ours.to_stock()):
        scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(0)
        sample = torch.randn(2, 3, 4, 4, generator=generator) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(sample, t)
            sample = scheduler.step(scaled.sin(), t, sample, generator=generator).prev_sample
        results.append(sample)
    assert torch.equal(*results)


def test_of_a_stock_scheduler_made_elsewhere_every_step_count_is_kept():
    stock = CMStochasticIterativeScheduler(num_train_timesteps=151, rho=6.0, sigma_max=60.0)
    ours = ICTScheduler.from_stock(stock)
    assert list(ours.config.intermediate_sigmas) == []
    for how in [{"num_inference_steps": n} for n in (1, 2, 3, 10)] + [{"timesteps": [88, 22, 0]}]:
        ours.set_timesteps(**how)
        stock.set_timesteps(**how)
        assert torch.equal(ours.sigmas, stock.sigmas)


def test_what_stock_cannot_express_survives_a_stock_load_and_save(tmp_path, caplog):
    ICTScheduler(intermediate_sigmas=[0.9, 4.0]).to_stock().save_pretrained(tmp_path)
    CMStochasticIterativeScheduler.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert not caplog.records, "stock diffusers warned of our key"
    path = tmp_path / "scheduler_config.json"
    config = json.loads(path.read_text())
    config["_ict"] |= {"something_new": 1}  # as a later version may write
    path.write_text(json.dumps(config))
    back = ICTScheduler.from_pretrained(tmp_path).config
    assert (list(back.intermediate_sigmas), back.rho) == ([0.9, 4.0], 7.0)


@pytest.mark.parametrize("options", [{}, {"intermediate_sigmas": (1.526, 0.3), "rho": 5.0, "clip_denoised": False}])
def test_saved_and_as_stock_a_scheduler_keeps_its_config(tmp_path, options):
    scheduler = ICTScheduler(sigma_data=0.6, **options)
    scheduler.save_pretrained(tmp_path)
    for again in (ICTScheduler.from_pretrained(tmp_path), ICTScheduler.from_stock(scheduler.to_stock())):
        for key in ICTScheduler().config:
            if not key.startswith("_"):
                before, after = scheduler.config[key], again.config[key]
                assert after == before or list(after) == list(before)


def test_intermediate_sigmas_are_added_in_order_and_used_descending():
    scheduler = ICTScheduler(intermediate_sigmas=[0.8, 5.0, 0.1])
    for levels in ([80.0], [80.0, 0.8], [80.0, 5.0, 0.8], [80.0, 5.0, 0.8, 0.1]):
        assert scheduler.sampling_sigmas(len(levels)).tolist() == levels
    for refused in ([0.001], [80.0], [0.8, 0.8]):
        with pytest.raises(ValueError, match="different numbers between sigma_min"):
            ICTScheduler(intermediate_sigmas=refused)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of"),
        ({"num_inference_steps": 1, "sigmas": [80.0]}, "exactly one of"),
        *(
            ({"num_inference_steps": number}, re.escape(f"from 1 to 40, got {number}"))
            for number in (0, 41, 2.5, True, np.True_, torch.tensor(True), np.float64(2), np.array([2]), "2")
        ),
        *(
            ({"sigmas": sigmas}, "descend and lie within")
            for sigmas in (
                [0.5, 80.0],
                [80.0, 80.0],
                [81.0],
                [80.0, 0.001],
                [],
                [80.0, float("nan")],
                ["80"],
                [True],
                [[80.0]],
                [None],
            )
        ),
        ({"timesteps": [0, 22]}, "descending integer indices"),
        ({"timesteps": [40, 0]}, "descending integer indices from 39"),
        ({"timesteps": [2.5]}, "give noise levels as sigmas"),
        ({"timesteps": [True]}, "give noise levels as sigmas"),
    ],
)
def test_bad_levels_get_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        ICTScheduler().set_timesteps(**arguments)


def test_numbers_of_numpy_and_torch_are_those_of_python(tmp_path):
    scheduler, plain = ICTScheduler(), ICTScheduler()
    for how, forms in (
        ({"num_inference_steps": 2}, (np.int64(2), np.uint8(2), np.array(2), torch.tensor(2))),
        ({"timesteps": [22, 0]}, ([np.int64(22), 0], np.array([22, 0], np.uint8), torch.tensor([22, 0]))),
        ({"sigmas": [80.0, 0.5]}, ((80, np.float32(0.5)), torch.tensor([80, 0.5], dtype=torch.bfloat16))),
    ):
        plain.set_timesteps(**how)
        for form in forms:
            scheduler.set_timesteps(**dict.fromkeys(how, form))
            assert scheduler.num_inference_steps == 2
            assert torch.equal(scheduler.sigmas, plain.sigmas)
    options = {"num_train_timesteps": 50, "sigma_max": 64.0, "rho": 5.0, "intermediate_sigmas": [0.5]}
    typed = {"num_train_timesteps": np.int64(50), "sigma_max": np.float32(64), "rho": torch.tensor(5.0)}
    made = ICTScheduler(**typed, intermediate_sigmas=np.array([0.5], np.float32))
    made.save_pretrained(tmp_path)
    again = ICTScheduler.from_pretrained(tmp_path).config
    assert {key: again[key] for key in made.config if not key.startswith("_")} == {
        key: value for key, value in ICTScheduler(**options).config.items() if not key.startswith("_")
    }
    drawn = [
        made.training_sigmas(ICT(), 3, 10, count, torch.Generator().manual_seed(0))[0] for count in (8, np.int64(8))
    ]
    assert torch.equal(*drawn)
    for wrong in ({"sigma_max": True}, {"rho": "7"}, {"num_train_timesteps": 40.0}, {"intermediate_sigmas": ["0.5"]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ICTScheduler(**wrong)
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got True"):
        made.training_sigmas(ICT(), 3, 10, True)


def test_interface_of_diffusers_schedulers():
    scheduler, sample = ICTScheduler(), torch.randn(1, 1, 2, 2)
    scheduler.set_timesteps(3)
    assert scheduler.step_index is None
    assert scheduler.begin_index is None
    scheduler.set_begin_index(1)
    scheduler.scale_model_input(sample, scheduler.timesteps[1])
    assert scheduler.step_index == 1
    assert scheduler.index_for_timestep(scheduler.timesteps[2]) == 2
    assert isinstance(scheduler.step(sample, scheduler.timesteps[1], sample, return_dict=False), tuple)
    assert scheduler.step_index == 2
    with pytest.raises(ValueError, match="integer indices"):
        scheduler.step(sample, 1, sample)


def test_add_noise_takes_timesteps_of_any_level_and_indices():
    scheduler, x, z = ICTScheduler(), torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2)
    stock = scheduler.to_stock()
    for each in (scheduler, stock):
        each.set_timesteps(2)
    here, elsewhere = torch.tensor([80.0, 0.821]), torch.tensor([3.0, 7.0])
    for given, levels in ((scheduler.timesteps, here), (torch.tensor([0, 1]), here), (c_noise(elsewhere), elsewhere)):
        torch.testing.assert_close(scheduler.add_noise(x, z, given), x + levels.view(2, 1, 1, 1) * z)
    torch.testing.assert_close(scheduler.add_noise(x, z, scheduler.timesteps), stock.add_noise(x, z, stock.timesteps))


def test_training_levels_are_neighbours_of_the_current_grid(generator):
    sigma, sigma_next = ICTScheduler().training_sigmas(ICT(), 0, 1000, 256, generator)
    grid = karras_sigmas(11)
    place = torch.searchsorted(grid, sigma)
    assert torch.equal(grid[place], sigma)
    assert torch.equal(grid[place + 1], sigma_next)
    counts = torch.bincount(place, minlength=10) / 256
    torch.testing.assert_close(counts, ICT().pair_probabilities(karras_sigmas(11)).float(), atol=0.1, rtol=0)
    sigma, _ = ICTScheduler().training_sigmas(CT(), 999, 1000, 4096, generator)
    assert len(sigma.unique()) == 150


def test_training_levels_follow_from_the_numbers_that_are_given():
    scheduler, uniform = ICTScheduler(), torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    drawn = scheduler.training_sigmas(ICT(), 3, 1000, 64, torch.Generator().manual_seed(4))
    chosen = scheduler.training_sigmas(ICT(), 3, 1000, uniform=uniform)
    assert all(torch.equal(a, b) for a, b in zip(drawn, chosen))
    ends = scheduler.training_sigmas(ICT(), 0, 1000, uniform=torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64))
    assert (ends[0][0].item(), ends[1][1].item()) == (0.002, 80.0)
    for arguments in ({}, {"batch_size": 64, "uniform": uniform}):
        with pytest.raises(ValueError, match="either batch_size or uniform"):
            scheduler.training_sigmas(ICT(), 3, 1000, **arguments)
    with pytest.raises(ValueError, match=r"at least the scheduler's sigma_min 0\.01, and the objective drew 0\.002"):
        ICTScheduler(sigma_min=0.01).training_sigmas(CT(), 0, 1000, 256)
