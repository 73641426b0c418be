"""Golden numbers for two updates of each method on cached features: what is minimised, and what two steps of AdamW add to each variable.

Run with: pip install torch==2.11.0 open_clip_torch==3.3.0 safetensors==0.8.0 numpy==2.3.5; python make_updates.py
Weights and data are those of ../formula.py. Writes updates.safetensors beside itself. Formulas are those that docs/methods.md gives.
"""

import pathlib
import sys

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

here = pathlib.Path(__file__).parent
sys.path.insert(0, str(here))
from shared import D, IMAGES, SITES, Shared, adamw, step, tensor, unit, weight

torch.set_num_threads(1)
N, SIDE, M, K = 16, 16, 12, 3
out = {}


site = torch.arange(SITES).repeat_interleave(IMAGES)
shift = 0.3 * site.float()
pooled = (tensor("pooled", SITES * IMAGES, D) + shift[:, None]).double()
dense = (tensor("dense", SITES * IMAGES, N, D) + shift[:, None, None]).double()
masks = (tensor("masks", SITES * IMAGES, SIDE, SIDE) > 0.2).long()
labels = torch.arange(SITES * IMAGES) % K
z, classes = unit(tensor("z", M, D).double()), unit(tensor("classes", K, D).double())
targets = unit(tensor("class_domain", K, M, D).double()).mean(1)


class Model(Shared):
    def encode(self):
        return self.prepare(pooled), self.prepare(dense)

    def decode(self, features):
        return super().decode(features, SIDE)


def cross_entropies(logits, scale=1.0):
    return F.cross_entropy(logits * scale, masks, reduction="none").mean((1, 2))


def by_site(logits):
    return cross_entropies(logits).view(SITES, IMAGES).mean(1)


def keep(method, model):
    out.update({f"{method}.{name}": change for name, change in model.changes().items()})
    out[f"losses.{method}"] = torch.tensor(model.losses)


def erm_like(method, total, extra=()):
    model = Model(extra)
    optimiser = adamw(list(model.v.values()))
    # IRM's halves depend on the order of images, which the second epoch draws anew.
    for _ in range(1 if method == "irm" else 2):
        _, features = model.encode()
        step(model, total(model, features, model.decode(features)), optimiser)
    keep(method, model)


erm_like("erm", lambda m, f, logits: by_site(logits).mean())
erm_like("vrex", lambda m, f, logits: by_site(logits).mean() + ((by_site(logits) - by_site(logits).mean()) ** 2).mean())


q = torch.full((SITES,), 1 / SITES)


def groupdro(m, f, logits):
    global q
    losses = by_site(logits)
    q = q * torch.exp(5.0 * losses.detach())
    q = q / q.sum()
    return (q * losses).sum()


erm_like("groupdro", groupdro)


def irm(m, f, logits):
    penalties = []
    for s in range(SITES):
        w = torch.tensor(1.0, requires_grad=True)
        slopes = []
        for first in (0, 1):
            rows = torch.arange(s * IMAGES + first, (s + 1) * IMAGES, 2)
            half = F.cross_entropy(logits[rows] * w, masks[rows])
            slopes.append(torch.autograd.grad(half, w, create_graph=True)[0])
        penalties.append(slopes[0] * slopes[1])
    return by_site(logits).mean() + torch.stack(penalties).mean()


erm_like("irm", irm)


def coral(m, f, logits):
    a, b = f.mean(1).chunk(SITES)
    return by_site(logits).mean() + ((a.mean(0) - b.mean(0)) ** 2).mean() + ((torch.cov(a.T) - torch.cov(b.T)) ** 2).mean()


erm_like("coral", coral)

# SAM: up by 0.05 along the gradient, the gradient there, the step from where it was.
model = Model()
optimiser = adamw(list(model.v.values()))
for _ in range(2):
    for v in model.v.values():
        v.grad = None
    loss = by_site(model.decode(model.encode()[1])).mean()
    loss.backward()
    model.losses.append(loss.item())
    norm = torch.stack([v.grad.norm() for v in model.v.values()]).norm()
    before = {name: v.detach().clone() for name, v in model.v.items()}
    with torch.no_grad():
        for v in model.v.values():
            v += 0.05 * v.grad / norm
    loss = by_site(model.decode(model.encode()[1])).mean()
    for v in model.v.values():
        v.grad = None
    loss.backward()
    with torch.no_grad():
        for name, v in model.v.items():
            v.copy_(before[name])
    torch.nn.utils.clip_grad_norm_(list(model.v.values()), 1.0)
    optimiser.step()
keep("sam", model)

# DANN: features and head against the discriminator, then the discriminator alone.
DISCRIMINATOR = "method.discriminator."
H = 8
extra = [(DISCRIMINATOR + n, s) for n, s in (
    ("input.weight", (H, D)), ("input.bias", (H,)), ("hidden.weight", (H, H)), ("hidden.bias", (H,)),
    ("output.weight", (SITES, H)), ("output.bias", (SITES,)))]
