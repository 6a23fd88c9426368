"""Gradients over processes: sent in buckets while the backward pass runs, and only once in a step."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from diffusers_ict.processes import GradientMean


@pytest.fixture
def sent(monkeypatch):
    """Messages to another process that has the same gradients three times as large, and their sizes when sent."""
    sizes = []

    def all_reduce(message, async_op):
        assert async_op
        sizes.append(message.numel())
        return SimpleNamespace(wait=lambda: message.mul_(4))

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    return sizes


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 5, bias=False), nn.Linear(5, 2, bias=False))


TWO = SimpleNamespace(num_processes=2)
X = torch.arange(8.0).view(2, 4)


def test_buckets_are_sent_while_the_backward_pass_still_runs_and_hold_the_mean(sent):
    net = network()
    means = GradientMean(TWO, net.parameters(), bucket_bytes=1)
    expected = torch.autograd.grad(net(X).sum(), net.parameters())
    before = []
    net[0].weight.register_hook(lambda _: before.extend(sent))
    with means.over_processes():
        net(X).sum().backward()
    assert before == [10, 15], "the last layers wait for the first one"
    assert sent == [10, 15, 12]
    for parameter, own in zip(net.parameters(), expected):
        torch.testing.assert_close(parameter.grad, 2 * own)  # (1 + 3) / 2


def test_only_the_last_part_of_a_step_is_sent_with_what_all_parts_added_up(sent):
    net = network()
    means = GradientMean(TWO, net.parameters())
    for last in (False, True, False, True):
        with means.over_processes(last):
            net(X).sum().backward()
        assert bool(sent) == last
        if last:
            assert sent == [37], "one bucket is large enough for all"
            own = torch.autograd.grad(net(X).sum(), net.parameters())
            for parameter, gradient in zip(net.parameters(), own):
                torch.testing.assert_close(parameter.grad, 2 * 2 * gradient)
                parameter.grad = None
            sent.clear()


def test_parameters_without_a_gradient_and_frozen_ones_are_left_out(sent):
    net = network()
    net[0].requires_grad_(False)
    means = GradientMean(TWO, net.parameters(), bucket_bytes=1)
    with means.over_processes():
        net[1](torch.ones(1, 3)).sum().backward()
    assert sent == [15]
    assert net[0].weight.grad is None
    assert net[2].weight.grad is None


def test_gradients_within_gradients_are_not_sent_apart(sent):
    """As in the gradient penalty: the inner gradient is no parameter's."""
    net = network()
    means = GradientMean(TWO, net.parameters(), bucket_bytes=1)
    x = X.clone().requires_grad_()
    with means.over_processes():
        (inner,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        (inner.square().sum() + net(x).sum()).backward()
    assert sent == [10, 15, 12]


def test_one_process_sends_nothing(sent):
    net = network()
    means = GradientMean(SimpleNamespace(num_processes=1), net.parameters())
    with means.over_processes():
        net(X).sum().backward()
    assert sent == []
