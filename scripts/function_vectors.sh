#!/usr/bin/env bash
# The whole method on real tasks and a real base: the 56 tasks of "Function Vectors in Large Language Models"
# (https://github.com/ericwtodd/function_vectors, its folder dataset_files as DATA/function_vectors) over a small base
# in Hugging Face form. Private experts, MBC clusters, an expert for each cluster, and the routers side by side.
# About a quarter of an hour on two cores over stories260K; run again, it goes on where it stopped.
#
# Usage: [QUICK=1] scripts/function_vectors.sh BASE DATA OUT
set -euo pipefail
if [ $# -ne 3 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
base="$1" data="$2" out="$3"
lorakit="${LORAKIT:-$(dirname "$0")/../target/release/lorakit}"
tasks=("$data/function_vectors/abstractive" "$data/function_vectors/extractive")
settings=(max_steps=150 learning_rate=2e-3 max_grad_norm=1)
limit=()
if [ -n "${QUICK:-}" ]; then
    settings+=(max_steps=2 batch_size=2 eval_steps=0)
    limit=(--limit 2)
fi

"$lorakit" train-experts --base "$base" --tasks "${tasks[@]}" --library "$out/private" --set "${settings[@]}"
"$lorakit" cluster --library "$out/private" --method mbc -k 10 --out "$out/clusters.json" --report "$out/clusters.html"
"$lorakit" train-experts --base "$base" --tasks "${tasks[@]}" --library "$out/mbc" --clusters "$out/clusters.json" \
    --set "${settings[@]}"
"$lorakit" eval --base "$base" --library "$out/private" --tasks "${tasks[@]}" --metrics loss "${limit[@]}" \
    --out "$out/private.eval" --router base uniform arrow arrow:top_k=56 oracle
"$lorakit" eval --base "$base" --library "$out/mbc" --tasks "${tasks[@]}" --metrics loss "${limit[@]}" \
    --out "$out/mbc.eval" --router uniform arrow arrow:top_k=10 oracle
