#!/usr/bin/env python3
"""Writes the rows of configs/tasks/lora_soups.toml, as the code of LoRA Soups (arXiv 2410.13025) splits them.

    scripts/lora_soups_rows.py DATA OUT metamath code_alpaca gsm_hard

A skill has 120 validation rows, a target 32 rows that weights may be fitted to; the others train and score. Abstracts are
rows of a paragraph each, which fit in 256 tokens, and none is held out: a question can only be about a text that was learned.
"""

import argparse
import json
import pathlib
import random
import sys


def read(path):
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        sys.exit(f"{path}: no such file; the head of configs/tasks/lora_soups.toml says where it comes from")
    return [json.loads(line) for line in text.split("\n") if line] if path.suffix == ".jsonl" else json.loads(text)


def row(instruction, output, input=""):
    return {"instruction": instruction, "input": input, "output": output}


def metamath(data):
    return [row(one["query"], one["response"]) for one in read(data / "MetaMathQA/MetaMathQA-395K.json")]


def code_alpaca(data):
    return read(data / "CodeAlpaca-20k/code_alpaca_20k.json")


def alpaca(data):
    return read(data / "alpaca-cleaned/alpaca_data_cleaned.json")


def squad(data):
    rows = []
    for article in read(data / "squad/train-v2.0.json")["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = [answer["text"] for answer in question["answers"]] or ["Not in context"]
                rows.append(row(question["question"], answers[0], paragraph["context"]))
    return rows


def abstracts(data):
    return read(data / "pubmedqa/data/ori_pqal.json").values()


def pubmed_texts(data):
    return [{"text": paragraph} for one in abstracts(data) for paragraph in one["CONTEXTS"]]


def pubmed_questions(data):
    return [row(one["QUESTION"], one["LONG_ANSWER"]) for one in abstracts(data)]


def pubmed_decisions(data):
    question = "{} Answer yes, no or maybe."
    return [
        row(question.format(one["QUESTION"]), one["final_decision"], " ".join(one["CONTEXTS"])) for one in abstracts(data)
    ]


def gsm_hard(data):
    return [row(one["input"], str(one["target"])) for one in read(data / "gsm-hard/gsmhardv2.jsonl")]


# Each with the number of rows that are split off first, and what these and the others are for.
PARTS = {
    metamath: (120, "validation", "train"),
    code_alpaca: (120, "validation", "train"),
    alpaca: (120, "validation", "train"),
    squad: (120, "validation", "train"),
    pubmed_texts: (0, "validation", "train"),
    gsm_hard: (32, "train", "test"),
    pubmed_questions: (32, "train", "test"),
    pubmed_decisions: (32, "train", "test"),
}


def main():
    known = {read_rows.__name__: read_rows for read_rows in PARTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("names", nargs="+", choices=known)
    arguments = parser.parse_args()
    data, out, names = arguments.data, arguments.out, arguments.names
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        rows = list(known[name](data))
        count, first, others = PARTS[known[name]]
        if len(rows) <= count:
            sys.exit(f"{name}: {len(rows)} rows; expected more than {count}")
        random.Random(f"0 {name}").shuffle(rows)
        for split, part in ((first, rows[:count]), (others, rows[count:])):
            if part:
                (out / f"{name}.{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in part))


if __name__ == "__main__":
    main()
