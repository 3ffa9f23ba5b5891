#!/usr/bin/env bash
# Makes the base inside the binary, src/pico/, again from random weights: about ten minutes on two idle cores.
#
# The text is none that anybody wrote: `skills::pretraining_rows` in crates/lorakit-task/src/skills/pretraining.rs
# draws it from a seed. It has letters, digits and the punctuation of the skills suite in general forms: copying, runs
# along the alphabet, places and classes of characters, pairs and examples that follow a rule. The suite's operations
# occur by example, or after a frame that does not tell which is meant; no cue of the suite is seen with its answer.
#
# Usage: scripts/pretrain_pico.sh [FOLDER [STEPS]]
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${1:-src/pico}"
cargo run --release -p lorakit-train --example pretrain_pico -- "$folder" ${2:+"$2"}
# Temporary files are private; a model folder is for everybody.
chmod 644 "$folder"/*
