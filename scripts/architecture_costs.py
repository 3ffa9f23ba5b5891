#!/usr/bin/env python3
"""Time per FLOP of each architecture beside Mistral's form of the same shape, in training and in prefill.

    architecture_costs.py --tokenizer DIR --work DIR [--rounds 3] [--only gemma2 phi ...]

Writes one random base per architecture below --work (88 million parameters, needs torch and transformers, kept for the next
run), all with the tokenizer in DIR, and measures both of a pair in turns: an expert's training steps of 8 rows of about 100
tokens, and the prefill of 470 tokens. Of each the ratio of the processors' time (user and system) comes first, which other
programs on the machine change little, and then that of wall time; of all rounds the median ratio counts. FLOPs are those of
the layers' matrices, so that attention, norms, caps and what an architecture adds besides count as overhead. LORAKIT is the
binary (default: target/release/lorakit).
"""
import argparse
import json
import os
import pathlib
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LORAKIT = os.environ.get("LORAKIT", ROOT / "target/release/lorakit")
SHAPE = dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12, num_key_value_heads=4,
             head_dim=64, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
             pad_token_id=0)  # fmt: skip
# What a config needs besides the shape.
MORE = {"gemma2": {"sliding_window": 4096}, "phi": {"partial_rotary_factor": 0.5, "tie_word_embeddings": False}}
ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi", "phi3", "olmo2", "granite", "smollm3"]
WORDS = "the history of the city begins in a small town on the river where people trade wool and salt for grain "


def made(architecture, given):
    """The folder of a random base."""
    folder = given.work / architecture
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    vocabulary = len(json.loads((given.tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
    config = AutoConfig.for_model(architecture, vocab_size=vocabulary, **(SHAPE | MORE.get(architecture, {})))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(given.tokenizer / name, folder)
    return folder


def flops(folder):
    """FLOPs per token of one pass through the layers' matrices."""
    with open(folder / "model.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    matrices = [t["shape"] for name, t in header.items() if ".layers." in name and len(t.get("shape", [])) == 2]
    return 2 * sum(rows * columns for rows, columns in matrices)


def seconds(*arguments):
    """Of a run: the processors' time, and wall time."""
    started = time.perf_counter()
    child = subprocess.Popen([str(a) for a in (LORAKIT, "-q", *arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"failed: {child.args}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - started


def difference(long, short):
    return [a - b for a, b in zip(long, short)]


def training(folder, task):
    """Seconds of four steps."""
    with tempfile.TemporaryDirectory() as library:
        train = lambda steps: seconds("train-experts", "--base", folder, "--tasks", task, "--library", f"{library}/{steps}", "--set",
                                      f"max_steps={steps}", "batch_size=8", "dropout=0", "eval_steps=0", "max_loss_jump=0")  # fmt: skip
        return difference(train(5), train(1))


def prefill(folder, _):
    """Seconds of a prompt of about 470 tokens less those of one word."""
    generate = lambda prompt: seconds("generate", "--base", folder, "--max-new-tokens", 1, "--prompt", prompt)
    return difference(generate(" the" * 470), generate("the"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    task = given.work / "rows.jsonl"
    task.write_text("".join(json.dumps({"input": WORDS * 5, "output": f"{i}"}) + "\n" for i in range(64)))
    mistral = made("mistral", given)
    print("| architecture | parameters of layers, millions | training, over Mistral's per FLOP | wall | prefill | wall |")
    print("|---|---|---|---|---|---|", flush=True)
    for architecture in given.only:
        folder = made(architecture, given)
        share, ratios = flops(mistral) / flops(folder), []
        for work in (training, prefill):
            pairs = [(work(folder, task), work(mistral, task)) for _ in range(given.rounds)]
            for clock in range(2):
                ratios.append(share * statistics.median(own[clock] / theirs[clock] for own, theirs in pairs))
        print(f"| {architecture} | {flops(folder) / 2e6:.1f} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True)


main()
