# Sets `base` to a copy of the base on the node's own disk, if BASE is a folder and SLURM_TMPDIR is set, else to BASE. One
# task of a node copies, the others wait. The copy is renamed when it is whole: one that was killed amid it leaves nothing
# that is taken for a base. Experts record BASE, wherever it was read from.
base=$BASE named=()
if [ -d "$BASE" ] && [ -n "${SLURM_TMPDIR:-}" ]; then
    base=$SLURM_TMPDIR/$(basename "$BASE") named=(--base-name "$BASE")
    flock "$SLURM_TMPDIR/.base.lock" bash -c \
        '[ -d "$2" ] || { rm -rf "$2.part" && cp -rL "$1" "$2.part" && mv "$2.part" "$2"; }' copy "$BASE" "$base"
fi
