"""Golden numbers for CLIP: a small model of `transformers` at random weights, and what it answers.

Run with: pip install torch==2.11.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.3.5; python make.py
Writes, beside itself, the weights in Hugging Face's and in OpenAI's naming, and expected.safetensors with inputs and outputs.
Weights are rounded to half precision first, so that the stored halves are exact.
"""

import pathlib

import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

here = pathlib.Path(__file__).parent
torch.manual_seed(0)
torch.set_num_threads(1)

config = CLIPConfig(
    text_config=dict(vocab_size=600, hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=1,
                     max_position_embeddings=20, hidden_act="quick_gelu", projection_dim=32, eos_token_id=599, bos_token_id=598,
                     pad_token_id=599),
    vision_config=dict(hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2, image_size=48,
                       patch_size=16, hidden_act="quick_gelu", projection_dim=32),
    projection_dim=32,
)
model = CLIPModel(config).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        # Larger than the library's initial values, so that a wrong path shows in the outputs.
        scale = 0.2 if parameter.dim() > 1 else 0.5
        parameter.copy_((torch.randn_like(parameter) * scale + ("layer_norm" in name or "layrnorm" in name or "layernorm" in name)
                         * name.endswith("weight")).half().float())
    model.logit_scale.copy_(torch.tensor(2.5))

images = torch.randn(3, 3, 48, 48)
# Rows end with the end token; shorter ones are padded with it, as Hugging Face's tokenizer does.
ids = torch.randint(0, 590, (3, 12))
ids[:, 0] = 598
lengths = [12, 7, 4]
for row, length in enumerate(lengths):
    ids[row, length - 1:] = 599

with torch.no_grad():
    vision, text = model.vision_model, model.text_model
    out = vision(pixel_values=images, output_hidden_states=True)
    pooled = model.visual_projection(out.pooler_output)
    project = lambda x: model.visual_projection(vision.post_layernorm(x))
    tokens = project(out.last_hidden_state[:, 1:])
    # MaskCLIP's value path through the last block, written out.
    block = vision.encoder.layers[-1]
    x = out.hidden_states[-2][:, 1:]
    attention = block.self_attn
    v = attention.out_proj(attention.v_proj(block.layer_norm1(x))) + x
    v = v + block.mlp(block.layer_norm2(v))
    values = project(v)
    texts = model.text_projection(text(input_ids=ids).pooler_output)

save_file(
    {"images": images, "ids": ids, "lengths": torch.tensor(lengths), "pooled": pooled, "tokens": tokens.contiguous(),
     "values": values.contiguous(), "texts": texts}, str(here / "expected.safetensors"))

hugging_face = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items() if "position_ids" not in name}
save_file(hugging_face, str(here / "hugging_face.safetensors"))

openai = {}
def put(name, tensor):
    openai[name] = tensor.half().contiguous()

def tower(theirs, ours, layers):
    for index in range(layers):
        a, b = f"{theirs}.encoder.layers.{index}.", f"{ours}transformer.resblocks.{index}."
        for part in ("weight", "bias"):
            put(b + f"attn.in_proj_{part}", torch.cat([state[a + f"self_attn.{p}_proj.{part}"] for p in "qkv"]))
            put(b + f"attn.out_proj.{part}", state[a + f"self_attn.out_proj.{part}"])
            put(b + f"ln_1.{part}", state[a + f"layer_norm1.{part}"])
            put(b + f"ln_2.{part}", state[a + f"layer_norm2.{part}"])
            put(b + f"mlp.c_fc.{part}", state[a + f"mlp.fc1.{part}"])
            put(b + f"mlp.c_proj.{part}", state[a + f"mlp.fc2.{part}"])

state = model.state_dict()
tower("vision_model", "visual.", 2)
tower("text_model", "", 2)
put("visual.conv1.weight", state["vision_model.embeddings.patch_embedding.weight"])
put("visual.class_embedding", state["vision_model.embeddings.class_embedding"])
put("visual.positional_embedding", state["vision_model.embeddings.position_embedding.weight"])
for part in ("weight", "bias"):
    put(f"visual.ln_pre.{part}", state[f"vision_model.pre_layrnorm.{part}"])
    put(f"visual.ln_post.{part}", state[f"vision_model.post_layernorm.{part}"])
    put(f"ln_final.{part}", state[f"text_model.final_layer_norm.{part}"])
put("visual.proj", state["visual_projection.weight"].T)
put("token_embedding.weight", state["text_model.embeddings.token_embedding.weight"])
put("positional_embedding", state["text_model.embeddings.position_embedding.weight"])
put("text_projection", state["text_projection.weight"].T)
put("logit_scale", state["logit_scale"])
save_file(openai, str(here / "openai.safetensors"))
