#!/usr/bin/env bash
# Table 2 of "Towards Modular LLMs" (arXiv 2405.11157): the mean of ten experts by how tasks or rows were grouped, and
# figure 4, MBC by the number of clusters. Arguments as of zero_shot.sh, whose libraries are used again in the same OUT.
#
# The paper's Embeddings cluster rows by a sentence encoder; here tasks are clustered by the base's own embeddings of their
# rows, since lorakit needs no other model. The paper trains experts of Embeddings, and of RandExamples, for 1 epoch; here all
# train as long as MBC's. HumanEval and MBPP are as in zero_shot.sh.
#
# Usage: [SEEDS="0 1 2"] [CLUSTERS="5 10 25"] scripts/modular_llms/clusterings.sh BASE FLAN DATA OUT [OPTIONS...]
#        scripts/modular_llms/clusterings.sh --smoke OUT
source "$(dirname "$0")/libraries.sh"
[ "$mode" != small ] || usage
paper_arguments "$@"
sizes="${CLUSTERS:-5 10 25}"
if [ "$mode" = smoke ]; then
    small_benchmarks
    sizes="1 2"
fi
# Epochs: 2 of the private experts that are clustered, 3 of each MBC library, 5 of each other one.
experts=$((2 * ${#trained_files[@]} + 4 * k + 1)) trained=$((2 + 3 + 5 * epochs)) evaluations=6
for size in $sizes; do
    [ "$size" = "$k" ] || experts=$((experts + size)) trained=$((trained + 3)) evaluations=$((evaluations + 1))
done
zero_shot_cost "$experts" "$trained" "$evaluations"

for seed in "${seeds[@]}"; do
    libraries "$seed" mbc random_tasks embeddings random_examples shared private
    for library in mbc random_tasks embeddings random_examples private; do
        zero_shot "$seed" "$library.mean" "$library" uniform:mixing=separate
    done
    zero_shot "$seed" shared.mean shared expert:joint
    for size in $sizes; do
        [ "$size" != "$k" ] || continue # MBC's own library
        libraries "$seed" "mbc$size"
        zero_shot "$seed" "mbc$size.mean" "mbc$size" uniform:mixing=separate
    done
done
table modular_llms_clusterings
table modular_llms_number_of_clusters some # in smoke mode there are no 5 and no 25 clusters
