#!/usr/bin/env bash
# Two skills at once: the tables of "LoRA Soups" (arXiv 2410.13025). The experts of two skills are combined by every method
# and scored on a task that needs both: single experts, data mixing (one expert on both skills' rows), CAT with learned and
# with equal weights, TIES, DARE, linear and other merges, LoraHub, and a mixture with learned gates (PHATGOOSE).
#
# CASE   maths    MetaMathQA and CodeAlpaca, GSM-Hard. The paper answers by programs, which run_programs.py runs
#                 (configs/tasks/programs.toml); here the last number of the text is compared, within 0.001
#        manual   question answering over texts: the 1,000 abstracts of PubMedQA (MIT license) whose questions are asked, and
#                 instructions of alpaca-cleaned. The questions come without the abstract; by Rouge-L. The paper's own
#                 manual and textbook sets have no license
#        reading  reading comprehension: SQuAD 2.0 and the same abstracts, the questions with the abstract, to be answered by
#                 yes, no or maybe
# BASE   a model folder or hub:ORG/NAME; the paper's is hub:yahma/llama-7b-hf
# DATA   the folder that the head of configs/tasks/lora_soups.toml describes
# OUT    the folder for adapters and results; an interrupted run can be resumed
#
# With --small, nine compositions of two tasks of Instruction Induction over a small real base, and with the 24 experts of
# these tasks too: DATA is the folder that configs/tasks/instruction_induction_composed.toml calls {data}; ROWS (24) test rows.
# Experts as in small_base.sh: STEPS (40) of 16 rows at a rate of RATE (1e-3). Two hours a seed on two cores over
# SmolLM2-135M. Without BASE and DATA, ten compositions of two of the 32 skills of suite:skills over pico: ten minutes.
#
# All rows of a target are scored but 32: weights of the rows `CAT, 5 rows`, `CAT, 32 rows` and LoraHub are fitted to these.
#
# As in the paper's code: LoRA's settings, 120 validation rows every 80 steps, 100 steps of warm-up, the norm of a gradient cut
# at 1, loss on the prompt too. Not so: CAT is fitted to 500 rows of each skill from equal weights, where the code draws weights
# at random and hardly moves them on 10,000 to 20,000 rows at a rate of 1e-4; scored prompts have no worked examples (see
# configs/tasks/lora_soups.toml).
#
# The paper's own numbers are not beside ours: no cell of its tables could be verified. Not here: the paper's prompt
# robustness task, whose data have no license.
#
# Usage: [SEEDS="0 1 2"] scripts/lora_soups.sh CASE BASE DATA OUT [OPTIONS...]
#        [SEEDS="0 1 2"] scripts/lora_soups.sh --small BASE DATA OUT [OPTIONS...]
#        [SEEDS="0 1 2"] scripts/lora_soups.sh --small OUT
#        scripts/lora_soups.sh --smoke OUT
source "$(dirname "$0")/paper_run.sh"

[ "$mode" = full ] || [ -z "${QUICK:-}" ] || mode=smoke

few=100 fit="" # rows of each skill that weights are fitted to, and how
of_all_skills=(lorahub lorahub:mode=as-published uniform scaled_uniform arrow) # routers over the whole library
data=() limit=()
# A composition: its name, the two skills, and the task that needs both. Spaces separate the fields.
compositions=()

# paper_task NAME: the task, as it is given to lorakit.
paper_task() {
    case "$1" in
        pubmed_texts) echo "$root/configs/tasks/lora_soups_texts.toml" ;;
        *) echo "$root/configs/tasks/lora_soups.toml:$1" ;;
    esac
}

# small_compositions PREFIX: a line of the input has a composition's name and its two skills; PREFIX and the name are the task.
small_compositions() {
    local task inner outer
    while read -r task inner outer; do compositions+=("$task $inner $outer $1$task"); done
}

# paper_composition TARGET INNER OUTER: a composition of the paper, whose rows are written.
paper_composition() {
    skill() { paper_task "$1"; }
    data=(--data "$out/rows")
    once "$root/scripts/lora_soups_rows.py" "$source" "$out/rows" "$@"
    compositions+=("$1 $2 $3 $(skill "$1")")
}

# Files of the sources' real form for smoke mode.
smoke_files() {
    local name
    # list FILE COUNT TEMPLATE [BEFORE AFTER]: the rows as one JSON list, or within another value.
    list() {
        rows "$1.new" "$2" "$3"
        { printf '%s' "${4:-[}"; paste -sd, "$1.new"; printf '%s' "${5:-]}"; } > "$1"
        rm "$1.new"
    }
    list "$source/MetaMathQA/MetaMathQA-395K.json" 130 '{"query": "1 + %d?", "response": "The answer is: %d", "type": "GSM_Rephrased"}'
    for name in CodeAlpaca-20k/code_alpaca_20k alpaca-cleaned/alpaca_data_cleaned; do
        list "$source/$name.json" 130 '{"instruction": "Print %d.", "input": "", "output": "print(%d)"}'
    done
    rows "$source/gsm-hard/gsmhardv2.jsonl" 40 '{"input": "1 and %d?", "code": "def solution(): return %d", "target": %d.0}'
    list "$source/squad/train-v2.0.json" 130 '{"question": "Which %d?", "id": "%d", "answers": [{"text": "%d", "answer_start": 0}], "is_impossible": false}' \
        '{"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "A %.", "qas": [' ']}]}]}'
    list "$source/pubmedqa/data/ori_pqal.json" 40 '"%d": {"QUESTION": "Is %d?", "CONTEXTS": ["Of %d.", "It is %d."], "LONG_ANSWER": "It is %d.", "final_decision": "yes"}' '{' '}'
}

