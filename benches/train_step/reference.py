"""The methods' training steps in PyTorch, as one would write them: modules, a DataLoader, the fused AdamW.

    reference.py METHOD EPOCHS WORKERS      prints the seconds of one step, of the best epoch; WORKERS of the DataLoader
    reference.py METHOD operations          prints the operations of one step, and those a second that matrix products alone reach
"""

import pathlib
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from pixels import Causal, ClipSeg, Frozen, Unet, fourier, mixstyle, randconv
from throughput import operations, peak

# Networks of their own, and methods that share the head behind a frozen encoder.
OWN = {"unet": Unet, "clipseg": ClipSeg}
FROZEN = ("mixstyle", "fourier", "randconv")
SITES, D, N, SIDE, M, K, WIDTH = 4, 512, 196, 224, 12, 3, 256
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def unit(x):
    return F.normalize(x, dim=-1)


class Rows:
    """The images of each batch: as many of each site, in a new order every epoch."""

    def __init__(self, images, batch):
        self.images, self.per_site = images, batch // SITES

    def __len__(self):
        return self.images // self.per_site

    def __iter__(self):
        order = torch.stack([torch.randperm(self.images) + s * self.images for s in range(SITES)])
        for step in range(len(self)):
            yield order[:, step * self.per_site:(step + 1) * self.per_site].reshape(-1)


class Batches(Dataset):
    """One item is one batch, gathered by index; `change` is what a method does to pixels before the model sees them."""

    def __init__(self, tensors, change=None):
        self.tensors, self.change = tensors, change

    def __getitem__(self, rows):
        pooled, seen, *rest = (tensor[rows] for tensor in self.tensors)
        return [pooled, self.change(seen) if self.change else seen, *rest]


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        block = lambda: nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GroupNorm(32, WIDTH),
            nn.ReLU(inplace=True))
        self.layers = nn.Sequential(
            nn.Conv2d(D, WIDTH, 1), block(), block(), nn.Conv2d(WIDTH, 2, 1), nn.Upsample(size=(SIDE, SIDE), mode="bilinear"))

    def forward(self, x):
        g = int(x.shape[1] ** 0.5)
        return self.layers(x.transpose(1, 2).reshape(-1, D, g, g))


class Adapter(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(D, D // 4), nn.ReLU(inplace=True), nn.Linear(D // 4, D))

    def forward(self, x):
        x = unit(x) * D**0.5
        return x + self.layers(x)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.query, self.key, self.value, self.out = (nn.Linear(D, D) for _ in range(4))
        self.ffn = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))

    def forward(self, x, z):
        heads = lambda t: t.unflatten(-1, (-1, 64)).transpose(1, 2)
        z = z.expand(len(x), -1, -1)
        mixed = F.scaled_dot_product_attention(heads(self.query(self.ln_1(x))), heads(self.key(z)), heads(self.value(z)))
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.ffn(self.ln_2(x))


