#!/usr/bin/env bash
# Tests the parts of a training under Slurm and GNU parallel on one machine: a library of the bundled base by two nodes,
# with a task killed, one requeued and a node drained, then clusters, experts per cluster and scores. All must equal, byte
# for byte, what single commands make. Takes two minutes and more: Slurm starts a requeued task when its credential has expired,
# here after half a minute.
#
# Needs root and Debian's packages slurm-wlm, munge and parallel, which it installs if they are missing. Where that fails, it
# says so and exits with 77.
#
# Usage: scripts/slurm/check.sh [LORAKIT]
set -euo pipefail
stages=$(cd "$(dirname "$0")" && pwd)
LORAKIT=$(realpath "${1:-$stages/../../target/release/lorakit}")
for tool in slurmctld munged parallel; do
    command -v "$tool" >/dev/null && continue
    if ! { apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge parallel; } >/dev/null; then
        echo "skipped: slurm-wlm, munge and parallel cannot be installed" >&2
        exit 77
    fi
done
work=$(mktemp -d)
daemons() { cat "$work"/*.pid 2>/dev/null || true; }
trap 'daemons | xargs -r kill 2>/dev/null || true; sleep 1; rm -rf "$work"' EXIT

start_slurm() {
    local host
    host=$(hostname -s)
    mkdir -m 700 "$work/munge"
    mkdir "$work/state" "$work/spool.node1" "$work/spool.node2" "$work/logs"
    mungekey -c -k "$work/munge/key"
    munged --force --key-file="$work/munge/key" --socket="$work/munge/socket" --pid-file="$work/munged.pid" \
        --log-file="$work/logs/munged" --seed-file="$work/munge/seed"
    cat >"$work/slurm.conf" <<CONF
ClusterName=check
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket,cred_expire=30
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool.%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.%n.pid
SlurmctldLogFile=$work/logs/slurmctld
SlurmdLogFile=$work/logs/slurmd.%n
SlurmctldPort=27817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SchedulerParameters=requeue_delay=1
NodeName=node[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[27818-27819] CPUs=2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE
CONF
    export SLURM_CONF=$work/slurm.conf
    slurmctld -i
    slurmd -N node1
    slurmd -N node2
    wait_until "two idle nodes" '[ "$(sinfo -h -o %t -N | grep -c idle)" = 2 ]'
}
wait_until() { # WHAT CONDITION
    for _ in $(seq 1200); do
        if eval "$2"; then return; fi
        sleep 0.5
    done
    echo "not within ten minutes: $1"
    squeue
    tail -n 20 "$work"/logs/* "$OUT"/logs/* || true
    exit 1
}
# The files of a folder with their hashes, without the runs, which hold logs and the number of parts.
hashes() { (cd "$1" && find . -type f ! -path './runs/*' ! -name '.*' -print0 | sort -z | xargs -0 sha256sum); }
same() { # ONE OTHER
    diff <(hashes "$1") <(hashes "$2") || { echo "$2 differs from $1"; exit 1; }
    echo "$2: $(hashes "$1" | wc -l) files as by one command"
}

cd "$work"
sed -e "s#^LORAKIT=.*#LORAKIT=$LORAKIT#" -e "s#max_steps=40#max_steps=60#" -e "s#^SBATCH=.*#SBATCH=(--cpus-per-task=1)#" "$stages/example.env" >mine.env
. ./mine.env
train=("$LORAKIT" -q train-experts --base pico --tasks "${TASKS[@]}" --threads 1)

mkdir one
(cd one && "${train[@]}" --library private --set "${PRIVATE[@]}" &&
    "$LORAKIT" -q cluster --library private --method mbc -k "$CLUSTERS" --out clusters.json --report clusters.html &&
    "${train[@]}" --library mbc --clusters clusters.json --set "${CLUSTERED[@]}") >/dev/null
echo "one command per stage: done"

start_slurm
queue_is() { [ -z "$(squeue -h "$@")" ]; }
logged() { cat "$OUT"/private/runs/*/part-"$1"/log.jsonl 2>/dev/null | wc -l; }
job=$("$stages/submit.sh" mine.env private)
wait_until "steps of parts 0 and 1" '[ "$(logged 0)" -gt 2 ] && [ "$(logged 1)" -gt 2 ]'
scontrol requeue "${job}_0"
scancel --signal=KILL "${job}_1"
wait_until "a running part on node2" '[ -n "$(squeue -h -t RUNNING -w node2)" ]'
scontrol update nodename=node2 state=drain reason=check
wait_until "an empty node2" 'queue_is -w node2'
scontrol update nodename=node2 state=resume
wait_until "steps of part 4" '[ "$(logged 4)" -gt 2 ]'
scontrol update nodename=node1 state=down reason=check # Its tasks are lost, and requeued by Slurm.
sleep 2
scontrol update nodename=node1 state=resume 2>/dev/null || true # It may have come back by itself.
wait_until "the end of the first try" queue_is
"$stages/summary.sh" mine.env | tee summary
repeat=$(sed -n 's/^private: .* by: //p' summary)
[ -n "$repeat" ] || { echo "part 1 was killed, and is not missing"; exit 1; }
$repeat
wait_until "the end of the repeated parts" queue_is
same one/private "$OUT/private"

for stage in cluster clustered eval; do
    "$stages/submit.sh" mine.env $stage >/dev/null
    wait_until "the end of $stage" queue_is
done
"$stages/summary.sh" mine.env | tee summary
[ "$(grep -c complete$ summary)" = 3 ] || { echo "not complete"; exit 1; }
cmp one/clusters.json "$OUT/clusters.json"
same one/mbc "$OUT/mbc"
"$LORAKIT" -q eval --base pico --tasks "${TASKS[@]}" --library "$OUT/mbc" --router "${ROUTERS[@]}" --out one/scores >/dev/null
cmp one/scores/results.json "$OUT/scores/results.json"
echo "Slurm: as by single commands"

part=("${train[@]}" --library by_parallel/private --set "${PRIVATE[@]}" --part)
parts=$(seq 0 $((PRIVATE_PARTS - 1)))
mkdir by_parallel
# The first try of part 1 is killed after a second.
parallel --joblog jobs -j 2 "if [ {} = 1 ]; then set -- timeout -s KILL 1; fi; \"\$@\" ${part[*]} {}/$PRIVATE_PARTS" ::: $parts \
    >/dev/null && { echo "part 1 was not killed"; exit 1; }
parallel --joblog jobs --resume-failed -j 2 "${part[*]} {}/$PRIVATE_PARTS" ::: $parts >/dev/null
same one/private by_parallel/private
echo "GNU parallel: as by one command"