case "$mode" in
    full)
        [ $# -ge 4 ] || usage
        base="$2" source="$3" out="$4" few=500
        options=("${@:5}")
        settings=(rank=32 alpha=64 dropout=0.05 target_modules=q_proj,k_proj,v_proj,up_proj,down_proj learning_rate=3e-4
            num_epochs=3 batch_size=16 max_length=256 loss=all warmup_steps=100 max_grad_norm=1 eval_steps=80)
        case "$1" in
            maths) paper_composition gsm_hard metamath code_alpaca ;;
            manual) paper_composition pubmed_questions pubmed_texts alpaca ;;
            reading) paper_composition pubmed_decisions squad pubmed_texts ;;
            *) usage ;;
        esac
        ;;
    smoke)
        [ $# -eq 1 ] || usage
        base=pico source="$1/data" out="$1" few=4 fit=,steps=2 limit=(--limit 2)
        settings=(learning_rate=1e-2 max_steps=2 warmup_steps=1 eval_steps=2)
        smoke_files
        paper_composition gsm_hard metamath code_alpaca
        # Of the others, whose steps are the same, the files alone, so that the smoke mode stays short.
        "$root/scripts/lora_soups_rows.py" "$source" "$out/rows" alpaca squad pubmed_texts pubmed_questions pubmed_decisions
        "$lorakit" task ls "$(paper_task alpaca),squad,pubmed_questions,pubmed_decisions" "$(paper_task pubmed_texts)" "${data[@]}"
        ;;
    small)
        few=16
        if [ $# -ge 3 ]; then
            base="$1" data=(--data "$2") out="$3" options=("${@:4}") fit=,steps=50 limit=(--limit "${ROWS:-24}")
            all_skills=("$root/configs/tasks/instruction_induction.toml" "${data[@]}")
            settings=(learning_rate="${RATE:-1e-3}" max_steps="${STEPS:-40}" max_grad_norm=1 eval_steps=0)
            skill() { echo "$root/configs/tasks/instruction_induction.toml:$1"; }
            small_compositions "$root/configs/tasks/instruction_induction_composed.toml:" <<'END'
antonym_first_letter antonyms first_word_letter
antonym_letters antonyms letters_list
german_first_letter translation_en-de first_word_letter
spanish_letters translation_en-es letters_list
french_second_letter translation_en-fr second_word_letter
larger_animal_first_letter larger_animal first_word_letter
plural_letters singular_to_plural letters_list
sum_in_words sum num_to_verbal
difference_in_words diff num_to_verbal
END
        else
            [ $# -eq 1 ] || usage
            base=pico out="$1" all_skills=(suite:skills)
            of_all_skills+=(cat:rows=32 cat)
            settings=(learning_rate=1e-2 max_steps=40 max_grad_norm=1 dropout=0 eval_steps=0)
            skill() { echo "suite:skills/$1"; }
            small_compositions suite:skills/ <<'END'
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
    for name in "$inner" "$outer"; do
        case " ${skills[*]-} " in *" $(skill "$name") "*) ;; *) skills+=("$(skill "$name")") ;; esac
    done
    targets+=("$target")
done
if [ "$mode" != small ]; then
    # Three epochs for each skill's expert and for data mixing, with a validation every 80 steps of 16 rows; every candidate and
    # base, arrow and phatgoose are scored. A merge has at most both ranks, and is copied into the library of its composition;
    # modules besides the attention's are not counted.
    read -r trained validated _ <<< "$(row_counts "${skills[@]}" "${data[@]}")"
    validations=$((trained * validated))
    for name in "${skills[@]}"; do
        read -r of_skill validated _ <<< "$(row_counts "$name" "${data[@]}")"
        validations=$((validations + of_skill * validated))
    done
    read -r _ _ scored _ <<< "$(row_counts "${targets[@]}" "${data[@]}")"
    cost $((${#compositions[@]} * 2 * (3 + 2 * 17))) $((2 * 3 * trained)) \
        $(((${#candidates[@]} + 3) * scored + 3 * validations / 16 / 80)) \
        "${skills[@]}" "${data[@]}" -- "${targets[@]}" "${data[@]}"
fi
if [ "$base" != pico ] && [ "$mode" = small ]; then
    cost $((24 + ${#compositions[@]} * (3 + 2 * 17))) $(((24 + 2 * ${#compositions[@]}) * ${STEPS:-40} * 16)) \
        $((${#compositions[@]} * ((${#candidates[@]} + 8) * ${ROWS:-24} + 4 * 50 * 16 * 3))) "${all_skills[@]}"
fi
for seed in "${seeds[@]}"; do
    tasks=("${all_skills[@]}")
    [ "$mode" = small ] || tasks=("${skills[@]}" "${data[@]}")
    train "$seed" skills
    for composition in "${compositions[@]}"; do
        read -r task inner outer target <<< "$composition"
        compose "$seed" "$task" "$inner" "$outer" "$target"
    done
    if [ "$mode" = small ]; then
        # The whole library, at weights fitted to rows of the composition, and without any rows.
        evaluate "$seed" library.eval skills "${targets[@]}" -- "${data[@]}" "${limit[@]}" --router "${of_all_skills[@]}"
    fi
done
if [ "$mode" = small ]; then table two_skills_library; fi
table two_skills
