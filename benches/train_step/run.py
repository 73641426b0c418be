#!/usr/bin/env python3
"""Times one training step of each method against the same step in PyTorch, and prints the ratios.

    benches/train_step/run.py [--methods erm,mcdrl] [--epochs 4] [--rounds 2] [--python PYTHON]

Batches of 16 images from four sites: cached features of ViT-B/16 at 224 pixels, head of width 256. MixStyle, Fourier, RandConv and
CLIPSeg: 8 images of 224 pixels through a frozen ViT-B/16; U-Net of width 16 on four of 224; CausalCLIPSeg on RN50, four of 96. The programs
take turns; each number is the best epoch of the best round, PyTorch's with or without a worker of its DataLoader. The last column is the
share of the machine's matrix throughput that Siteline's step reaches: the operations of its matrix products and convolutions, over what
large products alone reach in the same time. torch is installed by pip into a folder of its own unless `--python` names an interpreter
that has it. With a GPU both train in bf16.
"""

import argparse
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.dirname(HERE))
from peers import TARGET, build_example, libraries, torch_python

METHODS = "erm,groupdro,vrex,irm,coral,dann,sam,swad,mixstyle-feature,coop,mcdrl,mixstyle,fourier,randconv,clipseg,unet,causalclipseg"


def said(command):
    return subprocess.run(command, env=libraries(), stdout=subprocess.PIPE, check=True, text=True).stdout.split()


def seconds(command):
    return float(said(command)[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--epochs", default="4")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--python", default=None)
    options = parser.parse_args()
    python = options.python or torch_python()
    build_example(ROOT, "train_step")
    print(f"{'method':18} {'siteline':>10} {'PyTorch':>10} {'ratio':>6} {'of peak':>8}   (seconds a step; ratio: PyTorch's over Siteline's)")
    reference = [python, f"{HERE}/reference.py"]
    for method in options.methods.split(","):
        commands = {
            "siteline": [f"{TARGET}/release/examples/train_step", method, options.epochs],
            "torch": [*reference, method, options.epochs, "0"],
            "torch, a worker": [*reference, method, options.epochs, "1"],
        }
        times = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                times[name].append(seconds(command))
        ours, theirs = min(times["siteline"]), min(t for name in commands if name != "siteline" for t in times[name])
        operations, peak = map(float, said([*reference, method, "operations"])[-2:])
        share = operations / ours / peak
        print(f"{method:18} {ours:10.4f} {theirs:10.4f} {theirs / ours:6.2f} {share:8.0%}", flush=True)


if __name__ == "__main__":
    main()
