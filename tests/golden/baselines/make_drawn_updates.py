"""Golden numbers for two updates of each method that draws what it changes, and for the mean that SWAD takes.

Run with: pip install torch==2.11.0 open_clip_torch==3.3.0 safetensors==0.8.0 numpy==2.3.5; python make_drawn_updates.py
Weights and data are those of ../formula.py; what is drawn, and in which order images come, are those of draws.json, which
stages/tests/drawn_golden.rs writes. Writes drawn_updates.safetensors beside itself. What is minimised is that of docs/methods.md.
"""

import json
import pathlib
import sys

import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file

here = pathlib.Path(__file__).parent
sys.path[:0] = [str(here.parent), str(here)]
import formula
from shared import D, IMAGES, SITES, Shared, adamw, step, tensor

torch.set_num_threads(1)
ALL, N = SITES * IMAGES, 16
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float32).double().view(1, 3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float32).double().view(1, 3, 1, 1)
draws = json.loads((here / "draws.json").read_text())
shift = 0.3 * torch.arange(SITES).repeat_interleave(IMAGES).float()
out = {}


def masks(side):
    return (tensor("masks", ALL, side, side) > 0.2).long()


def pixels(side):
    return ((tensor("pixels", ALL, 3, side, side) + 1) * 127.5).round().double()


def segmentation(logits, truth):
    return F.cross_entropy(logits, truth)


def keep(method, model):
    out.update({f"{method}.{name}": change for name, change in model.changes().items()})
    out[f"losses.{method}"] = torch.tensor(model.losses)


def mixed(x, draw, axes):
    """MixStyle: statistics over `axes`, which pass no gradient, are those of the own image and of the partner in a share."""
    keeps = torch.tensor(draw["keeps"], dtype=torch.float32).double().view(-1, *[1] * (x.dim() - 1))
    mean = x.mean(axes, keepdim=True).detach()
    std = (x.var(axes, keepdim=True, unbiased=True) + 1e-6).sqrt().detach()
    other = draw["partner"]
    return (x - mean) / std * (keeps * std + (1 - keeps) * std[other]) + keeps * mean + (1 - keeps) * mean[other]


def two_updates(method, features, side, total):
    """`features(draw)`: what the frozen encoder makes of a step's batch; `total(logits, truth, model, x, step)`."""
    model = Shared()
    optimiser = adamw(list(model.v.values()))
    for number, draw in enumerate(draws[method]):
        x = features(draw)
        truth = masks(side)[draw["rows"]]
        truth = truth.repeat(len(x) // len(truth), 1, 1)
        step(model, total(model.decode(model.prepare(x), side), truth, model, x, number), optimiser)
    keep(method, model)


# MixStyle on cached maps: statistics over positions.
dense = (tensor("dense", ALL, N, D) + shift[:, None, None]).double()
two_updates("mixstyle-feature", lambda draw: mixed(dense[draw["rows"]], draw, (1,)), 16,
            lambda logits, truth, *_: segmentation(logits, truth))

# MixStyle behind the first two stages of a frozen ResNet.
text = CLIPTextCfg(context_length=77, vocab_size=8, width=64, heads=1, layers=1)
resnet = CLIP(embed_dim=D, quick_gelu=True, text_cfg=text,
              vision_cfg=CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, head_width=64, image_size=64)).eval()
formula.fill(resnet, "clip.")


@torch.no_grad()
def maps_of_resnet(draw):
    visual, last = resnet.visual, {}
    hooks = [layer.register_forward_hook(lambda _m, _i, x: mixed(x, draw, (2, 3))) for layer in (visual.layer1, visual.layer2)]
    hooks.append(visual.layer4.register_forward_hook(lambda _m, _i, x: last.update(x=x)))
    visual((pixels(64)[draw["rows"]] / 255 - MEAN) / STD)
    for hook in hooks:
        hook.remove()
    return visual.attnpool.c_proj(visual.attnpool.v_proj(last["x"].flatten(2).transpose(1, 2)))


two_updates("mixstyle", maps_of_resnet, 64, lambda logits, truth, *_: segmentation(logits, truth))

# Dense features of a frozen ViT by MaskCLIP's value path.
vit = CLIP(embed_dim=D, quick_gelu=True, text_cfg=text,
           vision_cfg=CLIPVisionCfg(layers=2, width=64, head_width=64, patch_size=16, image_size=32)).eval()
formula.fill(vit, "clip.")


