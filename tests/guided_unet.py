"""The UNet of openai/consistency_models written from its formulas, on a state dict of its own layout.

`make` invents such a state dict; `forward` computes with it, module by module, without any library of models.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def make(widths, attends, layers, *, channels=3, classes=None, scale_shift=True, resnet_resampling=True, seed=0):
    """Random weights by the names of that layout."""
    state: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    time = 4 * widths[0]

    def put(name, *shape):
        fan_in = math.prod(shape[1:])
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) / fan_in**0.5
        state[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1

    def norm(name, width):
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(width, generator=generator)

    def resnet(name, given, out):
        norm(f"{name}.in_layers.0", given)
        put(f"{name}.in_layers.2", out, given, 3, 3)
        put(f"{name}.emb_layers.1", out * (2 if scale_shift else 1), time)
        norm(f"{name}.out_layers.0", out)
        put(f"{name}.out_layers.3", out, out, 3, 3)
        if given != out:
            put(f"{name}.skip_connection", out, given, 1, 1)

    def resample(name, kind):
        if resnet_resampling:
            resnet(name, width, width)
        else:
            put(f"{name}.{kind}", width, width, 3, 3)

    def attention(name, width):
        norm(f"{name}.norm", width)
        put(f"{name}.qkv", 3 * width, width, 1)
        put(f"{name}.proj_out", width, width, 1)

    put("time_embed.0", time, widths[0])
    put("time_embed.2", time, time)
    if classes:
        state["label_emb.weight"] = torch.randn(classes, time, generator=generator)
    put("input_blocks.0.0", widths[0], channels, 3, 3)
    skips, width, number = [widths[0]], widths[0], 1
    for level, (out, attend) in enumerate(zip(widths, attends)):
        for _ in range(layers):
            resnet(f"input_blocks.{number}.0", width, out)
            width = out
            if attend:
                attention(f"input_blocks.{number}.1", width)
            skips.append(width)
            number += 1
        if level < len(widths) - 1:
            resample(f"input_blocks.{number}.0", "op")
            skips.append(width)
            number += 1
    resnet("middle_block.0", width, width)
    attention("middle_block.1", width)
    resnet("middle_block.2", width, width)
    number = 0
    for level in reversed(range(len(widths))):
        for layer in range(layers + 1):
            resnet(f"output_blocks.{number}.0", width + skips.pop(), widths[level])
            width = widths[level]
            if attends[level]:
                attention(f"output_blocks.{number}.1", width)
            if level and layer == layers:
                resample(f"output_blocks.{number}.{2 if attends[level] else 1}", "conv")
            number += 1
    norm("out.0", width)
    put("out.2", channels, width, 3, 3)
    return state


def forward(state, x, timesteps, labels=None, *, head_dim, down_at, up_at):
    """The network's output for x [B, C, H, W] at timesteps [B].

    `down_at`, `up_at`: numbers of the input blocks that halve the size and of the output blocks that double it.
    """

    def layer(name, h, **options):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        if weight.ndim == 2:
            return F.linear(h, weight, bias)
        return (F.conv1d if weight.ndim == 3 else F.conv2d)(h, weight, bias, **options)

    def norm(name, h):
        return F.group_norm(h, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def resnet(name, x, emb, resample=lambda h: h):
        h = layer(f"{name}.in_layers.2", resample(F.silu(norm(f"{name}.in_layers.0", x))), padding=1)
        told = layer(f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
        if told.shape[1] == 2 * h.shape[1]:
            scale, shift = told.chunk(2, dim=1)
            h = norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = norm(f"{name}.out_layers.0", h + told)
        h = layer(f"{name}.out_layers.3", F.silu(h), padding=1)
        x = resample(x)
        return h + (layer(f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in state else x)

    def attention(name, x):
        b, c, height, width = x.shape
        qkv = layer(f"{name}.qkv", norm(f"{name}.norm", x).reshape(b, c, -1))
        q, k, v = (part.reshape(b, c // head_dim, head_dim, -1) for part in qkv.chunk(3, dim=1))
        weights = torch.softmax(torch.einsum("bhct,bhcs->bhts", q, k) / head_dim**0.5, dim=-1)
        out = torch.einsum("bhts,bhcs->bhct", weights, v).reshape(b, c, -1)
        return x + layer(f"{name}.proj_out", out).reshape(b, c, height, width)

    def double(h):
        return h.repeat_interleave(2, -1).repeat_interleave(2, -2)

    width = len(state["input_blocks.0.0.weight"])
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    angles = timesteps[:, None].float() * frequencies
    emb = layer("time_embed.2", F.silu(layer("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))))
    if labels is not None:
        emb = emb + state["label_emb.weight"][labels]

    h = layer("input_blocks.0.0", x, padding=1)
    skips, number = [h], 1
    while any(key.startswith(f"input_blocks.{number}.") for key in state):
        name = f"input_blocks.{number}"
        if f"{name}.0.op.weight" in state:
            h = layer(f"{name}.0.op", h, stride=2, padding=1)
        else:
            h = resnet(f"{name}.0", h, emb, (lambda h: F.avg_pool2d(h, 2)) if number in down_at else lambda h: h)
        if f"{name}.1.qkv.weight" in state:
            h = attention(f"{name}.1", h)
        skips.append(h)
        number += 1
    h = resnet("middle_block.2", attention("middle_block.1", resnet("middle_block.0", h, emb)), emb)
    number = 0
    while skips:
        name = f"output_blocks.{number}"
        h = resnet(f"{name}.0", torch.cat([h, skips.pop()], 1), emb)
        place = 1
        if f"{name}.1.qkv.weight" in state:
            h, place = attention(f"{name}.1", h), 2
        if number in up_at:
            if f"{name}.{place}.conv.weight" in state:
                h = layer(f"{name}.{place}.conv", double(h), padding=1)
            else:
                h = resnet(f"{name}.{place}", h, emb, double)
        number += 1
    return layer("out.2", F.silu(norm("out.0", h)), padding=1)
