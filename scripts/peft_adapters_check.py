#!/usr/bin/env python3
"""Judges random adapters of PEFT by PEFT itself: what lorakit accepts gives PEFT's logits, and what it refuses holds a
feature of its list (`lorakit library check --help`).

    pip install torch transformers peft
    scripts/peft_adapters_check.py LORAKIT BASE_FOLDER... [--count 300] [--seed 0]

Each adapter is made by PEFT over one of the bases, with random settings (rank, alpha, rsLoRA, patterns, target and excluded
modules in every form, layers, initialization, sometimes a feature that lorakit refuses) and random weights, and stored in
f32, f16 or bf16, as safetensors, pickle or shards. A third of the configurations are changed afterwards so that they select
other modules than have tensors. Exits with 1 if an adapter is judged wrongly. Tested with peft 0.21.2.
"""

import argparse
import copy
import json
import random
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

warnings.filterwarnings("ignore")
logging.set_verbosity_error()
logging.disable_progress_bar()

# The largest difference of logits in float32.
TOLERANCE = 2e-4
# Names that no base has, as in configurations for several architectures.
FOREIGN_NAMES = ["query_key_value", "c_attn", "Wqkv", "gate"]
# Initializations that change the base's weights.
CHANGING_THE_BASE = ["pissa", "olora"]
# What the message of a refusal contains, where it is not the word of the list.
IN_MESSAGES = {"incomplete": "has no tensors", "unselected": "selects none of the modules with tensors"}


class Base:
    """A base, with the names of its linear modules."""

    def __init__(self, folder):
        self.folder = folder
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        linear = [name for name, module in self.model.named_modules() if isinstance(module, torch.nn.Linear)]
        self.paths = [name for name in linear if name != "lm_head"]
        self.names = sorted({name.rsplit(".", 1)[1] for name in self.paths})
        self.layers = self.model.config.num_hidden_layers


def some(rng, items, least=1):
    return rng.sample(items, rng.randint(least, max(least, min(len(items), 4))))


def target_modules(rng, base):
    kind = rng.choice(["names", "names", "names", "foreign", "paths", "mixed", "regex", "regex", "all-linear"])
    if kind == "names":
        return some(rng, base.names)
    if kind == "foreign":
        return some(rng, base.names) + some(rng, FOREIGN_NAMES)
    if kind == "paths":
        return some(rng, base.paths)
    if kind == "mixed":
        return some(rng, base.names) + some(rng, base.paths)
    if kind == "regex":
        names = "|".join(some(rng, base.names))
        return rng.choice([rf".*\.({names})", rf"model\.layers\.\d+\..*\.(?:{names})", rf".*layers\.(?!0\.).*({names})"])
    return rng.choice(["all-linear", "All-Linear"])


def exclude_modules(rng, base):
    return rng.choice([some(rng, base.names), some(rng, base.paths), rf".*\.{rng.choice(base.names)}", r".*\.layers\.1\..*"])


def pattern(rng, base, value):
    keys = [
        rng.choice(base.names),
        rng.choice(base.paths),
        "^" + rng.choice(base.paths).replace(".", r"\."),
        rf"layers\.{rng.randrange(base.layers)}\..*",
        rf".*\.{rng.choice(base.names)}",
        rng.choice(FOREIGN_NAMES),
    ]
    return {key: value() for key in rng.sample(keys, rng.randint(1, 3))}


def settings(rng, base):
    """The arguments of a LoraConfig, and the features among them that lorakit refuses."""
    refused = set()
    keys = {"r": rng.randint(1, 8), "lora_alpha": rng.choice([1, 8, 16, 2.5, 32]), "task_type": "CAUSAL_LM"}
    keys["target_modules"] = target_modules(rng, base)
    if rng.random() < 0.3:
        keys["use_rslora"] = True
    if rng.random() < 0.3:
        keys["exclude_modules"] = exclude_modules(rng, base)
    if isinstance(keys["target_modules"], list) and rng.random() < 0.4:
        layers = rng.sample(range(base.layers + 2), rng.randint(1, base.layers))
        keys["layers_to_transform"] = rng.choice([layers, layers, layers[0], []])
        keys["layers_pattern"] = rng.choice([None, "layers", ["layers"], ["h", "layers"]])
    if rng.random() < 0.35:
        keys["rank_pattern"] = pattern(rng, base, lambda: rng.randint(1, 12))
    if rng.random() < 0.35:
        keys["alpha_pattern"] = pattern(rng, base, lambda: rng.choice([2, 4.5, 24]))
    keys["fan_in_fan_out"] = rng.random() < 0.1
    keys["lora_dropout"] = rng.choice([0.0, 0.1])
    keys["init_lora_weights"] = rng.choice([True, True, False, "gaussian", "orthogonal"])
    if keys["init_lora_weights"] == "orthogonal" and (keys["r"] % 2 or "rank_pattern" in keys):
        keys["init_lora_weights"] = True
    feature = rng.choice([None] * 12 + ["use_dora", "modules_to_save", "init_lora_weights", "bias", "lora_bias"])
    if feature:
        refused.add(feature)
    if feature == "use_dora":
        keys["use_dora"] = True
    elif feature == "modules_to_save":
        keys["modules_to_save"] = ["lm_head"]
    elif feature == "init_lora_weights":
        keys["init_lora_weights"] = rng.choice(CHANGING_THE_BASE)
    elif feature == "bias":
        keys["bias"] = rng.choice(["all", "lora_only"])
    elif feature == "lora_bias":
        keys.update(lora_bias=True, init_lora_weights=True)
    return keys, refused


