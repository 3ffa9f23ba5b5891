#!/usr/bin/env bash
# The upstream part of figure 3 of "Towards Modular LLMs" (arXiv 2405.11157): Rouge-L on the test rows of the tasks that
# the experts were trained on; and its figure 5: how much more strongly their own experts respond to these rows than the
# others do. Arguments as of zero_shot.sh, whose libraries are used again in the same OUT. With --small the 56 tasks of
# Function Vectors stand for Flan's.
#
# Usage: [SEEDS="0 1 2"] scripts/modular_llms/upstream.sh BASE FLAN DATA OUT [OPTIONS...]
#        scripts/modular_llms/upstream.sh --small BASE DATA OUT [OPTIONS...]
#        scripts/modular_llms/upstream.sh --smoke OUT
source "$(dirname "$0")/libraries.sh"
paper_arguments "$@"
routers=(uniform:mixing=separate arrow:mixing=separate uniform scaled_uniform random arrow_norm arrow tp tfidf evidence oracle)
# Epochs: 5 of private and shared each, 2 of the private experts that are clustered, 3 of MBC. The routers are scored over two
# libraries, each with a pass for the responses, base and shared beside them.
count=${#trained_files[@]}
read -r rows _ tests _ <<< "$(row_counts "${tasks[@]}")"
trained=$((15 * rows))
if [ "$mode" = small ]; then
    # Of an expert 16 steps of 16 rows in place of an epoch, and of a task at most 50 rows that are scored.
    trained=$((16 * 16 * (7 * count + 5 + 3 * k))) tests=$((tests < 50 * count ? tests : 50 * count))
fi
cost $((2 * count + k + 1)) "$trained" $(((2 * ${#routers[@]} + 4) * tests)) "${tasks[@]}"

for seed in "${seeds[@]}"; do
    libraries "$seed" private shared mbc
    evaluate "$seed" shared.upstream shared "${tasks[@]}" -- "${limit[@]}" --chance --router base expert:joint
    evaluate "$seed" private.upstream private "${tasks[@]}" -- "${limit[@]}" --response-ratio --router "${routers[@]}"
    evaluate "$seed" mbc.upstream mbc "${tasks[@]}" -- "${limit[@]}" --response-ratio --router "${routers[@]}"
done
table modular_llms_upstream
table modular_llms_response_ratio
