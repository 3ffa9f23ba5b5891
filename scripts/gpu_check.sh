#!/usr/bin/env bash
# Whether a card computes what the CPU computes: every row of the table is one comparison, and any that differs fails.
#
#   [DEVICE=cuda] [LORAKIT=target/release/lorakit] scripts/gpu_check.sh BASE...
#
# BASE is a Hugging Face model folder, a folder with base/ and adapters/, or pico. Logits are compared of the base, of
# its adapters, and of a small library that is trained here and routed; then losses of its training side by side, its
# clusters, the scores of routers, a merged adapter and text. A base without tokenizer.json has its logits compared alone.
# A card also has its 16-bit logits shown (bf16 and not f32), and those fail only where they are no numbers.
#
# Needs a lorakit built with `cargo build --release --features cuda`, and python3 alone. DEVICE=cpu compares the CPU with
# itself, which tries the script. TF32 is off: candle asks cuBLAS for it only where told to, and nothing here does; an
# NVIDIA_TF32_OVERRIDE of the caller's is unset.
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,14p' "$0" >&2; exit 2; }
lorakit=$(realpath "${LORAKIT:-$(dirname "$0")/../target/release/lorakit}")
device=${DEVICE:-cuda}
unset NVIDIA_TF32_OVERRIDE
tasks=(suite:skills/shift_up1 suite:skills/shift_down1 suite:skills/join_dash suite:skills/join_dot)
routers=(base uniform arrow:top_k=2 oracle)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: >"$work/failed"

cat >"$work/compare.py" <<'PYTHON'
"""Compares what two devices wrote; the standard library alone."""

import array
import json
import math
import random
import struct
import sys
from pathlib import Path


def tensors(path):
    data = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    for name, about in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = about["data_offsets"]
            yield name, about["dtype"], data[8 + length + start : 8 + length + end]


def floats(path):
    values = array.array("f")
    for _, dtype, data in tensors(path):
        assert dtype == "F32", dtype
        values.frombytes(data)
    return values


def ids(vocabulary, out):
    """Two rows of tokens, drawn at random."""
    draw = random.Random(1)
    data = struct.pack("<96q", *(draw.randrange(vocabulary) for _ in range(96)))
    header = json.dumps({"input_ids": {"dtype": "I64", "shape": [2, 48], "data_offsets": [0, len(data)]}}).encode()
    Path(out).write_bytes(struct.pack("<Q", len(header)) + header + data)


def row(base, what, cpu, device, difference, allowed):
    """One line of the table; a difference beyond what is allowed, or none that is a number, fails."""
    good = difference <= allowed
    print(f"{base:<14} {what:<38} {cpu:>14} {device:>14} {difference:>10.2e} {allowed:>8.0e}  {'ok' if good else 'DIFFERS'}")
    return good


def logits(base, what, cpu, device, allowed):
    cpu, device = floats(cpu), floats(device)
    assert len(cpu) == len(device) > 0, f"{len(cpu)} and {len(device)} logits"
    worst = max((abs(a - b) if math.isfinite(a) and math.isfinite(b) else math.inf) for a, b in zip(cpu, device))
    size = [math.sqrt(sum(v * v for v in values) / len(values)) for values in (cpu, device)]
    return row(base, what, f"rms {size[0]:.4f}", f"rms {size[1]:.4f}", worst, float(allowed))


def losses(base, _, cpu, device, allowed):
    """Training losses and gradient norms, step by step."""
    good = True
    for record in sorted(Path(cpu).glob("experts/*/expert.json")):
        mine = json.loads(record.read_text())["losses"]
        other = json.loads((Path(device) / record.relative_to(cpu)).read_text())["losses"]
        for kind in ("train", "grad_norm"):
            assert len(mine[kind]) == len(other[kind]) > 0
            worst = max(abs(a - b) for a, b in zip(mine[kind], other[kind]))
            name = f"{kind} of {record.parent.name}, last"
            good &= row(base, name, f"{mine[kind][-1]:.6f}", f"{other[kind][-1]:.6f}", worst, float(allowed))
    return good


def clusters(base, what, cpu, device, _):
    sets = [sorted(map(sorted, json.loads(Path(path).read_text())["clusters"].values())) for path in (cpu, device)]
    differ = float(sets[0] != sets[1])
    return row(base, what, f"{len(sets[0])} clusters", f"{len(sets[1])} clusters", differ, 0.0)


def scores(base, _, cpu, device, allowed):
    cpu, device = (json.loads(Path(path).read_text())["results"] for path in (cpu, device))
    good = cpu.keys() == device.keys()
    for router, of_tasks in cpu.items():
        for task, found in of_tasks.items():
            for metric, score in found["metrics"].items():
                other = device[router][task]["metrics"][metric]["value"]
                name = f"{metric} of {router} on {task}"
                if metric == "loss" or score["value"] != other:
                    difference = abs(score["value"] - other)
                    good &= row(base, name, f"{score['value']:.6f}", f"{other:.6f}", difference, float(allowed))
    return good


