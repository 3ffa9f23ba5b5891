#!/usr/bin/env bash
# Measures lorakit over a real base on the CPU, against PEFT, transformers and llama.cpp, as rows of a Markdown table.
#
#   [LORAKIT_PYTHON=PYTHON] scripts/bench.sh --base DIR --tasks DIR [--small DIR] [--gguf FILE]... [PART]...
#
# --base   a Hugging Face model folder with f32 weights
# --tasks  a folder of task files, lists of {"input", "output"}; at least 24
# --small  another model folder, a tiny one, over which a library of 16 experts is trained
# --gguf   the base as GGUF, for lorakit and llama.cpp; can be repeated
# PART     train, library, decode, arrow, batch, prefill, first; default: all of them
#
# LORAKIT_PYTHON is a Python with torch, transformers, peft and xllamacpp; without it, only lorakit is measured. STEPS is
# the number of training steps (default: 10). LORAKIT is the binary (default: target/release/lorakit). The machine should
# be idle. All parts take about 15 minutes on two cores over a base of 135 million parameters.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
usage() { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }

base="" tasks="" small="" ggufs=() parts=()
while [ $# -gt 0 ]; do
    case "$1" in
        --base) base=$2; shift 2 ;;
        --tasks) tasks=$2; shift 2 ;;
        --small) small=$2; shift 2 ;;
        --gguf) ggufs+=("$2"); shift 2 ;;
        -*) usage ;;
        *) parts+=("$1"); shift ;;
    esac
