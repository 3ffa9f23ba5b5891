#!/usr/bin/env python3
"""Makes one adapter of every kind that PEFT has over a base, with PEFT's logits; run by tests/peft_kinds.rs.

    pip install torch transformers peft
    python scripts/peft_kinds.py BASE OUT

Writes OUT/NAME (a PEFT folder), OUT/NAME.safetensors (logits [1, 12, vocab], computed in float64) and OUT/ids.safetensors (input_ids), and
prints a JSON object: for each NAME the largest error of PEFT's logits in float32, and the outcome that is expected of
lorakit: `served` (PEFT's logits), `converted` (by --convert) or the key that a refusal must name.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

warnings.filterwarnings("ignore")
base, out = sys.argv[1], Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)


def model():
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")


config = model().config
generator = torch.Generator().manual_seed(1)
ids = torch.randint(0, config.vocab_size, (1, 12), generator=generator)
save_file({"input_ids": ids}, out / "ids.safetensors")
q = "model.layers.1.self_attn.q_proj"
KINDS = {
    "plain": ("served", {}),
    "rslora": ("served", {"use_rslora": True}),
    "lm_head": ("served", {"target_modules": ["lm_head", "q_proj"]}),
    "embed_tokens": ("served", {"target_modules": ["embed_tokens", "q_proj"]}),
    "both": ("served", {"target_modules": ["embed_tokens", "lm_head"]}),
    "weight_tying": ("served", {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
    "exclude_modules": ("served", {"exclude_modules": [q]}),
    "all_linear": ("served", {"target_modules": "all-linear"}),
    "named": ("served", {"adapter": "second"}),
    "sharded_bin": ("served", {"shards": "bin"}),
    "sharded_safetensors": ("served", {"shards": "safetensors"}),
    "zero_lora_bias": ("served", {"lora_bias": True, "zero": "lora_B.*.bias"}),
    "dora": ("converted", {"use_dora": True}),
    "dora_everywhere": ("converted", {"use_dora": True, "target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    "saved_lm_head": ("converted", {"modules_to_save": ["lm_head"]}),
    "saved_mlp": ("converted", {"modules_to_save": ["mlp"]}),
    "saved_embed_tokens": ("converted", {"modules_to_save": ["embed_tokens"]}),
    "lora_bias": ("lora_bias", {"lora_bias": True}),
    "trainable_tokens": ("converted", {"trainable_token_indices": sorted(set(ids[0, :3].tolist()))}),
    "alora": ("alora_invocation_tokens", {"alora_invocation_tokens": [5, 7]}),
}


def make(name, settings, seed):
    adapter, shards, zero = (settings.pop(key, None) for key in ("adapter", "shards", "zero"))
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(model(), LoraConfig(**{**defaults, **settings}), adapter_name=adapter or "default")
    generator = torch.Generator().manual_seed(seed)
    # So that float32 tells the logits within 1e-4 on deep bases too.
    scale = 0.28 * config.hidden_size**-0.5
    for key, parameter in adapted.named_parameters():
        # A changed bias of a saved module would be no low-rank update.
        if not parameter.requires_grad or key.endswith(".bias") and (zero or "modules_to_save" in key):
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        # A LoRA starts at zero; what starts at the base's values moves by a share of them.
        whole = "magnitude" in key or "modules_to_save" in key
        parameter.data += scale * parameter.data * noise if whole else scale * noise
    folder = out / name
    adapted.save_pretrained(folder)
    if adapter:
        for file in (folder / adapter).iterdir():
            file.rename(folder / file.name)
    with torch.no_grad():
        single = adapted.eval()(ids).logits
        logits = adapted.double()(ids).logits
    noise = (single.double() - logits).abs().max().item()
    save_file({"logits": logits.float().contiguous()}, out / f"{name}.safetensors")
    if shards:
        shard(folder, shards)
    return noise


def shard(folder, extension):
    whole = folder / "adapter_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    parts, weight_map = [dict(list(tensors.items())[part::2]) for part in range(2)], {}
    for number, part in enumerate(parts, 1):
        name = f"adapter_model-{number:05}-of-00002.{extension}"
        weight_map.update(dict.fromkeys(part, name))
        if extension == "bin":
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name)
    index = folder / f"adapter_model.{extension}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


made = {}
for seed, (name, (expected, settings)) in enumerate(KINDS.items()):
    made[name] = {"expected": expected, "noise": make(name, dict(settings), seed)}
print(json.dumps(made))
