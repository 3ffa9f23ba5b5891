#!/usr/bin/env bash
# Private experts over a real base, and its routers side by side: the 24 tasks of
# https://github.com/orhonovich/instruction-induction with instructions over SmolLM2-135M-Instruct, 40 steps of 16 rows
# per task, 24 test rows each.
#
# BASE     the model folder
# DATA     the folder with instruction_induction
# LIBRARY  the library's folder; results go to LIBRARY.eval; an interrupted run can be resumed
#
# Takes half an hour on two idle cores with AVX-512, two hours on slower ones. With seed 0, two machines gave these mean
# test losses: 5.74 and 5.74 for base, 2.86 and 2.86 for uniform, 2.39 and 2.42 for arrow, 2.37 and 2.36 for
# arrow:top_k=all, 2.18 and 2.29 for arrow:top_k=1, 1.24 and 1.21 for evidence, 1.23 and 1.20 for tp, 1.25 and 1.20 for
# oracle: rounding moves them by about as much.
#
# Usage: [QUICK=1] [SEED=N] scripts/smollm2_experts.sh BASE DATA LIBRARY
set -euo pipefail
if [ $# -ne 3 ]; then
    sed -n '2,15s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here="$(dirname "$0")"
lorakit="${LORAKIT:-$here/../target/release/lorakit}"
common=(--base "$1" --tasks "$here/../configs/tasks/instruction_induction.toml" --data "$2" --library "$3" --seed "${SEED:-0}")
settings=(max_steps=40 learning_rate=1e-3 batch_size=16 max_grad_norm=1 rank=4 target_modules=q_proj,k_proj,v_proj,o_proj)
rows=24
if [ -n "${QUICK:-}" ]; then
    settings+=(max_steps=2 batch_size=2 eval_steps=0)
    rows=2
fi

"$lorakit" train-experts "${common[@]}" --set "${settings[@]}"
"$lorakit" eval "${common[@]}" --metrics loss --limit "$rows" --out "$3.eval" \
    --router base uniform arrow arrow:top_k=all arrow:top_k=1 evidence tp oracle
