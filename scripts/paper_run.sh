# shellcheck shell=bash
# Sourced by the scripts that make the papers' tables: modes, costs, and the commands that they share.
#
# SCRIPT --smoke OUT      the whole path over pico on files of the real form that the script makes, in seconds
# SCRIPT --small ...      an evening on two cores over a small base
# SCRIPT ...              the paper's settings
#
# SEEDS="0 1 2" runs several seeds, each in OUT/seed-N; with QUICK=1, which readme_check.sh sets, the first alone. Every step
# that is finished is skipped when a script runs again.
set -euo pipefail
root="$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
lorakit="${LORAKIT:-$root/target/release/lorakit}"
read -ra seeds <<< "${SEEDS:-0}"
[ -z "${QUICK:-}" ] || seeds=("${seeds[0]}")
mode=full
case "${1:-}" in
    --smoke) mode=smoke ;;
    --small) mode=small ;;
esac
[ "$mode" = full ] || shift

usage() { # prints the comment at the top of the script
    awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0" >&2
    exit 2
}

# once COMMAND...: runs a command unless it has succeeded in $out before.
once() {
    local mark
    mark="$out/.done/$(printf '%s\0' "$@" | cksum | tr -d ' ')"
    [ -e "$mark" ] && return
    "$@"
    mkdir -p "$out/.done"
    touch "$mark"
}

# row_counts TASK...: the numbers of train, validation and test rows of all tasks, and the characters of a mean row.
row_counts() {
    local listed
    listed="$("$lorakit" task ls --json "$@")" || return
    python3 -c '
import json, sys

tasks = json.load(sys.stdin)["tasks"]
total = lambda key, split: sum(task[key][split] for task in tasks)
splits = ("train", "validation", "test")
rows = [total("rows", split) for split in splits]
print(*rows, sum(total("characters", split) for split in splits) // max(sum(rows), 1))' <<< "$listed"
}

# cost EXPERTS TRAINED_ROWS SCORED_ROWS TASK... [-- TASK...]: estimates before anything starts, per seed. The tasks say how long
# a row is, those after -- how long a scored one is. A token is taken for 4 characters; a trained one costs 6 operations per
# parameter, a scored one 2; TFLOPS is what the machine reaches, 0.1 by default or 150 with --device cuda.
cost() {
    local experts="$1" trained="$2" scored="$3" trained_row scored_row info rank=4 tflops=0.1 of_trained=()
    shift 3
    while [ $# -gt 0 ] && [ "$1" != -- ]; do of_trained+=("$1") && shift; done
    trained_row="$(row_counts "${of_trained[@]}")"
    scored_row="$trained_row"
    [ $# -eq 0 ] || scored_row="$(row_counts "${@:2}")"
    trained_row="${trained_row##* }" scored_row="${scored_row##* }"
    case " ${options[*]-} " in *" cuda"*) tflops=150 ;; esac
    for setting in "${settings[@]}"; do
        case "$setting" in rank=*) rank="${setting#rank=}" ;; esac
    done
    info="$("$lorakit" base info "$base" --json)"
    field() { sed -n "s/.*\"$1\": \([0-9]*\).*/\1/p" <<< "$info" | head -n 1; }
    # base info counts the parameters of an expert of rank 4 on the attention's projections.
    awk -v trained="$trained" -v scored="$scored" -v trained_row="$trained_row" -v scored_row="$scored_row" \
        -v experts="$experts" -v parameters="$(field parameters)" -v of_expert="$(field expert_parameters)" -v rank="$rank" \
        -v tflops="${TFLOPS:-$tflops}" -v seeds="${#seeds[@]}" 'BEGIN {
            learned = trained * trained_row / 4
            read = scored * scored_row / 4
            hours = parameters * (6 * learned + 2 * read) / tflops / 1e12 / 3600
            printf "About %.1f million training tokens (%d rows of %.0f) and %.1f million scored ones (%d rows of %.0f), ",
                learned / 1e6, trained, trained_row / 4, read / 1e6, scored, scored_row / 4
            printf "%.2g hours at %g TFLOP/s, %.2g GB of adapters; %d seed(s), each as much.\n", hours, tflops,
                experts * of_expert * rank / 4 * 4 / 1e9, seeds
        }'
}

# train SEED LIBRARY SETTING... FLAG...: `tasks` and `settings` say what and how; SET adds settings, as tie_qkv=true for Phi-2.
train() {
    once "$lorakit" train-experts --base "$base" --tasks "${tasks[@]}" --library "$out/seed-$1/$2" --seed "$1" \
        "${options[@]}" --set "${settings[@]}" ${SET:-} "${@:3}"
}

# evaluate SEED RESULTS LIBRARY TASK... -- OPTION... --router ROUTER...: scores into OUT/seed-SEED/RESULTS.
evaluate() {
    local seed="$1" results="$2" library="$3" scored=()
    shift 3
    while [ "$1" != -- ]; do scored+=("$1") && shift; done
    shift
    echo "== seed $seed: $results"
    once "$lorakit" eval --base "$base" --library "$out/seed-$seed/$library" --tasks "${scored[@]}" --seed "$seed" \
        --out "$out/seed-$seed/$results" "${options[@]}" "${encoding[@]}" "$@"
}

# table NAME [some]: configs/tables/NAME.toml over all seeds, into OUT/NAME. In smoke mode a row without results is an error,
# unless only some have any there.
table() {
    local runs=() strict=()
    for seed in "${seeds[@]}"; do runs+=("$out/seed-$seed"); done
    [ "$mode" != smoke ] || [ "${2:-}" = some ] || strict=(--strict)
    "$lorakit" compare "${strict[@]}" "$root/configs/tables/$1.toml" --runs "${runs[@]}" --out "$out/$1"
}

# rows FILE COUNT TEMPLATE: a file of rows for smoke mode; %d in the template is the row's number.
rows() {
    mkdir -p "$(dirname "$1")"
    for ((i = 1; i <= $2; i++)); do
        echo "${3//%d/$i}"
    done > "$1"
}

settings=()
options=()  # global options of every command, such as --device cuda
encoding=() # how rows become tokens in an evaluation
