"""The methods that read pixels, in PyTorch as one would write them: on a frozen ViT-B/16, or networks of their own."""

import pathlib
import sys

import open_clip
import torch
import torch.nn.functional as F
from torch import nn

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benches"), str(ROOT / "tests/golden"), str(ROOT / "tests/golden/causalclipseg")]
import tower
from network import Network

MEAN, STD = tower.MEAN, tower.STD


def normalised(pixels):
    return (pixels.float() / 255 - MEAN.to(pixels.device)) / STD.to(pixels.device)


class Unet(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        c = [width << i for i in range(5)]
        two = lambda i, o: nn.Sequential(
            nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(8, o), nn.ReLU(inplace=True),
            nn.Conv2d(o, o, 3, padding=1), nn.GroupNorm(8, o), nn.ReLU(inplace=True))
        self.down = nn.ModuleList([two(3, c[0])] + [two(c[i - 1], c[i]) for i in range(1, 5)])
        self.grow = nn.ModuleList([nn.ConvTranspose2d(c[i + 1], c[i], 2, 2) for i in range(4)])
        self.up = nn.ModuleList([two(2 * c[i], c[i]) for i in range(4)])
        self.last = nn.Conv2d(c[0], 1, 1)

    def forward(self, pixels):
        x = self.down[0](pixels.float() / 127.5 - 1)
        skips = [x]
        for down in self.down[1:]:
            skips.append(down(F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for i in (3, 2, 1, 0):
            x = self.up[i](torch.cat([skips.pop(), self.grow[i](x)], 1))
        return self.last(x)

    def loss(self, pixels, masks):
        logit = self(pixels)[:, 0]
        p, truth = logit.sigmoid(), masks.float()
        dice = 1 - (2 * (p * truth).sum((1, 2)) + 1e-5) / (p.sum((1, 2)) + truth.sum((1, 2)) + 1e-5)
        return F.binary_cross_entropy_with_logits(logit, truth) + dice.mean()


class Frozen(nn.Module):
    """The image tower, run and not trained."""

    def __init__(self):
        super().__init__()
        self.visual = open_clip.create_model(tower.MODEL).visual.eval().requires_grad_(False)

    def forward(self, pixels, mix=None):
        """Dense features; `mix` changes patches behind the first third of the blocks, as MixStyle does on a ViT."""
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            x, last = tower.in_front_of_the_last_block(self.visual, normalised(pixels), mix)
            return tower.dense(self.visual, last, x)

    def tokens(self, pixels, layers):
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            x, found = tower.embed(self.visual, normalised(pixels)), []
            for place, block in enumerate(self.visual.transformer.resblocks):
                x = block(x)
                if place in layers:
                    found.append(x)
            return found


def mixstyle(x):
    """Statistics over patches mixed within a batch: half of the batches."""
    if torch.rand(()) >= 0.5:
        return x
    mean, std = x.mean(1, keepdim=True), (x.var(1, keepdim=True) + 1e-6).sqrt()
    share = torch.distributions.Beta(0.1, 0.1).sample((len(x), 1, 1)).to(x.device)
    other = torch.randperm(len(x), device=x.device)
    return (x - mean) / std * (share * std + (1 - share) * std[other]) + share * mean + (1 - share) * mean[other]


def fourier(pixels, sites):
    """Images and their twins with amplitudes of images of other sites (FACT)."""
    images, count = pixels.float(), len(pixels)
    other = images[(torch.arange(count) + count // sites) % count]
    own, theirs = torch.fft.fft2(images), torch.fft.fft2(other)
    share = torch.rand(count, 1, 1, 1)
    mixed = torch.polar(theirs.abs() * share + own.abs() * (1 - share), own.angle())
    return torch.cat([pixels, torch.fft.ifft2(mixed).real.clamp(0, 255).to(pixels.dtype)])


def randconv(pixels):
    """Through one random convolution, mixed with the image."""
    side = int(torch.tensor([1, 3, 5, 7])[torch.randint(4, ())])
    kernel = torch.randn(3, 3, side, side) / (3 * side * side) ** 0.5
    centred, keeps = pixels.float() / 127.5 - 1, torch.rand(())
    return ((centred * keeps + F.conv2d(centred, kernel, padding=side // 2) * (1 - keeps)) + 1) * 127.5


class ClipSeg(nn.Module):
    """CLIPSeg's decoder on three layers of the frozen tower."""

    def __init__(self, width=64):
        super().__init__()
        self.frozen = Frozen()
        self.reduce = nn.ModuleList([nn.Linear(768, width) for _ in range(3)])
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(width, 4, 2048, 0.0, batch_first=True) for _ in range(3)])
        self.mul, self.add = nn.Linear(512, width), nn.Linear(512, width)
        self.grow = nn.ConvTranspose2d(width, 1, 16, 16)
        self.register_buffer("text", torch.randn(1, 512))

    def loss(self, pixels, masks):
        x = 0
        for place, tokens in enumerate(reversed(self.frozen.tokens(pixels, (3, 7, 9)))):
            x = x + self.reduce[place](tokens)
            if place == 0:
                x = x * self.mul(self.text)[:, None] + self.add(self.text)[:, None]
            x = self.layers[place](x)
        grid = int((x.shape[1] - 1) ** 0.5)
        logit = self.grow(x[:, 1:].transpose(1, 2).unflatten(2, (grid, grid)))[:, 0]
        return F.binary_cross_entropy_with_logits(logit, masks.float())


class Causal(Network):
    """CausalCLIPSeg on RN50, the kernels of all images in one grouped convolution, sentences of 32 tokens."""

    def __init__(self, side, device):
        super().__init__((3, 4, 6, 3), 64, 1024, side, vocabulary=49408, trains=True)
        self.clip.positional_embedding = nn.Parameter(self.clip.positional_embedding[:32])
        self.clip.attn_mask = self.clip.attn_mask[:32, :32]
        self.clip.to(device)
        self.device = device

    def p(self, name, *shape):
        if name not in self.made:
            made = super().p(name, *shape).detach().to(self.device).requires_grad_("running" not in name)
            self.made[name] = made
        return self.made[name]

    def projector(self, name, x, state):
        inside, count = self.c // 2, len(x)
        for place, out in ((0, self.c), (1, inside)):
            x = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
            x = F.relu(self.conv_norm(f"{name}.{place}", x, out, 3))
        x = self.conv(name + ".mix", x, inside, 1)
        words = F.linear(state, self.p(name + ".text.weight", inside * 9 + 1, self.embed), self.p(name + ".text.bias", inside * 9 + 1))
        kernels, shifts = words[:, :-1].reshape(count, inside, 3, 3), words[:, -1]
        return F.conv2d(x.reshape(1, count * inside, *x.shape[2:]), kernels, shifts, padding=1, groups=count).transpose(0, 1)

    def losses(self, pixels, masks, ids):
        truth = masks.float()[:, None]
        sup, inf, _ = self.forward(normalised(pixels), ids)
        return [F.binary_cross_entropy_with_logits(logits, truth) for logits in (sup, inf)]
