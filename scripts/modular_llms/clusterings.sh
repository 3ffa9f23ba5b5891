#!/usr/bin/env bash
# Table 2 of "Towards Modular LLMs" (arXiv 2405.11157): the mean of ten experts by how tasks or rows were grouped, and
# figure 4, MBC by the number of clusters. Arguments as of zero_shot.sh, whose libraries are used again in the same OUT.
#
# The paper's Embeddings cluster rows by a sentence encoder; here tasks are clustered by the base's own embeddings of their
# rows, since lorakit needs no other model.
#
# Usage: [SEEDS="0 1 2"] [CLUSTERS="5 10 25"] scripts/modular_llms/clusterings.sh BASE FLAN DATA OUT [OPTIONS...]
#        scripts/modular_llms/clusterings.sh --smoke OUT
source "$(dirname "$0")/libraries.sh"
[ "$mode" != small ] || usage
paper_arguments "$@"
sizes="${CLUSTERS:-5 10 25}"
if [ "$mode" = smoke ]; then
    small_benchmarks
    sizes=2
fi
cost $((5 * k)) $((5 * 5 * $(cat "${trained_files[@]}" | wc -l))) 400000 "${tasks[@]}"

for seed in "${seeds[@]}"; do
    libraries "$seed" mbc random_tasks embeddings random_examples shared private
    for library in mbc random_tasks embeddings random_examples private; do
        zero_shot "$seed" "$library.mean" "$library" uniform:mixing=separate
    done
    zero_shot "$seed" shared.mean shared expert:joint
    for size in $sizes; do
        libraries "$seed" "mbc$size"
        zero_shot "$seed" "mbc$size.mean" "mbc$size" uniform:mixing=separate
    done
done
table modular_llms_clusterings
[ "$mode" = smoke ] || table modular_llms_number_of_clusters
