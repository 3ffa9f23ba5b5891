#!/usr/bin/env python3
"""Two skills at once: learned concatenation (CAT) against merges, data mixing and single skills, and LoraHub.

For each composition in suite:skills, the experts of its two skills are combined by every method and scored on the
composition's test rows, which are not used for fitting:

    scripts/compositions.py --out /tmp/compositions --seeds 0 1 2

Prints a table of means over compositions and seeds, with standard errors of the mean. Results that exist in --out are
reused. With QUICK=1 in the environment, it runs a minimal version as a smoke test.
"""

import json

from experiment import QUICK, Seed, cell, options, parsed, safe

SKILLS = {
    "reverse_of_up1": ("order_reverse", "shift_up1"),
    "left_of_down1": ("order_left", "shift_down1"),
    "up1_of_left": ("shift_up1", "order_left"),
    "upper_of_reverse": ("capitals_all", "order_reverse"),
    "second_of_reverse": ("pick_second", "order_reverse"),
    "each_of_upper": ("repeat_each", "capitals_all"),
    "dash_of_reverse": ("join_dash", "order_reverse"),
    "dash_of_add1": ("join_dash", "digits_add1"),
    "first_upper_of_up1": ("capitals_first", "shift_up1"),
    "reverse_of_no_vowels": ("order_reverse", "filter_to_consonants"),
}
TRAINING = ["learning_rate=1e-2", f"max_steps={2 if QUICK else 40}", "max_grad_norm=1", "dropout=0", "eval_steps=0"]
# Methods without rows: weights 1/n, or 1 where noted.
MERGES = {
    "static CAT (1/2 each)": ["cat"],
    "sum (1 each)": ["cat", "--weights", "1,1"],
    "linear": ["linear"],
    "svd, rank 4": ["svd"],
    "TIES": ["ties"],
    "TIES on deltas": ["ties_svd"],
    "DARE": ["dare_linear:density=0.75"],
    "DARE-TIES": ["dare_ties:density=0.75"],
    "KnOTS": ["knots"],
    "Core Space": ["core_space"],
    "WUDI": ["wudi"],
}
# Methods fitted to rows: of the two skills (the paper's 5 % mix), or of the composition itself.
FITTED = {
    "CAT, 5 % of the two skills": ("cat_learned:rows=16", "skills"),
    "CAT on a simplex, 5 % of the two skills": ("cat_learned:rows=16,simplex=true", "skills"),
    "CAT, 5 rows of the composition": ("cat_learned:rows=5", "target"),
    "CAT, 32 rows of the composition": ("cat_learned:rows=32", "target"),
    "LoraHub, 5 rows of the composition": ("lorahub", "target"),
    "LoraHub as published, 5 rows": ("lorahub:mode=as-published", "target"),
}
# Methods over the whole library of 32 experts, fitted to rows of the composition.
ROUTERS = {
    "library: LoraHub, 5 rows": "lorahub",
    "library: LoraHub as published, 5 rows": "lorahub:mode=as-published",
    "library: CAT, 32 rows": "cat:rows=32",
    "library: CAT, 100 rows": "cat",
    "library: uniform": "uniform",
    "library: Arrow": "arrow",
}


class Compositions(Seed):
    """Every method of composition, at one seed."""

    def train(self, library, tasks, *more):
        settings = [part for setting in TRAINING for part in ("--set", setting)]
        self.lorakit("train-experts", "--base", "pico", "--library", library, "--tasks", *tasks, *more, *settings)

    def eval(self, library, task, routers):
        """Exact match and loss by router, computed only once."""
        kept = library / f"scores-{task}.json"
        scores = json.loads(kept.read_text()) if kept.exists() else {}
        missing = [router for router in routers if router not in scores]
        if missing:
            task_path = f"suite:skills/{task}"
            found = self.lorakit(
                "eval", "--base", "pico", "--library", library, "--tasks", task_path, "--router", *missing
            )["results"]
            for router, tasks in found.items():
                metrics = tasks[task]["metrics"]
                scores[router] = [metrics["exact_match"]["value"], metrics["loss"]["value"]]
            kept.write_text(json.dumps(scores, indent=1))
        return {router: scores[router] for router in routers}

    def composition(self, task, skills):
        """Every method of combining two experts, on one composition."""
        library, pair = self.out / "library", self.out / task
        mixed = self.out / "mixed" / "-".join(sorted(skills))
        paths = {"skills": [f"suite:skills/{skill}" for skill in skills], "target": [f"suite:skills/{task}"]}
        self.train(mixed, paths["skills"], "--joint")
        named = {"data mixing": mixed / "experts/joint"}
        named["inner skill"], named["outer skill"] = (library / "experts" / skill for skill in reversed(skills))
        merges = {name: (method, []) for name, method in MERGES.items()}
        merges |= {name: ([method], ["--fit", *paths[rows]]) for name, (method, rows) in FITTED.items()}
        for name, (method, fit) in merges.items():
            folder = pair / "merged" / safe(name)
            if not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                common = ["--library", library, "--base", "pico", "--experts", ",".join(sorted(skills))]
                self.lorakit("merge", "--method", *method, *common, *fit, "--out", folder)
            named[name] = folder
        members = {name: safe(name) for name in named}
        candidates = pair / "candidates"
        for name, folder in named.items():
            if not (candidates / "experts" / members[name]).exists():
                source = f"{members[name]}={folder}"
                self.lorakit("library", "add", "--library", candidates, "--base", "pico", source)
        scores = self.eval(candidates, task, ["base", *(f"expert:{member}" for member in members.values())])
        result = {"base": scores["base"]} | {name: scores[f"expert:{member}"] for name, member in members.items()}
        routed = self.eval(library, task, list(ROUTERS.values()))
        return result | {name: routed[router] for name, router in ROUTERS.items()}


def main():
    parser = options(__doc__)
    parser.add_argument("--only", nargs="+", choices=SKILLS, default=list(SKILLS))
    arguments = parsed(parser)
    if QUICK:
        arguments.only = arguments.only[:1]
    found = {}
    for seed in arguments.seeds:
        run = Compositions(arguments.lorakit, arguments.out, seed)
        run.train(run.out / "library", ["suite:skills"])
        for task in arguments.only:
            for name, scores in run.composition(task, SKILLS[task]).items():
                found.setdefault(name, []).append(scores)
            print(f"seed {seed}: {task}", flush=True)
    print("\n| method | exact match, % | loss |\n|---|---|---|")
    for name, scores in found.items():
        match, loss = ([score[part] for score in scores] for part in (0, 1))
        print(f"| {name} | {cell([100 * m for m in match], 1)} | {cell(loss, 2)} |")
    print(f"\n{len(next(iter(found.values())))} compositions and seeds.")


if __name__ == "__main__":
    main()
