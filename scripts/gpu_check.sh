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
[ $# -gt 0 ] || { sed -n '2,18p' "$0" >&2; exit 2; }
scripts=$(dirname "$0")
lorakit=$(realpath "${LORAKIT:-$scripts/../target/release/lorakit}")
device=${DEVICE:-cuda}
unset NVIDIA_TF32_OVERRIDE
tasks=(suite:skills/shift_up1 suite:skills/shift_down1 suite:skills/join_dash suite:skills/join_dot)
routers=(base uniform arrow:top_k=2 oracle)
prompt="Shift every letter up by one: abc"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: >"$work/failed"

# compare KIND BASE WHAT CPU DEVICE ALLOWED: prints a row of the table and records a difference.
compare() {
    python3 "$scripts/gpu_compare.py" "$@" || { [ $? -eq 1 ] && echo "$2: $3" >>"$work/failed"; }
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
    for oracle in $(python3 "$scripts/gpu_compare.py" oracles "$expected"); do
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
    python3 "$scripts/gpu_compare.py" ids "$vocabulary" "$work/ids"
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
    "$scripts/gpu_bench.py" --device "$device" $BENCH
fi
