import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import DataLoader

from diffusers_ict import ICT, ICTScheduler
from diffusers_ict.data.batches import Batches
from diffusers_ict.data.dataset import Images
from diffusers_ict.data.draw import Draw, derive_seed, derive_seeds
from diffusers_ict.data.sampler import StepSampler, collate, step_indices


def test_every_draw_is_a_function_of_seed_step_and_role():
    def everything(seed=0, step=3, role=0):
        draw = Draw(seed, step, 8, "cpu", role)
        drawn = [draw.flips(), draw.pair_uniform(), draw.noise((1, 4, 4))]
        return [*drawn, draw.augmentation_uniform(3)]

    same = [torch.equal(a, b) for a, b in zip(everything(), everything())]
    assert all(same)
    for change in ({"seed": 1}, {"step": 4}, {"role": 1}):
        assert not any(torch.equal(a, b) for a, b in zip(everything(), everything(**change))), change


def test_draws_leave_the_global_generator_alone_and_do_not_depend_on_it():
    before = torch.get_rng_state()
    first = Draw(0, 0, 4, "cpu").noise((2,))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, Draw(0, 0, 4, "cpu").noise((2,)))


def test_the_noise_of_some_samples_is_that_of_the_whole_batch_and_no_more_is_drawn(monkeypatch):
    whole = Draw(5, 2, 100, "cpu").noise((1, 4, 4))
    assert whole.shape == (100, 1, 4, 4)
    assert len({tuple(one.flatten().tolist()) for one in whole}) == 100
    normal_, drawn = torch.Tensor.normal_, []
    monkeypatch.setattr(torch.Tensor, "normal_", lambda own, **how: drawn.append(len(own)) or normal_(own, **how))
    for size in (1, 7, 16, 25, 50):
        draw = Draw(5, 2, 100, "cpu")
        parts = [draw.noise((1, 4, 4), range(first, min(first + size, 100))) for first in range(0, 100, size)]
        assert torch.equal(torch.cat(parts), whole)
    drawn.clear()
    Draw(5, 2, 1024, "cpu").noise((1, 4, 4), range(256, 512))
    assert sum(drawn) == 256, "one of four processes draws a quarter"
    drawn.clear()
    draw = Draw(5, 2, 1024, "cpu")
    for first in range(0, 60, 6):
        draw.noise((1, 4, 4), range(first, first + 6))
    assert sum(drawn) == 64, "micro batches of one process draw what they share once"


def test_many_seeds_are_those_of_few():
    assert derive_seeds(5, 3, 1)[:2] == derive_seeds(2, 3, 1)
    assert derive_seeds(1, 3, 1) == [derive_seed(3, 1)]
    assert len(set(derive_seeds(1000, 3, 1))) == 1000


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order():
    length, batch = 30, 8
    drawn = np.concatenate([step_indices(0, 0, step, batch, length) for step in range(15)])
    epochs = drawn.reshape(4, 30)
    assert all(sorted(epoch.tolist()) == list(range(30)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    for change in ({"seed": 1}, {"role": 1}, {"step": 4}):
        base = {"seed": 0, "role": 0, "step": 3}
        both = [
            step_indices(**settings, batch_size=batch, length=length).tolist() for settings in (base, base | change)
        ]
        assert both[0] != both[1], change


def test_a_sampler_that_begins_later_goes_on_as_the_whole_one():
    whole = list(StepSampler(3, 1, 20, 8, 4, range(12)))
    assert len(whole) == len(StepSampler(3, 1, 20, 8, 4, range(12))) == 24
    assert list(StepSampler(3, 1, 20, 8, 4, range(5, 12))) == whole[10:]


def test_micro_batches_of_any_size_and_any_process_show_the_same_images_levels_and_noise():
    pixels = torch.randint(0, 256, (64, 1, 4, 4), dtype=torch.uint8)
    images = Images(pixels, torch.arange(64) % 3, 3)
    objective = ICT(s0=3, s1=3)

    def shown(size, ranks=1):
        rounds = []
        for rank in range(ranks):
            # What accelerate gives a process of a loader with this sampler.
            shard = BatchSamplerShard(StepSampler(5, 0, 64, 32, size, range(2, 4)), ranks, rank)
            loader = iter(DataLoader(images, batch_sampler=shard, collate_fn=collate))
            batches = Batches(loader, 32, size, rank, ranks, random_flip=True, augmented=True)
            draw = Draw(5, 2, 32, "cpu")
            levels = ICTScheduler().training_sigmas(objective, 2, 10, uniform=draw.pair_uniform())
            rounds.append(list(batches.step(draw, *levels)))
            assert len(rounds[-1]) == batches.parts == 32 // (size * ranks)
        # At each accumulation step every process takes the next micro batch.
        micro_batches = [micro_batch for together in zip(*rounds) for micro_batch in together]
        names = ("x", "labels", "noise", "sigma", "sigma_next", "uniform")
        return {name: torch.cat([getattr(batch, name) for batch in micro_batches]) for name in names}

    once = shown(32)
    for size, ranks in ((16, 1), (8, 1), (16, 2), (8, 2), (8, 4)):
        for name, value in shown(size, ranks).items():
            assert torch.equal(value, once[name]), name
    sigmas = objective.grid(2, 10)
    place = torch.searchsorted(sigmas, once["sigma"])
    assert torch.equal(once["sigma"], sigmas[place])
    assert torch.equal(once["sigma_next"], sigmas[place + 1])


def test_images_come_in_minus_one_to_one_and_flips_mirror_them():
    pixels = torch.tensor([[[[0, 255], [51, 204]]]], dtype=torch.uint8).repeat(2, 1, 1, 1)
    x, labels = Images(pixels).batch(torch.tensor([0, 1]), torch.tensor([False, True]), "cpu")
    assert labels is None
    torch.testing.assert_close(x[0, 0], torch.tensor([[-1.0, 1.0], [-0.6, 0.6]]))
    assert torch.equal(x[1], x[0].flip(-1))
