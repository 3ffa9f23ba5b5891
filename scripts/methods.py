#!/usr/bin/env python3
"""Compares every method of building, routing and adapting a library, on suite:skills over pico.

Prints three tables: libraries and routers on trained and held-out tasks; clusters compared with the known families; and
adaptation to each held-out task from a tenth of its rows and from all. Cells are means over tasks and seeds, with the
standard error over seeds; a seed determines the suite, the training and the clusters.

    scripts/methods.py --out /tmp/methods --seeds 0 1 2

Results that exist in --out are reused. For compositions of two skills see lora_soups.sh. With QUICK=1 in the
environment, it runs a minimal version as a smoke test.
"""

import json
import statistics
from collections import Counter
from math import comb

from experiment import QUICK, Seed, cell, options, parsed, safe

FAMILIES = 2 if QUICK else 8
STEPS = 5 if QUICK else 40
TRAINING = ["learning_rate=1e-2", "max_grad_norm=1", "dropout=0", "eval_steps=0"]
# The few tasks used with QUICK, by part of the suite.
FEW = {"": ["shift_up1", "shift_down1", "join_dash", "join_dot"], "/heldout": ["shift_up3", "join_at"]}
# Libraries: how each is built, and the routers to score.
ALONE = ["uniform", "arrow", "evidence", "oracle"]
LIBRARIES = {
    "private": (
        [],
        ["base", "uniform", "uniform:mixing=separate", "arrow", "arrow:top_k=1", "arrow:top_k=all", "arrow:mixing=separate"]
        + ["spectr", "lag", "cm", "phatgoose", "tp", "logo", "retrieve", "evidence", "oracle"],
    ),
    "joint": (["--joint"], ["expert:joint"]),
    "all weights": (["--full"], ["base"]),
    "MBC, both stages": (["--mbc", FAMILIES], ALONE),
    "MBC on deltas": (["--clusters", "delta"], ALONE),
    "clusters by embedding": (["--clusters", "embedding"], ALONE),
    "random tasks": (["--clusters", "random"], ALONE),
    "random examples": (["--random-examples", FAMILIES], ["uniform", "arrow"]),
    "Poly": (["--poly", FAMILIES], ["poly:unseen=mean", "poly"]),
    "MHR": (["--mhr", FAMILIES], ["mhr:unseen=mean", "mhr"]),
    "private, 5 steps": (["--set", "max_steps=5"], ["uniform", "arrow", "arrow:top_k=1", "tp", "evidence", "oracle"]),
}
CLUSTERS = {
    "MBC, parameters (as published)": ["--space", "parameters"],
    "MBC, change": ["--space", "change"],
    "MBC, delta": ["--space", "delta"],
    "embedding": ["--method", "embedding"],
    "random": ["--method", "random"],
}
# Adaptations: the method, and the library that it starts from.
ADAPTATIONS = {
    "no library": ("no_library", None),
    "mean of private": ("mean", "private"),
    "mean of MBC": ("mean", "MBC on deltas"),
    "shared (joint)": ("shared", "joint"),
    "Poly": ("poly", "Poly"),
    "Poly-z": ("poly_z", "Poly"),
    "LoraHub": ("lorahub", "private"),
    "LoraHub as published": ("lorahub:mode=as-published", "private"),
    "CAT": ("cat", "private"),
}