def text(base, what, cpu, device, _):
    cpu, device = (json.loads(Path(path).read_text())["text"] for path in (cpu, device))
    short = lambda text: repr(text)[:14]
    return row(base, what, short(cpu), short(device), float(cpu != device), 0.0)


if sys.argv[1] == "ids":
    ids(int(sys.argv[2]), sys.argv[3])
else:
    sys.exit(0 if globals()[sys.argv[1]](*sys.argv[2:]) else 1)
PYTHON

# compare KIND BASE WHAT CPU DEVICE ALLOWED: a line of the table; what differs is remembered.
compare() {
    python3 "$work/compare.py" "$@" || { [ $? -eq 1 ] && echo "$2: $3" >>"$work/failed"; }
}

# both NAME ARGUMENTS...: the same command on both devices, {} in its arguments being $work/DEVICE; its stdout goes to
# $work/DEVICE/NAME.
both() {
    local name=$1 place
    shift
    for place in cpu card; do
        mkdir -p "$work/$place"
        local on=$device
        [ "$place" = cpu ] && on=cpu
        "$lorakit" "${@//\{\}/$work/$place}" --quiet --dtype f32 --device "$on" >"$work/$place/$name" ||
            { echo "$name fails on $on: lorakit $*" >&2; exit 1; }
    done
}

# logits BASE NAME WHAT ARGUMENTS...: the logits of a base with what sits in its slots.
logits() {
    local base=$1 name=$2 what=$3
    shift 3
    both out logits --base "$base" --input "$work/ids" --out {}/logits.safetensors "$@"
    compare logits "$name" "logits: $what" "$work/cpu/logits.safetensors" "$work/card/logits.safetensors" 1e-3
}

if [ "$device" != cpu ] && command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
fi
printf '%-14s %-38s %14s %14s %10s %8s\n' base what cpu "$device" difference allowed
for base in "$@"; do
    rm -rf "$work/cpu" "$work/card"
    folder=$base adapters=()
    if [ -d "$base/base" ]; then
        folder=$base/base
        for adapter in "$base"/adapters/*/; do [ -d "$adapter" ] && adapters+=("$adapter"); done
    fi
    name=$(basename "$base")
    vocabulary=$("$lorakit" base info --json "$folder" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["dimensions"]["vocabulary"])')
    python3 "$work/compare.py" ids "$vocabulary" "$work/ids"
    logits "$folder" "$name" "the base"
    if [ "$device" != cpu ]; then
        "$lorakit" logits --base "$folder" --input "$work/ids" --out "$work/card/logits.safetensors" --quiet \
            --dtype bf16 --device "$device" >/dev/null
        compare logits "$name" "logits: the base in bf16, to be seen" "$work/cpu/logits.safetensors" \
            "$work/card/logits.safetensors" 1e30
    fi
    for adapter in "${adapters[@]}"; do
        logits "$folder" "$name" "adapter $(basename "$adapter")" --adapter "$adapter"
    done
    if [ "$folder" != pico ] && [ ! -e "$folder/tokenizer.json" ]; then
        printf '%-14s no tokenizer.json: nothing to be trained or generated\n' "$name"
        continue
    fi

    both train train-experts --base "$folder" --tasks "${tasks[@]}" --library {}/library \
        --set max_steps=10 dropout=0.1 learning_rate=1e-3
    compare losses "$name" training "$work/cpu/library" "$work/card/library" 1e-2
    both clusters cluster --library {}/library -k 2 --out {}/clusters.json
    compare clusters "$name" "clusters of each one's experts" "$work/cpu/clusters.json" "$work/card/clusters.json" 0

    # From here on both use the experts that the CPU trained: how far apart training ended is no matter of routing.
    library=$work/cpu/library
    for router in uniform arrow:top_k=2 arrow:top_k=2,mixing=separate; do
        logits "$folder" "$name" "$router" --library "$library" --router "$router"
    done
    both scores eval --json --base "$folder" --library "$library" --tasks "${tasks[@]}" --router "${routers[@]}" --limit 8
    compare scores "$name" scores "$work/cpu/scores" "$work/card/scores" 1e-3
    both merge merge --library "$library" --method ties --base "$folder" --out {}/merged
    compare logits "$name" "the merged adapter" "$work/cpu/merged/adapter_model.safetensors" \
        "$work/card/merged/adapter_model.safetensors" 1e-6
    logits "$folder" "$name" "merged by ties" --adapter "$work/cpu/merged"
    both text generate --json --base "$folder" --library "$library" --router arrow:top_k=2 \
        --prompt "Shift every letter up by one: abc" --max-new-tokens 16
    compare text "$name" "text, greedy" "$work/cpu/text" "$work/card/text" 0
done

if [ -s "$work/failed" ]; then
    echo "DIFFERENT:" >&2
    cat "$work/failed" >&2
    exit 1
fi
echo "the same on cpu and $device"
