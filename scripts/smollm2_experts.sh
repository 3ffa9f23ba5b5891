#!/usr/bin/env bash
# Private experts over a real base, and its routers side by side: the 24 tasks of
# https://github.com/orhonovich/instruction-induction with instructions over SmolLM2-135M-Instruct, 40 steps of 16 rows
# per task, 24 test rows each; a table with a verdict on each claim.
#
# BASE     the model folder
# DATA     the folder with instruction_induction
# OUT      the folder for libraries (OUT/seed-N/private), results (OUT/seed-N/private.eval) and the table (OUT/smollm2_experts);
#          an interrupted run can be resumed
#
# A seed takes an hour of processor time on cores with AVX-512, half of it on two, and four times as long on slower ones.
#
# Usage: [QUICK=1] [SEEDS="0 1 2"] scripts/smollm2_experts.sh BASE DATA OUT
source "$(dirname "$0")/paper_run.sh"
[ "$mode" = full ] && [ $# -eq 3 ] || usage
base="$1" out="$3"
tasks=("$root/configs/tasks/instruction_induction.toml" --data "$2")
settings=(max_steps=40 learning_rate=1e-3 batch_size=16 max_grad_norm=1 rank=4 target_modules=q_proj,k_proj,v_proj,o_proj)
rows=24
routers=(base uniform random arrow_norm arrow arrow:top_k=all arrow:top_k=1 spectr lag logo scaled_uniform cm:rows=16
    tfidf:rows=16 retrieve:rows=16 tp:rows=16 tp:rows=100 evidence:rows=16 oracle)
if [ -n "${QUICK:-}" ]; then # and no router that reads many rows by the base
    settings+=(max_steps=2 batch_size=2 eval_steps=0)
    rows=2
    routers=(base uniform random arrow_norm arrow arrow:top_k=all arrow:top_k=1 tfidf:rows=16 oracle)
fi

for seed in "${seeds[@]}"; do
    train "$seed" private
    evaluate "$seed" private.eval private "${tasks[@]}" -- --metrics loss --limit "$rows" --chance --router "${routers[@]}"
done
table smollm2_experts
