"""Golden numbers for networks, augmentations and scores that have a published implementation.

Run with: pip install torch==2.11.0 transformers==5.23.0 monai==1.6.1 medpy==0.5.2 scipy==1.16.3 safetensors==0.8.0 numpy==2.3.5; python make_networks.py
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
from safetensors.torch import save_file
from scipy.ndimage import binary_erosion, distance_transform_edt

here = pathlib.Path(__file__).parent
sys.path[:0] = [str(here.parent), str(here)]
from formula import uniform
from networks import Unet, clipseg_decoder, clipseg_variables, fill, unet_variables

torch.set_num_threads(1)
out = {}


def tensor(name, *shape):
    return torch.from_numpy(uniform(name, int(np.prod(shape))).astype("float32")).view(shape)


unet = Unet(8).eval()
fill(unet_variables(unet), "unet.")
with torch.no_grad():
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

decoder = clipseg_decoder(vision=32, projection=24, side=48, patch=16, layers=3, width=16).eval()
fill(clipseg_variables(decoder), "clipseg.")
with torch.no_grad():
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


def joined(predicted, truth):
    """95th percentile and mean of the distances of both outlines' pixels to the other outline, by scipy alone."""
    of = [mask & ~binary_erosion(mask) for mask in (predicted, truth)]
    distances = np.hstack([distance_transform_edt(~of[1 - side])[of[side]] for side in (0, 1)])
    return np.percentile(distances, 95), distances.mean()


scores, overlaps = [], []
for case in range(6):
    cx, cy, r, dx, dy, s = 24 + 40 * uniform(f"blob {case}", 6) / 4
    truth = ((xx - cx) ** 2 / 90 + (yy - cy) ** 2 / 60 < 1) | ((xx - 10) ** 2 + (yy - 12) ** 2 < 9 * (case % 2))
    predicted = ((xx - dx) ** 2 / 70 + (yy - dy) ** 2 / 80 < 1) | (xx < case)
    both = [torch.from_numpy(m[None, None].astype("float32")) for m in (predicted, truth)]
    nsd = compute_surface_dice(*both, class_thresholds=[2.0], include_background=True).item()
    overlaps.append([dc(predicted, truth), jc(predicted, truth)])
    assert np.allclose(overlaps[-1], [compute_dice(*both).item(), compute_iou(*both).item()])
    assert np.allclose([hd95(predicted, truth), assd(predicted, truth)], joined(predicted, truth))
    scores.append([hd95(predicted, truth), assd(predicted, truth), nsd])
    out[f"blob_{case}_predicted"], out[f"blob_{case}_truth"] = (torch.from_numpy(m.astype("int64")) for m in (predicted, truth))
    print(case, scores[-1])

# Empty masks: what MONAI gives where it is told not to leave them out (Dice, IoU), of both empty, of the prediction and of the truth
# alone. Distances have no number there: MedPy refuses them, MONAI's surface Dice of two empty masks is none; docs/methods.md says ours.
nothing, something = np.zeros((48, 48), bool), (xx - 20) ** 2 + (yy - 20) ** 2 < 50
empties = []
for predicted, truth in ((nothing, nothing), (nothing, something), (something, nothing)):
    both = [torch.from_numpy(m[None, None].astype("float32")) for m in (predicted, truth)]
    empties.append([metric(*both, ignore_empty=False).item() for metric in (compute_dice, compute_iou)])
    try:
        hd95(predicted, truth)
        raise SystemExit("MedPy measures a distance from nothing")
    except RuntimeError:
        pass
assert torch.isnan(compute_surface_dice(*[torch.zeros(1, 1, 48, 48)] * 2, class_thresholds=[2.0], include_background=True)).all()
out["overlap_of_empties"] = torch.tensor(empties, dtype=torch.float64)
out["overlap"] = torch.tensor(overlaps, dtype=torch.float64)
out["surface"] = torch.tensor(scores, dtype=torch.float64)
save_file({k: v.detach().contiguous() for k, v in out.items()}, str(here / "networks.safetensors"))
