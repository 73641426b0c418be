#!/usr/bin/env python3
"""Times the same sweep under Siteline, ninja, Snakemake and DVC, side by side, and prints the ratios.

    benches/orchestration/run.py [--sizes 100,1000,10000] [--tools siteline,ninja] [--rounds 3] [--siteline PROGRAM]
    benches/orchestration/run.py --sizes 100000 --tools siteline,ninja --plan-only

Each tool starts from nothing (cold), does nothing (no-op), follows one changed data file, of which nearly all is made (one
file), and one that only the scores of one held-out site read (few: 2.5% of 10,000 instances). `--plan-only` plans what was
never built. The tools take turns, at each of the runs that are quick too, whose best in a round counts; each number is the
median of the rounds. Peers are installed by pip into a folder of their own. A tool that is over its time limit is reported as
such. `shells` is the floor of a cold run: the commands alone, by `xargs`.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from sweep import Sweep

CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "siteline")
FLOOR = "shells"
PEERS = {"ninja": "ninja==1.13.2", "snakemake": "snakemake==9.27.1", "dvc": "dvc==3.67.1"}


def install(tools):
    folder = os.path.join(CACHE, "bench-peers")
    for tool in tools:
        if tool in ("siteline", FLOOR) or os.path.exists(f"{folder}/{tool}/.complete"):
            continue
        shutil.rmtree(f"{folder}/{tool}", ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/{tool}"], check=True)
        subprocess.run([f"{folder}/{tool}/bin/pip", "install", "--quiet", PEERS[tool]], check=True)
        open(f"{folder}/{tool}/.complete", "w").close()
    return folder


def commands(tool, folder, siteline, jobs):
    """The command that brings everything up to date, and the one that only plans."""
    if tool == "siteline":
        return [siteline, "run", "--quiet", "-j", jobs], [siteline, "plan"]
    if tool == FLOOR:
        return ["sh", "run.sh"], None
    program = f"{folder}/{tool}/bin/{tool}"
    if tool == "ninja":
        return [program, "-j", jobs, "--quiet"], [program, "-n", "--quiet"]
    if tool == "snakemake":
        return [program, "-j", jobs, "--quiet", "all"], [program, "-n", "--quiet", "all"]
    return [program, "repro", "--quiet"], [program, "status", "--quiet"]


def timed(command, where, limit=None):
    """Seconds and peak memory in MB of a command; None if it is over the limit or fails."""
    began = time.perf_counter()
    # Of its own session, so that whatever it started ends with it.
    process = subprocess.Popen(
        command, cwd=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    pid, status, usage = 0, 0, None
    while pid == 0:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        took = time.perf_counter() - began
        if pid == 0 and limit and took > limit:
            os.killpg(process.pid, 9)
            os.wait4(process.pid, 0)
            return None
        if pid == 0:
            time.sleep(min(0.0005 * (1 + took * 20), 0.05))
    return (took, usage.ru_maxrss / 1024) if status == 0 else None


def in_turns(commands, times):
    """The best of several for each tool's command and folder, the tools taking turns: what is quick varies with the moment."""
    found = {tool: [] for tool in commands}
    for _ in range(times):
        for tool, (command, where) in commands.items():
            found[tool].append(timed(command, where))
    return {tool: None if None in timings else min(timings) for tool, timings in found.items()}


def prepared(tool, sweep, peers, scratch, jobs):
    """A folder with the sweep as this tool reads it."""
    where = tempfile.mkdtemp(prefix=f"{tool}-{sweep.count}-", dir=scratch)
    getattr(sweep, tool)(where, *([jobs] if tool == FLOOR else []))
    if tool == "dvc":
        dvc = f"{peers}/dvc/bin/dvc"
        subprocess.run([dvc, "init", "--no-scm", "--quiet"], cwd=where, check=True)
        subprocess.run([dvc, "config", "core.analytics", "false"], cwd=where, check=True)
    os.sync()
    return where


def changed(file, command, where):
    """Seconds and memory of a command after a line was added to a file."""
    with open(f"{where}/{file}", "a") as opened:
        opened.write("one more\n")
    # A file's times move in steps of the kernel's clock.
    time.sleep(0.05)
    return timed(command, where)


