# Sets `base` to a copy of the base on the node's own disk, if BASE is a folder and SLURM_TMPDIR is set, else to BASE. One
# task of a node copies, the others wait. Experts record BASE, wherever it was read from.
base=$BASE named=()
if [ -d "$BASE" ] && [ -n "${SLURM_TMPDIR:-}" ]; then
    base=$SLURM_TMPDIR/$(basename "$BASE") named=(--base-name "$BASE")
    flock "$SLURM_TMPDIR/.base.lock" cp -ruL "$BASE" "$SLURM_TMPDIR/"
fi
