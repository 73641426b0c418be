"""CausalCLIPSeg written from its description (methods.md 2.2), on open_clip's ResNet and text tower."""

import torch
import torch.nn.functional as F
from formula import fill, weight
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg


class Reversed(torch.autograd.Function):
    """The identity, whose gradient has the other sign (Ganin and Lempitsky, ICML 2015)."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Network:
    """CausalCLIPSeg by its description: every tensor is made by name where it is used.

    With `trains` norms take the batch's statistics and tensors keep gradients.
    """

    def __init__(self, layers, width, embed, side, vocabulary=600, prefix="", trains=False):
        heads = width * 32 // 64
        text = CLIPTextCfg(context_length=77, vocab_size=vocabulary, width=512 if width == 64 else 64,
                           heads=8 if width == 64 else 1, layers=12 if width == 64 else 2)
        self.clip = CLIP(embed_dim=embed, quick_gelu=True, text_cfg=text,
                         vision_cfg=CLIPVisionCfg(layers=layers, width=width, head_width=64, image_size=side)).train(trains)
        fill(self.clip, prefix + "method.backbone.")
        self.heads, self.c, self.embed, self.counts = heads, width * 8, embed, {}
        self.prefix, self.trains, self.made = prefix, trains, {}

    def p(self, name, *shape):
        part = name.split(".")[0]
        if "running" not in name:
            self.counts.setdefault(part, {})[name] = torch.Size(shape).numel()
        if name not in self.made:
            self.made[name] = weight(f"{self.prefix}method.{name}", shape).requires_grad_(self.trains)
        return self.made[name]

    def norm(self, name, x):
        c = x.shape[1]
        if self.trains:
            return F.batch_norm(x, None, None, self.p(name + ".weight", c), self.p(name + ".bias", c), True, 0.0, 1e-5)
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
        out = x.new_zeros(b, c, 2 * h, 2 * w)
        for dy in range(3):
            for dx in range(3):
                source = padded[:, :, dy:dy + h, dx:dx + w].repeat_interleave(2, 2).repeat_interleave(2, 3)
                out += source * kernels[:, 3 * dy + dx].unsqueeze(1)
        return self.conv("neck.carafe.out", out, c, 1)

    def masker(self, name, x):
        def coordinates(x):
            b, _, h, w = x.shape
            xs = torch.linspace(-1, 1, w, device=x.device).expand(b, 1, h, w)
            ys = torch.linspace(-1, 1, h, device=x.device).view(h, 1).expand(b, 1, h, w)
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

    def forward(self, images, ids, reverses=False):
        """Both branches' logits and the masks; `reverses` turns the gradient of the second branch into the masks round."""
        v3, v4, v5 = self.backbone(images)
        state = self.clip.encode_text(ids)
        if self.embed != self.c:
            v5 = F.relu(self.conv_norm("neck.adapter", v5, self.c, 1))
        f4 = F.relu(self.conv_norm("neck.fourth_0", v4, self.c, 3))
        features = [F.avg_pool2d(v3, 2), F.relu(self.conv_norm("neck.fourth_1", f4, self.c, 3)), self.carafe(v5)]
        # The maskers look at features and do not shape them.
        masks = [self.masker(f"neck.masker_{n}", f.detach()) for n, f in zip((3, 4, 5), features)]
        join = lambda parts: F.relu(self.conv_norm("neck.aggregate", torch.cat(parts, 1), self.c, 1))
        sup = join([f * m for f, m in zip(features, masks)])
        turned = [Reversed.apply(m) if reverses else m for m in masks]
        inf = join([f * (1 - m) for f, m in zip(features, turned)])
        return self.projector("projector", sup, state), self.projector("projector_ad", inf, state), masks

    def variables(self):
        """Everything that trains, by name; `forward` has been called."""
        clip = {f"backbone.{name}": value for name, value in self.clip.named_parameters() if name != "logit_scale"}
        return {"method." + name: value for name, value in (clip | self.made).items()}
