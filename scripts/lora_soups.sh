#!/usr/bin/env bash
# Two skills at once: the tables of "LoRA Soups" (arXiv 2410.13025). The experts of two skills are combined by every method
# and scored on a task that needs both: single experts, data mixing (one expert on both skills' rows), CAT with learned and
# with equal weights, TIES, DARE, linear and other merges, LoraHub, and a mixture with learned gates (PHATGOOSE).
#
# CASE   maths    MetaMathQA and CodeAlpaca, GSM-Hard. The paper answers by programs, which run_programs.py runs
#                 (configs/tasks/programs.toml); here the last number of the text is compared
#        manual   question answering over texts that the base has not learned: abstracts of PubMedQA (MIT license) and
#                 instructions of alpaca-cleaned, its questions without the abstract, by Rouge-L. The paper's own manual
#                 and textbook sets have no license
#        reading  reading comprehension: SQuAD 2.0 and the abstracts, PubMedQA's yes, no and maybe
# BASE   a model folder or hub:ORG/NAME; the paper's is hub:yahma/llama-7b-hf
# DATA   the folder of configs/tasks/lora_soups.toml
# OUT    the folder for adapters and results; an interrupted run can be resumed
#
# With --small, ten compositions of two of the skills of suite:skills over pico, with their 32 experts too: ten minutes a
# seed on two cores.
#
# The paper's own numbers are not beside ours: no cell of its tables could be verified. Not here: the paper's prompt
# robustness task, whose data have no license.
#
# Usage: [SEEDS="0 1 2"] scripts/lora_soups.sh CASE BASE DATA OUT [OPTIONS...]
#        [SEEDS="0 1 2"] scripts/lora_soups.sh --small OUT
#        scripts/lora_soups.sh --smoke OUT
source "$(dirname "$0")/paper_run.sh"

[ "$mode" = full ] || [ -z "${QUICK:-}" ] || mode=smoke

