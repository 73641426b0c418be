"""Golden numbers for networks, augmentations and scores that have a published implementation.

Run with: pip install torch==2.11.0 transformers==5.23.0 monai==1.6.1 medpy==0.5.2 scipy safetensors numpy; python make_networks.py
Weights are those of ../formula.py. Writes networks.safetensors beside itself.
"""

import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
from medpy.metric.binary import assd, dc, hd95, jc
from monai.losses import DiceLoss
from monai.metrics import compute_dice, compute_iou, compute_surface_dice
from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from safetensors.torch import save_file

here = pathlib.Path(__file__).parent
sys.path.insert(0, str(here.parent))
from formula import uniform, weight

torch.set_num_threads(1)
out = {}


def tensor(name, *shape):
    return torch.from_numpy(uniform(name, int(np.prod(shape))).astype("float32")).view(shape)


# U-Net of MONAI's blocks, halving channels on every level.
WIDTH = 8
norm = ("group", {"num_groups": 8})
make = dict(act="relu", norm=norm, bias=True)


class Unet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        c = [WIDTH << i for i in range(5)]
        self.down_0 = TwoConv(2, 3, c[0], **make)
        for i in range(1, 5):
            setattr(self, f"down_{i}", Down(2, c[i - 1], c[i], **make))
        for i in (3, 2, 1, 0):
            setattr(self, f"up_{i}", UpCat(2, c[i + 1], c[i], c[i], upsample="deconv", **make))
        self.last = torch.nn.Conv2d(c[0], 1, 1)

    def forward(self, x):
        skips = [self.down_0(x)]
        for i in range(1, 5):
            skips.append(getattr(self, f"down_{i}")(skips[-1]))
        x = skips.pop()
        for i in (3, 2, 1, 0):
            x = getattr(self, f"up_{i}")(x, skips.pop())
        return self.last(x)


def ours(name):
    """MONAI's name of a parameter to the one in model/unet.rs."""
    parts = name.replace("convs.conv_0", "convs.0").replace("convs.conv_1", "convs.1").split(".")
    level, leaf = parts[0], parts[-1]
    if level == "last":
        return name
    if "upsample" in parts:
        return f"{level}.grow.{leaf}"
    number = "0" if "conv_0" in name else "1"
    what = "norm" if "adn" in name else "conv"
    prefix = f"{level}.convs" if level.startswith("up") else level
    return f"{prefix}.{what}_{number}.{leaf}"


unet = Unet().eval()
with torch.no_grad():
    for name, value in unet.state_dict().items():
        value.copy_(weight("unet." + ours(name), value.shape))
    for side in (32, 40):
        images = tensor(f"images {side}", 2, 3, side, side)
        out[f"unet_{side}"] = unet(images)

# MONAI's Dice loss.
logits = (tensor("dice logits", 3, 1, 12, 12) * 2).requires_grad_()
masks = (tensor("dice masks", 3, 1, 12, 12) > 0.3).float()
masks[2] = 0
loss = DiceLoss(sigmoid=True)(logits, masks)
loss.backward()
out["dice"], out["dice_gradient"] = loss.detach(), logits.grad

# CLIPSeg's decoder as transformers has it, without its complex upsampling.
from transformers import CLIPSegConfig
from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoder

config = CLIPSegConfig(
    vision_config=dict(hidden_size=32, image_size=48, patch_size=16, num_hidden_layers=4, num_attention_heads=2),
    projection_dim=24, reduce_dim=16, extract_layers=[0, 1, 2], decoder_num_attention_heads=4,
    decoder_intermediate_size=2048, decoder_attention_dropout=0.0, decoder_hidden_act="relu",
)
decoder = CLIPSegDecoder(config).eval()
with torch.no_grad():
    decoder.film_mul.weight.copy_(weight("clipseg.film_mul.weight", decoder.film_mul.weight.shape))
    decoder.film_mul.bias.copy_(weight("clipseg.film_mul.bias", decoder.film_mul.bias.shape))
    decoder.film_add.weight.copy_(weight("clipseg.film_add.weight", decoder.film_add.weight.shape))
    decoder.film_add.bias.copy_(weight("clipseg.film_add.bias", decoder.film_add.bias.shape))
    decoder.transposed_convolution.weight.copy_(weight("clipseg.trans_conv.weight", (16, 1, 16, 16)))
    decoder.transposed_convolution.bias.copy_(weight("clipseg.trans_conv.bias", (1,)))
    for i, (reduce, layer) in enumerate(zip(decoder.reduces, decoder.layers)):
        reduce.weight.copy_(weight(f"clipseg.reduces_{i}.weight", reduce.weight.shape))
        reduce.bias.copy_(weight(f"clipseg.reduces_{i}.bias", reduce.bias.shape))
        name = f"clipseg.blocks_{i}"
        packed = weight(f"{name}.self_attn.in_proj_weight", (48, 16)), weight(f"{name}.self_attn.in_proj_bias", (48,))
        for place, letter in enumerate("qkv"):
            projection = getattr(layer.self_attn, f"{letter}_proj")
            projection.weight.copy_(packed[0][16 * place:16 * place + 16])
            projection.bias.copy_(packed[1][16 * place:16 * place + 16])
        pairs = [(layer.self_attn.out_proj, "self_attn.out_proj"), (layer.mlp.fc1, "linear1"), (layer.mlp.fc2, "linear2"),
                 (layer.layer_norm1, "norm1"), (layer.layer_norm2, "norm2")]
        for module, place in pairs:
            module.weight.copy_(weight(f"{name}.{place}.weight", module.weight.shape))
            module.bias.copy_(weight(f"{name}.{place}.bias", module.bias.shape))
    tokens = [tensor(f"tokens {i}", 2, 10, 32) for i in range(3)]
    text = tensor("text", 2, 24)
    out["clipseg"] = decoder(tuple(tokens), text)[0].reshape(2, 1, 48, 48)

