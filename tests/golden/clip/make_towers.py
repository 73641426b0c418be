"""Golden numbers for the towers of the five CLIP models that were published, at full size: open_clip's models, weights by ../formula.py.

Run with: pip install torch==2.11.0 open_clip_torch==3.3.0 safetensors==0.8.0 numpy==2.3.5; python make_towers.py
Writes towers.safetensors: of one image the pooled feature and some dense ones, by the value path and of a ViT by tokens, of two texts their features.
"""

import pathlib
import sys

import open_clip
import torch
from open_clip.factory import get_model_config
from open_clip.model import CLIP
from safetensors.torch import save_file

here = pathlib.Path(__file__).parent
sys.path.insert(0, str(here.parent))
from formula import fill, uniform

torch.set_num_threads(2)
out = {}
texts = open_clip.get_tokenizer("ViT-B-32")(["A polyp in an endoscopic image", "An endoscopy image with narrow-band imaging"])
images = torch.from_numpy(uniform("images", 3 * 224 * 224).astype("float32")).view(1, 3, 224, 224)
for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14", "RN50", "RN101"):
    config = get_model_config(name)
    model = CLIP(**config, quick_gelu=True).eval()
    fill(model, "clip.")
    with torch.no_grad():
        pooled = model.encode_image(images)
        if name.startswith("RN"):
            visual = model.visual
            x = visual.stem(images)
            for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
                x = stage(x)
            dense = visual.attnpool.c_proj(visual.attnpool.v_proj(x.flatten(2).transpose(1, 2)))
        else:
            kept = {}
            block = model.visual.transformer.resblocks[-1]
            hook = block.register_forward_pre_hook(lambda _m, args: kept.update(x=args[0]))
            model.encode_image(images)
            hook.remove()
            x = kept["x"]
            if x.shape[0] != 1:
                x = x.transpose(0, 1)
            whole = block(x)
            out[f"{name}.tokens"] = (model.visual.ln_post(whole[:, 1:]) @ model.visual.proj)[:, ::16].contiguous()
            x = x[:, 1:]
            width = x.shape[-1]
            weight, bias = block.attn.in_proj_weight[2 * width:], block.attn.in_proj_bias[2 * width:]
            v = x + block.attn.out_proj(torch.nn.functional.linear(block.ln_1(x), weight, bias))
            v = v + block.mlp(block.ln_2(v))
            dense = model.visual.ln_post(v) @ model.visual.proj
        text = model.encode_text(texts)
    out[f"{name}.pooled"], out[f"{name}.dense"], out[f"{name}.texts"] = pooled, dense[:, ::16].contiguous(), text
    print(name, tuple(pooled.shape), tuple(dense.shape), pooled.std().item(), dense.std().item(), text.std().item(),
          sum(p.numel() for p in model.parameters()), flush=True)
save_file({k: v.contiguous() for k, v in out.items()}, str(here / "towers.safetensors"))
