#!/usr/bin/env python3
"""Writes a library of many random experts of one shape, to measure what a library's size costs.

Each expert is like a trained one: random A and B for q, k, v and o of every layer, and a record with a task, the hashes
of its training rows and the losses of 500 steps. The defaults are SmolLM2-135M's shape: 0.46 million values per expert.
Needs numpy.

    scripts/many_experts.py --out LIBRARY --count 1000
    scripts/many_experts.py --out LIBRARY --count 10000 --dtype bf16
"""

import argparse
import hashlib
import json
import os

import numpy as np


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--kv", type=int, default=192, help="width of keys and values")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    return parser.parse_args()


def header(given):
    """The header of every weights file, and the number of values."""
    widths = {"q_proj": given.hidden, "k_proj": given.kv, "v_proj": given.kv, "o_proj": given.hidden}
    size = {"f32": 4, "bf16": 2}[given.dtype]
    tensors, offset = {}, 0
    for layer in range(given.layers):
        for module, output in widths.items():
            for factor, shape in (("A", [given.rank, given.hidden]), ("B", [output, given.rank])):
                end = offset + size * shape[0] * shape[1]
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{factor}.weight"
                tensors[name] = {"dtype": given.dtype.upper(), "shape": shape, "data_offsets": [offset, end]}
                offset = end
    text = json.dumps(tensors).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offset // size


def main():
    given = arguments()
    start, values = header(given)
    config = {
        "base_model_name_or_path": "random", "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True, "lora_alpha": 16, "lora_dropout": 0.0, "peft_type": "LORA", "r": given.rank,
        "target_modules": ["k_proj", "o_proj", "q_proj", "v_proj"], "task_type": "CAUSAL_LM",
    }
    os.makedirs(f"{given.out}/experts")
    with open(f"{given.out}/library.json", "w") as file:
        json.dump({"format": 1, "name": os.path.basename(given.out), "base": None}, file)
    for index in range(given.count):
        name, generator = f"expert{index:05}", np.random.default_rng(index)
        folder = f"{given.out}/experts/{name}"
        os.mkdir(folder)
        data = (generator.standard_normal(values, dtype=np.float32) * 0.02).view(np.uint32)
        weights = start + (data if given.dtype == "f32" else (data >> 16).astype(np.uint16)).tobytes()
        with open(f"{folder}/adapter_model.safetensors", "wb") as file:
            file.write(weights)
        with open(f"{folder}/adapter_config.json", "w") as file:
            json.dump(config, file, indent=2)
        task = {
            "name": name, "path": f"{name}.jsonl", "sha256": hashlib.sha256(name.encode()).hexdigest(),
            "split_seed": 0, "train_rows": np.sort(generator.integers(0, 2**63, 256)).astype(">u8").tobytes().hex(),
        }
        record = {
            "tasks": [task], "settings": None, "settings_sha256": "", "seed": 0,
            "losses": {"train": generator.random(500).tolist(), "validation": [[500, 0.5]], "best": [500, 0.5]},
            "tokens": 100000, "sha256": hashlib.sha256(weights).hexdigest(), "version": "0.1.0",
        }
        with open(f"{folder}/expert.json", "w") as file:
            json.dump(record, file, indent=2)


if __name__ == "__main__":
    main()