# MixStyle, Fourier amplitude mixing (FACT) and FDA, by NumPy.
x = tensor("style", 3, 4, 5, 5) * 2 + 0.5
keeps, partner = torch.tensor([0.2, 0.9, 0.5]), torch.tensor([2, 0, 1])
mean, std = x.mean((2, 3), keepdim=True), (x.var((2, 3), keepdim=True) + 1e-6).sqrt()
k = keeps.view(3, 1, 1, 1)
out["mixstyle"] = (x - mean) / std * (k * std + (1 - k) * std[partner]) + k * mean + (1 - k) * mean[partner]

images = ((tensor("fourier", 2, 3, 16, 16) + 1) * 127.5).double().numpy()
a, b = images, images[::-1]
shares = np.array([0.25, 0.75]).reshape(2, 1, 1, 1)
fa, fb = np.fft.fft2(a), np.fft.fft2(b)
mixed = np.fft.ifft2((shares * np.abs(fb) + (1 - shares) * np.abs(fa)) * np.exp(1j * np.angle(fa))).real
out["fact"] = torch.from_numpy(np.clip(mixed, 0, 255)).float()
low = np.fft.fftshift(np.abs(fa), (-2, -1))
half, centre = int(np.floor(16 * 0.09)), 8
low[..., centre - half:centre + half + 1, centre - half:centre + half + 1] = np.fft.fftshift(np.abs(fb), (-2, -1))[
    ..., centre - half:centre + half + 1, centre - half:centre + half + 1]
fda = np.fft.ifft2(np.fft.ifftshift(low, (-2, -1)) * np.exp(1j * np.angle(fa))).real
out["fda"] = torch.from_numpy(np.clip(fda, 0, 255)).float()

# Blobs: Dice and IoU, on which MedPy and MONAI agree; MedPy's HD95 and ASSD, MONAI's surface Dice at two pixels.
yy, xx = np.mgrid[0:48, 0:48]
scores, overlaps = [], []
for case in range(6):
    cx, cy, r, dx, dy, s = 24 + 40 * uniform(f"blob {case}", 6) / 4
    truth = ((xx - cx) ** 2 / 90 + (yy - cy) ** 2 / 60 < 1) | ((xx - 10) ** 2 + (yy - 12) ** 2 < 9 * (case % 2))
    predicted = ((xx - dx) ** 2 / 70 + (yy - dy) ** 2 / 80 < 1) | (xx < case)
    both = [torch.from_numpy(m[None, None].astype("float32")) for m in (predicted, truth)]
    nsd = compute_surface_dice(*both, class_thresholds=[2.0], include_background=True).item()
    overlaps.append([dc(predicted, truth), jc(predicted, truth)])
    assert np.allclose(overlaps[-1], [compute_dice(*both).item(), compute_iou(*both).item()])
    scores.append([hd95(predicted, truth), assd(predicted, truth), nsd])
    out[f"blob_{case}_predicted"], out[f"blob_{case}_truth"] = (torch.from_numpy(m.astype("int64")) for m in (predicted, truth))
    print(case, scores[-1])
out["overlap"] = torch.tensor(overlaps, dtype=torch.float64)
out["surface"] = torch.tensor(scores, dtype=torch.float64)
save_file({k: v.detach().contiguous() for k, v in out.items()}, str(here / "networks.safetensors"))