class Texts(nn.Module):
    """CoOp: sixteen learned words in front of four names, through ViT-B/16's text tower."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(512, 8, 2048, 0.0, "gelu", batch_first=True, norm_first=True)
        self.tower = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False).requires_grad_(False)
        self.ln, self.projection = nn.LayerNorm(512).requires_grad_(False), torch.randn(512, D, device=DEVICE) * 0.04
        self.context = nn.Parameter(torch.randn(16, 512) * 0.02)
        self.words = torch.randn(4, 20, 512, device=DEVICE) * 0.02

    def forward(self):
        x = torch.cat([self.words[:, :1], self.context.expand(4, -1, -1), self.words[:, 17:]], 1)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=DEVICE)
        return unit(self.ln(self.tower(x, mask, is_causal=True))[:, -1] @ self.projection)


class Model(nn.Module):
    def __init__(self, method):
        super().__init__()
        self.method = method
        if method in OWN:
            self.network = OWN[method]()
        elif method == "coop":
            self.texts = Texts()
        else:
            self.adapter, self.head = Adapter(), Head()
        if method in FROZEN:
            self.frozen = Frozen()
        if method == "mcdrl":
            self.layers, self.gate = nn.ModuleList([Layer() for _ in range(3)]), nn.Parameter(torch.zeros(()))
            z, classes, targets = unit(torch.randn(M, D)), unit(torch.randn(K, D)), torch.randn(K, D)
            for name, value in (("z", z), ("classes", classes), ("targets", targets)):
                self.register_buffer(name, value)
        if method == "dann":
            self.discriminator = nn.Sequential(
                nn.Linear(D, 256), nn.ReLU(inplace=True), nn.Linear(256, 256), nn.ReLU(inplace=True), nn.Linear(256, SITES))
        self.q = torch.full((SITES,), 1 / SITES, device=DEVICE)

    def shared(self, dense):
        features = self.adapter(dense)
        return features, self.head(features)

    def loss(self, batch):
        pooled, dense, masks, labels = batch
        method = self.method
        if method in OWN:
            return self.network.loss(dense, masks)
        if method == "coop":
            maps = unit(dense) @ self.texts().T * 100
            maps = torch.cat([maps[..., :1], maps[..., 1:].logsumexp(-1, keepdim=True)], -1)
            g = int(dense.shape[1] ** 0.5)
            maps = maps.transpose(1, 2).reshape(-1, 2, g, g)
            return F.cross_entropy(F.interpolate(maps, size=(SIDE, SIDE), mode="bilinear"), masks)
        if method == "mcdrl":
            return self.mcdrl(self.adapter(pooled), self.adapter(dense), masks, labels)
        if method in FROZEN:
            dense = self.frozen(dense, mixstyle if method == "mixstyle" else None)
            masks = masks.repeat(len(dense) // len(masks), 1, 1)
        if method == "mixstyle-feature":
            dense = mixstyle(dense)
        features, logits = self.shared(dense)
        if method in ("erm", "sam", "swad", "mixstyle-feature", *FROZEN):
            return F.cross_entropy(logits, masks)
        if method == "dann":
            return F.cross_entropy(logits, masks) - self.confusion(features)
        if method == "coral":
            groups = features.mean(1).chunk(SITES)
            pairs = [((a.mean(0) - b.mean(0)) ** 2).mean() + ((a.T.cov() - b.T.cov()) ** 2).mean()
                     for i, a in enumerate(groups) for b in groups[i + 1:]]
            return F.cross_entropy(logits, masks) + torch.stack(pairs).mean()
        losses = F.cross_entropy(logits, masks, reduction="none").mean((1, 2)).view(SITES, -1)
        if method == "irm":
            scale = torch.ones(SITES, 2, 1, 1, 1, 1, device=DEVICE, requires_grad=True)
            per_site = len(logits) // SITES
            halves = logits.view(SITES, per_site // 2, 2, 2, SIDE, SIDE).transpose(1, 2) * scale
            truth = masks.view(SITES, per_site // 2, 2, SIDE, SIDE).transpose(1, 2)
            each = F.cross_entropy(halves.flatten(0, 2), truth.flatten(0, 2), reduction="none")
            sums = each.view(SITES, 2, -1).mean(-1).sum()
            (slopes,) = torch.autograd.grad(sums, scale, create_graph=True)
            return losses.mean() + slopes.view(SITES, 2).prod(1).mean()
        losses = losses.mean(1)
        if method == "groupdro":
            with torch.no_grad():
                self.q *= (0.01 * losses).exp()
                self.q /= self.q.sum()
            return (self.q * losses).sum()
        return losses.mean() + ((losses - losses.mean()) ** 2).mean()

    def confusion(self, features):
        site = torch.arange(SITES, device=DEVICE).repeat_interleave(len(features) // SITES)
        return F.cross_entropy(self.discriminator(features.mean(1)), site)

    def mcdrl(self, image, features, masks, labels):
        with torch.no_grad():
            similarity = (unit(features) @ self.classes.T).amax(-1)
            kept = similarity.sort(dim=1, descending=True, stable=True)[1][:, :(features.shape[1] + 1) // 2]
        index = kept[..., None].expand(-1, -1, D)
        x = features.gather(1, index)
        for layer in self.layers:
            x = layer(x, self.z)
        causal = ((unit(x.mean(1)) - unit(self.targets[labels])) ** 2).sum(-1).mean()
        contrast = F.cross_entropy(unit(image) @ self.classes.T / 0.5, labels)
        logits = self.head((features * self.gate).scatter(1, index, x.to(features.dtype)))
        return F.cross_entropy(logits, masks) + 0.5 * causal + 0.1 * contrast


def work(method):
    """Images of each site, images of a batch, and their side in pixels; none where features are read."""
    if method == "causalclipseg":
        return 2, 4, 96
    if method in OWN or method in FROZEN:
        return 8, 4 if method == "unet" else 8, SIDE
    return 24, 16, None


def adam(groups):
    return torch.optim.AdamW(groups, lr=0.005, weight_decay=0.01, fused=True)


def clipped_step(optimiser, params):
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimiser.step()
    for p in params:
        p.grad = None


class Training:
    """A method's model with its optimisers; `step` takes a batch."""

    def __init__(self, method):
        self.method, self.model = method, Model(method).to(DEVICE)
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.own = [p for name, p in named if not name.startswith("discriminator.")]
        self.optimiser = adam(self.own)
        self.mean, self.steps = None, 0
        if method == "dann":
            self.of_discriminator = list(self.model.discriminator.parameters())
            self.second = adam(self.of_discriminator)

    def forward(self, batch):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            return self.model.loss(batch)

    def step(self, batch):
        loss = self.forward(batch)
        loss.backward()
        if self.method == "sam":
            with torch.no_grad():
                norm = torch.nn.utils.get_total_norm([p.grad for p in self.own])
                moves = [p.grad * (0.05 / norm) for p in self.own]
                torch._foreach_add_(self.own, moves)
            self.model.zero_grad()
            self.forward(batch).backward()
            with torch.no_grad():
                torch._foreach_sub_(self.own, moves)
        clipped_step(self.optimiser, self.own)
        self.model.zero_grad()
        if self.method == "dann":
            features, _ = self.model.shared(batch[1])
            self.model.confusion(features.detach()).backward()
            clipped_step(self.second, self.of_discriminator)
            self.model.zero_grad()
        if self.method == "swad":
            with torch.no_grad():
                self.steps += 1
                if self.mean is None:
                    self.mean = [p.clone() for p in self.own]
                torch._foreach_lerp_(self.mean, self.own, 1 / self.steps)
        # What is told of every step, as everywhere.
        return loss.item()

    def end_epoch(self, held_back):
        """SWAD looks at the loss on validation images behind every epoch."""
        if self.method == "swad":
            with torch.no_grad():
                self.forward(held_back).item()


