#!/usr/bin/env bash
# The training data of "Towards Modular LLMs" (arXiv 2405.11157): one task for each task_name of Flan, without those of
# Super-NaturalInstructions (NIv2) and without the eight that the evaluation uses, 256 in all, at most 10,000 rows each.
#
# FLAN  the Parquet files of https://huggingface.co/datasets/chiayewken/flan-v2: a folder, or
#       hub:datasets/chiayewken/flan-v2; about 20 GB to read, and 3 GB of memory
# OUT   the folder for a file per task and flan.toml, which the other scripts take
#
# The paper shuffles a task's rows with numpy and splits them by their numbers; here both are by the rows' hashes, 80/10/10.
# With --smoke, FLAN is a file of the same columns that the script makes.
#
# Usage: scripts/modular_llms/flan.sh FLAN OUT
#        scripts/modular_llms/flan.sh --smoke OUT
source "$(dirname "$0")/../paper_run.sh"
most=10000
if [ "$mode" = smoke ]; then
    [ $# -eq 1 ] || usage
    out="$1" flan="$1/shards" most=100
    for shard in 0 1; do
        # Rows of three data sources: NIv2 and the held-out task must not come through.
        rows "$flan/train-0000$shard-of-00002.jsonl" 60 "$(printf '%s\n' \
            '{"source": "Shift +1: a%d'$shard'", "target": "b%d", "task_name": "shift/up:1.0.0", "task_source": "P3", "template_type": "zs_opt"}' \
            '{"source": "Join c%d'$shard'", "target": "c-%d", "task_name": "join_dash", "task_source": "Flan2021", "template_type": "fs_noopt"}' \
            '{"source": "Left out %d'$shard'", "target": "x", "task_name": "cot_qasc_ii", "task_source": "CoT", "template_type": "zs_noopt"}' \
            '{"source": "Not ours %d'$shard'", "target": "x", "task_name": "task1_ni", "task_source": "NIv2", "template_type": "zs_opt"}')"
    done
elif [ $# -eq 2 ]; then
    flan="$1" out="$2"
else
    usage
fi
echo "Reads all of $flan, and writes at most 264 files of $most rows: up to 3 GB."
once "$lorakit" task split "$flan" --by task_name --only task_source=P3,Flan2021,CoT --max-rows "$most" --out "$out/rows" \
    --drop hellaswag_1_1_0 ai2_arc_ARC_Challenge_1_0_0 ai2_arc_ARC_Easy_1_0_0 piqa_1_0_0 winogrande_1_1_0 bool_q_1_0_0 \
    openbookqa_0_1_0 cot_qasc_ii
{
    # The paper's form: source and target with one space between them, unless there is white space.
    printf 'rows = "rows/{name}.jsonl"\nprompt = "{{ source }}"\ntarget = "target"\nmetrics = ["rouge_l"]\nmax_new_tokens = 64\n'
    for file in "$out"/rows/*.jsonl; do printf '\n[[task]]\nname = "%s"\n' "$(basename "$file" .jsonl)"; done
} > "$out/flan.toml"
echo "$(find "$out/rows" -name '*.jsonl' | wc -l) tasks; the paper has 256. $out/flan.toml lists them."
