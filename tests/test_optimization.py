import torch
from conftest import make_unet

from diffusers_ict import hold_fast_columns
from diffusers_ict.training.optimization import make_optimizer


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
