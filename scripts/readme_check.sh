#!/usr/bin/env bash
# Runs the commands in README.md and the READMEs of scripts, scripts/results and benches to keep them correct.
#
# Blocks marked `sh root` run in the checkout. Those marked `sh` run in a separate folder, page by page, as a reader
# would run them. Blocks marked `sh data` need DATA, a folder with the data that they use, and are skipped without it.
# The scripts run with QUICK=1, on little data.
#
# Usage: scripts/readme_check.sh
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
pages=(README.md scripts/README.md scripts/results/README.md benches/README.md)

# blocks PAGE MARK: the commands in the blocks whose fence has exactly this mark.
blocks() {
    awk -v mark='```'"$2" '$0 == mark { inside = 1; next } /^```/ { inside = 0 } inside' "$root/$1"
}

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

cd "$root"
blocks README.md "sh root" > "$work/root.sh"
bash -euxo pipefail "$work/root.sh"

ln -s "$root/configs" "$root/scripts" "$work"
export PATH="$root/target/release:$PATH" LORAKIT="$root/target/release/lorakit" QUICK=1
cd "$work"
DATA="$(realpath "${DATA:-$root/../shared/data}")"
export DATA
for page in "${pages[@]}"; do
    blocks "$page" sh > commands.sh
    [ -s commands.sh ] || { echo "$page has no sh blocks" >&2; exit 1; }
    bash -euxo pipefail commands.sh
    blocks "$page" "sh data" > data.sh
    if [ -s data.sh ] && [ -d "$DATA" ]; then
        bash -euxo pipefail data.sh
    elif [ -s data.sh ]; then
        echo "skipped: the blocks of $page marked \`sh data\`; there is no $DATA"
    fi
done