@torch.no_grad()
def values(images):
    visual, before = vit.visual, {}
    block = visual.transformer.resblocks[-1]
    hook = block.register_forward_pre_hook(lambda _m, args: before.update(x=args[0]))
    visual((images / 255 - MEAN) / STD)
    hook.remove()
    x = before["x"][:, 1:]
    weight, bias = block.attn.in_proj_weight[-64:], block.attn.in_proj_bias[-64:]
    v = block.attn.out_proj(F.linear(block.ln_1(x), weight, bias)) + x
    v = v + block.mlp(block.ln_2(v))
    return visual.ln_post(v) @ visual.proj


# FACT: amplitudes in a drawn share those of an image of another site, phases their own; both halves are trained on, each held to
# what the teacher says of the other. The teacher follows behind each step.
def fact(draw):
    images = pixels(32)[draw["rows"]]
    shares = torch.tensor(draw["shares"], dtype=torch.float32).double().view(-1, 1, 1, 1)
    own, other = torch.fft.fft2(images), torch.fft.fft2(images[draw["partner"]])
    amplitude = shares * other.abs() + (1 - shares) * own.abs()
    changed = torch.fft.ifft2(amplitude * torch.exp(1j * own.angle())).real.clamp(0, 255)
    return values(torch.cat([images, changed]))


def divergence(student, teacher):
    p, q = F.log_softmax(student / 10.0, 1), F.softmax(teacher / 10.0, 1)
    return F.kl_div(p, q, reduction="none").sum(1).mean()


teacher = Shared()


def taught(logits, truth, model, x, number):
    with torch.no_grad():
        if number > 0:
            # Behind step t the momentum is the lesser of 0.9995 and 1 - 1/(t + 1).
            momentum = min(0.9995, 1 - 1 / (number + 1))
            for name, value in teacher.v.items():
                value.copy_(momentum * value + (1 - momentum) * model.v[name])
        said = teacher.decode(teacher.prepare(x), 32).chunk(2)
    own = logits.chunk(2)
    behind = 1 - min(number / 5, 1)
    weight = 2 * torch.exp(torch.tensor(-5.0 * behind**2))
    return segmentation(logits, truth) + weight * (divergence(own[1], said[0]) + divergence(own[0], said[1]))


two_updates("fourier", fact, 32, taught)


# RandConv: three draws of each image; the first is segmented, all are to agree.
def convolved(draw):
    images = pixels(32)[draw["rows"]] / 127.5 - 1
    drawn = []
    for one in draw["draws"]:
        kernel = torch.tensor(one["kernel"], dtype=torch.float32).double().view(3, 3, one["side"], one["side"])
        drawn.append(one["keeps"] * images + (1 - one["keeps"]) * F.conv2d(images, kernel, padding=one["side"] // 2))
    return values((torch.cat(drawn) + 1) * 127.5)


def agreeing(logits, truth, *_):
    each = [F.softmax(x, 1) for x in logits.chunk(3)]
    mean = (sum(each) / 3).clamp(1e-7, 1).log()
    apart = sum(F.kl_div(mean, p, reduction="none").sum(1).mean() for p in each) / 3
    return segmentation(logits.chunk(3)[0], truth.chunk(3)[0]) + 10 * apart


two_updates("randconv", convolved, 32, agreeing)

# SWAD: twelve steps of ERM, a validation behind each. Offline, as the paper states it: from the first loss that is the least of the
# N_s that begin with it to in front of the first N_e losses in a row that are all above r times the mean of those N_s.
N_S, N_E, R, STEPS = 2, 2, 1.01, 12
held = tensor("validation dense", SITES * 2, N, D).double()
held_masks = (tensor("validation masks", SITES * 2, 16, 16) < 0.2).long()
model = Shared()
optimiser = adamw(list(model.v.values()))
weights, losses = [], []
for _ in range(STEPS):
    step(model, segmentation(model.decode(model.prepare(dense), 16), masks(16)), optimiser)
    weights.append({name: value.detach().clone() for name, value in model.v.items()})
    with torch.no_grad():
        losses.append(segmentation(model.decode(model.prepare(held), 16), held_masks).item())
start = next(i for i in range(STEPS - N_S + 1) if losses[i] <= min(losses[i:i + N_S]))
threshold = R * sum(losses[start:start + N_S]) / N_S
end = next((i for i in range(start, STEPS - N_E + 1) if min(losses[i:i + N_E]) > threshold), None)
print("validation losses", [round(loss, 5) for loss in losses], "valley", start, end)
assert end is not None and end - start < STEPS - 1, "the valley must begin and end"
for name in weights[0]:
    mean = torch.stack([weights[i][name] for i in range(start, end)]).mean(0)
    out[f"swad.{name}"] = (mean - formula.weight("updates." + name, mean.shape)).float()
out["losses.swad"] = torch.tensor(model.losses)

save_file({name: value.detach().contiguous() for name, value in out.items()}, str(here / "drawn_updates.safetensors"))