class Alternation:
    """CausalCLIPSeg: an update of all but the maskers, then one of the maskers."""

    def __init__(self, side):
        self.network = Causal(side, DEVICE)
        self.ids = torch.zeros(4, 32, dtype=torch.long, device=DEVICE)
        self.ids[:, :9] = torch.tensor([49406, 320, 6833, 335, 530, 550, 13476, 23869, 49407])
        self.network.forward(torch.zeros(4, 3, side, side, device=DEVICE), self.ids)
        variables = self.network.variables()
        of_clip = lambda name: ".backbone." in name and "positional_embedding" not in name
        self.maskers = [p for name, p in variables.items() if ".masker_" in name]
        slow = [p for name, p in variables.items() if of_clip(name)]
        fast = [p for name, p in variables.items() if ".masker_" not in name and not of_clip(name)]
        self.rest = slow + fast
        self.first, self.second = adam([{"params": fast}, {"params": slow, "lr": 0.0005}]), adam(self.maskers)

    def update(self, batch, sign, params, optimiser):
        _, pixels, masks, _ = batch
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            sup, inf = self.network.losses(pixels, masks, self.ids)
        loss = 0.5 * sup + sign * 0.5 * inf
        for p, gradient in zip(params, torch.autograd.grad(loss, params)):
            p.grad = gradient
        clipped_step(optimiser, params)
        return loss.item()

    def step(self, batch):
        self.update(batch, 1, self.rest, self.first)
        return self.update(batch, -1, self.maskers, self.second)

    def end_epoch(self, held_back):
        pass


def main():
    method, counts = sys.argv[1], sys.argv[2] == "operations"
    epochs, workers = (0, 0) if counts else (int(sys.argv[2]), int(sys.argv[3]))
    torch.manual_seed(0)
    images, batch, side = work(method)
    n = SITES * images
    seen = torch.randint(256, (n, 3, side, side), dtype=torch.uint8) if side else torch.randn(n, N, D)
    of_mask = side or SIDE
    tensors = [torch.randn(n, D), seen, (torch.randn(n, of_mask, of_mask) > 1).long(), torch.arange(n) % K]
    changes = {"fourier": lambda pixels: fourier(pixels, SITES), "randconv": randconv}
    rows = Rows(images, batch)
    loader = DataLoader(
        Batches(tensors, changes.get(method)), batch_size=None, sampler=rows, num_workers=workers, persistent_workers=workers > 0,
        pin_memory=DEVICE == "cuda")
    training = Alternation(side) if method == "causalclipseg" else Training(method)
    to_device = lambda batch: [x.to(DEVICE, non_blocking=True) for x in batch]
    if counts:
        found = to_device(next(iter(loader)))
        return print(operations(lambda: training.step(found)), peak(DEVICE))
    held_back = to_device([tensor[:SITES] for tensor in tensors])
    times = []
    for _ in range(epochs):
        began = time.perf_counter()
        for found in loader:
            training.step(to_device(found))
        training.end_epoch(held_back)
        times.append((time.perf_counter() - began) / len(rows))
    print(min(times[1:]))


if __name__ == "__main__":
    main()
