"""Golden numbers for CausalCLIPSeg: the whole forward pass.

Run with: pip install torch==2.11.0 open_clip_torch==3.3.0 safetensors==0.8.0 numpy==2.3.5; python make.py
Weights are those of ../formula.py; expected.safetensors holds logits of both branches, every eighth pixel, and counts of parameters.
"""

import pathlib
import sys

import torch
from safetensors.torch import save_file

here = pathlib.Path(__file__).parent
sys.path[:0] = [str(here.parent), str(here)]
from formula import uniform
from network import Network

torch.set_num_threads(2)


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