def measure(tools, sweep, peers, options, scratch):
    """One round: what each tool took for each column."""
    if options.plan_only:
        tools = [tool for tool in tools if tool != FLOOR]
    where = {tool: prepared(tool, sweep, peers, scratch, options.jobs) for tool in tools}
    given = {tool: commands(tool, peers, options.siteline, options.jobs) for tool in tools}
    run, plan = ({tool: (given[tool][which], where[tool]) for tool in tools} for which in (0, 1))
    if options.plan_only:
        return {tool: {"plan": entry} for tool, entry in in_turns(plan, 3).items()}
    rows = {tool: {"cold": timed(*run[tool], options.limit)} for tool in tools}
    built = [tool for tool in tools if rows[tool]["cold"] and tool != FLOOR]
    # What takes long would hold up the others' turns.
    for quick in (True, False):
        now = [tool for tool in built if (rows[tool]["cold"][0] < 20) == quick]
        for column, what in [("no-op", run), ("plan", plan)]:
            for tool, entry in in_turns({tool: what[tool] for tool in now}, 7 if quick else 1).items():
                rows[tool][column] = entry
    for column, folder in [("one file", "data"), ("few", "labels")]:
        for tool in built:
            rows[tool][column] = changed(f"{folder}/{sweep.sites[0]}.txt", *run[tool])
    return rows


def summed_up(rounds):
    """The median of each column's seconds, and the most memory that was used; a column that a round lacks is left out."""
    columns = [column for column in rounds[0] if all(row.get(column) for row in rounds)]
    row = {column: statistics.median(row[column][0] for row in rounds) for column in columns}
    if columns:
        row["memory"] = max(entry[1] for row in rounds for entry in row.values() if entry)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100,1000,10000")
    parser.add_argument("--tools", default="siteline,ninja,shells,snakemake,dvc")
    target = os.environ.get("CARGO_TARGET_DIR") or f"{CACHE}/target"
    parser.add_argument("--siteline", default=f"{target}/release/siteline")
    parser.add_argument("--limit", type=float, default=300, help="seconds for a cold run; a tool that is over it drops out")
    parser.add_argument("--plan-only", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--jobs", default=str(os.cpu_count()))
    options = parser.parse_args()
    tools = options.tools.split(",")
    peers = install(tools)
    # So many processes at once need file handles.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Nothing is removed before the end: file systems avoid inodes that were freed lately, and are slow for it.
    with tempfile.TemporaryDirectory(prefix="siteline-bench-") as scratch:
        compare(options, tools, peers, scratch)


def compare(options, tools, peers, scratch):
    given_up = set()
    for size in map(int, options.sizes.split(",")):
        sweep, measured = Sweep(size), {}
        for _ in range(options.rounds):
            rows = measure([tool for tool in tools if tool not in given_up], sweep, peers, options, scratch)
            for tool, row in rows.items():
                measured.setdefault(tool, []).append(row)
                if not row["plan" if options.plan_only else "cold"]:
                    given_up.add(tool)
        rows = {tool: summed_up(rounds) for tool, rounds in measured.items()}
        print(f"\n{sweep.count} instances, {options.jobs} at a time; seconds, and Siteline's time as a multiple of the tool's")
        columns = ["plan"] if options.plan_only else ["cold", "no-op", "one file", "few", "plan"]
        print(f"{'tool':10}" + "".join(f"{c:>20}" for c in columns) + f"{'memory (MB)':>14}")
        own = rows.get("siteline", {})
        for tool, row in rows.items():
            line = f"{tool:10}"
            for column in columns:
                entry = row.get(column)
                if not entry:
                    line += f"{f'over {options.limit:.0f}' if column == 'cold' else '-':>20}"
                    continue
                ratio = f"{own[column] / entry:8.3f}x" if own.get(column) and tool != "siteline" else " " * 9
                line += f"{entry:>11.3f}{ratio}"
            print(line + (f"{row['memory']:>14.0f}" if "memory" in row else ""), flush=True)


if __name__ == "__main__":
    main()
