#!/usr/bin/env python3
"""Computes lm-evaluation-harness scores, the reference of crates/lorakit-eval/tests/integration/lm_eval_parity.rs.

    pip install torch transformers accelerate lm-eval
    python scripts/lm_eval_check.py BASE DATA --out crates/lorakit-eval/tests/integration/lm_eval.json

BASE is a Hugging Face model folder, DATA the folder `dataset` of https://github.com/AGI-Edgerunners/LLM-Adapters.
Takes the first rows of three of its tasks as multiple choice, scores them in float32 on the CPU, and prints acc and
acc_norm; with --out it writes them and the log-likelihood of every choice as JSON. With --time LORAKIT it also scores
the same rows with that binary and prints the seconds of both: for lm-evaluation-harness without startup and model
loading, at the best of several batch sizes; for lorakit in total.
"""

import argparse
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

# One task with a few tokens per choice, one with many, and one whose prompts end in a newline (which moves to the
# choice) and are doubled, so that some exceed a small base's context and are truncated from the left.
YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{prompt}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: "{delimiter}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
QUESTION = ("Question: {{{{question}}}}\\nAnswer:", " ")
PLAIN = ("{{{{question}}}}\\n", "")


def boolq(row):
    question = re.search(r"question: (.*?)\n", row["instruction"], re.S)[1]
    return question, ["false", "true"], ["false", "true"].index(row["answer"])


def piqa(row):
    found = re.search(r"question: (.*?)\n\nSolution1: (.*?)\n\nSolution2: (.*?)\n\n", row["instruction"], re.S)
    return found[1], [found[2], found[3]], int(row["answer"][-1]) - 1


def arc_easy(row):
    body = row["instruction"].split("\n\n")[1]
    texts = [text.strip() for text in re.split(r"Answer\d: ", body)[1:]]
    return row["instruction"] + "\n\n" + row["instruction"], texts, int(row["answer"][-1]) - 1


TASKS = {"boolq": (boolq, QUESTION), "piqa": (piqa, QUESTION), "ARC-Easy": (arc_easy, PLAIN)}


def write_task(name, data, folder, limit):
    """Writes a task's rows and its configuration for lm-evaluation-harness and lorakit."""
    read, (prompt, delimiter) = TASKS[name]
    rows = json.loads((data / name / "test.json").read_text())[:limit]
    with open(folder / f"{name}.jsonl", "w") as file:
        for question, choices, gold in map(read, rows):
            file.write(json.dumps({"question": question, "choices": choices, "gold": gold}) + "\n")
    yaml = YAML.format(name=name, rows=folder / f"{name}.jsonl", prompt=prompt.format(), delimiter=delimiter)
    (folder / f"{name}.yaml").write_text(yaml)
    with open(folder / f"{name}.plain.jsonl", "w") as file:
        for question, choices, gold in map(read, rows):
            prompt = f"Question: {question}\nAnswer:" if delimiter else question
            file.write(json.dumps({"input": prompt, "choices": choices, "answer": gold}) + "\n")


def evaluate(base, folder, batch_size=8, model=None):
    return lm_eval.simple_evaluate(
        model=model or "hf",
        model_args=None if model else {"pretrained": str(base), "dtype": "float32"},
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        device="cpu",
        batch_size=batch_size,
        bootstrap_iters=0,
    )


def summary(found, name):
    """A task's results, rounded to float32 precision."""
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    unique = {sample["doc_id"]: sample for sample in samples}.values()
    scores = found["results"][name]
    return {
        "acc": scores["acc,none"],
        "acc_norm": scores["acc_norm,none"],
        "log_likelihoods": [[round(float(answer[0][0]), 4) for answer in sample["resps"]] for sample in unique],
    }


def compare_times(lorakit, base, folder):
    """Times both programs on the same rows."""
    for batch_size in (1, 8, 32, 128):
        model = HFLM(pretrained=str(base), dtype="float32", device="cpu", batch_size=batch_size)
        started = time.perf_counter()
        evaluate(base, folder, batch_size, model)
        print(f"lm-evaluation-harness, batches of {batch_size}: {time.perf_counter() - started:.2f} s")
    rows = [f"{name}={folder / name}.plain.jsonl" for name in TASKS]
    command = [lorakit, "eval", "-q", "--base", base, "--split", "all", "--router", "base", "--metrics", "acc", "--tasks"]
    started = time.perf_counter()
    subprocess.run([*command, *rows], check=True, stdout=subprocess.DEVNULL)
    print(f"lorakit: {time.perf_counter() - started:.2f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--time", metavar="LORAKIT")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in TASKS:
            write_task(name, arguments.data, Path(folder), arguments.limit)
        found = evaluate(arguments.base, Path(folder))
        if arguments.time:
            compare_times(arguments.time, arguments.base, Path(folder))
    numbers = {name: summary(found, name) for name in TASKS}
    for name, task in numbers.items():
        print(f"{name:10} acc {task['acc']:.4f}  acc_norm {task['acc_norm']:.4f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    main()
