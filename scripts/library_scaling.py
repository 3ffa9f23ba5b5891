#!/usr/bin/env python3
"""Measures what commands over a library cost as it grows, and prints the table of benches/README.md.

Libraries of random experts (many_experts.py, which needs numpy) are made, measured and removed, one number of experts after
the other. The default is the shape of the bundled base, over which all commands run; another base needs its shape:

    scripts/library_scaling.py target/release/lorakit
    scripts/library_scaling.py target/release/lorakit --counts 10,100 --base SMOLLM2 --layers 30 --hidden 576 --kv 192
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = {
    "`library ls`": "library ls --library {library}",
    "`library check`": "library check --library {library}",
    "`eval --router oracle`, a row": "{eval} oracle",
    "`eval --router arrow`, a row": "{eval} arrow",
    "`cluster --method mbc -k 8`": "cluster --library {library} --method mbc -k 8 --out {work}/clusters.json",
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lorakit", type=Path)
    parser.add_argument("--counts", default="1,10,100,1000,10000")
    parser.add_argument("--base", default="pico")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--kv", type=int, default=64)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--clustered", type=int, default=10000, help="most experts to cluster, whose products take their square")
    parser.add_argument("--work", type=Path, help="folder for the libraries [default: a temporary one]")
    return parser.parse_args()


def measured(words):
    """Seconds, CPU seconds and the largest resident set in MiB of a command; None if it fails, as clustering one expert does."""
    since = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        print(f"{' '.join(words)}: {said.strip()[:300]}", file=sys.stderr)
        return None
    return time.monotonic() - since, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def measure(given, count, work):
    """The costs of every command over a library of `count` experts, by command."""
    library, tasks = work / "library", work / "expert00000.json"
    shape = [f"--{name}={getattr(given, name)}" for name in ["layers", "hidden", "kv", "rank"]]
    many = Path(__file__).with_name("many_experts.py")
    subprocess.run([sys.executable, many, "--out", library, "--count", str(count), *shape], check=True)
    tasks.write_text(json.dumps([{"input": f"{row} and then", "output": str(row + 1)} for row in range(8)]))
    evaluate = f"eval --base {given.base} --library {library} --tasks {tasks} --split all --limit 1 --metrics loss --router"
    costs = {}
    for name, line in COMMANDS.items():
        if line.startswith("cluster") and count > given.clustered:
            costs[name] = None
            continue
        words = line.format(library=library, work=work, eval=evaluate).split()
        costs[name] = measured([str(given.lorakit), "-q", *words])
    shutil.rmtree(library)
    return costs


def main():
    given = arguments()
    counts = [int(count) for count in given.counts.split(",")]
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        by_count = [measure(given, count, Path(work)) for count in counts]
    print("| experts | " + " | ".join(f"{count:,}" for count in counts) + " |")
    print("|---|" + "---|" * len(counts))
    for name in COMMANDS:
        cells = [costs[name] for costs in by_count]
        shown = ["" if cell is None else f"{cell[0]:.2f} ({cell[1]:.2f}); {cell[2]:.0f}" for cell in cells]
        print(f"| {name} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
