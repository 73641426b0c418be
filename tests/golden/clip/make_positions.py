"""Golden positions for another grid, by open_clip's own interpolation, with and without antialiasing.

Run with: pip install torch==2.11.0 open_clip_torch==3.3.0 safetensors==0.8.0 numpy==2.3.5; python make_positions.py
Positions are those of ../formula.py. Writes positions.safetensors beside itself.
"""

import pathlib
import sys
from types import SimpleNamespace

from open_clip.model import resize_pos_embed
from safetensors.torch import save_file

here = pathlib.Path(__file__).parent
sys.path.insert(0, str(here.parent))
from formula import weight

out = {}
for before, after in ((7, 13), (7, 5), (3, 3)):
    for antialias in (True, False):
        state = {"visual.positional_embedding": weight(f"positions {before}", (1 + before**2, 16))}
        resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(after, after))), antialias=antialias)
        out[f"{before}.{after}.{antialias}"] = state["visual.positional_embedding"].contiguous()
save_file(out, str(here / "positions.safetensors"))