model = Model(extra)


def confusion(features):
    x = features.mean(1)
    for name in ("input", "hidden", "output"):
        x = model.linear(DISCRIMINATOR + name, x)
        x = x.relu() if name != "output" else x
    return F.cross_entropy(x, site)


theirs = adamw([v for n, v in model.v.items() if not n.startswith(DISCRIMINATOR)])
its = adamw([v for n, v in model.v.items() if n.startswith(DISCRIMINATOR)])
for _ in range(2):
    _, features = model.encode()
    step(model, by_site(model.decode(features)).mean() - confusion(features), theirs)
    step(model, confusion(model.encode()[1].detach()), its)
# What is told of a step is what its first update minimises.
model.losses = model.losses[::2]
keep("dann", model)

# MCDRL: depth 2, feed-forward of ratio 1, the four variants of its intervention.
RATIO, DEPTH = 1, 2


def mcdrl(variant, width=D, heads=1, zeros=False, other=False):
    """`other`: the other choices of what is inferred: alpha, pooling, lengths, what stands for an image."""
    extra = [] if zeros else [("method.gate", ())]
    layers = 0 if variant == "project_out" else DEPTH
    for i in range(layers):
        p = f"method.intervention.{i}."
        for name in ("ln_1", "ln_2"):
            extra += [(f"{p}{name}.weight", (D,)), (f"{p}{name}.bias", (D,))]
        for name in ("query", "key", "value"):
            extra += [(f"{p}{name}.weight", (width, D)), (f"{p}{name}.bias", (width,))]
        extra += [(p + "out.weight", (D, width)), (p + "out.bias", (D,))]
        extra += [(f"{p}expand.weight", (RATIO * D, D)), (f"{p}expand.bias", (RATIO * D,)),
                  (f"{p}contract.weight", (D, RATIO * D)), (f"{p}contract.bias", (D,))]
    model = Model(extra)
    optimiser = adamw(list(model.v.values()))
    for _ in range(2):
        image, features = model.encode()
        # The N = alpha n positions of each image that look most like any class.
        similarity = (unit(features) @ unit(classes).T).amax(-1)
        kept = torch.argsort(similarity, dim=1, descending=True, stable=True)[:, :N // 4 if other else N // 2]
        index = kept[..., None].expand(-1, -1, D)
        x = features.gather(1, index)
        if variant == "project_out":
            basis = torch.linalg.qr(z.T)[0]
            x = x - x @ basis @ basis.T
        for i in range(layers):
            p = f"method.intervention.{i}."
            q = model.linear(p + "query", model.norm(p + "ln_1", x)).unflatten(-1, (heads, -1)).transpose(1, 2)
            k, v = (model.linear(p + name, z).unflatten(-1, (heads, -1)).transpose(0, 1) for name in ("key", "value"))
            mixed = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1) @ v
            mixed = model.linear(p + "out", mixed.transpose(1, 2).flatten(-2))
            if variant == "attn_only":
                x = mixed
                continue
            x = x - mixed if variant == "subtract" else x + mixed
            x = x + model.linear(p + "contract", F.gelu(model.linear(p + "expand", model.norm(p + "ln_2", x))))
        dropped = torch.zeros_like(features) if zeros else features * model.v["method.gate"]
        represented = dropped.scatter(1, index, x)
        if other:
            causal = ((x.amax(1) - targets[labels]) ** 2).sum(-1).mean()
            contrast = F.cross_entropy(unit(features.mean(1)) @ unit(classes).T / 0.2, labels)
        else:
            causal = ((unit(x.mean(1)) - unit(targets[labels])) ** 2).sum(-1).mean()
            contrast = F.cross_entropy(unit(image) @ unit(classes).T / 0.5, labels)
        step(model, by_site(model.decode(represented)).mean() + 0.5 * causal + 0.1 * contrast, optimiser)
    keep(f"mcdrl_{'other' if other else variant}{f'_{width}_{heads}' if heads > 1 else ''}", model)


for variant in ("residual", "attn_only", "subtract", "project_out"):
    mcdrl(variant)
# Several heads, an attention of another width, nothing at all where positions were dropped.
mcdrl("residual", width=32, heads=4, zeros=True)
mcdrl("residual", other=True)

