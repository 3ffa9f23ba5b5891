#!/usr/bin/env bash
# The papers' questions on a small real base, in an evening on two cores: private experts, MBC clusters and random
# partitions of their sizes at equal steps, a joint expert, and every router, on tasks with an expert and on tasks without.
#
# SET    function_vectors, the 56 tasks of https://github.com/ericwtodd/function_vectors without instructions, or
#        instruction_induction, the 24 tasks of https://github.com/orhonovich/instruction-induction with instructions;
#        function_vectors_instructed adds instructions, instruction_induction_bare (22 tasks) removes them
# BASE   a model folder or hub:ORG/NAME
# DATA   the folder that configs/tasks/SET.toml calls {data}
# OUT    the folder for libraries, clusters and results; an interrupted run can be resumed
#
# STEPS (100) of 16 rows a task at a rate of RATE (1e-3), ROWS (50) test rows; METRICS (loss) may name exact_match too, far
# slower than losses. Tasks without an expert: the experts of a whole family of tasks are left out, one family at a time.
# Ten minutes a set over stories260K, some hours over SmolLM2-135M.
#
# Usage: [SEEDS="0 1 2"] scripts/small_base.sh --small SET BASE DATA OUT [OPTIONS...]
#        scripts/small_base.sh --smoke OUT
source "$(dirname "$0")/paper_run.sh"
k=10 steps="${STEPS:-100}" limit=() data=()
# Families of tasks, by a pattern of their names each.
families=(translation_ '^(english|landmark|country|park|national|person|product)' 'letter|length|orthography|capital|lowercase'
    '^(sum|diff|num_to_verbal|next_item|prev_item)$' 'antonym|synonym|rhyme' 'plural|present-past' 'animal|taxonomy'
    'sentiment|similarity|word_in_context|ag_news|commonsense' 'passive|formal|negation|cause|concept$' 'choose|alphabetically'
    '_v_' conll2003)
if [ "$mode" = smoke ]; then
    [ $# -eq 1 ] || usage
    base=pico out="$1" k=2 steps=2 limit=(--limit 2)
    set=(suite:skills/shift_up1 suite:skills/shift_down1 suite:skills/join_dash suite:skills/join_dot suite:skills/pick_first
        suite:skills/pick_last)
    families=(shift join pick)
else
    [ "$mode" = small ] && [ $# -ge 4 ] || usage
    base="$2" out="$4"
    options=("${@:5}")
    case "$1" in
        function_vectors) set=("$3/function_vectors/abstractive" "$3/function_vectors/extractive") ;;
        function_vectors_instructed) set=("$root/configs/tasks/function_vectors.toml") data=(--data "$3") ;;
        instruction_induction) set=("$root/configs/tasks/instruction_induction.toml") data=(--data "$3") ;;
        instruction_induction_bare)
            # The rows of two tasks are not plain input-output pairs.
            mapfile -t set < <(find "$3/instruction_induction/raw/induce" -name '*.json' ! -name cause_and_effect.json \
                ! -name common_concept.json | LC_ALL=C sort)
            ;;
        *) usage ;;
    esac
    limit=(--limit "${ROWS:-50}")
fi

# select_tasks NAME...: the tasks of the set that have these names, into `selected`.
select_tasks() {
    local name one
    selected=()
    # Of a file of many tasks those with the names; of files or folders with a task each, those files.
    case "${set[*]}" in
        *.toml | *.toml:*) selected=("${set[0]%.toml*}.toml:$(paste -sd, <<< "$(printf '%s\n' "$@")")") ;;
        *) mapfile -t selected < <(for name in "$@"; do
            for one in "${set[@]}"; do
                if [ -d "$one" ]; then find "$one" -name "$name.json"; elif [[ "$(basename "$one" .json)" = "$name" ]]; then echo "$one"; fi
            done
        done) ;;
    esac
}

task_names() {
    "$lorakit" task ls "${set[@]}" "${data[@]}" --json | sed -n 's/^ *"name": "\(.*\)",$/\1/p'
}

