"""The small CLIP of make.py as a TorchScript archive with half-precision weights, in the way that OpenAI published CLIP, and as a plain
PyTorch archive, which is to be refused.

Run with: pip install torch==2.11.0 safetensors==0.8.0 numpy==2.3.5; python make_torchscript.py
"""

import pathlib

import torch
from safetensors.torch import load_file

here = pathlib.Path(__file__).parent


class Node(torch.nn.Module):
    def forward(self):
        return 0


def tree(tensors):
    root = Node()
    for name, value in tensors.items():
        *path, leaf = name.split(".")
        node = root
        for part in path:
            if part not in dict(node.named_children()):
                node.add_module(part, Node())
            node = getattr(node, part)
        node.register_parameter(leaf, torch.nn.Parameter(value.half(), requires_grad=False))
    # What OpenAI's archives carry beside the weights.
    for scalar in ("input_resolution", "context_length", "vocab_size"):
        root.register_buffer(scalar, torch.tensor(48))
    return root


tensors = load_file(str(here / "openai.safetensors"))
torch.jit.script(tree(tensors)).save(str(here / "torchscript.pt"))
torch.save({"visual.proj": torch.zeros(2)}, str(here / "plain.pt"))