# CoOp: four learned words in front of "background" and each class, a text tower of one layer.
TEXT, CONTEXT, WORDS = 64, 4, 49408
t = {}
for name, shape in {
    "token_embedding.weight": (WORDS, TEXT), "positional_embedding": (77, TEXT), "text_projection": (TEXT, D),
    "ln_final.weight": (TEXT,), "ln_final.bias": (TEXT,), "transformer.resblocks.0.ln_1.weight": (TEXT,),
    "transformer.resblocks.0.ln_1.bias": (TEXT,), "transformer.resblocks.0.ln_2.weight": (TEXT,),
    "transformer.resblocks.0.ln_2.bias": (TEXT,), "transformer.resblocks.0.attn.in_proj_weight": (3 * TEXT, TEXT),
    "transformer.resblocks.0.attn.in_proj_bias": (3 * TEXT,), "transformer.resblocks.0.attn.out_proj.weight": (TEXT, TEXT),
    "transformer.resblocks.0.attn.out_proj.bias": (TEXT,), "transformer.resblocks.0.mlp.c_fc.weight": (4 * TEXT, TEXT),
    "transformer.resblocks.0.mlp.c_fc.bias": (4 * TEXT,), "transformer.resblocks.0.mlp.c_proj.weight": (TEXT, 4 * TEXT),
    "transformer.resblocks.0.mlp.c_proj.bias": (TEXT,),
}.items():
    t[name] = weight("clip." + name, shape)
names = ["background", "polyp", "tumor", "cyst"]
tokenizer = open_clip.SimpleTokenizer()
rows = [[tokenizer.sot_token_id] + tokenizer.encode(name + ".") + [tokenizer.eot_token_id] for name in names]
context = weight("updates.method.context", (CONTEXT, TEXT)).requires_grad_()


def text(row):
    words = t["token_embedding.weight"][torch.tensor(row)]
    x = torch.cat([words[:1], context, words[1:]])
    x = x + t["positional_embedding"][:len(x)]
    b = "transformer.resblocks.0."
    y = F.layer_norm(x, (TEXT,), t[b + "ln_1.weight"], t[b + "ln_1.bias"], 1e-5)
    q, k, v = F.linear(y, t[b + "attn.in_proj_weight"], t[b + "attn.in_proj_bias"]).chunk(3, -1)
    hidden = torch.full((len(x), len(x)), float("-inf")).triu(1)
    y = (q @ k.T / TEXT**0.5 + hidden).softmax(-1) @ v
    x = x + F.linear(y, t[b + "attn.out_proj.weight"], t[b + "attn.out_proj.bias"])
    y = F.layer_norm(x, (TEXT,), t[b + "ln_2.weight"], t[b + "ln_2.bias"], 1e-5)
    y = F.linear(y, t[b + "mlp.c_fc.weight"], t[b + "mlp.c_fc.bias"])
    x = x + F.linear(y * torch.sigmoid(1.702 * y), t[b + "mlp.c_proj.weight"], t[b + "mlp.c_proj.bias"])
    x = F.layer_norm(x, (TEXT,), t["ln_final.weight"], t["ln_final.bias"], 1e-5)
    return unit(x[-1] @ t["text_projection"])


optimiser, losses = adamw([context]), []
for _ in range(2):
    cosines = unit(dense) @ torch.stack([text(row) for row in rows]).T * torch.tensor(2.0).exp()
    maps = torch.cat([cosines[..., :1], cosines[..., 1:].logsumexp(-1, keepdim=True)], -1)
    maps = maps.transpose(1, 2).reshape(-1, 2, int(N**0.5), int(N**0.5))
    optimiser.zero_grad()
    loss = by_site(F.interpolate(maps, size=(SIDE, SIDE), mode="bilinear", align_corners=False)).mean()
    loss.backward()
    losses.append(loss.item())
    torch.nn.utils.clip_grad_norm_([context], 1.0)
    optimiser.step()
out["coop.method.context"] = (context.detach() - weight("updates.method.context", context.shape)).float()
out["losses.coop"] = torch.tensor(losses)

# FACT's consistency with its teacher in the sixth epoch, and RandConv's loss and consistency of three draws.
own, taught = tensor("own", 4, 2, 5, 5) * 3, tensor("taught", 4, 2, 5, 5) * 3  # in 32 bits


def divergence(student, teacher):
    p = F.log_softmax(student / 10.0, 1)
    q = F.softmax(teacher / 10.0, 1)
    return F.kl_div(p, q, reduction="none").sum(1).mean()


# The augmented half learns from what the teacher says of the original one, and the reverse.
out["fact_consistency"] = divergence(own[2:], taught[:2]) + divergence(own[:2], taught[2:])
draws = (tensor("draws", 6, 2, 5, 5) * 3).chunk(3)
truth = (tensor("draw masks", 2, 5, 5) > 0).long()
out["randconv_objective"] = F.cross_entropy(draws[0], truth)
each = [F.softmax(x, 1) for x in draws]
mean = (sum(each) / 3).clamp(1e-7, 1).log()
out["randconv_consistency"] = sum(F.kl_div(mean, p, reduction="none").sum(1).mean() for p in each) / 3

save_file({k: v.detach().contiguous() for k, v in out.items()}, str(here / "updates.safetensors"))
