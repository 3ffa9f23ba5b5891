#!/usr/bin/env bash
# The papers' questions on a small real base, in an evening on two cores: private experts under every router, on tasks with
# an expert, on tasks without, and under other prompts; and, at equal steps in all, both stages of MBC, random partitions of its
# clusters' sizes in place of the second, and a joint expert.
#
# SET    function_vectors, the 56 tasks of https://github.com/ericwtodd/function_vectors without instructions, or
#        instruction_induction, the 24 tasks of https://github.com/orhonovich/instruction-induction with instructions, scored
#        under paraphrases of these and without any too; function_vectors_instructed adds instructions,
#        instruction_induction_bare (22 tasks) removes them
# BASE   a model folder or hub:ORG/NAME
# DATA   the folder that configs/tasks/SET.toml calls {data}
# OUT    the folder for libraries, clusters and results; an interrupted run can be resumed
#
# STEPS (100) of 16 rows a task at a rate of RATE (1e-3), ROWS (50) test rows, K (10) clusters; METRICS (loss) may be
# "loss exact_match", which makes scoring several times as long. PART=private leaves out experts of clusters and the joint one,
# PART=clusters all else; PART=adapted adapts the private experts to a task of each family, whose own experts are left
# out, by a hundredth of its rows and by all. Tasks without an expert: the experts of a whole family of tasks are left out,
# one family at a time. Ten minutes a set over stories260K, some hours over SmolLM2-135M.
#
# Usage: [SEEDS="0 1 2"] scripts/small_base.sh --small SET BASE DATA OUT [OPTIONS...]
#        scripts/small_base.sh --smoke OUT
source "$(dirname "$0")/paper_run.sh"
k="${K:-10}" steps="${STEPS:-100}" limit=() data=() prompts=()
# Families of tasks, by a pattern of their names each; each task is in one of them.
mapfile -t families < <(sed -n '/^families = \[/,/^\]/s/^ *"\(.*\)",$/\1/p' "$root/configs/tables/small_base_known.toml")
[ "${#families[@]}" -gt 0 ] || { echo "no families in configs/tables/small_base_known.toml; expected one pattern a line" >&2; exit 1; }
if [ "$mode" = smoke ]; then
    [ $# -eq 1 ] || usage
    base=pico out="$1" k=2 steps=5 limit=(--limit 2) prompts=(paraphrased bare)
    set=(suite:skills/shift_up1 suite:skills/shift_down1 suite:skills/join_dash suite:skills/join_dot suite:skills/pick_first
        suite:skills/pick_last)
    families=(shift join pick)
else
    [ "$mode" = small ] && [ $# -ge 4 ] || usage
    base="$2" out="$4"
    options=("${@:5}")
    case "$1" in
        function_vectors) set=("$3/function_vectors/abstractive" "$3/function_vectors/extractive") ;;
        instruction_induction) set=("$root/configs/tasks/$1.toml") data=(--data "$3") prompts=(paraphrased bare) ;;
        function_vectors_instructed) set=("$root/configs/tasks/function_vectors.toml") data=(--data "$3") ;;
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
    steps=5 k=2 limit=(--limit 2) families=("${families[@]:0:2}")
    mapfile -t few < <(grep -E '^(antonyms?|synonyms?|sum|sentiment|english-french|country-capital|translation_en-(de|es))$' <<< "$names")
    select_tasks "${few[@]}"
    set=("${selected[@]}")
    names="$(task_names)"
fi
settings=(learning_rate="${RATE:-1e-3}" max_grad_norm=1 eval_steps=0 max_steps="$steps")
tasks=("${set[@]}" "${data[@]}")
read -ra metrics <<< "${METRICS:-loss}"
[ "$mode" != smoke ] || metrics=(loss exact_match)
scored=("${data[@]}" "${limit[@]}" --metrics "${metrics[@]}")
count="$(wc -l <<< "$names")"
part="${PART:-all}"
case "$part" in
    all) libraries=5 ;;
    private) libraries=1 ;;
    clusters) libraries=4 ;;
    adapted) libraries=2 ;;
    *) usage ;;
