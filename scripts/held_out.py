#!/usr/bin/env python3
"""Evaluates routers on tasks without an expert: every fourth expert is removed from a copy of the library.

Prints each router's mean test loss on the tasks of the removed experts and on those of the others, with standard errors
over rows. The copy and the results stay in OUT.
"""

import argparse
import os
import pathlib
import shutil
import statistics

from experiment import Seed

EVERY = 4
ROUTERS = ["base", "uniform", "arrow", "arrow:top_k=all", "tp", "evidence"]


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    binary = pathlib.Path(__file__).resolve().parent.parent / "target/release/lorakit"
    parser.add_argument("--lorakit", default=os.environ.get("LORAKIT", binary))
    parser.add_argument("--library", type=pathlib.Path, required=True, help="a library with one expert per task")
    parser.add_argument("--base", required=True)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--data", help="folder to substitute for {data} in task TOMLs")
    parser.add_argument("--limit", type=int, help="maximum number of test rows per task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    return parser.parse_args()


def cell(scores):
    """The mean over tasks, with the standard error of independent tasks."""
    if not scores:
        return "-"
    error = sum((score["stderr"] or 0) ** 2 for score in scores) ** 0.5 / len(scores)
    return f"{statistics.mean(score['value'] for score in scores):.2f} ±{error:.2f}"


def main():
    given = options()
    seed = Seed(given.lorakit, given.out, given.seed)
    known = seed.out / "known"
    shutil.rmtree(known, ignore_errors=True)
    shutil.copytree(given.library, known, ignore=shutil.ignore_patterns("routers", "runs"))
    removed = sorted(folder.name for folder in (known / "experts").iterdir() if not folder.name.startswith("."))[::EVERY]
    seed.lorakit("library", "rm", "--library", known, *removed)
    more = [word for name in ("data", "limit") if (value := getattr(given, name)) for word in (f"--{name}", value)]
    results = seed.lorakit("eval", "--base", given.base, "--library", known, "--tasks", *given.tasks, *more,
                           "--metrics", "loss", "--out", seed.out, "--router", *ROUTERS)["results"]  # fmt: skip
    missing = [name for name in removed if name not in results[ROUTERS[0]]]
    if missing:
        raise SystemExit(f"no task is named after the experts {', '.join(missing)}: expected one expert per task, with the task's name")
    print(f"Mean test loss, {len(removed)} experts removed:\n\n| router | tasks of removed experts | other tasks |\n|---|---|---|")
    for router in ROUTERS:
        scores = {task: score["metrics"]["loss"] for task, score in results[router].items()}
        of = [cell([score for task, score in scores.items() if (task in removed) == out]) for out in (True, False)]
        print(f"| {router} | {of[0]} | {of[1]} |")


if __name__ == "__main__":
    main()
