"""Golden numbers for two updates of each method that reads pixels: U-Net, CLIPSeg, and CausalCLIPSeg's alternation of two updates.

Run with: pip install torch==2.11.0 open_clip_torch==3.3.0 transformers==5.23.0 monai==1.6.1 safetensors==0.8.0 numpy==2.3.5; python make_pixel_updates.py
Weights and data are those of ../formula.py. Writes pixel_updates.safetensors beside itself: what is minimised, and what updates add to
each variable, some 512 values of it at equal distances. All in 64 bits. What is minimised is that of docs/methods.md.
"""

import pathlib
import sys

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file

here = pathlib.Path(__file__).parent
sys.path[:0] = [str(here.parent), str(here), str(here.parent / "causalclipseg")]
import formula
from formula import uniform, weight
from network import Network
from networks import Unet, clipseg_decoder, clipseg_variables, fill, unet_variables

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
IMAGES, LR, MOST = 8, 0.01, 512
# A deep network with a norm behind every convolution: after larger steps the second gradient is another one wherever the first was
# next to nothing.
LR_CAUSAL = 1e-4
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float32).double().view(1, 3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float32).double().view(1, 3, 1, 1)
CLASSES = ["polyp", "tumor", "cyst"]
labels = torch.arange(IMAGES) % len(CLASSES)
tokenizer = open_clip.SimpleTokenizer()
words = [[tokenizer.sot_token_id] + tokenizer.encode(name) + [tokenizer.eot_token_id] for name in CLASSES]
out = {}


def tensor(name, *shape):
    return torch.from_numpy(uniform(name, int(np.prod(shape))).astype("float32")).view(shape)


def data(side):
    """Bytes 0 to 255 of each image, and masks."""
    return ((tensor("pixels", IMAGES, 3, side, side) + 1) * 127.5).round().double(), tensor("masks", IMAGES, side, side) > 0.2


def flat(parts):
    return torch.cat([part.detach().flatten() for part in parts])


def begin(variables):
    """How variables are before their updates."""
    return {name: flat(parts) for name, parts in variables.items()}


