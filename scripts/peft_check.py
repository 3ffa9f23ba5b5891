#!/usr/bin/env python3
"""Checks that PEFT and transformers load lorakit's output and give the same logits; run by tests/peft.rs.

    pip install torch transformers peft
    python scripts/peft_check.py compare CASES.json
    python scripts/peft_check.py write-mttl ADAPTER LIBRARY NAME

CASES.json is a list of {"base", "adapter", "ids", "logits"}: a model folder, an adapter folder or null, and the input
and output of `lorakit logits`. Prints a JSON list of the largest differences of logits in float32 on the CPU; missing
and unexpected tensors are errors. `write-mttl` writes a PEFT adapter as an expert of an mttl library, with torch.save and
all of mttl's metadata, to test the import of real pickles.
"""

import json
import sys
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file


def logits(case):
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    # Of a multimodal model PEFT adapts the whole, whose modules have other paths than those of its text model alone.
    multimodal = hasattr(AutoConfig.from_pretrained(case["base"]), "vision_config")
    kind = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
    model, loaded = kind.from_pretrained(
        case["base"], dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {key: list(found) for key, found in loaded.items() if found}
    assert not wrong, f"{case['base']}: {wrong}"
    if case["adapter"]:
        model = PeftModel.from_pretrained(model, case["adapter"])
        found = model.load_adapter(case["adapter"], "again")
        missing = [key for key in found.missing_keys if "lora" in key and ".again" in key]
        assert not missing and not found.unexpected_keys, f"{case['adapter']}: {found}"
    with torch.no_grad():
        return model.eval()(load_file(case["ids"])["input_ids"].long()).logits


def compare(cases):
    found = []
    for case in json.loads(Path(cases).read_text()):
        ours = load_file(case["logits"])["logits"]
        found.append((logits(case) - ours).abs().max().item())
    print(json.dumps(found))


def write_mttl(adapter, library, name):
    config = json.loads((Path(adapter) / "adapter_config.json").read_text())
    state = OrderedDict()
    for key, value in load_file(Path(adapter) / "adapter_model.safetensors").items():
        module = key.removeprefix("base_model.model.").removesuffix(".weight")
        module, half = module.rsplit(".", 1)
        # A transposed view, as mttl's own code might save, so that its strides are not contiguous.
        state[f"{module}.{half.lower()}"] = torch.nn.Parameter(value).T if "q_proj" in module else value.T.contiguous()
    lora = {"lora_rank": config["r"], "lora_alpha": float(config["lora_alpha"]), "lora_dropout": 0.05}
    about = {
        "expert_name": name,
        "expert_task_name": "boolq,piqa",
        "parent_node": None,
        "expert_config": {"class_name": "mttl.models.modifiers.lora.LoRAConfig", "modify_modules": ".*", **lora},
        "training_config": {"learning_rate": 1e-4, "seeds": [1, 2**40], "paths": {Path("data")}, **lora},
        "expert_model": "microsoft/phi-2",
        "expert_deleted": False,
    }
    Path(library).mkdir(exist_ok=True)
    torch.save(state, Path(library) / f"{name}.ckpt")
    torch.save(about, Path(library) / f"{name}.meta")


if __name__ == "__main__":
    {"compare": compare, "write-mttl": write_mttl}[sys.argv[1]](*sys.argv[2:])
