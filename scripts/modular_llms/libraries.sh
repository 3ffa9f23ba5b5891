# shellcheck shell=bash
# Sourced by the scripts of "Towards Modular LLMs" (arXiv 2405.11157): arguments, data, and the libraries that its tables
# share. A library that another table has trained in the same OUT is used again.
source "$(dirname "${BASH_SOURCE[0]}")/../paper_run.sh"
here="$root/scripts/modular_llms"
k=10          # clusters
skills=8      # of Poly and MHR
epochs=5
# Of MHR, those of the library that the authors published, by its name; Poly is given the same.
skill_epochs=1
skill_settings=(routing_learning_rate=0.5)
encoding=(--bos never)
limit=()
bbh="$root/configs/tasks/bbh_paper.toml"

# The paper's arguments: BASE FLAN DATA OUT [OPTIONS...]; with --smoke: OUT; with --small: BASE DATA OUT [OPTIONS...].
paper_arguments() {
    case "$mode" in
        full)
            [ $# -ge 4 ] || usage
            base="$1" tasks=("$2/flan.toml") data="$3" out="$4"
            options=("${@:5}")
            settings=(rank=4 alpha=16 dropout=0.05 learning_rate=1e-4 warmup_ratio=0.06 max_grad_norm=0.1 batch_size=16
                loss_reduction=rows bos=never)
            trained_files=("$2"/rows/*.jsonl)
            ;;
        small)
            [ $# -ge 3 ] || usage
            base="$1" data="$2" out="$3"
            options=("${@:4}")
            # The tasks of Function Vectors stand for Flan's: short rows of 56 skills.
            tasks=("$root/configs/tasks/function_vectors.toml" --data "$data")
            settings=(rank=4 alpha=16 dropout=0 learning_rate=1e-3 max_grad_norm=1 batch_size=16 eval_steps=0 bos=never)
            trained_files=("$data"/function_vectors/*/*.json)
            limit=(--limit 50)
            ;;
        smoke)
            [ $# -eq 1 ] || usage
            base=pico out="$1" data="$1/data" k=2 skills=2
            "$here/flan.sh" --smoke "$out/flan"
            tasks=("$out/flan/flan.toml")
            settings=(learning_rate=1e-3 batch_size=2 eval_steps=0 bos=never)
            trained_files=("$out"/flan/rows/*.jsonl)
            limit=(--limit 2)
            ;;
    esac
}

# of_epochs EPOCHS: the steps of some of the paper's five epochs.
of_epochs() {
    case "$mode" in
        full) echo "num_epochs=$1" ;;
        small) echo "max_steps=$((16 * $1))" ;;
        smoke) echo "max_steps=$((2 * $1))" ;;
    esac
}

# libraries SEED NAME...: trains those that a table needs.
libraries() {
    local seed="$1" clusters="$out/seed-$1" name size
    shift
    for name in "$@"; do
        case "$name" in
            private) train "$seed" private "$(of_epochs $epochs)" ;;
            shared) train "$seed" shared "$(of_epochs $epochs)" --joint ;;
            full) train "$seed" full "$(of_epochs $epochs)" learning_rate=1e-5 --full ;;
            poly) train "$seed" poly "$(of_epochs $skill_epochs)" "${skill_settings[@]}" --poly "$skills" ;;
            mhr) train "$seed" mhr "$(of_epochs $skill_epochs)" "${skill_settings[@]}" splits=32 --mhr "$skills" ;;
            private_short) train "$seed" private_short "$(of_epochs 2)" ;;
            # MBC: private experts of 2 of 5 epochs, clusters of their flattened A and B, 3 epochs for the clusters' experts.
            mbc*)
                size="${name#mbc}"
                size="${size:-$k}"
                libraries "$seed" private_short
                once "$lorakit" cluster --library "$clusters/private_short" --method mbc -k "$size" --space parameters \
                    --seed "$seed" --out "$clusters/mbc$size.json" --report "$clusters/mbc$size.html"
                train "$seed" "$name" "$(of_epochs 3)" --clusters "$clusters/mbc$size.json"
                ;;
            random_tasks)
                libraries "$seed" private_short
                once "$lorakit" cluster --library "$clusters/private_short" --method random -k "$k" --seed "$seed" \
                    --out "$clusters/random.json"
                train "$seed" random_tasks "$(of_epochs $epochs)" --clusters "$clusters/random.json"
                ;;
            embeddings)
                once "$lorakit" cluster --tasks "${tasks[@]}" --base "$base" --method embedding -k "$k" --seed "$seed" \
                    --out "$clusters/embeddings.json"
                train "$seed" embeddings "$(of_epochs $epochs)" --clusters "$clusters/embeddings.json"
                ;;
            random_examples) train "$seed" random_examples "$(of_epochs $epochs)" --random-examples "$k" ;;
        esac
    done
}

# zero_shot_cost EXPERTS EPOCHS EVALUATIONS: estimates a table of zero_shot, whose sets of programs are few rows of ten.
zero_shot_cost() {
    local rows tests scored=("$root/configs/tasks/zero_shot.toml" "$bbh" --data "$data")
    read -r rows _ <<< "$(row_counts "${tasks[@]}")"
    read -r _ _ tests _ <<< "$(row_counts "${scored[@]}")"
    cost "$1" $(($2 * rows)) $(($3 * tests)) "${tasks[@]}" -- "${scored[@]}"
}

# zero_shot SEED RESULTS LIBRARY ROUTER...: the paper's ten sets; the two of programs only where programs can be run.
zero_shot() {
    local kind
    evaluate "$1" "$2" "$3" "$root/configs/tasks/zero_shot.toml" -- --data "$data" "${limit[@]}" --router "${@:4}"
    evaluate "$1" "$2" "$3" "$bbh" -- --data "$data" "${limit[@]}" --num-fewshot 5 --router "${@:4}"
    if ! "$root/scripts/run_programs.py" --probe; then
        echo "Without them the table has no HumanEval, no MBPP and no mean of ten; its claims are judged by the eight other sets." >&2
        return
    fi
    evaluate "$1" "$2" "$3" "$root/configs/tasks/programs.toml:humaneval_programs,mbpp_programs" -- --data "$data" \
        "${limit[@]}" --log-samples --router "${@:4}"
    for kind in humaneval mbpp; do
        once "$root/scripts/run_programs.py" "$kind" --results "$out/seed-$1/$2"
    done
}

# Files of the benchmarks' real form, few rows each, for smoke mode.
small_benchmarks() {
    local choices='"choices": {"text": ["up", "down"], "label": ["A", "B"]}, "answerKey": "B"'
    rows "$data/ai2_arc/ARC-Easy/test-00000-of-00001.parquet" 3 '{"id": "%d", "question": "Which way %d?", '"$choices"'}'
    rows "$data/ai2_arc/ARC-Challenge/test-00000-of-00001.parquet" 3 '{"id": "%d", "question": "Which way then %d?", '"$choices"'}'
    rows "$data/openbookqa/main/test-00000-of-00001.parquet" 3 '{"id": "%d", "question_stem": "The way %d is", '"$choices"'}'
    rows "$data/super_glue/boolq/validation-00000-of-00001.parquet" 3 \
        '{"question": "is it %d", "passage": "It is %d.", "idx": %d, "label": 1}'
    rows "$data/piqa/plain_text/validation/0000.parquet" 3 '{"goal": "To go %d", "sol1": "walk", "sol2": "sit", "label": 0}'
    rows "$data/hellaswag/data/validation-00000-of-00001.parquet" 3 \
        '{"ind": %d, "activity_label": "Walking", "ctx_a": "He [title] walks.", "ctx_b": "then he", "endings": ["runs.", "is.", "a.", "b."], "label": "0"}'
    rows "$data/winogrande/winogrande_xl/validation-00000-of-00001.parquet" 3 \
        '{"sentence": "Ann met Eve %d and _ left.", "option1": "Ann", "option2": "Eve", "answer": "2"}'
    rows "$data/humaneval/HumanEval.jsonl.gz" 3 \
        '{"prompt": "def f(x):\n", "canonical_solution": "    return %d\n", "test": "def check(f):\n    f(1)\n", "entry_point": "f"}'
    rows "$data/mbpp/sanitized-mbpp.json" 3 \
        '{"prompt": "Return %d.", "code": "def f():\n    return %d", "test_imports": [], "test_list": ["assert f() == %d"]}'
    # Two of the 27 tasks, so that the smoke mode stays short.
    bbh="$bbh:boolean_expressions,web_of_lies"
    for name in boolean_expressions web_of_lies; do
        rows "$data/bbh/bbh/$name.json" 8 '{"input": "%d is", "target": "%d"}'
        { printf '{"canary": "none", "examples": ['; paste -sd, "$data/bbh/bbh/$name.json"; printf ']}'; } > "$data/bbh.new"
        mv "$data/bbh.new" "$data/bbh/bbh/$name.json"
    done
}