class Methods(Seed):
    """Every library, router and adaptation, at one seed."""

    def __init__(self, binary, out, seed, limit):
        super().__init__(binary, out, seed)
        self.limit = str(limit)

    def tasks(self, part=""):
        """The tasks of a part of the suite, as arguments of --tasks."""
        suite = f"suite:skills@{self.seed}"
        return [f"{suite}/{task}" for task in FEW[part]] if QUICK else [suite + part]

    def once(self, name, make):
        """The result of `make`, cached in the file `name`."""
        file = self.out / f"{safe(name)}.json"
        if not file.exists():
            file.write_text(json.dumps(make()))
        return json.loads(file.read_text())

    def clusters(self, name):
        file = self.out / f"{safe(name)}.clusters.json"
        if not file.exists():
            tasks = ["--base", "pico", "--tasks", *self.tasks()] if name == "embedding" else []
            how = ["--library", self.library("private"), "-k", FAMILIES, "--out", file]
            self.lorakit("cluster", *how, *CLUSTERS[name], *tasks)
        return file

    def library(self, name):
        how, _ = LIBRARIES[name]
        if how and how[0] == "--clusters":
            method = {"delta": "MBC, delta"}.get(how[1], how[1])
            how = ["--clusters", self.clusters(method)]
        library = self.out / safe(name)
        steps = [] if "--set" in how else ["--set", f"max_steps={STEPS}"]
        self.lorakit("train-experts", "--base", "pico", "--tasks", *self.tasks(), "--library", library, *how, *steps,
                     "--set", *TRAINING)  # fmt: skip
        return library

    def scores(self, name, router, part):
        """Mean exact match in percent and loss over the tasks of a part of the suite."""

        def make():
            library = self.library(name)
            base = library / "models/full" if name == "all weights" else "pico"
            experts = [] if router == "base" else ["--library", library]
            return self.lorakit("eval", "--base", base, *experts, "--tasks", *self.tasks(part), "--router", router,
                                "--limit", self.limit)["results"][router]  # fmt: skip

        return mean(self.once(f"eval {name} {router} {part}", make))

    def index(self, name):
        """The adjusted Rand index with the families, which are prefixes of task names."""
        members = json.loads(self.clusters(name).read_text())["clusters"]
        found = {task: cluster for cluster, tasks in members.items() for task in tasks}
        return adjusted_rand_index([(cluster, task.split("_")[0]) for task, cluster in found.items()])

    def adaptation(self, name, fraction):
        method, library = ADAPTATIONS[name]

        def make():
            start = ["--library", self.library(library)] if library else []
            trained = method in ("no_library", "mean", "shared", "poly", "poly_z")
            training = ["--set", f"max_steps={STEPS}", *TRAINING] if trained else []
            out = self.out / safe(f"adapted {name} {fraction}")
            return self.lorakit("adapt", "--base", "pico", *start, "--tasks", *self.tasks("/heldout"), "--method", method,
                                "--fraction", fraction, "--limit", self.limit, "--out", out, *training)["check"]["results"]["adapted"]  # fmt: skip

        return mean(self.once(f"adapt {name} {fraction}", make))


def adjusted_rand_index(pairs):
    """The adjusted Rand index of two groupings, given as a pair of groups per item (Hubert and Arabie, 1985)."""
    both, ours, theirs = (sum(comb(n, 2) for n in Counter(of).values()) for of in (pairs, *zip(*pairs)))
    expected = ours * theirs / comb(len(pairs), 2)
    return (both - expected) / ((ours + theirs) / 2 - expected)


def mean(tasks):
    of = [task["metrics"] for task in tasks.values()]
    return [statistics.mean(scale * m[key]["value"] for m in of) for key, scale in (("exact_match", 100), ("loss", 1))]


def cells(seeds, score):
    """Exact match and loss over the seeds."""
    match, loss = zip(*map(score, seeds))
    return f"{cell(match, 1)} | {cell(loss, 2)}"


def main():
    parser = options(__doc__)
    parser.add_argument("--limit", type=int, default=16, help="maximum number of test rows per task")
    arguments = parsed(parser)
    limit = 1 if QUICK else arguments.limit
    seeds = [Methods(arguments.lorakit, arguments.out, seed, limit) for seed in arguments.seeds]

    print("| library | router | trained: exact match, % | loss | held out: exact match, % | loss |\n|---|---|---|---|---|---|")
    for name, (_, routers) in LIBRARIES.items():
        for router in routers:
            trained = cells(seeds, lambda seed: seed.scores(name, router, ""))
            known = router != "oracle"
            held_out = cells(seeds, lambda seed: seed.scores(name, router, "/heldout")) if known else "- | -"
            print(f"| {name} | `{router}` | {trained} | {held_out} |", flush=True)

    print("\n| clusters | adjusted Rand index |\n|---|---|")
    for name in CLUSTERS:
        print(f"| {name} | {cell([seed.index(name) for seed in seeds], 2)} |", flush=True)

    print("\n| adapted to held-out tasks | a tenth of the rows: exact match, % | loss | all rows | loss |\n|---|---|---|---|---|")
    for name in ADAPTATIONS:
        found = [cells(seeds, lambda seed: seed.adaptation(name, fraction)) for fraction in (0.1, 1)]
        print(f"| {name} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
