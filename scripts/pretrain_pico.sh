#!/usr/bin/env bash
# Makes the base inside the binary, src/pico/, again from random weights.
#
# The text is none that anybody wrote: `skills::pretraining_rows` in crates/lorakit-task/src/skills/pretraining.rs
# draws it from a seed. It has letters, digits and the punctuation of the skills suite in general forms (copying, runs
# along the alphabet, places and classes of characters, pairs that follow a rule), and none of the suite's tasks.
#
# Usage: scripts/pretrain_pico.sh [FOLDER [STEPS]]
set -euo pipefail
cd "$(dirname "$0")/.."
exec cargo run --release -p lorakit-train --example pretrain_pico -- "${1:-src/pico}" ${2:+"$2"}