def make(rng, base, folder):
    """Writes a random adapter; returns the refused features in it, or None where PEFT refuses the settings."""
    keys, refused = settings(rng, base)
    try:
        model = get_peft_model(copy.deepcopy(base.model), LoraConfig(**keys))
    except ValueError:
        return None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return refused


def narrow(rng, base, folder):
    """Changes which modules the configuration selects; the tensors stay."""
    path = Path(folder) / "adapter_config.json"
    config = json.loads(path.read_text())
    change = rng.choice(["exclude", "fewer", "more", "layers_pattern"])
    if change == "exclude":
        config["exclude_modules"] = exclude_modules(rng, base)
    elif change == "fewer" and isinstance(config["target_modules"], list) and len(config["target_modules"]) > 1:
        config["target_modules"] = config["target_modules"][1:]
    elif change == "more" and isinstance(config["target_modules"], list):
        config["target_modules"].append(rng.choice(FOREIGN_NAMES))
    elif change == "layers_pattern" and isinstance(config["target_modules"], list) and config["layers_to_transform"] is None:
        config.update(layers_to_transform=[], layers_pattern=["layers"])
    path.write_text(json.dumps(config))


def store(rng, folder):
    """Stores the tensors in another type, and returns a function that stores them in another format."""
    weights = Path(folder) / "adapter_model.safetensors"
    dtype = rng.choice([torch.float32, torch.float16, torch.bfloat16])
    tensors = {key: value.to(dtype).contiguous() for key, value in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    kind = rng.choice(["safetensors", "safetensors", "bin", "shards", "bin shards"])

    def convert():
        if kind == "safetensors":
            return
        weights.unlink()
        if kind == "bin":
            torch.save(tensors, Path(folder) / "adapter_model.bin")
            return
        parts = [dict(list(tensors.items())[part::2]) for part in range(2)]
        for number, part in enumerate(parts, 1):
            name = f"adapter_model-{number:05}-of-00002"
            if kind == "shards":
                save_file(part, Path(folder) / f"{name}.safetensors", metadata={"format": "pt"})
            else:
                torch.save(part, Path(folder) / f"{name}.bin")

    return convert


def pefts_logits(base, folder, ids):
    """PEFT's logits and whether it misses tensors of targeted modules, or None where it does not load the adapter."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(copy.deepcopy(base.model), folder).eval()
    except (ValueError, KeyError, RuntimeError):
        return None
    with torch.no_grad():
        return model(ids).logits, any("missing adapter keys" in str(warning.message) for warning in caught)


def lorakits_logits(binary, base, folder, work):
    """lorakit's logits, or its refusal."""
    out = work / "logits.safetensors"
    out.unlink(missing_ok=True)
    command = [binary, "logits", "-q", "--base", base.folder, "--adapter", folder, "--input", work / "ids.safetensors"]
    ran = subprocess.run([*map(str, command), "--out", str(out)], capture_output=True, text=True)
    return ran.stderr.strip() if ran.returncode else load_file(out)["logits"]


def judge(binary, rng, base, work, listed):
    """One adapter: a word for the outcome, and what is wrong, if anything is."""
    folder = work / "adapter"
    subprocess.run(["rm", "-rf", folder], check=True)
    refused = make(rng, base, folder)
    if refused is None:
        return "refused by PEFT", None
    if rng.random() < 0.33:
        narrow(rng, base, folder)
    convert = store(rng, folder)
    ids = load_file(work / "ids.safetensors")["input_ids"]
    loaded = pefts_logits(base, folder, ids)
    convert()
    if loaded is None:
        return "not loaded by PEFT", None
    expected, incomplete = loaded
    if incomplete:
        refused.update(["incomplete", "unselected"])
    found = lorakits_logits(binary, base, folder, work)
    if isinstance(found, str):
        named = [feature for feature in refused & listed if IN_MESSAGES.get(feature, feature) in found]
        return f"refused: {', '.join(sorted(refused))}", None if named else found
    apart = (found - expected).abs().max().item()
    return "accepted", None if apart < TOLERANCE else f"logits are {apart:.1e} apart"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("bases", nargs="+")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="folder for the adapters that are judged wrongly")
    args = parser.parse_args()
    help_text = subprocess.run([args.binary, "library", "check", "--help"], capture_output=True, text=True).stdout
    listed = {word for word in help_text.split() if word.replace("_", "").isalpha()}
    bases = [Base(folder) for folder in args.bases]
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    outcomes, wrong, judged = Counter(), 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        save_file({"input_ids": torch.randint(3, bases[0].model.config.vocab_size, (2, 12))}, work / "ids.safetensors")
        while judged < args.count:
            base = rng.choice(bases)
            outcome, problem = judge(args.binary, rng, base, work, listed)
            outcomes[outcome] += 1
            judged += "PEFT" not in outcome
            if problem:
                wrong += 1
                config = json.loads((work / "adapter/adapter_config.json").read_text())
                shown = {key: value for key, value in config.items() if value not in (None, False, {}, [])}
                print(f"{base.folder}: {problem}\n  {json.dumps(shown)}", file=sys.stderr)
                if args.keep:
                    subprocess.run(["cp", "-r", work / "adapter", Path(args.keep) / f"wrong{wrong}"], check=True)
    print(f"{judged} adapters judged, {wrong} wrongly: {dict(outcomes)}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