esac
cost $((count * 2 + 3 * k + 1)) $((libraries * count * steps * 16)) $((82 * count * ${ROWS:-50})) "${tasks[@]}"

# Routers by what they see: weights alone; answers to validation rows; k prompts of each task; these and 4 validation rows.
weights_alone=(uniform random arrow_norm arrow arrow:top_k=all arrow:top_k=1 spectr lag
    arrow:mixing=separate uniform:mixing=separate)
of_prompts() { echo "cm:rows=$1" "tfidf:rows=$1" "tp:rows=$1" "evidence:rows=$1,temperature=0.1,fallback=base" "evidence:rows=$1"; }
read -ra of_5 <<< "$(of_prompts 5)"
read -ra of_16 <<< "$(of_prompts 16)"
routers=("${weights_alone[@]}" scaled_uniform "${of_5[@]}" "${of_16[@]}" tfidf:rows=100 tp:rows=100)
routers_of_forms=(base uniform random arrow_norm arrow arrow:top_k=all scaled_uniform "${of_16[@]}" oracle)

# each_router SEED RESULTS LIBRARY TASK... -- ROUTER...: a step for every router, so that an interruption loses one.
each_router() {
    local seed="$1" results="$2" library="$3" on=()
    shift 3
    while [ "$1" != -- ]; do on+=("$1") && shift; done
    shift
    for router in "$@"; do
        echo "== seed $seed: $results, $router"
        evaluate "$seed" "$results" "$library" "${on[@]}" -- "${scored[@]}" -q --router "$router" > /dev/null
    done
}

# under_prompts SEED FORM: scores the private library on its tasks under other prompts, whose files hold test rows alone.
under_prompts() {
    local all_rows=("${scored[@]}" --split all)
    local scored=("${all_rows[@]}")
    each_router "$1" "$2.eval" private "${set[@]/instruction_induction.toml/instruction_induction_$2.toml}" -- "${routers_of_forms[@]}"
}

# some_experts SEED FOLDER EXPERT...: a copy of the private library with these experts alone.
some_experts() {
    local from="$out/seed-$1/private" to="$out/seed-$1/$2" expert
    rm -rf "$to"
    mkdir -p "$to/experts"
    cp "$from/library.json" "$to"
    for expert in "${@:3}"; do cp -r "$from/experts/$expert" "$to/experts"; done
}

# without_family SEED PATTERN: scores the tasks of a family by the library without their experts.
without_family() {
    local family=() others=() selected
    mapfile -t family < <(grep -E "$2" <<< "$names" || true)
    mapfile -t others < <(grep -vE "$2" <<< "$names" || true)
    [ "${#family[@]}" -gt 0 ] && [ "${#others[@]}" -gt 0 ] || return 0
    some_experts "$1" known "${others[@]}"
    select_tasks "${family[@]}"
    each_router "$1" unknown.eval known "${selected[@]}" -- base "${weights_alone[@]}" scaled_uniform:rows=4 "${of_16[@]}"
    rm -rf "$out/seed-$1/known"
}

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

# cluster_members CLUSTERS: a line with the experts of each cluster.
cluster_members() {
    python3 - "$@" <<'END'
import json, sys

clusters = json.load(open(sys.argv[1]))
for members in clusters.get("clusters", clusters).values():
    print(*members)
END
}

# mean_of_cluster SEED NAME: scores each task by the mean of the private experts of its cluster in NAME.json; nothing is trained.
mean_of_cluster() {
    local members selected
    while read -ra members; do
        some_experts "$1" cluster "${members[@]}"
        select_tasks "${members[@]}"
        each_router "$1" "$2.means" cluster "${selected[@]}" -- uniform
    done < <(cluster_members "$out/seed-$1/$2.json")
    rm -rf "$out/seed-$1/cluster"
}

tables_of_private_experts() {
    table small_base_known
    table small_base_unknown
    [ "${#prompts[@]}" -gt 0 ] || return 0
    table small_base_prompts
    case " ${metrics[*]} " in *" exact_match "*) table small_base_exact_match ;; esac
}

