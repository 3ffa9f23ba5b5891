#!/usr/bin/env bash
# What an experiment lacks, from its libraries and logs alone, and the commands that repeat only that.
#
# Usage: scripts/slurm/summary.sh EXPERIMENT.env
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
stages=$(cd "$(dirname "$0")" && pwd)
. "$(realpath "$1")"

# The parts of a training that lack experts: those of its unfinished passes, of which a part has every PARTS-th.
unfinished() { # LIBRARY PARTS OPTION...
    local passes pass
    passes=$("$LORAKIT" -q train-experts --base "$BASE" --tasks "${TASKS[@]}" --library "$OUT/$1" "${@:3}" --plan) || return
    for pass in $(sed -nE '/"finished":false/s/.*"pass":([0-9]+).*/\1/p' <<<"$passes"); do
        echo $((pass % $2))
    done | sort -un | paste -sd,
}
# The parts of the evaluation whose log does not end as that of a success.
unscored() {
    for part in $(seq 0 $((EVAL_PARTS - 1))); do
        [ "$(tail -n 1 "$OUT/logs/eval.$part.log" 2>/dev/null)" = scored ] || echo "$part"
    done | paste -sd,
}
report() { # STAGE PARTS
    if [ -z "$2" ]; then
        echo "$1: complete"
    else
        echo "$1: parts $2 are not complete; repeat them by: $stages/submit.sh $experiment $1 $2"
    fi
}
experiment=$1
if [ ! -d "$OUT/private/runs" ]; then
    echo "nothing has begun; begin by: $stages/submit.sh $experiment"
    exit
fi
# Assigned first: an error within the arguments of a command would not end the script, and nothing would seem to be missing.
parts=$(unfinished private "$PRIVATE_PARTS" --set "${PRIVATE[@]}")
report private "$parts"
if [ ! -e "$OUT/clusters.json" ]; then
    echo "cluster: not complete; repeat it by: $stages/submit.sh $experiment cluster"
    exit
fi
parts=$(unfinished mbc "$CLUSTERED_PARTS" --clusters "$OUT/clusters.json" --set "${CLUSTERED[@]}")
report clustered "$parts"
report eval "$(unscored)"
