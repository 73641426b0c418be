"""open_clip's ViT-B/16 with pooled and dense features, for the benchmarks against PyTorch."""

import torch
import torch.nn.functional as F

MODEL = "ViT-B-16-quickgelu"
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def embed(tower, pixels):
    """Normalised pixels to tokens in front of the first block."""
    x = tower.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], 1)
    return tower.ln_pre(x + tower.positional_embedding.to(x.dtype))


def encode(tower, pixels, mix=None):
    """Pooled and dense features: of the last block the class token, and its value path (MaskCLIP). `mix` changes patches behind the
    first third of the blocks."""
    x, last = in_front_of_the_last_block(tower, pixels, mix)
    return tower.ln_post(class_token(last, x)) @ tower.proj, dense(tower, last, x)


def in_front_of_the_last_block(tower, pixels, mix=None):
    x = embed(tower, pixels)
    *early, last = tower.transformer.resblocks
    for place, block in enumerate(early):
        if mix is not None and place == (len(early) + 1) // 3:
            x = torch.cat([x[:, :1], mix(x[:, 1:])], 1)
        x = block(x)
    return x, last


def class_token(block, x):
    """What a block makes of the first position, which looks at all of them."""
    width, attention, normal = x.shape[-1], block.attn, block.ln_1(x)
    heads = lambda t: t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    query = F.linear(normal[:, :1], attention.in_proj_weight[:width], attention.in_proj_bias[:width])
    key, value = F.linear(normal, attention.in_proj_weight[width:], attention.in_proj_bias[width:]).chunk(2, -1)
    mixed = F.scaled_dot_product_attention(heads(query), heads(key), heads(value)).transpose(1, 2).flatten(2)
    x = x[:, :1] + attention.out_proj(mixed)
    return (x + block.mlp(block.ln_2(x)))[:, 0]


def dense(tower, last, x):
    width, attention = x.shape[-1], last.attn
    values = F.linear(last.ln_1(x[:, 1:]), attention.in_proj_weight[2 * width:], attention.in_proj_bias[2 * width:])
    v = x[:, 1:] + attention.out_proj(values)
    v = v + last.mlp(last.ln_2(v))
    return tower.ln_post(v) @ tower.proj