def keep(method, variables, before):
    for name, parts in variables.items():
        change = flat(parts) - before[name]
        out[f"{method}.{name}"] = change[::-(-len(change) // MOST)].float()
    out[f"losses.{method}"] = torch.tensor(step.losses)
    step.losses = []


def step(loss, groups, lr=LR):
    """One step of AdamW on parameters with the factors of their learning rates, behind gradients clipped at norm 1."""
    params = [p for params, _ in groups for p in params]
    optimiser = step.optimisers.setdefault(id(params[0]), torch.optim.AdamW(
        [{"params": params, "lr": lr * factor} for params, factor in groups], weight_decay=0.01))
    step.losses.append(loss.item())
    optimiser.zero_grad()
    for p in params:
        p.grad = None
    for p, gradient in zip(params, torch.autograd.grad(loss, params)):
        p.grad = gradient
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimiser.step()


step.optimisers, step.losses = {}, []
pixels, masks = data(32)
truth = masks.double()[:, None]

unet = Unet(16)
variables = {f"method.{name}": parts for name, parts in unet_variables(unet).items()}
fill(variables, "updates.")
before = begin(variables)
for _ in range(2):
    logits = unet(pixels / 127.5 - 1)
    step(F.binary_cross_entropy_with_logits(logits, truth) + DiceLoss(sigmoid=True)(logits, truth), [(list(unet.parameters()), 1.0)])
keep("unet", variables, before)

clip = CLIP(embed_dim=64, quick_gelu=True, vision_cfg=CLIPVisionCfg(layers=2, width=64, head_width=64, patch_size=16, image_size=32),
            text_cfg=CLIPTextCfg(context_length=77, vocab_size=49408, width=64, heads=1, layers=1)).eval()
formula.fill(clip, "clip.")
tokens = {}
for i in (0, 1):
    clip.visual.transformer.resblocks[i].register_forward_hook(lambda _m, _i, y, i=i: tokens.update({i: y}))
ids = torch.zeros(len(CLASSES), 77, dtype=torch.long)
for row, found in enumerate(words):
    ids[row, :len(found)] = torch.tensor(found)
with torch.no_grad():
    clip.encode_image((pixels / 255 - MEAN) / STD)
    text = clip.encode_text(ids).mean(0, keepdim=True).expand(IMAGES, -1)
decoder = clipseg_decoder(vision=64, projection=64, side=32, patch=16, layers=2, width=16)
variables = {f"method.decoder.{name}": parts for name, parts in clipseg_variables(decoder).items()}
fill(variables, "updates.")
before = begin(variables)
trained = [p for parts in variables.values() for p in parts]
for _ in range(2):
    logits = decoder((tokens[0], tokens[1]), text)[0].reshape(IMAGES, 1, 32, 32)
    step(F.binary_cross_entropy_with_logits(logits, truth), [(trained, 1.0)])
keep("clipseg", variables, before)

# A table of those tokens alone that the prompts need, the last one that of the end.
known = sorted({token for row in words for token in row})
ids = torch.zeros(IMAGES, 77, dtype=torch.long)
for image, label in enumerate(labels):
    row = [known.index(token) for token in words[label]]
    ids[image, :len(row)] = torch.tensor(row)
out["causalclipseg_tokens"] = torch.tensor(known)
pixels, masks = data(64)
truth, images = masks.double()[:, None], (pixels / 255 - MEAN) / STD
networks = []


def causalclipseg(word, game, loss, reverses=False):
    """Two steps; `game(loss of the causal branch, loss of the confounding branch, loss of their mean, is it the maskers' turn)`."""
    network = Network((1, 1, 1, 1), 8, 64, 64, vocabulary=len(known), prefix="updates.", trains=True)
    # Kept, as optimisers are known by the addresses of what they move.
    networks.append(network)
    network.forward(images, ids)
    variables = network.variables()
    before = begin({name: [value] for name, value in variables.items()})
    of_maskers = [value for name, value in variables.items() if ".masker_" in name]
    of_clip = [value for name, value in variables.items() if ".backbone." in name and "positional_embedding" not in name]
    rest = [value for name, value in variables.items() if ".masker_" not in name and not any(value is other for other in of_clip)]

    def losses():
        sup, inf, _ = network.forward(images, ids, reverses)
        return [loss(logits) for logits in (sup, inf, (sup + inf) / 2)]

    for _ in range(2):
        if word == "causalclipseg":
            step(game(*losses(), False), [(rest, 1.0), (of_clip, 0.1)], LR_CAUSAL)
            step(game(*losses(), True), [(of_maskers, 1.0)], LR_CAUSAL)
        else:
            step(game(*losses(), False), [(rest + of_maskers, 1.0), (of_clip, 0.1)], LR_CAUSAL)
    # What is told of a step is what its first update minimises.
    step.losses = step.losses[::2 if word == "causalclipseg" else 1]
    keep(word, {name: [value] for name, value in variables.items()}, before)


def bce(logits):
    return F.binary_cross_entropy_with_logits(logits, truth)


def bce_dice(logits):
    return 0.5 * bce(logits) + 0.5 * DiceLoss(sigmoid=True)(logits, truth)


causalclipseg("causalclipseg", lambda sup, inf, mean, masks: 0.5 * sup - 0.5 * inf if masks else 0.5 * sup + 0.5 * inf, bce)
causalclipseg("causalclipseg_grl", lambda sup, inf, mean, masks: 0.5 * sup + 0.5 * inf, bce, reverses=True)
causalclipseg("causalclipseg_no_game", lambda sup, inf, mean, masks: mean, bce_dice)
save_file({k: v.detach().contiguous() for k, v in out.items()}, str(here / "pixel_updates.safetensors"))
