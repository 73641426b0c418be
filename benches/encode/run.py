#!/usr/bin/env python3
"""Times CLIP encoding, from JPEG files to Parquet, against PyTorch with a DataLoader, and against the encoder alone.

    benches/encode/run.py [--images 256] [--rounds 2] [--python PYTHON] [--siteline PROGRAM]

ViT-B/16 at random weights, 224 pixels, files of 640 x 480; pooled and dense features. Siteline's time is that of the whole program, which
also ingests, hashes and commits; PyTorch's starts when its modules are loaded. The programs take turns; each number is the best of
the rounds. The last column is the share of the machine's matrix throughput that is reached. With a GPU both encode in bf16.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.dirname(HERE))
from peers import TARGET, build_example, libraries, torch_python

MANIFEST = """siteline: 1
name: encode
sites:
  A: {images: "data/images/*.jpg", masks: "data/masks/{stem}.png", class: polyp}
backbones:
  vit: {weights: weights.safetensors}
axes:
  backbone: [vit]
stages:
  ingest: {uses: ingest, per: [site], with: {size: 224}}
  features: {uses: clip-features, per: [site, backbone], needs: {samples: ingest}, with: {precision: PRECISION}}
"""


def output(command, folder):
    return subprocess.run(command, cwd=folder, env=libraries(), stdout=subprocess.PIPE, check=True, text=True).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--python", default=None)
    parser.add_argument("--siteline", default=f"{TARGET}/release/siteline")
    options = parser.parse_args()
    python = options.python or torch_python()
    build_example(ROOT, "encode")
    reference = [python, f"{HERE}/reference.py"]
    best = {}

    def keep(name, rate):
        best[name] = max(best.get(name, 0.0), rate)

    with tempfile.TemporaryDirectory(prefix="siteline-bench-") as folder:
        output([*reference, "weights", "weights.safetensors"], folder)
        output([*reference, "images", "data", str(options.images)], folder)
        gpu = "True" in output([python, "-c", "import torch; print(torch.cuda.is_available())"], folder)
        with open(f"{folder}/siteline.yaml", "w") as file:
            file.write(MANIFEST.replace("PRECISION", "bf16" if gpu else "fp32"))
        for _ in range(options.rounds):
            shutil.rmtree(f"{folder}/.siteline", ignore_errors=True)
            began = time.perf_counter()
            output([options.siteline, "run", "--quiet"], folder)
            keep("siteline", options.images / (time.perf_counter() - began))
            for batch in ("8", "32"):
                took = output([*reference, "encode", "weights.safetensors", "data", "out.parquet", batch], folder)
                keep("PyTorch", options.images / float(took))
            alone = output([f"{TARGET}/release/examples/encode", "weights.safetensors", str(options.images)], folder)
            keep("encoder alone", float(alone))
        operations, peak = map(float, output([*reference, "operations"], folder).split()[-2:])
    ours = best["siteline"]
    for name, rate in best.items():
        share = rate * operations / peak
        print(f"{name:14} {rate:8.2f} images/s   siteline's rate over it {ours / rate:5.2f}   of the matrix throughput {share:4.0%}")


if __name__ == "__main__":
    main()
