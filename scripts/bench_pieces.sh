#!/usr/bin/env bash
# Measures the pieces of lorakit on the CPU by criterion, against PEFT, PyTorch and scikit-learn where available.
#
#   scripts/bench_pieces.sh [--python PYTHON] [--base DIR --tasks DIR] [--quick]
#
# --python  a Python with torch, peft, transformers and scikit-learn, for the peers (bench_pieces_peers.py); without it
#           lorakit is measured alone
# --base    a small Hugging Face model folder, and
# --tasks   a folder of task files to train a library of 16 experts on
# --quick   fewer samples
#
# lorakit's figures are medians of the criterion benches. Everything runs sequentially; keep the machine idle meanwhile.
# About 6 GB of memory and 5 GB of disk below target/ are used.
set -euo pipefail
cd "$(dirname "$0")/.."

python="" base="" tasks="" quick=()
while [ $# -gt 0 ]; do
    case "$1" in
        --python) python=$2; shift 2 ;;
        --base) base=$2; shift 2 ;;
        --tasks) tasks=$2; shift 2 ;;
        --quick) quick=(--quick); shift ;;
        *) sed -n '2,13p' "$0" >&2; exit 2 ;;
    esac
done

threads="${THREADS:-2}" # of both programs
export RAYON_NUM_THREADS="$threads" OMP_NUM_THREADS="$threads" OPENBLAS_NUM_THREADS="$threads"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --release
cargo bench --no-run

# bench FILE [FILTER]: runs a bench and sets $peak to its peak memory in GB.
bench() {
    env time -f '%M' -o "$work/peak" cargo bench --bench "$1" -- "${quick[@]}" "${@:2}" >"$work/$1.txt" 2>&1 ||
        { cat "$work/$1.txt" >&2; exit 1; }
    peak=$(awk '{ printf "%.2f", $1 / 1e6 }' "$work/peak")
}

# seconds GROUP BENCH: its median time.
seconds() {
    sed -E 's/.*"median":\{"confidence_interval":\{[^}]*\},"point_estimate":([0-9.e+-]+).*/\1/' \
        "target/criterion/$1/$2/new/estimates.json" | awk '{ print $1 / 1e9 }'
}

# peer WORK ARG...: what a peer's work prints; nothing without --python.
peer() {
    if [ -n "$python" ]; then "$python" scripts/bench_pieces_peers.py "$@" --threads "$threads" 2>/dev/null | tee -a "$work/peers.txt"; fi
}

# row WORK PEER OURS RATIO
row() { printf '| %s | %s | %s | %s |\n' "$1" "${2:--}" "$3" "${4:--}"; }
quotient() { [ -n "$1" ] && [ -n "$2" ] && awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2fx", a / b }' || true; }
per_second() { awk -v n="$1" -v s="$2" 'BEGIN { printf "%.1f", n / s }'; }
found() { sed -nE "s/.*$1.*/\1/p" | tail -n 1; }

printf '| work | peer | lorakit | lorakit / peer |\n|---|---|---|---|\n'

step=$(peer step)
theirs=$(found 'train ([0-9.]+) tok' <<<"$step") memory=$(found 'peak ([0-9.]+) GB' <<<"$step")
bench training_step "f32, loss on every token"
every=$(per_second 512 "$(seconds "training step" "f32, loss on every token")")
row "training step of a slice of Phi-2, f32, tokens/s" "$theirs" "$every" "$(quotient "$every" "$theirs")"
row "its memory, GB" "$memory" "$peak" "$(quotient "$peak" "$memory")"
bench training_step
fifth=$(per_second 512 "$(seconds "training step" "f32, loss on a fifth of the tokens")")
row "the same, loss on a fifth of the tokens (the peer computes all logits)" "$theirs" "$fifth" "$(quotient "$fifth" "$theirs")"
narrow=$(per_second 512 "$(seconds "training step" "bf16, loss on every token")")
row "the same with bf16 weights, compared with lorakit's own f32" "$every" "$narrow" "$(quotient "$narrow" "$every")"

if [ -n "$base" ] && [ -n "$tasks" ]; then
    theirs=$(peer library "$base" "$tasks" | found 'tokens.s ([0-9.]+)')
    mapfile -t files < <(find "$tasks" -name '*.json' | LC_ALL=C sort | head -n 16)
    env time -f '%e' -o "$work/seconds" target/release/lorakit -q train-experts --base "$base" --tasks "${files[@]}" \
        --library "$work/library" --set max_steps=100 batch_size=16 learning_rate=1e-3 dropout=0 eval_steps=0 \
        lr_scheduler=constant warmup_ratio=0 max_grad_norm=1 >"$work/train.txt"
    tokens=$(cat "$work"/library/runs/*/log.jsonl | sed -nE 's/.*"tokens":([0-9]+).*/\1/p' | awk '{ n += $1 } END { print n }')
    ours=$(per_second "$tokens" "$(cat "$work/seconds")")
    row "a library of 16 experts, tokens/s" "$theirs" "$ours" "$(quotient "$ours" "$theirs")"
fi

bench arrow
arrow=$(peer arrow)
for size in 10 64 256; do
    theirs=$(found "experts $size:.*arrow [0-9]+ ms \(([0-9.]+)x\)" <<<"$arrow")
    ours=$(quotient "$(seconds prefill "arrow over $size")" "$(seconds prefill base)")
    row "Arrow over $size experts, prefill of 256 tokens, relative to the base" "${theirs:+${theirs}x}" "$ours" ""
done
row "Arrow over 256 experts, a decoded token, relative to the base" "" \
    "$(quotient "$(seconds decoding "arrow over 256")" "$(seconds decoding base)")" ""

bench opening
theirs=$(found 'experts 256:.*load ([0-9.]+) s' <<<"$arrow")
ours=$(awk -v a="$(seconds opening "library of 256")" -v b="$(seconds opening "prototypes of 256")" 'BEGIN { printf "%.2f", a + b }')
row "opening a library of 256 and preparing Arrow, s" "$theirs" "$ours" "$(quotient "$ours" "$theirs")"
row "opening the base, ms" "" "$(awk -v s="$(seconds opening base)" 'BEGIN { printf "%.1f", 1e3 * s }')" ""

MBC_ADAPTERS=256 bench clustering
mbc=$(peer mbc)
theirs=$(found 'total ([0-9.]+) s' <<<"$mbc") memory=$(found 'peak ([0-9.]+) GB' <<<"$mbc")
ours=$(printf '%.2f' "$(seconds mbc "256 adapters by parameters")")
row "MBC of 256 adapters of 1,966,080 parameters, s" "$theirs" "$ours" "$(quotient "$ours" "$theirs")"
row "its memory, including the adapters' mapped pages, GB" "$memory" "$peak" "$(quotient "$peak" "$memory")"
row "the same by deltas, s" "" "$(printf '%.2f' "$(seconds mbc "256 adapters by delta")")" ""

started=$(date +%s%N)
for _ in $(seq 20); do target/release/lorakit --version >/dev/null; done
row "program start, ms" "" "$(awk -v n=$(($(date +%s%N) - started)) 'BEGIN { printf "%.1f", n / 20e6 }')" ""
