#!/usr/bin/env bash
# Submits the stages of an experiment: experts per task, clusters, experts per cluster, scores. Each starts when the one
# before it has succeeded. With a STAGE, that one alone, and with PARTS, as in 3,5 or 0-7, only these parts of it.
#
# Usage: scripts/slurm/submit.sh EXPERIMENT.env [private|cluster|clustered|eval [PARTS]]
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
STAGES=$(cd "$(dirname "$0")" && pwd) EXPERIMENT=$(realpath "$1")
export STAGES EXPERIMENT
. "$EXPERIMENT"
mkdir -p "$OUT/logs"

submit() { # STAGE OPTION...
    sbatch --parsable --output="$OUT/logs/$1.%a.log" "${SBATCH[@]}" "${@:2}" "$STAGES/$1.sbatch"
}
parts() { # STAGE
    case "$1" in
        private) echo "0-$((PRIVATE_PARTS - 1))" ;;
        clustered) echo "0-$((CLUSTERED_PARTS - 1))" ;;
        eval) echo "0-$((EVAL_PARTS - 1))" ;;
        cluster) echo 0 ;;
    esac
}

if [ $# -ge 2 ]; then
    submit "$2" --array="${3:-$(parts "$2")}"
    exit
fi
after=()
for stage in private cluster clustered eval; do
    job=$(submit "$stage" "${after[@]}" --array="$(parts $stage)")
    echo "$stage: job $job"
    after=(--dependency="afterok:$job" --kill-on-invalid-dep=yes)
done
