"""Weights by a formula, the same here and in stages/tests/formula.rs: large networks are compared without files of their weights.

Value i of a tensor is drawn by a 32-bit hash of i and of the tensor's name, exact in whole numbers on both sides.
"""

import math

import numpy as np
import torch


def fnv(name):
    value = 0x811C9DC5
    for byte in name.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def uniform(name, count):
    """Between -1 and 1."""
    z = (np.arange(count, dtype=np.uint64) + np.uint64(fnv(name))) & np.uint64(0xFFFFFFFF)
    z = (z * np.uint64(0x9E3779B1)) & np.uint64(0xFFFFFFFF)
    z ^= z >> np.uint64(15)
    z = (z * np.uint64(0x85EBCA77)) & np.uint64(0xFFFFFFFF)
    z ^= z >> np.uint64(13)
    return z.astype(np.float64) / 2.0**31 - 1.0


def weight(name, shape):
    """The tensor `name` of `shape`: matrices and kernels keep the variance of what passes them, norms are near 1."""
    shape = tuple(shape)
    draw = uniform(name, math.prod(shape)).reshape(shape)
    if name.endswith("running_var"):
        draw = 1.0 + 0.3 * np.abs(draw)
    elif len(shape) > 1:
        draw = draw * math.sqrt(3.0 / math.prod(shape[1:]))
    elif name.endswith("weight"):
        draw = 1.0 + 0.2 * draw
    else:
        draw = 0.2 * draw
    # Rounded to 32 bits, whatever is calculated in.
    return torch.from_numpy(np.asarray(draw, dtype=np.float32)).to(torch.get_default_dtype())


def fill(module, prefix=""):
    """Fills a module's parameters and running statistics."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point() and name != "attn_mask":
                value.copy_(weight(prefix + name, value.shape))
