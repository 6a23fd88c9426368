import pytest
import torch
from conftest import make_unet

from diffusers_ict import hold_fast_columns
from diffusers_ict.training.optimization import make_optimizer, make_schedule
from diffusers_ict.training.recipe import Recipe


def test_the_first_step_of_a_process_has_the_gradients_of_any_other_to_the_sign_of_zero():
    unet = make_unet()
    hold_fast_columns(unet)  # which makes zeros of either sign
    optimizer = make_optimizer(unet, 1e-3, (0.9, 0.999))
    found = []
    for _ in range(2):
        unet(torch.ones(1, 1, 8, 8), 3.0).sample.mean().backward()
        found.append(unet.time_embedding.linear_1.weight.grad.numpy().tobytes())
        optimizer.zero_grad(set_to_none=False)
    assert found[0] == found[1]


def test_first_steps_that_fp16_skips_are_no_reason_to_warn_of_the_order():
    for precision in ("no", "fp16"):
        optimizer = make_optimizer(make_unet(), 1e-3, (0.9, 0.999))
        schedule = make_schedule(Recipe(mixed_precision=precision), optimizer, 1e-3, 0)
        if precision == "fp16":
            schedule.step()  # the optimizer has made no step yet; warnings are errors here
        else:
            with pytest.warns(UserWarning, match="Detected call of"):
                schedule.step()
