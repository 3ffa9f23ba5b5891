#!/usr/bin/env bash
# The zero-shot table of "Towards Modular LLMs" (arXiv 2405.11157, table 1) and the downstream part of its figure 3: base,
# shared, Poly, MHR, private and MBC libraries with the mean, TP, CM and Arrow, and the baselines that tell what Arrow's
# choice is worth.
#
# HumanEval and MBPP are scored where ../run_programs.py can run programs in a sandbox; elsewhere a message says so, and the
# table has neither of them, nor the mean of ten, and its claims are judged by the eight other sets.
#
# BASE   a model folder or hub:ORG/NAME; the paper's are hub:microsoft/phi-2 and hub:mistralai/Mistral-7B-v0.1
# FLAN   the folder that flan.sh wrote
# DATA   the folder of configs/tasks/zero_shot.toml, bbh_paper.toml and programs.toml
# OUT    the folder for libraries, clusters and results; an interrupted run can be resumed
#
# OPTIONS are global ones, such as `--device cuda`. For Phi-2 set SET="tie_qkv=true". FULL=1 adds full fine-tuning.
#
# MHR is trained as the library that the authors published, by its name: 8 skills, 32 splits, one epoch, a rate of 0.5 for the
# routing; Poly is given the same. What differs from the paper in a set's prompts is at the top of its task file.
#
# Not here: StableLM, which is no base of lorakit.
#
# Usage: [SEEDS="0 1 2"] scripts/modular_llms/zero_shot.sh BASE FLAN DATA OUT [OPTIONS...]
#        scripts/modular_llms/zero_shot.sh --smoke OUT
source "$(dirname "$0")/libraries.sh"
[ "$mode" != small ] || usage # a small base is at chance on these sets: see ../small_base.sh
paper_arguments "$@"
if [ "$mode" = smoke ]; then
    small_benchmarks
    FULL=1
fi
# Epochs: 5 of private and shared each, 1 of Poly and MHR each, 2 + 3 of MBC.
routers=(uniform:mixing=separate arrow:mixing=separate tp cm:mixing=separate cm uniform scaled_uniform random arrow_norm arrow evidence)
full=$((${FULL:+1} + 0))
zero_shot_cost $((${#trained_files[@]} * 2 + 2 * skills + k)) $((2 * epochs + 2 * skill_epochs + 5 + full * epochs)) \
    $((4 + 2 * ${#routers[@]} + full))

for seed in "${seeds[@]}"; do
    libraries "$seed" private shared poly mhr mbc
    zero_shot "$seed" shared.eval shared base expert:joint
    zero_shot "$seed" poly.eval poly poly:unseen=mean
    zero_shot "$seed" mhr.eval mhr mhr:unseen=mean
    zero_shot "$seed" private.eval private "${routers[@]}"
    zero_shot "$seed" mbc.eval mbc "${routers[@]}"
    if [ -n "${FULL:-}" ]; then
        libraries "$seed" full
        base="$out/seed-$seed/full/models/full" zero_shot "$seed" full.eval full base
    fi
done
table modular_llms_zero_shot