# A composition: its name, the two skills, and the task that needs both. Spaces separate the fields.
few=100 fit="" # rows of each skill that weights are fitted to, and how
case "$mode" in
    full)
        [ $# -ge 4 ] || usage
        base="$2" out="$4"
        options=("${@:5}")
        data=(--data "$3")
        file="$root/configs/tasks/lora_soups.toml"
        settings=(rank=32 alpha=64 dropout=0.05 target_modules=q_proj,k_proj,v_proj,up_proj,down_proj learning_rate=3e-4
            num_epochs=3 batch_size=16 max_length=256 loss=all)
        case "$1" in
            maths) compositions=("gsm_hard metamath code_alpaca $file:gsm_hard") few=500 ;;
            manual) compositions=("pubmed_questions pubmed_texts alpaca $file:pubmed_questions") few=500 ;;
            reading) compositions=("pubmed_decisions squad pubmed_texts $file:pubmed_decisions") few=500 ;;
            *) usage ;;
        esac
        skill() { echo "$file:$1"; }
        limit=()
        ;;
    *)
        [ $# -eq 1 ] || usage
        base=pico out="$1" file="" few=16
        data=() limit=()
        settings=(learning_rate=1e-2 max_steps=40 max_grad_norm=1 dropout=0 eval_steps=0)
        skill() { echo "suite:skills/$1"; }
        compositions=()
        while read -r task inner outer; do
            compositions+=("$task $inner $outer suite:skills/$task")
        done <<'END'
reverse_of_up1 order_reverse shift_up1
left_of_down1 order_left shift_down1
up1_of_left shift_up1 order_left
upper_of_reverse capitals_all order_reverse
second_of_reverse pick_second order_reverse
each_of_upper repeat_each capitals_all
dash_of_reverse join_dash order_reverse
dash_of_add1 join_dash digits_add1
first_upper_of_up1 capitals_first shift_up1
reverse_of_no_vowels order_reverse filter_to_consonants
END
        if [ "$mode" = smoke ]; then
            compositions=("${compositions[0]}")
            settings=(learning_rate=1e-2 max_steps=2 eval_steps=0)
            fit=,steps=2
            limit=(--limit 2)
        fi
        ;;
esac

# The experts of one composition, by the name that they have in the table.
candidates=(inner outer data_mixing static_cat sum linear svd ties ties_deltas dare dare_ties knots core_space wudi cat cat_simplex
    cat_few cat_target lorahub lorahub_published)
# merge SEED FOLDER PAIR NAME METHOD OPTIONS...
merge() {
    once "$lorakit" merge --library "$out/seed-$1/skills" --base "$base" --experts "$3" --method "$5" "${@:6}" "${data[@]}" \
        --overwrite --out "$2/$4" "${options[@]}" > /dev/null
}

# compose SEED TASK INNER OUTER TARGET: every way of combining two experts, in a library of its own.
compose() {
    local seed="$1" folder="$out/seed-$1/merged/$2" pair="$3,$4" both library
    both=("$(skill "$3")" "$(skill "$4")")
    tasks=("${both[@]}" "${data[@]}")
    train "$seed" "mixed/$2" --joint
    merge "$seed" "$folder" "$pair" static_cat cat
    merge "$seed" "$folder" "$pair" sum cat --weights 1,1
    merge "$seed" "$folder" "$pair" linear linear
    merge "$seed" "$folder" "$pair" svd svd
    merge "$seed" "$folder" "$pair" ties ties:density=0.75
    merge "$seed" "$folder" "$pair" ties_deltas ties_svd:density=0.75
    merge "$seed" "$folder" "$pair" dare dare_linear:density=0.75
    merge "$seed" "$folder" "$pair" dare_ties dare_ties:density=0.75
    merge "$seed" "$folder" "$pair" knots knots
    merge "$seed" "$folder" "$pair" core_space core_space
    merge "$seed" "$folder" "$pair" wudi wudi
    # Fitted to few rows of each of the two skills, the paper's way; and to rows of the target task, which it has not.
    merge "$seed" "$folder" "$pair" cat "cat_learned:rows=$few$fit" --fit "${both[@]}"
    merge "$seed" "$folder" "$pair" cat_simplex "cat_learned:rows=$few,simplex=true$fit" --fit "${both[@]}"
    merge "$seed" "$folder" "$pair" cat_few "cat_learned:rows=5$fit" --fit "$5"
    merge "$seed" "$folder" "$pair" cat_target "cat_learned:rows=32$fit" --fit "$5"
    merge "$seed" "$folder" "$pair" lorahub lorahub --fit "$5"
    merge "$seed" "$folder" "$pair" lorahub_published lorahub:mode=as-published --fit "$5"
    library="candidates/$2"
    local sources=("inner=$out/seed-$seed/skills/experts/$3" "outer=$out/seed-$seed/skills/experts/$4"
        "data_mixing=$out/seed-$seed/mixed/$2/experts/joint")
    for name in "${candidates[@]:3}"; do sources+=("$name=$folder/$name"); done
    once "$lorakit" library add --library "$out/seed-$seed/$library" --base "$base" "${sources[@]}" "${options[@]}" > /dev/null
    evaluate "$seed" pairs.eval "$library" "$5" -- "${data[@]}" "${limit[@]}" --chance --router base "${candidates[@]/#/expert:}"
    # Gates of the two experts, trained on their own rows; the pair alone is a library for it.
    once "$lorakit" library add --library "$out/seed-$seed/pairs/$2" --base "$base" "${options[@]}" \
        "$3=$out/seed-$seed/skills/experts/$3" "$4=$out/seed-$seed/skills/experts/$4" > /dev/null
    evaluate "$seed" pairs.eval "pairs/$2" "$5" -- "${data[@]}" "${limit[@]}" --fit "${both[@]}" --router phatgoose arrow
}

skills=() targets=()
for composition in "${compositions[@]}"; do
    read -r _ inner outer target <<< "$composition"
    skills+=("$(skill "$inner")" "$(skill "$outer")") targets+=("$target")
done
[ "$mode" != full ] || cost 20 $((3 * 2 * 100000)) $((21 * 1400)) "$file"
for seed in "${seeds[@]}"; do
    tasks=(suite:skills)
    [ "$mode" = small ] || tasks=("${skills[@]}" "${data[@]}")
    train "$seed" skills
    for composition in "${compositions[@]}"; do
        read -r task inner outer target <<< "$composition"
        compose "$seed" "$task" "$inner" "$outer" "$target"
    done
    if [ "$mode" = small ]; then
        # The whole library, at weights fitted to rows of the composition, and without any rows.
        evaluate "$seed" library.eval skills "${targets[@]}" -- --router lorahub lorahub:mode=as-published cat:rows=32 cat \
            uniform scaled_uniform arrow
    fi
done
if [ "$mode" = small ]; then table two_skills_library; fi
table two_skills
