#!/usr/bin/env bash
# Trains the bundled base, src/pico/, again from random weights: about ten minutes on two idle cores.
#
# The text is synthetic: `skills::pretraining_rows` in crates/lorakit-task/src/skills/pretraining.rs generates it from a
# seed. It contains letters, digits and the punctuation of the skills suite in general patterns: copying, alphabetical
# runs, positions and classes of characters, pairs, and examples that follow a rule. The suite's operations occur only
# as examples, or after a frame that does not identify the operation; the suite's prompts never occur with their
# answers.
#
# Usage: scripts/pretrain_pico.sh [FOLDER [STEPS]]
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${1:-src/pico}"
cargo run --release -p lorakit-train --example pretrain_pico -- "$folder" ${2:+"$2"}
# Files are created with private permissions; a model folder should be readable by everyone.
chmod 644 "$folder"/*