names="$(task_names)"
if [ "$mode" = small ] && [ -n "${QUICK:-}" ]; then # a few tasks of a real set, as a smoke test
    steps=2 k=2 limit=(--limit 2) families=("${families[@]:0:2}")
    mapfile -t few < <(grep -E '^(antonyms?|synonyms?|sum|sentiment|english-french|country-capital|translation_en-(de|es))$' <<< "$names")
    select_tasks "${few[@]}"
    set=("${selected[@]}")
    names="$(task_names)"
fi
settings=(max_steps="$steps" learning_rate="${RATE:-1e-3}" max_grad_norm=1 dropout=0 eval_steps=0)
tasks=("${set[@]}" "${data[@]}")
read -ra metrics <<< "${METRICS:-loss}"
[ "$mode" != smoke ] || metrics=(loss exact_match)
scored=("${data[@]}" "${limit[@]}" --metrics "${metrics[@]}")
count="$(wc -l <<< "$names")"
row="$(mktemp)"
trap 'rm -f "$row"' EXIT
echo '{"input": "about as long as a row", "output": "of them"}' > "$row"
cost $((count * 2 + 3 * k + 1)) $((6 * count * steps * 16)) $((30 * count * ${ROWS:-50})) "$row"

routers=(uniform scaled_uniform random arrow_norm arrow arrow:top_k=all arrow:top_k=1 arrow:mixing=separate uniform:mixing=separate
    cm tp tfidf evidence)

# same_sizes CLUSTERS SEED OUT: the experts of clusters.json dealt at random into clusters of the same sizes.
same_sizes() {
    python3 - "$@" <<'END'
import json, random, sys

clusters, seed, out = sys.argv[1:]
members = json.load(open(clusters))["clusters"]
experts = sorted(expert for cluster in members.values() for expert in cluster)
random.Random(int(seed)).shuffle(experts)
dealt = {name: sorted(experts.pop() for _ in cluster) for name, cluster in members.items()}
json.dump(dealt, open(out, "w"), indent=1)
END
}

# without_family SEED PATTERN: scores the tasks of a family by a copy of the library without their experts.
without_family() {
    local kept="$out/seed-$1/known" family=() selected
    mapfile -t family < <(grep -E "$2" <<< "$names" || true)
    [ "${#family[@]}" -gt 0 ] && [ "${#family[@]}" -lt "$count" ] || return 0
    local mark="$out/.done/family-$1-$(printf '%s' "$2" | cksum | tr -d ' ')"
    [ ! -e "$mark" ] || return 0
    rm -rf "$kept"
    mkdir -p "$kept"
    cp -r "$out/seed-$1/private/library.json" "$out/seed-$1/private/experts" "$kept"
    "$lorakit" library rm --library "$kept" "${family[@]}" > /dev/null
    select_tasks "${family[@]}"
    echo "== seed $1: without ${family[*]}"
    "$lorakit" eval -q --base "$base" --library "$kept" --tasks "${selected[@]}" "${scored[@]}" --seed "$1" \
        --out "$out/seed-$1/unknown.eval" "${options[@]}" --router base "${routers[@]}" > /dev/null
    rm -rf "$kept"
    mkdir -p "$out/.done" && touch "$mark"
}

for seed in "${seeds[@]}"; do
    run="$out/seed-$seed"
    train "$seed" private
    once "$lorakit" cluster --library "$run/private" --method mbc -k "$k" --seed "$seed" --out "$run/mbc.json" --report "$run/mbc.html"
    train "$seed" mbc --clusters "$run/mbc.json"
    once same_sizes "$run/mbc.json" "$seed" "$run/random.json"
    train "$seed" random --clusters "$run/random.json"
    train "$seed" joint --joint
    evaluate "$seed" joint.eval joint "${set[@]}" -- "${scored[@]}" --chance --router base expert:joint
    evaluate "$seed" private.eval private "${set[@]}" -- "${scored[@]}" --router "${routers[@]}" oracle
    evaluate "$seed" mbc.eval mbc "${set[@]}" -- "${scored[@]}" --router uniform scaled_uniform arrow arrow:top_k=all evidence oracle
    evaluate "$seed" random.eval random "${set[@]}" -- "${scored[@]}" --router uniform oracle
    for family in "${families[@]}"; do without_family "$seed" "$family"; done
done
table small_base_known
table small_base_unknown
