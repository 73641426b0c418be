"""CLIP encoding in PyTorch, as one would write it: JPEG files by a DataLoader of several processes, open_clip's ViT-B/16, Parquet.

    reference.py weights FILE                      random weights of ViT-B/16
    reference.py images FOLDER COUNT               JPEG files and masks
    reference.py encode WEIGHTS FOLDER OUT BATCH   encodes; prints the seconds from the first file to the end of the last
    reference.py operations                        prints the operations for one image, and those a second that matrix products alone reach
"""

import os
import pathlib
import sys
import time

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import throughput
import tower

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Files(Dataset):
    def __init__(self, folder):
        self.paths = sorted(os.path.join(folder, "images", name) for name in os.listdir(f"{folder}/images"))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        image = Image.open(self.paths[index]).convert("RGB").resize((224, 224), Image.BICUBIC)
        return index, torch.from_numpy(np.array(image)).permute(2, 0, 1)


def main():
    what = sys.argv[1]
    if what == "weights":
        torch.manual_seed(0)
        model = open_clip.create_model(tower.MODEL)
        save_file({name: value.contiguous() for name, value in model.state_dict().items() if name != "attn_mask"}, sys.argv[2])
    elif what == "images":
        folder, count = sys.argv[2], int(sys.argv[3])
        os.makedirs(f"{folder}/images"), os.makedirs(f"{folder}/masks")
        random = np.random.default_rng(0)
        for index in range(count):
            small = random.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(small).resize((640, 480), Image.BICUBIC).save(f"{folder}/images/{index:04}.jpg", quality=90)
            mask = np.zeros((480, 640), np.uint8)
            mask[100:300, 200:400] = 255
            Image.fromarray(mask).save(f"{folder}/masks/{index:04}.png")
    elif what == "operations":
        visual = open_clip.create_model(tower.MODEL).visual.eval()
        with torch.no_grad():
            print(throughput.operations(lambda: tower.encode(visual, torch.zeros(1, 3, 224, 224))), throughput.peak(DEVICE))
    else:
        weights, folder, out, batch = sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
        model = open_clip.create_model(tower.MODEL)
        model.load_state_dict(load_file(weights))
        kind = torch.bfloat16 if DEVICE == "cuda" else torch.float32
        visual = model.visual.eval().to(DEVICE, kind)
        began = time.perf_counter()
        workers = min(4, os.cpu_count())
        loader = DataLoader(Files(folder), batch, num_workers=workers, pin_memory=DEVICE == "cuda", prefetch_factor=2)
        floats = lambda n: pa.list_(pa.float32(), n)
        schema = pa.schema([("id", pa.int64()), ("pooled", floats(512)), ("dense", floats(196 * 512))])
        column = lambda x: pa.FixedSizeListArray.from_arrays(pa.array(x.float().cpu().numpy().reshape(-1)), x[0].numel())
        with torch.inference_mode(), pq.ParquetWriter(out, schema, compression="zstd") as writer:
            for ids, pixels in loader:
                normal = ((pixels / 255 - tower.MEAN) / tower.STD).to(DEVICE, kind, non_blocking=True)
                pooled, dense = tower.encode(visual, normal)
                writer.write_table(pa.table([pa.array(ids.numpy()), column(pooled), column(dense)], schema=schema))
        print(time.perf_counter() - began)


if __name__ == "__main__":
    main()
