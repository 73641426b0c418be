"""Golden numbers for CLIP's modified ResNet: a small model of open_clip at random weights, and what it answers.

Run with: pip install torch==2.11.0 open_clip_torch==3.3.0 safetensors==0.8.0 numpy==2.3.5; python make_resnet.py
Writes, beside itself, resnet.safetensors (OpenAI's names, half precision, a vocabulary of 600 tokens) and resnet_expected.safetensors.
Weights are rounded to half precision first, so that the stored halves are exact.
"""

import pathlib

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file

here = pathlib.Path(__file__).parent
torch.manual_seed(1)
torch.set_num_threads(1)

vision = CLIPVisionCfg(layers=(2, 1, 1, 2), width=8, head_width=64, image_size=64)
text = CLIPTextCfg(context_length=77, vocab_size=600, width=64, heads=1, layers=2)
model = CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()
state = model.state_dict()
with torch.no_grad():
    for name, value in state.items():
        if not value.is_floating_point() or name == "attn_mask":
            continue
        if name.endswith("running_var"):
            value.copy_((1 + 0.3 * torch.rand_like(value)).half())
        elif value.dim() > 1:
            fan = value[0].numel()
            value.copy_((torch.randn_like(value) * (1.5 / fan) ** 0.5).half())
        else:
            norm = name.endswith("weight") and ("bn" in name or "ln" in name or "downsample.1" in name)
            value.copy_((0.2 * torch.randn_like(value) + norm).half())
    model.logit_scale.copy_(torch.tensor(2.5))

# The vocabulary: the special tokens, and what the prompts of the tests are made of lies among the first 598 by chance or not at all.
token_ids = torch.tensor(list(range(256, 854)) + [49406, 49407])
images = torch.randn(2, 3, 64, 64)
ids = torch.randint(0, 590, (3, 12))
ids[:, 0] = 598
lengths = [12, 7, 4]
for row, length in enumerate(lengths):
    ids[row, length - 1:] = 599
padded = torch.zeros(3, 77, dtype=torch.long)
padded[:, :12] = ids

with torch.no_grad():
    visual = model.visual
    maps = {}
    for number in (1, 2, 3, 4):
        getattr(visual, f"layer{number}").register_forward_hook(lambda _m, _i, out, n=number: maps.update({n: out}))
    pooled = visual(images)
    pool = visual.attnpool
    last = maps[4].flatten(2).transpose(1, 2)
    dense = pool.c_proj(pool.v_proj(last))
    texts = model.encode_text(padded)

kept = {k: v.contiguous().half() for k, v in state.items() if v.is_floating_point() and k != "attn_mask"}
kept["token_ids"] = token_ids
save_file(kept, str(here / "resnet.safetensors"))
save_file(
    {"images": images, "ids": ids, "lengths": torch.tensor(lengths), "pooled": pooled, "dense": dense.contiguous(),
     "texts": texts, "layer2": maps[2].contiguous(), "layer4": maps[4].contiguous()},
    str(here / "resnet_expected.safetensors"))
print({k: tuple(v.shape) for k, v in maps.items()}, pooled.std(), dense.std(), texts.std())
