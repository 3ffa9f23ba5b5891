#!/usr/bin/env python3
"""Compares the memory that lorakit says training needs with the most that it then used, over random bases of 0.1 to 1
billion parameters.

    pip install numpy
    scripts/memory_check.py LORAKIT TOKENIZER_FOLDER WORK [--shapes NAME ...] [--cases NAME ...] [--rows ROWS]

TOKENIZER_FOLDER is a model folder whose tokenizer has at most 49,152 tokens, such as SmolLM2's. The bases are written to
WORK, in bf16, and stay there. Each case is a process of its own, which trains for one step of ROWS rows of about 64 tokens.
Used memory is the process's largest resident set as the kernel reports it (ru_maxrss), with the pages of the mapped base.
Prints a Markdown table, and fails where an estimate is more than a tenth off.
"""

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

COMMON = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2}


def shape(model_type, vocabulary, hidden, inner, layers, heads, kv_heads, head_dim, tied, **own):
    return {
        **COMMON,
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "tie_word_embeddings": tied,
        **own,
    }


GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 512}
SHAPES = {
    "smollm2-135m": shape("llama", 49152, 576, 1536, 30, 9, 3, 64, True),
    "phi3-0.3b": shape("phi3", 49152, 1024, 4096, 14, 16, 16, 64, False, pad_token_id=0),
    "gemma3-270m": shape("gemma3_text", 262144, 640, 2048, 18, 4, 1, 256, True, **GEMMA),
    "qwen3-0.6b": shape("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, True),
    "llama-1b": shape("llama", 128256, 2048, 8192, 13, 32, 8, 64, True),
    "gemma3-1b": shape("gemma3_text", 262144, 1152, 6912, 26, 4, 1, 256, True, **GEMMA),
}

# Experts in a pass, and settings.
CASES = {
    "default": (1, []),
    "no dropout": (1, ["dropout=0"]),
    "8 experts, all-linear, rank 16": (8, ["target_modules=all-linear", "rank=16"]),
    "gradient_checkpointing": (1, ["gradient_checkpointing=true"]),
}


def matrices(config):
    """Names and shapes of all tensors."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries, keys = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    kind = config["model_type"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        if kind == "phi3":
            yield at + "self_attn.qkv_proj.weight", (queries + 2 * keys, hidden)
            yield at + "mlp.gate_up_proj.weight", (2 * inner, hidden)
        else:
            for name, rows in (("q", queries), ("k", keys), ("v", keys)):
                yield at + f"self_attn.{name}_proj.weight", (rows, hidden)
            for name in ("gate", "up"):
                yield at + f"mlp.{name}_proj.weight", (inner, hidden)
        yield at + "self_attn.o_proj.weight", (hidden, queries)
        yield at + "mlp.down_proj.weight", (hidden, inner)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if kind == "gemma3_text":
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for name in norms:
            yield at + name + ".weight", (hidden,)
        if kind in ("gemma3_text", "qwen3"):
            for name in ("q", "k"):
                yield at + f"self_attn.{name}_norm.weight", (config["head_dim"],)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, hidden)


def write_base(folder, config, tokenizer):
    """A random base, written tensor by tensor."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}, indent=1))
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, dimensions in matrices(config):
        end = start + 2 * math.prod(dimensions)
        header[name] = {"dtype": "BF16", "shape": dimensions, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with open(folder / "model.safetensors.part", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, dimensions in matrices(config):
            for _ in range(dimensions[0] if len(dimensions) == 2 else 1):
                row = rng.standard_normal(dimensions[-1], dtype=np.float32) * np.float32(0.02)
                # A bf16 is the upper half of a float32.
                file.write((row.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    os.rename(folder / "model.safetensors.part", folder / "model.safetensors")


def write_tasks(folder, experts):
    """Tasks of 80 rows of about 64 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, words = random.Random(0), "river stone cloud apple green seven house light paper water bird slow".split()
    for task in range(experts):
        text = lambda n: " ".join(rng.choice(words) for _ in range(n))
        rows = (json.dumps({"input": text(44) + "\n", "output": text(18)}) for _ in range(80))
        (folder / f"task{task}.jsonl").write_text("".join(row + "\n" for row in rows))


def train(lorakit, base, work, experts, settings, rows):
    """The estimate and the largest resident set, in bytes."""
    tasks = work / f"tasks{experts}"
    write_tasks(tasks, experts)
    library = work / f"library-{os.getpid()}"
    shutil.rmtree(library, ignore_errors=True)
    command = [lorakit, "train-experts", "--json", "-q", "--base", base, "--tasks", tasks, "--library", library]
    command += ["--set", "max_steps=1", "eval_steps=0", f"experts_per_pass={experts}", f"batch_size={rows // experts}", *settings]
    child = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE)
    document = json.loads(child.stdout.read())
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"failed: {command}")
    return document["memory"]["estimate"], usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lorakit")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rows", type=int, default=8)
    args = parser.parse_args()
    print("| base | parameters | case | estimate, MiB | used, MiB | estimate / used |\n|---|---|---|---|---|---|", flush=True)
    off = 0
    for name in args.shapes:
        base, config = args.work / name, SHAPES[name]
        if not (base / "model.safetensors").exists():
            shutil.rmtree(base, ignore_errors=True)
            write_base(base, config, args.tokenizer)
        parameters = sum(math.prod(dimensions) for _, dimensions in matrices(config))
        for case in args.cases:
            estimate, used = train(args.lorakit, base, args.work, *CASES[case], args.rows)
            total = sum(estimate.values())
            off += abs(total / used - 1) > 0.1
            parts = f"{total / 2**20:,.0f} | {used / 2**20:,.0f} | {total / used:.3f}"
            print(f"| {name} | {parameters / 1e6:,.0f} M | {case} | {parts} |", flush=True)
    if off:
        sys.exit(f"{off} estimates are more than a tenth off")


if __name__ == "__main__":
    main()
