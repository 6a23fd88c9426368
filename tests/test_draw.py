import torch

from diffusers_ict.training.batch import GlobalBatch
from diffusers_ict.training.draw import Draw
from diffusers_ict.training.images import Images


def test_every_draw_is_a_function_of_seed_step_and_player():
    def everything(seed=0, step=3, player=0):
        draw = Draw(seed, step, 8, "cpu", player)
        p = torch.full((10,), 0.1, dtype=torch.float64)
        return [draw.indices(100), draw.flips(), draw.pairs(p), draw.noise((1, 4, 4)), draw.uniform(3)]

    same = [torch.equal(a, b) for a, b in zip(everything(), everything())]
    assert all(same)
    for change in ({"seed": 1}, {"step": 4}, {"player": 1}):
        assert not any(torch.equal(a, b) for a, b in zip(everything(), everything(**change))), change


def test_draws_leave_the_global_generator_alone_and_do_not_depend_on_it():
    before = torch.get_rng_state()
    first = Draw(0, 0, 4, "cpu").noise((2,))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, Draw(0, 0, 4, "cpu").noise((2,)))


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order():
    length, batch = 30, 8
    drawn = torch.cat([Draw(0, step, batch, "cpu").indices(length) for step in range(15)])
    epochs = drawn.view(4, 30)
    assert all(sorted(epoch.tolist()) == list(range(30)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_parts_of_any_size_show_the_same_images_levels_and_noise():
    pixels = torch.randint(0, 256, (64, 1, 4, 4), dtype=torch.uint8)
    images = Images(pixels, torch.arange(64) % 3, 3)
    sigmas = torch.tensor([0.002, 1.0, 5.0, 80.0], dtype=torch.float64)
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)

    def shown(size):
        whole = GlobalBatch(Draw(5, 2, 32, "cpu"), images, sigmas, p, random_flip=True, augmented=True)
        parts = [whole.part(number, size) for number in range(32 // size)]
        names = ("x", "labels", "noise", "sigma", "sigma_next", "index_next", "uniform")
        return {name: torch.cat([getattr(part, name) for part in parts]) for name in names}

    once = shown(32)
    for size in (16, 8):
        for name, value in shown(size).items():
            assert torch.equal(value, once[name]), name
    assert torch.equal(once["sigma_next"], sigmas[once["index_next"]])
    assert torch.equal(once["sigma"], sigmas[once["index_next"] - 1])


def test_images_come_in_minus_one_to_one_and_flips_mirror_them():
    pixels = torch.tensor([[[[0, 255], [51, 204]]]], dtype=torch.uint8).repeat(2, 1, 1, 1)
    x, labels = Images(pixels).batch(torch.tensor([0, 1]), torch.tensor([False, True]), "cpu")
    assert labels is None
    torch.testing.assert_close(x[0, 0], torch.tensor([[-1.0, 1.0], [-0.6, 0.6]]))
    assert torch.equal(x[1], x[0].flip(-1))