private_experts() {
    local seed="$1" run="$out/seed-$1"
    train "$seed" private
    once "$lorakit" eval -q --base "$base" --tasks "${set[@]}" "${scored[@]}" --seed "$seed" --out "$run/private.eval" \
        "${options[@]}" --chance --router base
    each_router "$seed" private.eval private "${set[@]}" -- "${routers[@]}" oracle
    for form in "${prompts[@]}"; do under_prompts "$seed" "$form"; done
    for family in "${families[@]}"; do without_family "$seed" "$family"; done
    once "$lorakit" cluster --library "$run/private" --method mbc -k "$k" --seed "$seed" --out "$run/mbc.json" --report "$run/mbc.html"
    mean_of_cluster "$seed" mbc
    for deal in 0 1 2; do
        once same_sizes "$run/mbc.json" $((3 * seed + deal)) "$run/random-$deal.json"
        mean_of_cluster "$seed" "random-$deal"
    done
}

# train_dealt SEED DEAL: experts of random clusters of MBC's sizes, for the steps of its second stage.
train_dealt() {
    local run="$out/seed-$1" settings=("${settings[@]}" max_steps=$((steps - (4 * steps + 5) / 10)))
    once same_sizes "$run/mbc/clusters.json" $((3 * $1 + $2)) "$run/dealt-$2.json"
    train "$1" "dealt-$2" --clusters "$run/dealt-$2.json"
    each_router "$1" "dealt-$2.eval" "dealt-$2" "${set[@]}" -- uniform arrow oracle
}

experts_of_clusters() {
    local seed="$1" deal
    train "$seed" mbc --mbc "$k"
    each_router "$seed" mbc.eval mbc "${set[@]}" -- base uniform scaled_uniform arrow arrow:top_k=all evidence oracle
    for deal in 0 1; do train_dealt "$seed" "$deal"; done
    train "$seed" joint --joint
    each_router "$seed" joint.eval joint "${set[@]}" -- expert:joint
}

# adapt_to_each_family SEED METHOD FRACTION OPTION...: adapters of a task of each family, by the experts of the other families.
adapt_to_each_family() {
    local seed="$1" method="$2" fraction="$3" family others selected routers on=() from=() run="$out/seed-$1"
    local name="adapted/${method%%:*}-$fraction"
    for family in "${families[@]}"; do
        mapfile -t selected < <(grep -E -m 1 "$family" <<< "$names" || true)
        [ "${#selected[@]}" -gt 0 ] || continue
        others="$(grep -vE "$family" <<< "$names" | paste -sd,)"
        select_tasks "${selected[@]}"
        on+=("${selected[@]}")
        [ "$method" = no_library ] || from=(--library "$run/private" --experts "$others")
        once "$lorakit" adapt -q --base "$base" "${from[@]}" --method "$method" --fraction "$fraction" --tasks "${selected[@]}" \
            "${data[@]}" --limit 1 --seed "$seed" --out "$run/$name" "${options[@]}" "${@:4}" > /dev/null
    done
    [ "$method" = no_library ] && routers=(base oracle) || routers=(oracle)
    each_router "$seed" "$name.eval" "$name" "${on[@]}" -- "${routers[@]}"
}

# From one percent of a task's rows, and from all.
adapted() {
    local seed="$1" fraction training=(--set "${settings[@]}")
    train "$seed" private
    for fraction in 0.01 1; do
        adapt_to_each_family "$seed" no_library "$fraction" "${training[@]}"
        adapt_to_each_family "$seed" mean "$fraction" "${training[@]}"
        adapt_to_each_family "$seed" "cat:steps=$steps" "$fraction"
    done
    adapt_to_each_family "$seed" poly_z 0.01 --set "${settings[@]:1}" # it has a learning rate of its own
    adapt_to_each_family "$seed" lorahub 0.01
}

if [ "$part" = all ] || [ "$part" = private ]; then
    for seed in "${seeds[@]}"; do private_experts "$seed"; done
    tables_of_private_experts
fi
if [ "$part" = all ] || [ "$part" = clusters ]; then
    for seed in "${seeds[@]}"; do experts_of_clusters "$seed"; done
    table small_base_clusters
fi
if [ "$part" = all ] || [ "$part" = adapted ]; then
    for seed in "${seeds[@]}"; do adapted "$seed"; done
    table small_base_adapted
fi
