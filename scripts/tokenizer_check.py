#!/usr/bin/env python3
"""Compares lorakit's tokens with those of transformers' AutoTokenizer.

    tokenizer_check.py LORAKIT FOLDER... [--runs N]

Each FOLDER has a tokenizer.json and a tokenizer_config.json. The files are opened under random architectures, tokenizer
classes and settings of tokenizer_config.json, and random tokens beside tokenizer.json. Exits with 1 if tokens differ.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import AutoTokenizer, logging  # noqa: E402

CLASSES = [None, "TokenizersBackend", "PreTrainedTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer",
           "CodeGenTokenizerFast", "GPTNeoXTokenizerFast", "Qwen2TokenizerFast", "GemmaTokenizerFast", "CohereTokenizerFast"]
ARCHITECTURES = ["llama", "mistral", "phi", "phi3", "qwen2", "qwen3", "gemma", "gpt_neox", "olmo2"]
TOOL = {"content": "<|tool|>", "lstrip": False, "normalized": False, "rstrip": True, "single_word": False, "special": True}
SETTINGS = [{}, {"add_prefix_space": True}, {"add_prefix_space": False}, {"legacy": True}, {"pad_token": "<pad>"},
            {"split_special_tokens": True}, {"additional_special_tokens": ["<|tool|>"]}, {"tool_token": "<|tool|>"},
            {"extra_special_tokens": {"tool_token": "<|tool|>"}}, {"add_bos_token": False, "add_eos_token": True}]
FILES = [{}, {"special_tokens_map.json": {"additional_special_tokens": ["<|tool|>"]}},
         {"special_tokens_map.json": {"pad_token": TOOL}}, {"added_tokens.json": {"<|tool|>": 100000}}]
TEXTS = ["a <|tool|> b", " hello  world", "été 東京 — 3.14\nnew line", "tab\there", "x</s> y",
         "I'll <s>go</s> <|im_start|>user\nhi<|im_end|> now <|endoftext|>x"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lorakit")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--runs", type=int, default=100)
    args = parser.parse_args()
    logging.set_verbosity_error()
    random.seed(0)
    different = refused = 0
    with tempfile.TemporaryDirectory() as work:
        tasks, base = Path(work, "tasks"), Path(work, "base")
        tasks.mkdir()
        for number, text in enumerate(TEXTS):
            (tasks / f"t{number}.jsonl").write_text(json.dumps({"input": text, "output": "c"}) + "\n")
        for _ in range(args.runs):
            name = make(base, random.choice(args.folders))
            expected = AutoTokenizer.from_pretrained(base)
            command = [args.lorakit, "task", "show", tasks, "--base", base, "--split", "all", "--json"]
            shown = subprocess.run(command, capture_output=True, text=True)
            if shown.returncode:
                refused += 1
                print(f"refused: {name}: {shown.stderr.strip()}")
                continue
            for task, text in zip(json.loads(shown.stdout)["tasks"], TEXTS):
                own = [token["id"] for token in task["tokens"] if not token["loss"]]
                other = expected(text + "\n")["input_ids"]
                if other[-1] == expected.eos_token_id != own[-1]:
                    other.pop()  # a prompt goes on
                if own != other:
                    different += 1
                    print(f"different: {name}: {text!r}: {own} instead of {other}")
    print(f"{args.runs} tokenizers, {args.runs * len(TEXTS)} texts: {different} differ, {refused} tokenizers refused")
    raise SystemExit(different > 0)


def make(base, source):
    """Writes a random variant of the tokenizer in `source` to `base`, and returns its name."""
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    shutil.copy(source / "tokenizer.json", base)
    architecture, cls, settings, files = map(random.choice, (ARCHITECTURES, CLASSES, SETTINGS, FILES))
    config = json.loads((source / "tokenizer_config.json").read_text())
    config.pop("tokenizer_class", None)
    config |= settings | ({"tokenizer_class": cls} if cls else {})
    documents = {"tokenizer_config.json": config, "config.json": {"model_type": architecture, "vocab_size": 200000}}
    for file, document in (documents | files).items():
        (base / file).write_text(json.dumps(document))
    return f"{source} {architecture} {cls} {settings} {files}"


main()
