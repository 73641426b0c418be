"""Golden numbers for the domain-generalization baselines: losses and gradients on small random batches, by autograd.

Run with: pip install torch==2.11.0 safetensors==0.8.0 numpy==2.3.5; python make.py
Writes expected.safetensors beside itself. The formulas are those that docs/methods.md gives for each method.
"""

import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(0)
torch.set_num_threads(1)
sites, images, side, positions, d = 3, 4, 6, 9, 16
out = {}


def keep(**tensors):
    out.update({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()})


logits = (torch.randn(sites * images, 2, side, side) * 2).requires_grad_()
masks = torch.randint(0, 2, (sites * images, side, side))
features = (torch.randn(sites * images, positions, d) + torch.arange(sites).repeat_interleave(images)[:, None, None]).requires_grad_()
keep(logits=logits, masks=masks, features=features)


def by_site(scale=1.0, rows=None):
    chosen = range(images) if rows is None else rows
    return torch.stack([
        torch.stack([F.cross_entropy(logits[s * images + i][None] * scale, masks[s * images + i][None]) for i in chosen]).mean()
        for s in range(sites)
    ])


def gradient(value, of):
    (found,) = torch.autograd.grad(value, of, retain_graph=True)
    return found


losses = by_site()
keep(erm=losses.mean(), erm_gradient=gradient(losses.mean(), logits))

# GroupDRO: two steps on the same batch, eta 0.5, so that the second starts from unequal weights.
q = torch.full((sites,), 1 / sites)
for step in range(2):
    q = q * torch.exp(0.5 * losses.detach())
    q = q / q.sum()
    value = (q * losses).sum()
    keep(**{f"groupdro_{step}": value, f"groupdro_gradient_{step}": gradient(value, logits)})
keep(groupdro_weights=q)

variance = ((losses - losses.mean()) ** 2).mean()
keep(vrex=variance, vrex_gradient=gradient(losses.mean() + 10 * variance, logits))

penalties = []
for s in range(sites):
    w = torch.tensor(1.0, requires_grad=True)
    rows = [logits[s * images + i][None] for i in range(images)]
    truth = [masks[s * images + i][None] for i in range(images)]
    halves = [torch.stack([F.cross_entropy(rows[i] * w, truth[i]) for i in range(first, images, 2)]).mean() for first in (0, 1)]
    slopes = [torch.autograd.grad(half, w, create_graph=True)[0] for half in halves]
    penalties.append(slopes[0] * slopes[1])
invariance = torch.stack(penalties).mean()
keep(irm=invariance, irm_gradient=gradient(losses.mean() + 100 * invariance, logits))

pooled = features.mean(1)
groups = pooled.chunk(sites)
pairs = []
for a in range(sites):
    for b in range(a + 1, sites):
        means = ((groups[a].mean(0) - groups[b].mean(0)) ** 2).mean()
        covariances = ((torch.cov(groups[a].T) - torch.cov(groups[b].T)) ** 2).mean()
        pairs.append(means + covariances)
alignment = torch.stack(pairs).mean()
keep(coral=alignment, coral_gradient=gradient(alignment, features))

save_file(out, pathlib.Path(__file__).parent / "expected.safetensors")
