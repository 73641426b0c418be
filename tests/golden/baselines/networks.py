"""Networks that have a published implementation, with their variables under Siteline's names."""

import torch
from formula import weight
from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from transformers import CLIPSegConfig
from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoder

# U-Net of MONAI's blocks, halving channels on every level.
MAKE = dict(act="relu", norm=("group", {"num_groups": 8}), bias=True)


class Unet(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        c = [width << i for i in range(5)]
        self.down_0 = TwoConv(2, 3, c[0], **MAKE)
        for i in range(1, 5):
            setattr(self, f"down_{i}", Down(2, c[i - 1], c[i], **MAKE))
        for i in (3, 2, 1, 0):
            setattr(self, f"up_{i}", UpCat(2, c[i + 1], c[i], c[i], upsample="deconv", **MAKE))
        self.last = torch.nn.Conv2d(c[0], 1, 1)

    def forward(self, x):
        skips = [self.down_0(x)]
        for i in range(1, 5):
            skips.append(getattr(self, f"down_{i}")(skips[-1]))
        x = skips.pop()
        for i in (3, 2, 1, 0):
            x = getattr(self, f"up_{i}")(x, skips.pop())
        return self.last(x)


def unet_name(name):
    """MONAI's name of a parameter to the one in model/unet.rs."""
    parts = name.replace("convs.conv_0", "convs.0").replace("convs.conv_1", "convs.1").split(".")
    level, leaf = parts[0], parts[-1]
    if level == "last":
        return name
    if "upsample" in parts:
        return f"{level}.grow.{leaf}"
    number = "0" if "conv_0" in name else "1"
    what = "norm" if "adn" in name else "conv"
    prefix = f"{level}.convs" if level.startswith("up") else level
    return f"{prefix}.{what}_{number}.{leaf}"


def unet_variables(unet):
    """By name, each a list of parameters that stand one below the other."""
    return {unet_name(name): [value] for name, value in unet.named_parameters()}


def clipseg_decoder(vision, projection, side, patch, layers, width):
    """CLIPSeg's decoder as transformers has it, without its complex upsampling."""
    heads = dict(num_hidden_layers=4, num_attention_heads=2)
    config = CLIPSegConfig(
        vision_config=dict(hidden_size=vision, image_size=side, patch_size=patch, **heads), projection_dim=projection,
        reduce_dim=width, extract_layers=list(range(layers)), decoder_num_attention_heads=4,
        decoder_intermediate_size=2048, decoder_attention_dropout=0.0, decoder_hidden_act="relu",
    )
    return CLIPSegDecoder(config)


def clipseg_variables(decoder):
    """As `unet_variables`; the three projections of an attention stand in one."""
    both = lambda name, module: {f"{name}.weight": [module.weight], f"{name}.bias": [module.bias]}
    found = both("film_mul", decoder.film_mul) | both("film_add", decoder.film_add)
    found |= both("trans_conv", decoder.transposed_convolution)
    for i, (reduce, layer) in enumerate(zip(decoder.reduces, decoder.layers)):
        name, a = f"blocks_{i}", layer.self_attn
        found |= both(f"reduces_{i}", reduce)
        found[f"{name}.self_attn.in_proj_weight"] = [a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]
        found[f"{name}.self_attn.in_proj_bias"] = [a.q_proj.bias, a.k_proj.bias, a.v_proj.bias]
        for place, module in (("self_attn.out_proj", a.out_proj), ("linear1", layer.mlp.fc1), ("linear2", layer.mlp.fc2),
                              ("norm1", layer.layer_norm1), ("norm2", layer.layer_norm2)):
            found |= both(f"{name}.{place}", module)
    return found


def fill(variables, prefix):
    """Gives every variable its value by the formula."""
    with torch.no_grad():
        for name, parts in variables.items():
            shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
            for part, value in zip(parts, weight(prefix + name, shape).split([len(part) for part in parts])):
                part.copy_(value)
