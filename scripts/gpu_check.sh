#!/usr/bin/env bash
# Checks that a GPU gives the same results as the CPU. Each row of the table is one comparison; any difference fails.
#
#   [DEVICE=cuda] [LORAKIT=target/release/lorakit] scripts/gpu_check.sh BASE...
#
# BASE is a Hugging Face model folder, a folder with base/ and adapters/, or pico. The script compares logits of the
# base, of its adapters, and of routers over a small library that it trains; then the training losses, clusters, scores
# of routers, a merged adapter and generated text. Without a tokenizer.json, only logits are compared. All of this is in
# f32. In bf16, at most 5 % of Arrow's choices (per token and layer, where two experts are nearly equal) may differ, and
# logits without per-token choices must agree within 5 % of their size. If the folder has expected.safetensors (PEFT's
# logits), the device's logits are compared with those too.
#
# With BENCH="--benches DIR ...", scripts/gpu_bench.py is then run with these options to measure speed.
#
# Needs a lorakit built with `cargo build --release --features cuda`, and python3 without packages. DEVICE=cpu compares
# the CPU with itself, to try the script. TF32 is off: candle uses it only if it is enabled, which lorakit does not do,
# and the script unsets NVIDIA_TF32_OVERRIDE.
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,17p' "$0" >&2; exit 2; }
lorakit=$(realpath "${LORAKIT:-$(dirname "$0")/../target/release/lorakit}")
device=${DEVICE:-cuda}
unset NVIDIA_TF32_OVERRIDE
tasks=(suite:skills/shift_up1 suite:skills/shift_down1 suite:skills/join_dash suite:skills/join_dot)
routers=(base uniform arrow:top_k=2 oracle)
prompt="Shift every letter up by one: abc"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: >"$work/failed"

cat >"$work/compare.py" <<'PYTHON'
"""Compares the results of two devices, using only the standard library."""

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


def floats(path, wanted=None):
    """All values, or those of one tensor."""
    values = array.array("f")
    for name, dtype, data in tensors(path):
        if wanted in (None, name):
            assert dtype == "F32", dtype
            values.frombytes(data)
    return values


def rms(values):
    return math.sqrt(sum(v * v for v in values) / len(values))


def ids(vocabulary, out):
    """Writes two rows of random tokens."""
    draw = random.Random(1)
    data = struct.pack("<96q", *(draw.randrange(vocabulary) for _ in range(96)))
    header = json.dumps({"input_ids": {"dtype": "I64", "shape": [2, 48], "data_offsets": [0, len(data)]}}).encode()
    Path(out).write_bytes(struct.pack("<Q", len(header)) + header + data)


def row(base, what, cpu, device, difference, allowed):
    """Prints a row of the table; a difference above the tolerance, or NaN, fails."""
    good = difference <= allowed
    print(f"{base:<14} {what:<38} {cpu:>14} {device:>14} {difference:>10.2e} {allowed:>8.0e}  {'ok' if good else 'DIFFERS'}")
    return good


def pairs(cpu, device):
    assert len(cpu) == len(device) > 0, f"{len(cpu)} and {len(device)} logits"
    return [abs(a - b) if math.isfinite(a) and math.isfinite(b) else math.inf for a, b in zip(cpu, device)]


def logits(base, what, cpu, device, allowed):
    cpu, device = floats(cpu), floats(device)
    return row(base, what, f"rms {rms(cpu):.4f}", f"rms {rms(device):.4f}", max(pairs(cpu, device)), float(allowed))


def rounded(base, what, cpu, device, allowed):
    """16-bit logits: the RMS of the differences relative to that of the logits."""
    cpu, device = floats(cpu), floats(device)
    share = rms(pairs(cpu, device)) / rms(cpu)
    return row(base, what, f"rms {rms(cpu):.4f}", f"rms {rms(device):.4f}", share, float(allowed))


def oracle(base, what, expected, device, allowed):
    """Compares with PEFT's logits of that name in expected.safetensors."""
    expected, device = floats(expected, what), floats(device)
    what = f"PEFT's logits: {what}"
    return row(base, what, f"rms {rms(expected):.4f}", f"rms {rms(device):.4f}", max(pairs(expected, device)), float(allowed))


