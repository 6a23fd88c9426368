"""Search for noise levels, on figures whose best levels are known."""

import math

import pytest

from diffusers_ict import ICTScheduler
from diffusers_ict.evaluation import ternary_search, tune


@pytest.mark.parametrize("best", [0.05, 0.821, 5.0, 30.0])
def test_ternary_search_finds_the_least_of_a_valley(best):
    asked = []

    def figure(sigma):
        asked.append(sigma)
        return abs(math.log(sigma / best))

    tried = ternary_search(figure, 0.02, 40.0, tolerance=0.1)
    assert abs(math.log(min(tried, key=tried.get) / best)) < 0.1
    assert len(set(asked)) == len(asked), "a level was measured twice"
    assert list(tried) == sorted(asked)
    assert all(value == abs(math.log(sigma / best)) for sigma, value in tried.items())
    # Two levels for each third that is cut off, and one in the middle of what is left.
    assert len(tried) <= 2 * math.ceil(math.log(math.log(40 / 0.02) / 0.1) / math.log(1.5)) + 1


def test_levels_are_found_one_after_another_each_below_the_last():
    """A figure that a level at 2 and one at 0.3 make least, the first of them more than the second."""

    def figure(levels, fresh):
        nearest = [min(abs(math.log(level / target)) for level in [*levels[1:], 1e-3]) for target in (2.0, 0.3)]
        return 3 * nearest[0] + nearest[1]

    assert tune(figure, ICTScheduler(), 3, tolerance=0.02)["levels"] == pytest.approx([2.0, 0.3], rel=0.05)


def test_new_levels_are_compared_with_the_old_on_noise_the_search_did_not_see():
    seen = {True: [], False: []}

    def figure(levels, fresh):
        seen[fresh].append(levels)
        assert levels[0] == 80.0
        assert levels == sorted(levels, reverse=True)
        return sum(abs(math.log(level / 3)) for level in levels[1:])

    tuned = tune(figure, ICTScheduler(), 3)
    assert tuned["levels"][0] == pytest.approx(3, rel=0.1)
    assert tuned["old_levels"]["2"] == [0.821]
    assert [80.0, 0.821] in seen[True]
    assert [80.0, *tuned["levels"]] in seen[True]
    assert tuned["adopted"]
    assert tuned["before"]["2"] == pytest.approx(abs(math.log(0.821 / 3)))
    good = tune(lambda levels, fresh: sum(abs(math.log(s / 0.821)) for s in levels[1:]), ICTScheduler(), 2)
    assert not good["adopted"]


def test_figures_of_which_higher_is_better_keep_their_sign():
    def figure(levels, fresh):
        return abs(math.log(levels[1] / 3)) - 0.5  # KID may be negative

    low = tune(figure, ICTScheduler(), 2)
    high = tune(lambda *args: -figure(*args), ICTScheduler(), 2, higher_is_better=True)
    assert low["after"]["2"] == -high["after"]["2"] < 0
    assert low["levels"] == high["levels"]
    assert low["adopted"]
    assert high["adopted"]
    assert low["tried"] == [[[sigma, -value] for sigma, value in search] for search in high["tried"]]


@pytest.mark.parametrize("wish", [0.01, 79.0])
def test_the_first_level_is_one_that_a_saved_scheduler_can_go_through(wish):
    def figure(levels, fresh):
        return sum(abs(math.log(level / wish)) for level in levels[1:])

    found = tune(figure, ICTScheduler(), 3)
    stock = ICTScheduler(intermediate_sigmas=found["levels"]).to_stock()
    stock.set_timesteps(2)
    assert stock.sigmas[1].item() == pytest.approx(found["levels"][0], rel=1e-5)
    assert found["levels"][1] < found["levels"][0]
    if wish < 1:
        assert found["levels"][1] < 0.03, "only the first level is bounded by what can be saved"
