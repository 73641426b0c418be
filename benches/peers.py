"""What the benchmarks against PyTorch share: its installation, the examples that are built, where libraries lie."""

import os
import subprocess
import sys

CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "siteline")
TARGET = os.environ.get("CARGO_TARGET_DIR") or f"{CACHE}/target"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PACKAGES = ["torch==2.11.0", "torchvision==0.26.0", "numpy==2.3.5", "open_clip_torch==3.3.0", "pyarrow==22.0.0", "pillow==12.0.0"]


def torch_python():
    """A Python with the torch that Siteline's libtorch is out of; installed once."""
    folder = f"{CACHE}/bench-peers/torch"
    if not os.path.exists(f"{folder}/.complete"):
        print("installing torch 2.11.0 and what goes with it, about 5 GB", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([f"{folder}/bin/pip", "install", "--quiet", *PACKAGES], check=True)
        open(f"{folder}/.complete", "w").close()
    return f"{folder}/bin/python"


def libtorch():
    found = subprocess.run([f"{ROOT}/scripts/setup-libtorch"], stdout=subprocess.PIPE, check=True, text=True)
    return found.stdout.strip()


def libraries():
    """The environment of both programs: as many threads as there are cores for each."""
    return dict(os.environ, OMP_NUM_THREADS=str(os.cpu_count()))


def build_example(root, name):
    """Builds an example with the features of the whole workspace, so that nothing of it is built twice."""
    environment = dict(os.environ, CARGO_TARGET_DIR=TARGET, LIBTORCH=libtorch())
    build = ["cargo", "build", "--release", "--quiet", "--workspace", "--example", name]
    subprocess.run(build, cwd=root, env=environment, check=True)
