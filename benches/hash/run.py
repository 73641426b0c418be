#!/usr/bin/env python3
"""Times hashing against b3sum, the hash function's own program: 20,000 files of 50 KB, and one file of 2 GiB.

    benches/hash/run.py

Files are in memory (the page cache) in both cases, so that the programs are measured and not the disk. The programs take turns; each
number is the best of several. b3sum is built by cargo into a folder of its own.
"""

import os
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "siteline")
TARGET = os.environ.get("CARGO_TARGET_DIR") or f"{CACHE}/target"
B3SUM = f"{CACHE}/bench-peers/b3sum/bin/b3sum"


def timed(command, names):
    began = time.perf_counter()
    # As many names as a command line holds at once.
    done = subprocess.run(["xargs", *command], input=names, stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - began, done.stdout


def compare(what, size, names, rounds):
    ours = [f"{TARGET}/release/examples/hash"]
    times = {"siteline": [], "b3sum": []}
    printed = {}
    for _ in range(rounds):
        for name, command in (("siteline", ours), ("b3sum", [B3SUM])):
            took, printed[name] = timed(command, names)
            times[name].append(took)
    assert printed["siteline"].split() == printed["b3sum"].split(), "the digests differ"
    best = {name: min(all) for name, all in times.items()}
    rate = {name: size / took / 1e9 for name, took in best.items()}
    ratio = rate["siteline"] / rate["b3sum"]
    print(f"{what:28} siteline {rate['siteline']:6.2f} GB/s   b3sum {rate['b3sum']:6.2f} GB/s   ratio {ratio:.2f}")


def main():
    env = dict(os.environ, CARGO_TARGET_DIR=TARGET)
    build = ["cargo", "build", "--release", "--quiet", "-p", "siteline-cache", "--example", "hash"]
    subprocess.run(build, cwd=ROOT, env=env, check=True)
    if not os.path.exists(B3SUM):
        root = os.path.dirname(os.path.dirname(B3SUM))
        subprocess.run(["cargo", "install", "--quiet", "--root", root, "b3sum@1.8.5"], cwd="/", env=env, check=True)
    with tempfile.TemporaryDirectory(prefix="siteline-bench-") as folder:
        block = os.urandom(50_000)
        names = []
        for index in range(20_000):
            names.append(f"{folder}/{index:05}")
            with open(names[-1], "wb") as file:
                file.write(index.to_bytes(8, "little") + block[8:])
        compare("20,000 files of 50 KB", 20_000 * 50_000, "\n".join(names).encode(), 5)
        for name in names:
            os.remove(name)
        large = f"{folder}/large"
        chunk = os.urandom(1 << 24)
        with open(large, "wb") as file:
            for _ in range(128):
                file.write(chunk)
        compare("one file of 2 GiB", 1 << 31, large.encode(), 5)


if __name__ == "__main__":
    main()
