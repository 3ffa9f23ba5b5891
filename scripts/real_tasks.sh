#!/usr/bin/env bash
# The full pipeline on real tasks and a real base: private experts, MBC clusters with one expert each, a joint expert
# for all tasks, and a comparison of routers, including on tasks that no expert was trained on.
#
# SET    function_vectors, the 56 tasks of https://github.com/ericwtodd/function_vectors without instructions, or
#        instruction_induction, the 24 tasks of https://github.com/orhonovich/instruction-induction with instructions;
#        function_vectors_instructed adds instructions, instruction_induction_bare (22 tasks) removes them
# BASE   a model folder or hub:ORG/NAME
# DATA   the folder that configs/tasks/SET.toml calls {data}
# OUT    the folder for libraries, clusters and results; an interrupted run can be resumed
#
# Each set takes three to ten minutes on two cores over stories260K. SEED defaults to 0.
#
# Usage: [QUICK=1] [SEED=N] scripts/real_tasks.sh SET BASE DATA OUT
set -euo pipefail
usage() {
    sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
[ $# -eq 4 ] || usage
here="$(dirname "$0")"
set="$1" base="$2" data="$3" out="$4"
lorakit="${LORAKIT:-$here/../target/release/lorakit}"
case "$set" in
    function_vectors) tasks=("$data/function_vectors/abstractive" "$data/function_vectors/extractive") ;;
    function_vectors_instructed) tasks=("$here/../configs/tasks/function_vectors.toml" --data "$data") ;;
    instruction_induction) tasks=("$here/../configs/tasks/instruction_induction.toml" --data "$data") ;;
    instruction_induction_bare)
        # The rows of two tasks are not plain input-output pairs.
        mapfile -t tasks < <(find "$data/instruction_induction/raw/induce" -name '*.json' \
            ! -name cause_and_effect.json ! -name common_concept.json | LC_ALL=C sort)
        ;;
    *) usage ;;
esac
settings=(max_steps=150 learning_rate=2e-3 max_grad_norm=1)
limit=()
if [ -n "${QUICK:-}" ]; then
    settings+=(max_steps=2 batch_size=2 eval_steps=0)
    limit=(--limit 2)
fi

train() { # LIBRARY OPTIONS...
    "$lorakit" train-experts --base "$base" --tasks "${tasks[@]}" --library "$out/$1" --set "${settings[@]}" \
        --seed "${SEED:-0}" "${@:2}"
}
evaluate() { # LIBRARY ROUTER...
    echo "== $1"
    "$lorakit" eval --base "$base" --library "$out/$1" --tasks "${tasks[@]}" --metrics loss "${limit[@]}" \
        --seed "${SEED:-0}" --out "$out/$1.eval" --router "${@:2}"
}

train private
"$lorakit" cluster --library "$out/private" --method mbc -k 10 --out "$out/clusters.json" --report "$out/clusters.html"
train mbc --clusters "$out/clusters.json"
train joint --joint
evaluate joint base expert:joint
evaluate private uniform arrow arrow:top_k=all cm tp evidence oracle
evaluate mbc uniform arrow arrow:top_k=all evidence oracle
LORAKIT="$lorakit" "$here/held_out.py" --base "$base" --library "$out/private" --out "$out/held_out" --seed "${SEED:-0}" \
    --tasks "${tasks[@]}" "${limit[@]}"
