#!/usr/bin/env bash
# When does Arrow choose well? On suite:skills over pico, trains experts for increasing numbers of steps and varies one
# Arrow setting at a time, on trained and held-out tasks. Prints the mean over tasks of each table.
#
# Usage: [QUICK=1] [STEPS="5 10 20 40 80"] scripts/when_arrow_helps.sh OUT [SEED...]
set -euo pipefail
if [ $# -lt 1 ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
out="$1"
shift
lorakit="${LORAKIT:-$(dirname "$0")/../target/release/lorakit}"
routers=(base uniform uniform:mixing=separate arrow arrow:top_k=1 arrow:top_k=8 arrow:top_k=32
    arrow:temperature=0.1 arrow:temperature=10 arrow:mixing=separate oracle)

mkdir -p "$out"
limit=16
if [ -n "${QUICK:-}" ]; then STEPS=5 limit=1; fi

tasks() { # SEED PART
    local suite="suite:skills@$1"
    if [ -z "${QUICK:-}" ]; then echo "$suite$2"
    elif [ -z "$2" ]; then echo "$suite/shift_up1 $suite/join_dot"
    else echo "$suite/shift_up3 $suite/join_at"; fi
}

for seed in "${@:-0}"; do
    for steps in ${STEPS:-5 10 20 40 80}; do
        library="$out/seed$seed-steps$steps"
        read -ra trained <<< "$(tasks "$seed" "")"
        "$lorakit" train-experts -q --base pico --tasks "${trained[@]}" --library "$library" --seed "$seed" \
            --set max_steps="$steps" learning_rate=1e-2 max_grad_norm=1 dropout=0 eval_steps=0 > "$library.log" 2>&1
        for part in "" /heldout; do
            echo "== seed $seed, $steps steps, suite:skills@$seed$part"
            known=("${routers[@]}")
            if [ "$part" = /heldout ]; then unset 'known[-1]'; fi
            read -ra scored <<< "$(tasks "$seed" "$part")"
            "$lorakit" eval -q --base pico --library "$library" --tasks "${scored[@]}" --limit "$limit" \
                --router "${known[@]}" --out "$library.eval" 2>> "$library.log" | sed -n '/mean over tasks/,$p'
        done
    done
done
