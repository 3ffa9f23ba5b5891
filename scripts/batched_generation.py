#!/usr/bin/env python3
"""Measures how fast many prompts are continued at once, by lorakit and by transformers' batched generate.

    pip install torch transformers
    python scripts/batched_generation.py LORAKIT BASE [--rows 32] [--tokens 64] [--dtype f32|bf16] [--runs 3] [--alone]

LORAKIT is the program and BASE a Hugging Face folder. The same prompts of different lengths are continued greedily by both,
as often as --runs says, in turn; transformers pads them on the left. Prints the medians of new tokens per second. For both,
reading the prompts counts, and opening the base does not: lorakit's time for one new token of one prompt is subtracted.
--alone also continues each prompt alone by lorakit, and fails where the text differs although its tokens were not about as
likely as others, which transformers' logits tell.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SUBJECTS = ["the sea", "a small village", "machine translation", "the history of bread", "an old clock", "the winter of 1709",
            "a good teacher", "the smallest prime number"]
BEGINNINGS = ["Write about {}.", "Once upon a time, someone asked a question about {}, and the answer was",
              "Here are three things that everyone should know about {}:\n1.",
              "Question: Why do people still care about {} today, when there are so many other things that ask for their "
              "attention?\nAnswer:"]
TIE = 1e-3


def prompts(count):
    """Texts of different lengths and beginnings."""
    pairs = [beginning.format(subject) for subject in SUBJECTS for beginning in BEGINNINGS]
    return [f"{pairs[i % len(pairs)]}" if i < len(pairs) else f"{i}. {pairs[i % len(pairs)]}" for i in range(count)]


def lorakit(arguments, folder, texts, tokens):
    """The rows that lorakit generates, and its time in seconds."""
    source, target = folder / "prompts.jsonl", folder / "texts.jsonl"
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    command = [arguments.lorakit, "-q", "generate", "--base", arguments.base, "--dtype", arguments.dtype, "--input", source,
               "--output", target, "--max-new-tokens", str(tokens)]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    return [json.loads(line) for line in target.read_text().splitlines()], seconds


def transformers(model, tokenizer, texts, tokens):
    """The tokens that transformers generates, and its time in seconds."""
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    start = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(**batch, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return out[:, batch["input_ids"].shape[1]:], time.perf_counter() - start


def tied(model, tokenizer, prompt, one, other):
    """Whether two continuations part where two tokens are about equally likely."""
    prefix = tokenizer(prompt)["input_ids"]
    one, other = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (one, other))
    parting = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    with torch.inference_mode():
        logits = model(torch.tensor([prefix + one[:parting]])).logits[0, -1].float()
    best = logits.topk(2).values
    return float(best[0] - best[1]) < TIE


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lorakit")
    parser.add_argument("base")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--alone", action="store_true")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.base, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    model = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=dtype)
    texts, ours, theirs = prompts(arguments.rows), [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        lorakit(arguments, folder, texts[:1], 1)
        transformers(model, tokenizer, texts, 2)
        for _ in range(arguments.runs):
            _, opening = lorakit(arguments, folder, texts[:1], 1)
            rows, seconds = lorakit(arguments, folder, texts, arguments.tokens)
            ours.append(sum(row["tokens"] for row in rows) / (seconds - opening))
            tokens, seconds = transformers(model, tokenizer, texts, arguments.tokens)
            ends = [(row == tokenizer.eos_token_id).nonzero() for row in tokens]
            theirs.append(sum(int(end[0]) + 1 if len(end) else len(row) for end, row in zip(ends, tokens)) / seconds)
        text = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        equal = sum(a["text"] == b for a, b in zip(rows, text))
        ours, theirs = statistics.median(ours), statistics.median(theirs)
        print(f"{arguments.rows} rows, {arguments.dtype}: transformers {theirs:.0f} tok/s, lorakit {ours:.0f} tok/s, "
              f"{ours / theirs:.2f}x; {equal} of {arguments.rows} texts are equal")
        if arguments.alone:
            alone = [lorakit(arguments, folder, [text], arguments.tokens)[0][0] for text in texts]
            apart = [i for i, (a, b) in enumerate(zip(rows, alone)) if a["text"] != b["text"]]
            wrong = [i for i in apart if not tied(model, tokenizer, texts[i], rows[i]["text"], alone[i]["text"])]
            print(f"{len(apart)} texts differ from those of prompts alone, {len(wrong)} of them without a tie")
            sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
