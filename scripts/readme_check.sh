#!/usr/bin/env bash
# Runs the commands of README.md, so that it stays true. Blocks marked `sh root` run here, in the project's folder; those
# marked `sh` in a folder of their own, one after the other, as a reader would. Blocks marked `sh data` need DATA, a
# folder with the material that they name, and are skipped without it. QUICK=1 tells the scripts to be brief.
#
# Usage: scripts/readme_check.sh
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"

# The commands of the blocks whose fence has exactly this mark.
blocks() {
    awk -v mark='```'"$1" '$0 == mark { inside = 1; next } /^```/ { inside = 0 } inside' "$root/README.md"
}

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

blocks "sh root" > "$work/root.sh"
cd "$root"
bash -euxo pipefail "$work/root.sh"

ln -s "$root/configs" "$root/scripts" "$work"
export PATH="$root/target/release:$PATH" LORAKIT="$root/target/release/lorakit" QUICK=1
cd "$work"

blocks sh > commands.sh
[ -s commands.sh ] || { echo "README.md has no sh blocks" >&2; exit 1; }
bash -euxo pipefail commands.sh

DATA="${DATA:-$root/../shared/data}"
if [ -d "$DATA" ]; then
    blocks "sh data" > data.sh
    DATA="$(cd "$DATA" && pwd)" bash -euxo pipefail data.sh
else
    echo "skipped: the blocks marked \`sh data\`, since there is no $DATA"
fi