def oracles(path):
    """Prints the names of PEFT's logits: of the base, of adapters, and of Arrow over all adapters but `rs`."""
    for name, _, _ in tensors(path):
        if name == "base" or name.startswith(("adapter/", "arrow/")):
            print(name)


def choices(base, what, cpu, device, allowed):
    """The share of choices, over all tokens, layers and projections, with other experts."""
    cpu, device = (
        [[{share["expert"] for share in token} for token in choice["tokens"]] for choice in json.loads(Path(path).read_text())["choices"]]
        for path in (cpu, device)
    )
    assert [len(tokens) for tokens in cpu] == [len(tokens) for tokens in device] != []
    same = [a == b for one, other in zip(cpu, device) for a, b in zip(one, other)]
    return row(base, what, f"{len(same)} choices", f"{sum(same)} the same", 1 - sum(same) / len(same), float(allowed))


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


def verified(base, what, _, device, allowed):
    worst = max(compared["beyond_rounding"] for compared in json.loads(Path(device).read_text())["compared"])
    return row(base, what, "", "", worst, float(allowed))


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
elif sys.argv[1] == "oracles":
    oracles(sys.argv[2])
else:
    sys.exit(0 if globals()[sys.argv[1]](*sys.argv[2:]) else 1)
PYTHON

# compare KIND BASE WHAT CPU DEVICE ALLOWED: prints a row of the table and records a difference.
compare() {
    python3 "$work/compare.py" "$@" || { [ $? -eq 1 ] && echo "$2: $3" >>"$work/failed"; }
}

# both NAME ARGUMENTS...: runs a command on both devices, with {} in its arguments replaced by $work/cpu or
# $work/device, and stdout written to NAME there. In f32, unless $dtype is set.
both() {
    local name=$1 place
    shift
    for place in cpu device; do
        mkdir -p "$work/$place"
        local on=$device
        [ "$place" = cpu ] && on=cpu
        "$lorakit" "${@//\{\}/$work/$place}" --quiet --dtype "${dtype:-f32}" --device "$on" >"$work/$place/$name" ||
            { echo "$name fails on $on: lorakit $*" >&2; exit 1; }
    done
}

# logits BASE NAME WHAT ARGUMENTS...: compares the logits of a base with an adapter or router.
logits() {
    local base=$1 name=$2 what=$3
    shift 3
    both out logits --base "$base" --input "$work/ids" --out {}/logits.safetensors "$@"
    compare logits "$name" "logits: $what" "$work/cpu/logits.safetensors" "$work/device/logits.safetensors" 1e-3
}

# rounded BASE NAME WHAT ARGUMENTS...: the same in bf16.
rounded() {
    local base=$1 name=$2 what=$3
    shift 3
    dtype=bf16 both out logits --base "$base" --input "$work/ids" --out {}/logits.safetensors "$@"
    compare rounded "$name" "bf16: $what" "$work/cpu/logits.safetensors" "$work/device/logits.safetensors" 5e-2
}

