#!/usr/bin/env bash
# The zero-shot table of "Towards Modular LLMs" (arXiv 2405.11157, table 1): base, shared, private and MBC libraries
# with uniform and Arrow routing, on multiple-choice sets and BIG-Bench Hard. As in the paper, 40 % of the epochs train
# private experts for clustering by parameters, and 60 % the experts of ten clusters; the other libraries train for all
# epochs.
#
# BASE   a model folder or hub:ORG/NAME; the paper's are hub:microsoft/phi-2 and hub:mistralai/Mistral-7B-v0.1
# TASKS  a folder of one JSON Lines file for each task, of {"input", "output"} rows; the paper's are 256 tasks of Flan
#        (https://huggingface.co/datasets/chiayewken/flan-v2: at most 10,000 rows of each task_name, as columns
#        source and target), without the evaluation tasks
# DATA   the folder that configs/tasks/llm_adapters.toml and bbh.toml call {data}
# OUT    the folder for libraries, clusters and results; an interrupted run can be resumed
#
# OPTIONS are passed to every training: for Phi-2 add `--set tie_qkv=true`; on a GPU `--device cuda`.
#
# Usage: [QUICK=1] scripts/modular_llms.sh BASE TASKS DATA OUT [OPTIONS...]
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n '2,16s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here="$(dirname "$0")"
base="$1" tasks="$2" data="$3" out="$4"
shift 4
lorakit="${LORAKIT:-$here/../target/release/lorakit}"
k=10 limit=()
if [ -n "${QUICK:-}" ]; then
    k=4 limit=(--limit 2)
    set -- "$@" --set max_steps=4 batch_size=2 eval_steps=0 learning_rate=1e-3
fi

train() { # LIBRARY EPOCHS OPTIONS...
    local library="$1" epochs="$2"
    shift 2
    "$lorakit" train-experts --base "$base" --tasks "$tasks" --library "$out/$library" \
        --config "$here/../configs/training/modular_llms.toml" --set "num_epochs=$epochs" "$@"
}

evaluate() { # LIBRARY ROUTER...
    local library="$1"
    shift
    echo "== $library"
    "$lorakit" eval --base "$base" --library "$out/$library" --data "$data" --split test "${limit[@]}" \
        --tasks "$here/../configs/tasks/llm_adapters.toml" "$here/../configs/tasks/bbh.toml" \
        --router "$@" --out "$out/$library.eval"
}

train private 5 "$@"
train shared 5 --joint "$@"
train private_short 2 "$@"
"$lorakit" cluster --library "$out/private_short" --method mbc -k "$k" --space parameters --out "$out/mbc.json" \
    --report "$out/mbc.html"
train mbc 3 --clusters "$out/mbc.json" "$@"

evaluate shared base expert:joint
evaluate private uniform:mixing=separate arrow:mixing=separate uniform arrow
evaluate mbc uniform:mixing=separate arrow:mixing=separate uniform arrow
