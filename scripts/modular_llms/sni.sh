#!/usr/bin/env bash
# The 12 tasks of Super-NaturalInstructions in "Towards Modular LLMs" (arXiv 2405.11157): zero-shot (table 5), and adapted
# from a library to 100 %, 10 %, 5 % and 0.5 % of each task's rows (tables 3, 6, 7 and 8). Arguments as of zero_shot.sh,
# whose libraries are used again in the same OUT; DATA is the folder of configs/tasks/superni_paper.toml.
#
# Not here: pi-tuning, whose code was not published. LoraHub is the authors' search (40 evaluations of 5 rows), not the
# paper's 30 epochs over half of the rows.
#
# Usage: [SEEDS="0 1 2"] scripts/modular_llms/sni.sh BASE FLAN DATA OUT [OPTIONS...]
#        scripts/modular_llms/sni.sh --smoke OUT
source "$(dirname "$0")/libraries.sh"
[ "$mode" != small ] || usage
paper_arguments "$@"
sni=("$root/configs/tasks/superni_paper.toml")
fractions="1 0.1" few_fractions="1 0.1 0.05 0.005"
if [ "$mode" = smoke ]; then
    for name in $(sed -n 's/^name = "\(.*\)"/\1/p' "${sni[0]}"); do
        file="$data/natural-instructions/tasks/$name.json"
        rows "$file" 40 '{"id": "'"$name"'-%d", "input": "Word %d", "output": ["w%d", "W%d"]}'
        { printf '{"Definition": ["Shorten it."], "Instances": ['; paste -sd, "$file"; printf ']}'; } > "$data/sni.new"
        mv "$data/sni.new" "$file"
    done
    # Two of the twelve and one fraction, so that the smoke mode stays short.
    fractions=0.1 few_fractions=0.1
    sni=("${sni[0]}:task1557_jfleg_answer_generation,task1153_bard_analogical_reasoning_affordance")
fi
# Epochs of the libraries: 5 of private, shared and random tasks each, 1 of Poly and MHR each, 2 of the private experts that
# are clustered, 3 of MBC. To each of $fractions of the train rows of the 12 tasks 7 methods train for 5 epochs and LoraHub
# searches, to each of $few_fractions 2 train. Each adaptation scores base and what is adapted; 14 routers are scored before.
read -r rows _ <<< "$(row_counts "${tasks[@]}")"
read -r sni_rows _ sni_tests _ <<< "$(row_counts "${sni[@]}" --data "$data")"
passes="$(awk -v most="$fractions" -v all="$few_fractions" 'BEGIN {
    n = split(most, a, " "); for (i = 1; i <= n; i++) adapted += 7 * a[i]
    m = split(all, b, " "); for (i = 1; i <= m; i++) adapted += 2 * b[i]
    printf "%d %d", 100 * adapted, 8 * n + 2 * m }')"
read -r percent adaptations <<< "$passes"
cost $((2 * ${#trained_files[@]} + 2 * skills + 2 * k + 12 * adaptations)) \
    $((22 * rows + percent * sni_rows * epochs / 100)) $(((14 + 2 * adaptations) * sni_tests)) \
    "${tasks[@]}" -- "${sni[@]}" --data "$data"

# adapt SEED NAME LIBRARY METHOD FRACTION: writes the scores of the adapted tasks, once.
adapt() {
    local file="$out/seed-$1/sni/$2-$5.json" library=()
    [ "$3" = none ] || library=(--library "$out/seed-$1/$3")
    [ ! -e "$file" ] || return 0
    mkdir -p "$(dirname "$file")"
    echo "== seed $1: $2, fraction $5"
    local trained=()
    case "$4" in lorahub*) trained=("${encoding[@]}") ;; *) trained=(--set "${settings[@]}" ${SET:-} "$(of_epochs 5)") ;; esac
    "$lorakit" adapt --json -q --base "$base" --tasks "${sni[@]}" --data "$data" "${library[@]}" --method "$4" --fraction "$5" \
        --seed "$1" "${limit[@]}" --out "$out/seed-$1/sni/$2-$5" "${trained[@]}" "${options[@]}" > "$file.new"
    mv "$file.new" "$file"
}

for seed in "${seeds[@]}"; do
    libraries "$seed" private shared poly mhr mbc random_tasks
    evaluate "$seed" shared.sni shared "${sni[@]}" -- --data "$data" "${limit[@]}" --chance --router base expert:joint
    for library in private mbc; do
        evaluate "$seed" "$library.sni" "$library" "${sni[@]}" -- --data "$data" "${limit[@]}" \
            --router uniform:mixing=separate arrow:mixing=separate uniform scaled_uniform random arrow
    done
    for fraction in $fractions; do
        adapt "$seed" no_library none no_library "$fraction"
        adapt "$seed" shared shared shared "$fraction"
        adapt "$seed" poly poly poly "$fraction"
        adapt "$seed" mhr mhr poly "$fraction"
        adapt "$seed" private_mean private mean "$fraction"
        adapt "$seed" mbc_mean mbc mean "$fraction"
        adapt "$seed" mbc_lorahub mbc lorahub:mode=as-published "$fraction"
        adapt "$seed" random_tasks_poly random_tasks poly "$fraction"
    done
    for fraction in $few_fractions; do
        adapt "$seed" mbc_poly mbc poly "$fraction"
        adapt "$seed" mbc_polyz mbc poly_z "$fraction"
    done
done
table modular_llms_sni_zero_shot
table modular_llms_sni_supervised some # in smoke mode there is one fraction