done
[ -n "$base" ] && [ -n "$tasks" ] || usage
[ ${#parts[@]} -gt 0 ] || parts=(train library decode arrow batch prefill first)
lorakit="${LORAKIT:-$here/../target/release/lorakit}" steps="${STEPS:-10}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Text that a model continues for long.
prompt="1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,"

# peer COMMAND ARG...: tokens per second of a peer; nothing without LORAKIT_PYTHON, or where it fails.
peer() {
    if [ -n "${LORAKIT_PYTHON:-}" ]; then
        "$LORAKIT_PYTHON" "$here/bench_peers.py" "$@" 2>>"$work/peers.log" | tail -n 1 || true
    fi
}
# row WORK PEERS LORAKIT RATIO
row() { printf '| %s | %s | %s | %s |\n' "$1" "${2:--}" "${3:--}" "${4:--}"; }
calc() { awk "BEGIN { printf \"$1\", ($2) }"; }
quotient() { if [ -n "$1" ] && [ -n "$2" ]; then calc '%.2fx' "$1 / $2"; fi; }
now() { date +%s.%N; }

# trained BASE EXPERTS STEPS OPTION...: tokens per second of training experts of the first tasks.
trained() {
    local base=$1 experts=$2 steps=$3 started files
    mapfile -t files < <(find "$tasks" -name '*.json' | LC_ALL=C sort | head -n "$experts")
    rm -rf "$work/library"
    started=$(now)
    "$lorakit" -q train-experts --base "$base" --tasks "${files[@]}" --library "$work/library" --set max_steps="$steps" \
        batch_size=16 learning_rate=1e-3 dropout=0 eval_steps=0 lr_scheduler=constant warmup_ratio=0 max_grad_norm=1 \
        "${@:4}" >"$work/train.txt"
    sed -nE 's/.*"tokens":([0-9]+).*/\1/p' "$work"/library/runs/*/log.jsonl |
        awk -v s="$(calc %f "$(now) - $started")" '{ n += $1 } END { printf "%.1f", n / s }'
}

# spent TOKENS PROMPT OPTION...: the seconds of generating so many tokens, and how many they were.
spent() {
    local started
    started=$(now)
    "$lorakit" -q generate --prompt "$2" --max-new-tokens "$1" --json "${@:3}" >"$work/text.json"
    echo "$(calc %f "$(now) - $started") $(sed -nE 's/ *"tokens": ([0-9]+).*/\1/p' "$work/text.json" | head -n 1)"
}

# decoded OPTION...: tokens per second of decoding, without the time until the first token; the best of three.
decoded() {
    local best=0 first all
    for _ in 1 2 3; do
        read -r first _ < <(spent 1 "$prompt" "$@")
        read -r all tokens < <(spent 64 "$prompt" "$@")
        best=$(calc %.1f "(r = ($tokens - 1) / ($all - $first)) > $best ? r : $best")
    done
    echo "$best"
}

part_train() {
    local plain lean ours
    plain=$(peer train "$base" "$tasks" --steps "$steps")
    lean=$(peer train "$base" "$tasks" --steps "$steps" --lean)
    ours=$(trained "$base" 4 "$steps")
    row "training of 4 experts, $steps steps of 16 rows, f32" "${plain:+PEFT $plain}" "$ours" "$(quotient "$ours" "$plain")"
    row "the same, the peer's rows sorted by length, with logits of target tokens alone" "${lean:+PEFT $lean}" "$ours" \
        "$(quotient "$ours" "$lean")"
}

part_library() {
    [ -n "$small" ] || return 0
    local theirs ours
    theirs=$(peer train "$small" "$tasks" --experts 16 --steps 100)
    ours=$(trained "$small" 16 100)
    row "a library of 16 experts over a tiny base" "${theirs:+PEFT $theirs}" "$ours" "$(quotient "$ours" "$theirs")"
}

part_decode() {
    local theirs ours file
    theirs=$(peer decode "$base")
    ours=$(decoded --base "$base")
    row "decoding, f32" "${theirs:+transformers $theirs}" "$ours" "$(quotient "$ours" "$theirs")"
    for dtype in bf16 f16; do
        theirs=$(peer decode "$base" --dtype "$([ $dtype = bf16 ] && echo bfloat16 || echo float16)")
        ours=$(decoded --base "$base" --dtype $dtype)
        row "decoding, $dtype" "${theirs:+transformers $theirs}" "$ours" "$(quotient "$ours" "$theirs")"
    done
    for file in "${ggufs[@]}"; do
        theirs=$(peer llama "$file")
        if ! ours=$(decoded --base "$file" 2>/dev/null); then ours=""; fi
        row "decoding, $(basename "$file")" "${theirs:+llama.cpp $theirs}" "$ours" "$(quotient "$ours" "$theirs")"
    done
}

part_arrow() {
    local own routed
    trained "$base" 24 1 batch_size=1 >/dev/null
    own=$(decoded --base "$base") routed=$(decoded --base "$base" --library "$work/library" --router arrow)
    row "decoding through Arrow over 24 experts, relative to the base's own time" "" "$routed" "$(quotient "$own" "$routed")"
}

part_batch() {
    local theirs started first all rows
    theirs=$(peer batch "$base")
    for _ in $(seq 32); do echo "{\"prompt\": \"$prompt\"}"; done >"$work/prompts.jsonl"
    for count in 1 64; do
        started=$(now)
        "$lorakit" -q generate --base "$base" --input "$work/prompts.jsonl" --output "$work/texts.jsonl" \
            --max-new-tokens $count >/dev/null
        first=${all:-0} all=$(calc %f "$(now) - $started")
    done
    rows=$(sed -nE 's/.*"tokens": ?([0-9]+).*/\1/p' "$work/texts.jsonl" | awk '{ n += $1 - 1 } END { print n }')
    all=$(calc %.1f "$rows / ($all - $first)")
    row "32 prompts at once, 64 tokens each, f32" "${theirs:+transformers $theirs}" "$all" "$(quotient "$all" "$theirs")"
}

part_prefill() {
    local theirs long short best=0
    theirs=$(peer prefill "$base")
    # A word of one token, 470 times.
    long=$(printf ' the%.0s' $(seq 470))
    for _ in 1 2 3; do
        read -r all _ < <(spent 1 "$long" --base "$base")
        read -r short _ < <(spent 1 "the" --base "$base")
        best=$(calc %.1f "(r = 469 / ($all - $short)) > $best ? r : $best")
    done
    row "prefill of 470 tokens, f32" "${theirs:+transformers $theirs}" "$best" "$(quotient "$best" "$theirs")"
}

part_first() {
    local seconds
    read -r seconds _ < <(spent 1 "$prompt" --base "$base" --dtype bf16)
    row "seconds until the first token, --dtype bf16 over f32 weights" "" "$(calc %.2f "$seconds")" ""
}

printf '| work, tokens/s | peer | lorakit | lorakit / peer |\n|---|---|---|---|\n'
for part in "${parts[@]}"; do
    "part_$part"
done
if [ -s "$work/peers.log" ] && grep -q Traceback "$work/peers.log"; then
    grep -B 1 -A 0 -E '^[A-Za-z.]*Error' "$work/peers.log" | tail -n 5 >&2
fi