# oracles BASE NAME EXPECTED ADAPTERS: compares the logits of the base, the adapters and Arrow with PEFT's.
oracles() {
    local base=$1 name=$2 expected=$3 adapters=$4 oracle filling
    local library=$work/experts
    rm -rf "$library"
    for adapter in "$adapters"/*/; do
        [ "$(basename "$adapter")" = rs ] || "$lorakit" library add --quiet --library "$library" --base "$base" "$adapter" >/dev/null
    done
    for oracle in $(python3 "$work/compare.py" oracles "$expected"); do
        case $oracle in
            base) filling=() ;;
            adapter/*) filling=(--adapter "$adapters/${oracle#adapter/}") ;;
            arrow/*)
                [[ $oracle =~ k([0-9]+)_t([0-9.]+)$ ]]
                filling=(--library "$library" --router "arrow:top_k=${BASH_REMATCH[1]},temperature=${BASH_REMATCH[2]}") ;;
        esac
        "$lorakit" logits --base "$base" --input "$expected" --out "$work/device/logits.safetensors" --quiet --dtype f32 \
            --device "$device" "${filling[@]}" >/dev/null
        compare oracle "$name" "$oracle" "$expected" "$work/device/logits.safetensors" 1e-3
    done
}

if [ "$device" != cpu ] && command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
fi
printf '%-14s %-38s %14s %14s %10s %8s\n' base what cpu "$device" difference allowed
for base in "$@"; do
    rm -rf "$work/cpu" "$work/device"
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
    rounded "$folder" "$name" "the base"
    for adapter in "${adapters[@]}"; do
        logits "$folder" "$name" "adapter $(basename "$adapter")" --adapter "$adapter"
    done
    if [ -e "$base/expected.safetensors" ] && [ -d "$base/adapters" ]; then
        oracles "$folder" "$name" "$base/expected.safetensors" "$base/adapters"
    fi
    if [ "$folder" != pico ] && [ ! -e "$folder/tokenizer.json" ]; then
        printf '%-14s no tokenizer.json: training and generation are skipped\n' "$name"
        continue
    fi

    both train train-experts --base "$folder" --tasks "${tasks[@]}" --library {}/library \
        --set max_steps=10 dropout=0.1 learning_rate=1e-3
    compare losses "$name" training "$work/cpu/library" "$work/device/library" 1e-2
    both clusters cluster --library {}/library -k 2 --out {}/clusters.json
    compare clusters "$name" "clusters of the experts" "$work/cpu/clusters.json" "$work/device/clusters.json" 0

    # From here on both devices use the experts trained on the CPU, so that training differences do not affect routing.
    library=$work/cpu/library
    for router in uniform arrow:top_k=2 arrow:top_k=2,mixing=separate; do
        logits "$folder" "$name" "$router" --library "$library" --router "$router"
    done
    rounded "$folder" "$name" uniform --library "$library" --router uniform
    dtype=bf16 both chosen explain --json --base "$folder" --library "$library" --router arrow:top_k=2 --prompt "$prompt"
    compare choices "$name" "bf16: choices of arrow:top_k=2" "$work/cpu/chosen" "$work/device/chosen" 5e-2
    both scores eval --json --base "$folder" --library "$library" --tasks "${tasks[@]}" --router "${routers[@]}" --limit 8
    compare scores "$name" scores "$work/cpu/scores" "$work/device/scores" 1e-3
    both merge merge --library "$library" --method ties --base "$folder" --out {}/merged
    compare logits "$name" "the merged adapter" "$work/cpu/merged/adapter_model.safetensors" \
        "$work/device/merged/adapter_model.safetensors" 1e-6
    logits "$folder" "$name" "merged by ties" --adapter "$work/cpu/merged"
    # verify fails by itself if merged and unmerged results differ on the device.
    "$lorakit" merge --library "$library" --method cat --base "$folder" --into-base --out "$work/model" --quiet >/dev/null
    for merged in "" "--merged $work/model"; do
        # shellcheck disable=SC2086 # none or two words
        "$lorakit" verify --json --quiet --device "$device" --base "$folder" --library "$library" $merged >"$work/device/verified" ||
            echo "$name: verify $merged" >>"$work/failed"
        compare verified "$name" "verify${merged:+ --merged}, beyond rounding" "" "$work/device/verified" 2e-4
    done
    rm -rf "$work/model"
    both text generate --json --base "$folder" --library "$library" --router arrow:top_k=2 \
        --prompt "$prompt" --max-new-tokens 16
    compare text "$name" "text, greedy" "$work/cpu/text" "$work/device/text" 0
done

if [ -s "$work/failed" ]; then
    echo "DIFFERENT:" >&2
    cat "$work/failed" >&2
    exit 1
fi
echo "cpu and $device agree"
if [ -n "${BENCH:-}" ]; then
    # shellcheck disable=SC2086 # words of a command line
    "$(dirname "$0")/gpu_bench.py" --device "$device" $BENCH
fi
