#!/usr/bin/env python3
"""Compares how lorakit and PEFT read adapter_config.json files: which modules of a base each configuration adapts,
with which rank and scale.

    scripts/peft_config_check.py LORAKIT CONFIGS_FOLDER BASE_FOLDER...

Configurations that lorakit accepts are applied by PEFT to an empty model of each base. Those without target_modules are
skipped: PEFT then uses a table of architectures, and lorakit the modules of the adapter's tensors. Needs peft and
transformers (tested with peft 0.21.2). Exits with 1 if the two differ.
"""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

warnings.filterwarnings("ignore")
logging.set_verbosity_error()


def lorakit_reads(binary, config, base):
    """lorakit's reading of a configuration: {module: (rank, scale)}, or None if it is refused."""
    command = [binary, "--json", "library", "check", "--config", str(config), "--base", str(base)]
    ran = subprocess.run(command, capture_output=True, text=True)
    document = json.loads(ran.stdout)
    if not document["accepted"]:
        return None
    return {found["module"]: (found["rank"], found["scale"]) for found in document["modules"]}


def peft_makes(config, base):
    """PEFT's reading of a configuration: {module: (rank, scale)}, or the text of its error."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    keys = json.loads(Path(config).read_text())
    known = {key: value for key, value in keys.items() if key in LoraConfig.__dataclass_fields__}
    # Initialization does not affect a trained adapter, and some initializations need the weights.
    known.update(init_lora_weights=False, eva_config=None, corda_config=None, lora_ga_config=None, velora_config=None)
    known["loftq_config"] = {}
    try:
        adapted = get_peft_model(model, LoraConfig(**known), low_cpu_mem_usage=True)
    except ValueError as error:
        return str(error)
    return {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
    }


def main():
    binary, folder, *bases = sys.argv[1:]
    accepted, unstated, compared, differing = 0, 0, 0, 0
    files = sorted(Path(folder).rglob("*.json"))
    for config in files:
        readings = [(base, lorakit_reads(binary, config, base)) for base in bases]
        if readings[0][1] is None:
            continue
        accepted += 1
        if json.loads(config.read_text()).get("target_modules") is None:
            unstated += 1
            continue
        for base, own in readings:
            peft = peft_makes(config, base)
            compared += 1
            # PEFT refuses a configuration that adapts no module of the base; lorakit lists none.
            if isinstance(peft, str):
                same = own == {} and ("not found in the base model" in peft or "No modules were targeted" in peft)
            else:
                same = own.keys() == peft.keys() and all(
                    own[name][0] == peft[name][0] and abs(own[name][1] - peft[name][1]) <= 1e-12 * abs(peft[name][1])
                    for name in own
                )
            if not same:
                differing += 1
                names = peft if isinstance(peft, str) else sorted(set(own.items()) ^ set(peft.items()))[:4]
                print(f"{config.name} over {base}: {names}")
    print(
        f"{len(files)} configurations, {accepted} accepted, {unstated} of them without target_modules; "
        f"{compared} readings compared, {differing} differ"
    )
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
