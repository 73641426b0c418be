"""Golden numbers for CausalCLIPSeg: the whole forward pass, written from its description, on open_clip's ResNet and text tower.

Run with: pip install torch==2.11.0 open_clip_torch==3.3.0 safetensors numpy; python make.py
Weights are those of ../formula.py; expected.safetensors holds logits of both branches, every eighth pixel, and counts of parameters.
"""

import pathlib
import sys

import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file

here = pathlib.Path(__file__).parent
sys.path.insert(0, str(here.parent))
from formula import fill, uniform, weight

torch.set_num_threads(2)


class Network:
    """CausalCLIPSeg by its description: every tensor is made by name where it is used."""

    def __init__(self, layers, width, embed, side):
        heads = width * 32 // 64
        text = CLIPTextCfg(context_length=77, vocab_size=600, width=512 if width == 64 else 64,
                           heads=8 if width == 64 else 1, layers=12 if width == 64 else 2)
        self.clip = CLIP(embed_dim=embed, quick_gelu=True, text_cfg=text,
                         vision_cfg=CLIPVisionCfg(layers=layers, width=width, head_width=64, image_size=side)).eval()
        fill(self.clip, "method.backbone.")
        self.heads, self.c, self.embed, self.counts = heads, width * 8, embed, {}

    def p(self, name, *shape):
        part = name.split(".")[0]
        if "running" not in name:
            self.counts.setdefault(part, {})[name] = torch.Size(shape).numel()
        return weight("method." + name, shape)

    def norm(self, name, x):
        c = x.shape[1]
        return F.batch_norm(x, self.p(name + ".running_mean", c), self.p(name + ".running_var", c),
                            self.p(name + ".weight", c), self.p(name + ".bias", c), False, 0.0, 1e-5)

    def conv_norm(self, name, x, out, kernel):
        y = F.conv2d(x, self.p(name + ".conv.weight", out, x.shape[1], kernel, kernel), padding=kernel // 2)
        return self.norm(name + ".norm", y)

    def conv(self, name, x, out, kernel):
        return F.conv2d(x, self.p(name + ".weight", out, x.shape[1], kernel, kernel), self.p(name + ".bias", out),
                        padding=kernel // 2)

    def backbone(self, images):
        visual, maps = self.clip.visual, {}
        hooks = [getattr(visual, f"layer{n}").register_forward_hook(lambda _m, _i, o, n=n: maps.update({n: o})) for n in (2, 3, 4)]
        x = visual.stem(images)
        for n in (1, 2, 3, 4):
            x = getattr(visual, f"layer{n}")(x)
        [hook.remove() for hook in hooks]
        pool, last = visual.attnpool, maps[4]
        grid = int((pool.positional_embedding.shape[0] - 1) ** 0.5)
        places = pool.positional_embedding[1:].T.reshape(1, -1, grid, grid)
        places = F.interpolate(places, size=last.shape[2:], mode="bicubic", align_corners=False)
        tokens = (last + places).flatten(2).transpose(1, 2)
        q, k, v = pool.q_proj(tokens), pool.k_proj(tokens), pool.v_proj(tokens)
        split = lambda t: t.unflatten(2, (self.heads, 64)).transpose(1, 2)
        scores = (split(q) @ split(k).transpose(2, 3)) / 8.0
        mixed = (scores.softmax(-1) @ split(v)).transpose(1, 2).flatten(2)
        attended = pool.c_proj(mixed).transpose(1, 2).unflatten(2, last.shape[2:])
        v5 = F.relu(attended + self.conv_norm("neck.shortcut", last, self.embed, 1))
        return maps[2], maps[3], v5

    def carafe(self, x):
        b, c, h, w = x.shape
        kernels = self.conv("neck.carafe.encode", self.conv("neck.carafe.down", x, c // 4, 1), 36, 3)
        kernels = F.pixel_shuffle(kernels, 2).softmax(1)
        padded = F.pad(x, (1, 1, 1, 1))
        out = torch.zeros(b, c, 2 * h, 2 * w)
        for dy in range(3):
            for dx in range(3):
                source = padded[:, :, dy:dy + h, dx:dx + w].repeat_interleave(2, 2).repeat_interleave(2, 3)
                out += source * kernels[:, 3 * dy + dx].unsqueeze(1)
        return self.conv("neck.carafe.out", out, c, 1)

    def masker(self, name, x):
        def coordinates(x):
            b, _, h, w = x.shape
            xs = torch.linspace(-1, 1, w).expand(b, 1, h, w)
            ys = torch.linspace(-1, 1, h).view(h, 1).expand(b, 1, h, w)
            return torch.cat([x, xs, ys], 1)

        x = F.relu(self.conv_norm(name + ".0", coordinates(x), self.c, 3))
        x = F.relu(self.conv_norm(name + ".1", x, self.c, 3))
        x = F.relu(self.conv_norm(name + ".2", coordinates(x), self.c, 3))
        return torch.sigmoid(self.norm(name + ".norm", self.conv(name + ".last", x, self.c, 3)))

    def projector(self, name, x, state):
        inside = self.c // 2
        for place, out in ((0, self.c), (1, inside)):
            x = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
            x = F.relu(self.conv_norm(f"{name}.{place}", x, out, 3))
        x = self.conv(name + ".mix", x, inside, 1)
        words = F.linear(state, self.p(name + ".text.weight", inside * 9 + 1, self.embed), self.p(name + ".text.bias", inside * 9 + 1))
        return torch.cat([F.conv2d(x[i:i + 1], words[i, :-1].view(1, inside, 3, 3), words[i, -1:], padding=1)
                          for i in range(x.shape[0])])

    def forward(self, images, ids):
        v3, v4, v5 = self.backbone(images)
        state = self.clip.encode_text(ids)
        if self.embed != self.c:
            v5 = F.relu(self.conv_norm("neck.adapter", v5, self.c, 1))
        f4 = F.relu(self.conv_norm("neck.fourth_0", v4, self.c, 3))
        features = [F.avg_pool2d(v3, 2), F.relu(self.conv_norm("neck.fourth_1", f4, self.c, 3)), self.carafe(v5)]
        masks = [self.masker(f"neck.masker_{n}", f) for n, f in zip((3, 4, 5), features)]
        join = lambda parts: F.relu(self.conv_norm("neck.aggregate", torch.cat(parts, 1), self.c, 1))
        sup = join([f * m for f, m in zip(features, masks)])
        inf = join([f * (1 - m) for f, m in zip(features, masks)])
        return self.projector("projector", sup, state), self.projector("projector_ad", inf, state), masks


expected = {}
models = {
    "tiny": ((2, 1, 1, 2), 8, 64, 64, (64, 96)),
    "wide": ((1, 1, 1, 1), 8, 128, 64, (64,)),
    "rn101": ((3, 4, 23, 3), 64, 512, 224, (224, 416)),
    "rn50": ((3, 4, 6, 3), 64, 1024, 224, (224,)),
}
for name, (layers, width, embed, trained, sides) in models.items():
    network = Network(layers, width, embed, trained)
    for side in sides:
        images = torch.from_numpy(uniform(f"images {side}", 2 * 3 * side * side).astype("float32")).view(2, 3, side, side)
        ids = torch.zeros(2, 77, dtype=torch.long)
        ids[0, :5] = torch.tensor([598, 17, 5, 140, 599])
        ids[1, :4] = torch.tensor([598, 233, 9, 599])
        with torch.no_grad():
            sup, inf, masks = network.forward(images, ids)
        expected[f"{name}.{side}.sup"] = sup[:, 0, ::8, ::8].contiguous()
        expected[f"{name}.{side}.inf"] = inf[:, 0, ::8, ::8].contiguous()
        print(name, side, tuple(sup.shape), sup.std().item(), inf.std().item(), [m.mean().item() for m in masks])
    counts = {part: sum(sizes.values()) for part, sizes in network.counts.items()}
    visual = sum(p.numel() for p in network.clip.visual.parameters())
    print(name, counts, visual)
save_file(expected, str(here / "expected.safetensors"))
