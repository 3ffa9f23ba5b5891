#!/usr/bin/env python3
"""Compares llama.cpp with a GGUF adapter of `library export --format gguf` with lorakit itself.

    pip install gguf xllamacpp safetensors tokenizers numpy
    python scripts/gguf_check.py LORAKIT BASE LIBRARY [EXPERT...] [--gguf BASE.gguf]

BASE is a Hugging Face folder of a Llama with model.gguf beside its weights (or elsewhere, by --gguf). The base is written
as a GGUF file of float32 weights, with the metadata of model.gguf. For every expert, and for the base alone, llama.cpp
continues a few texts greedily, with a float32 cache, and gives the log-probabilities of the most likely tokens at each step.
Prints the largest difference from lorakit's, and fails above 1e-3 or where the greedy texts differ.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import xllamacpp
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

TEXTS = ["The capital of France is", "shout: river\n", "Once upon a time there was a small red bird that", "2, 4, 6, 8,"]
TOP = 40
NEW_TOKENS = 24
TOLERANCE = 1e-3


def write_f32(source, target):
    """The GGUF file `source` with all matrices dequantized."""
    reader = gguf.GGUFReader(source)
    field = reader.fields["general.architecture"]
    writer = gguf.GGUFWriter(target, str(bytes(field.parts[field.data[0]]), "utf-8"))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """llama.cpp with a base and at most one adapter."""

    def __init__(self, base, adapter):
        params = xllamacpp.CommonParams()
        params.model.path = str(base)
        params.n_ctx, params.n_batch, params.n_parallel, params.warmup, params.verbosity = 512, 512, 1, False, -1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cpuparams.n_threads = 1
        if adapter:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        self.server = xllamacpp.Server(params)

    def complete(self, ids, tokens, **more):
        asked = {"prompt": ids, "n_predict": tokens, "temperature": 0.0, "cache_prompt": False, **more}
        return self.server.handle_completions(asked)


def lorakit(binary, *words):
    done = subprocess.run([binary, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"lorakit {' '.join(map(str, words))}: {done.stderr}")
    return done.stdout


def logits(options, chosen, ids, folder):
    save_file({"input_ids": np.array([ids], dtype=np.int64)}, folder / "ids.safetensors")
    out = folder / "logits.safetensors"
    lorakit(options.lorakit, "logits", "--base", options.base, *chosen, "--input", folder / "ids.safetensors", "--out", out)
    values = load_file(out)["logits"][0].astype(np.float64)
    values -= values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def check(options, name, base, folder):
    chosen, adapter = [], None
    if name:
        words = ["--library", options.library, "--format", "gguf", "--experts", name, "--out", folder / "out"]
        lorakit(options.lorakit, "library", "export", *words)
        adapter, chosen = folder / "out" / f"{name}.gguf", ["--library", options.library, "--router", f"expert:{name}"]
    llama, differences, equal = LlamaCpp(base, adapter), [], True
    tokenizer = Tokenizer.from_file(str(options.base / "tokenizer.json"))
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        choice = llama.complete(ids, NEW_TOKENS, n_probs=TOP)["choices"][0]
        steps = choice["logprobs"]["content"]
        own = logits(options, chosen, ids + [step["id"] for step in steps], folder)
        for position, step in enumerate(steps, len(ids) - 1):
            for token in step["top_logprobs"]:
                differences.append(abs(token["logprob"] - own[position, token["id"]]))
        words = ["--base", options.base, *chosen, "--prompt", text, "--max-new-tokens", NEW_TOKENS]
        mine = json.loads(lorakit(options.lorakit, "generate", "-q", "--json", *words))["text"]
        if mine != choice["text"]:
            equal = False
            print(f"{text!r}\n  lorakit   {mine!r}\n  llama.cpp {choice['text']!r}")
    # NaN if any is.
    worst = np.max(differences)
    print(f"{name or 'the base'}: {len(differences)} log-probabilities within {worst:.1e}; greedy texts {'equal' if equal else 'differ'}")
    return worst < TOLERANCE and equal


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lorakit")
    parser.add_argument("base", type=Path)
    parser.add_argument("library", type=Path)
    parser.add_argument("experts", nargs="*")
    parser.add_argument("--gguf", type=Path)
    options = parser.parse_args()
    experts = options.experts or sorted(path.name for path in (options.library / "experts").iterdir())
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        base = folder / "base.gguf"
        write_f32(options.gguf or options.base / "model.gguf", base)
        good = [check(options, name, base, folder) for name in [None, *experts]]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
