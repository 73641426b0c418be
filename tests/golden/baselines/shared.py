"""What methods that share the head are made of, for the references: adapter, head, one step of AdamW; data by ../formula.py.

Everything is calculated in 64 bits: where gradients are next to nothing, 32 leave AdamW's direction to rounding.
"""

import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from formula import uniform, weight

torch.set_default_dtype(torch.float64)
SITES, IMAGES, D, WIDTH, LR = 2, 4, 64, 16, 0.01


def tensor(name, *shape):
    """In 32 bits, as data come."""
    return torch.from_numpy(uniform(name, int(np.prod(shape))).astype("float32")).view(shape)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


class Shared:
    """Adapter and head; `extra` are the method's own variables."""

    def __init__(self, extra=()):
        shapes = {
            "head.reduce.weight": (WIDTH, D, 1, 1), "head.reduce.bias": (WIDTH,),
            "head.classify.weight": (2, WIDTH, 1, 1), "head.classify.bias": (2,),
            "adapter.down.weight": (D // 4, D), "adapter.down.bias": (D // 4,),
            "adapter.up.weight": (D, D // 4), "adapter.up.bias": (D,),
        }
        for b in ("head.block1", "head.block2"):
            shapes |= {f"{b}.conv.weight": (WIDTH, WIDTH, 3, 3), f"{b}.conv.bias": (WIDTH,),
                       f"{b}.norm.weight": (WIDTH,), f"{b}.norm.bias": (WIDTH,)}
        shapes |= dict(extra)
        self.v = {name: weight("updates." + name, shape).requires_grad_() for name, shape in shapes.items()}
        self.losses = []

    def changes(self):
        """What updates have added to each variable."""
        return {name: (value.detach() - weight("updates." + name, value.shape)).float() for name, value in self.v.items()}

    def prepare(self, x):
        x = unit(x) * D**0.5
        hidden = F.linear(x, self.v["adapter.down.weight"], self.v["adapter.down.bias"]).relu()
        return x + F.linear(hidden, self.v["adapter.up.weight"], self.v["adapter.up.bias"])

    def decode(self, features, side):
        g = int(features.shape[1] ** 0.5)
        x = features.transpose(1, 2).reshape(-1, D, g, g)
        x = F.conv2d(x, self.v["head.reduce.weight"], self.v["head.reduce.bias"])
        for b in ("head.block1", "head.block2"):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.conv2d(x, self.v[f"{b}.conv.weight"], self.v[f"{b}.conv.bias"], padding=1)
            x = F.group_norm(x, 4, self.v[f"{b}.norm.weight"], self.v[f"{b}.norm.bias"]).relu()
        x = F.conv2d(x, self.v["head.classify.weight"], self.v["head.classify.bias"])
        return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)

    def linear(self, name, x):
        return F.linear(x, self.v[name + ".weight"], self.v[name + ".bias"])

    def norm(self, name, x):
        return F.layer_norm(x, (x.shape[-1],), self.v[name + ".weight"], self.v[name + ".bias"], 1e-5)


def adamw(chosen):
    return torch.optim.AdamW(chosen, lr=LR, weight_decay=0.01)


def step(model, loss, optimiser):
    """One step of AdamW behind gradients clipped at norm 1."""
    for v in model.v.values():
        v.grad = None
    loss.backward()
    model.losses.append(loss.item())
    torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 1.0)
    optimiser.step()
