#!/usr/bin/env bash
# The upstream part of figure 3 of "Towards Modular LLMs" (arXiv 2405.11157): Rouge-L on the test rows of the tasks that
# the experts were trained on. Arguments as of zero_shot.sh, whose libraries are used again in the same OUT. With --small
# the 56 tasks of Function Vectors stand for Flan's.
#
# Usage: [SEEDS="0 1 2"] scripts/modular_llms/upstream.sh BASE FLAN DATA OUT [OPTIONS...]
#        scripts/modular_llms/upstream.sh --small BASE DATA OUT [OPTIONS...]
#        scripts/modular_llms/upstream.sh --smoke OUT
source "$(dirname "$0")/libraries.sh"
paper_arguments "$@"
cost $((2 * ${#trained_files[@]} + k)) $((3 * 5 * $(cat "${trained_files[@]}" | wc -l))) 100000 "${tasks[@]}"

routers=(uniform:mixing=separate arrow:mixing=separate uniform scaled_uniform random arrow_norm arrow tp tfidf evidence oracle)
for seed in "${seeds[@]}"; do
    libraries "$seed" private shared mbc
    evaluate "$seed" shared.upstream shared "${tasks[@]}" -- "${limit[@]}" --chance --router base expert:joint
    evaluate "$seed" private.upstream private "${tasks[@]}" -- "${limit[@]}" --router "${routers[@]}"
    evaluate "$seed" mbc.upstream mbc "${tasks[@]}" -- "${limit[@]}" --router "${routers[@]}"
done
table modular_llms_upstream
