#!/usr/bin/env bash
# LoraHub (arXiv 2307.13269): on each of the 27 tasks of BIG-Bench Hard, 20 modules drawn from a pool of adapters of Flan's
# tasks are weighed by 5 rows, with 40 evaluations. Beside it the zero-shot base, 5 rows in context, an adapter and all
# weights trained on the 5 rows, and the mean of the 20 modules. SEEDS draws the modules, ROWS the rows, apart from each other.
#
# BASE     a model folder or hub:ORG/NAME: the paper's hub:google/flan-t5-large, or any other encoder-decoder or decoder
# POOL     a library of experts over it, or adapters as `library add` takes them, such as 'hub:lorahub/flan_t5_large-*'
# DATA     the folder with bbh/ of https://github.com/suzgunmirac/BIG-Bench-Hard
# OUT      the folder for results; an interrupted run can be resumed
#
# MODULES may name a file that lists modules to draw from, one a line or as the strings of a Python list: with the authors' list
# (lorahub/constant.py of https://github.com/sail-sg/lorahub) seed N draws the modules of their seed N. POOL may have others,
# and lack some that no seed draws: repositories that cannot be downloaded are left out, by name.
#
# As in the paper, 100 rows of a task are the pool of examples and the others are scored, by the authors' exact match: without
# case and full stops, of at most 256 tokens. Not theirs: the 100 rows are drawn here, since their own are not in the
# repository, and an answer ends at a line break, which T5 does not write. The adapter of 5 rows is trained as their modules
# are: q and v, rank 16, dropout 0.1, no warm-up; all 5 rows are a batch.
#
# The paper's numbers are of Flan-T5-large. Not here: IA3, which lorakit does not train. "Best seed" is chosen on test rows, as
# in the paper, and marked so. FULL=0 leaves out full fine-tuning, which needs 20 bytes per parameter.
#
# Usage: [SEEDS="1 2 3 4 5"] [ROWS="0"] [MODULES=FILE] [FULL=0] scripts/lorahub.sh BASE POOL DATA OUT [OPTIONS...]
#        scripts/lorahub.sh --smoke OUT
SEEDS="${SEEDS:-1 2 3 4 5}" ROWS="${ROWS:-0}"
source "$(dirname "$0")/paper_run.sh"
[ "$mode" != small ] || usage # over a small base: lora_soups.sh --small, whose ten targets LoraHub is fitted to too
modules=20 budget=40 limit=() tokens=256
if [ "$mode" = smoke ]; then
    [ $# -eq 1 ] || usage
    # A random T5 with adapters of the pool's form, so that the numbers mean nothing.
    base="$root/tests/fixtures/t5/base" out="$1" data="$1/data" modules=2 budget=4 limit=(--limit 2) tokens=4
    seeds=("${seeds[@]:0:2}") pool="$root/tests/fixtures/t5/adapters/h0 $root/tests/fixtures/t5/adapters/h1"
    settings=(max_steps=2 learning_rate=1e-2 eval_steps=0 rank=4 alpha=8 target_modules=q,v)
    full=(max_steps=2 learning_rate=1e-2 eval_steps=0)
    mkdir -p "$data/bbh/bbh" "$data/bbh/cot-prompts"
    for name in navigate snarks; do
        python3 -c 'import json; print(json.dumps({"canary": "none", "examples": [{"input": f"Row {i}?", "target": "(A)"} for i in range(110)]}))' \
            > "$data/bbh/bbh/$name.json"
        printf 'canary\n-----\nAnswer it.\n\nQ: ...\n' > "$data/bbh/cot-prompts/$name.txt"
    done
elif [ $# -ge 4 ]; then
    base="$1" pool="$2" data="$3" out="$4"
    options=("${@:5}")
    # The gradient's norm is cut at 1 by the Trainer of transformers, which the authors use.
    shared=(num_epochs=20 batch_size=5 warmup_ratio=0 max_grad_norm=1 eval_steps=0)
    # The names of q and v in T5, or in a decoder.
    settings=(rank=16 alpha=32 dropout=0.1 'target_modules=.*\.(q|v|q_proj|v_proj)' learning_rate=2e-4 "${shared[@]}")
    # The paper does not say how it trains all weights.
    full=(learning_rate=3e-5 "${shared[@]}")
else
    usage
fi

# examples SEED: a file of 100 rows for examples and one of the others for each task, by the reference code's prompt; and in
# five/ a task of its own with the first five examples alone.
examples() {
    python3 - "$data/bbh" "$out/rows-$1" "$1" "$tokens" <<'END'
import json, pathlib, random, sys

source, out, seed, tokens = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), *sys.argv[3:]
(out / "five").mkdir(parents=True, exist_ok=True)
head = 'prompt = "{{ input }}"\ntarget = "output"\nmetrics = ["exact_match"]\nstop = ["\\n"]\n'
head += f"ignore_case = true\nregexes_to_ignore = ['[.]']\nmax_new_tokens = {tokens}\n"
names = []
for file in sorted((source / "bbh").glob("*.json")):
    # The third line of the published prompt describes the task.
    description = (source / "cot-prompts" / f"{file.stem}.txt").read_text().splitlines()[2]
    rows = [
        {"input": f"{description}\n\nQ: {row['input']}\nA:", "output": row["target"]}
        for row in json.loads(file.read_text())["examples"]
    ]
    random.Random(f"{seed} {file.stem}").shuffle(rows)
    for split, part in (("train", rows[:100]), ("five", rows[:5]), ("test", rows[100:])):
        (out / f"{file.stem}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    five = f'name = "{file.stem}"\ntrain = "../{file.stem}.five.jsonl"\ntest = "../{file.stem}.test.jsonl"\n'
    (out / "five" / f"{file.stem}.toml").write_text(five + head)
    names.append(file.stem)
files = 'train = "{name}.train.jsonl"\ntest = "{name}.test.jsonl"\n'
(out / "bbh.toml").write_text(files + head + "".join(f'\n[[task]]\nname = "{name}"\n' for name in names))
END
}

# draw SEED: the modules of a seed, in a random order, since the authors' search depends on it, separated by commas. They are
# drawn from the list of MODULES, whatever the pool has, and then have to be in the pool.
draw() {
    python3 - "$library/experts" "$modules" "$1" "${MODULES:-}" "$out" <<'END'
import pathlib, random, re, sys

folder, count, seed, file, out = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
pool = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
names = pool
if file:
    text = pathlib.Path(file).read_text()
    listed = re.findall(r"""["']([^"']+)["']""", text) or text.split()
    names = [name.rsplit("/", 1)[-1] for name in listed]
    if len(names) < count:
        sys.exit(f"{file}: {len(names)} modules; expected at least the {count} that a seed draws")
drawn = random.Random(seed).sample(names, min(count, len(names)))
missing = [name for name in drawn if name not in set(pool)]
if missing:
    todo = "add them to the pool"
    if folder == pathlib.Path(out, "pool/experts"):
        todo = f"if they could not be downloaded, `rm -r {out}/pool {out}/.done` and run again"
    sys.exit(f"{folder}: seed {seed} draws {', '.join(missing)} from {file}, which it lacks; {todo}, or leave out the seed")
print(",".join(drawn))
END
}

# estimate: the cost of a seed with all its ROWS. Both searches read 5 rows in each of their evaluations. Rows are scored by
# the mean, and by three adaptations beside the base. Zero-shot, with the length of six in context, and by all weights they are
# scored once for all seeds, which share that cost.
estimate() {
    local of_rows="$out/rows-${ROWS%% *}" count scored draws all_weights=1
    [ "${FULL:-1}" != 0 ] || all_weights=0
    draws="$(wc -w <<< "$ROWS")"
    count="$(find "$of_rows/five" -name '*.toml' | wc -l)"
    read -r _ _ scored _ <<< "$(row_counts "$of_rows/bbh.toml")"
    echo "The cost of a seed, over $draws draw(s) of ROWS:"
    cost $((draws * 3 * count)) $((draws * 5 * 20 * count * (${#seeds[@]} + all_weights) / ${#seeds[@]})) \
        $((draws * (2 * budget * 5 * count + (1 + 3 * 2) * scored + (1 + 6 + all_weights) * scored / ${#seeds[@]}))) \
        "$of_rows/bbh.toml"
}

# adapt RUN NAME METHOD OPTIONS...: writes the scores of the adapted tasks, once.
adapt() {
    local file="$1/$2.json"
    [ ! -e "$file" ] || return 0
    echo "== $(basename "$1"): $2"
    "$lorakit" adapt --json -q --base "$base" --tasks "$bbh" --method "${@:3}" "${limit[@]}" --out "$1/$2" "${options[@]}" > "$file.new"
    mv "$file.new" "$file"
}

# full_fine_tuning ROWS: all weights trained on the five rows of each task, one task after the other; a model is scored and
# removed. Their scores are one file.
full_fine_tuning() {
    local folder="$1/full" task name
    [ ! -e "$1/full.json" ] || return 0
    for task in "$1"/five/*.toml; do
        name="$(basename "$task" .toml)"
        [ ! -e "$folder/$name.json" ] || continue
        echo "== full fine-tuning: $name"
        rm -rf "$folder/library"
        "$lorakit" train-experts -q --full --base "$base" --tasks "$task" --library "$folder/library" --set "${full[@]}" "${options[@]}" > /dev/null
        "$lorakit" eval --json -q --base "$folder/library/models/full" --tasks "$task" --router base "${limit[@]}" "${options[@]}" > "$folder/new"
        mv "$folder/new" "$folder/$name.json"
    done
    rm -rf "$folder/library"
    python3 - "$folder" > "$1/full.json" <<'END'
import json, pathlib, sys

documents = [json.loads(file.read_text()) for file in sorted(pathlib.Path(sys.argv[1]).glob("*.json"))]
tasks = {name: scores for document in documents for name, scores in document["results"]["base"].items()}
print(json.dumps(documents[0] | {"results": {"base": tasks}}))
END
}

for rows in $ROWS; do examples "$rows"; done
estimate
library="$pool"
if [ ! -e "$pool/library.json" ]; then
    library="$out/pool"
    read -ra adapters <<< "$pool"
    # Only where a list says what has to be there may one be missing, since it stays missing when this runs again.
    skip=()
    [ -z "${MODULES:-}" ] || skip=(--skip-refused)
    once "$lorakit" library add --library "$library" --base "$base" "${skip[@]}" "${adapters[@]}" "${options[@]}" > /dev/null
fi
# A seed whose modules are not in the pool stops the run before anything is scored.
runs=()
for rows in $ROWS; do
    for seed in "${seeds[@]}"; do
        run="$out/modules-$seed-rows-$rows"
        runs+=("$run")
        mkdir -p "$run"
        drawn="$(draw "$seed")"
        if [ "$(cat "$run/drawn" 2>/dev/null || echo "$drawn")" != "$drawn" ]; then
            echo "$run has results of other modules: POOL or MODULES have changed since; choose another OUT" >&2
            exit 1
        fi
        echo "$drawn" > "$run/drawn"
    done
done
for rows in $ROWS; do
    of_rows="$out/rows-$rows"
    bbh="$of_rows/bbh.toml"
    once "$lorakit" eval --base "$base" --tasks "$bbh" --chance --router base "${limit[@]}" --out "$of_rows/zero_shot.eval" "${options[@]}"
    once "$lorakit" eval --base "$base" --tasks "$bbh" --router base --num-fewshot 5 "${limit[@]}" \
        --out "$of_rows/in_context.eval" "${options[@]}"
    [ "${FULL:-1}" = 0 ] || full_fine_tuning "$of_rows"
    for seed in "${seeds[@]}"; do
        run="$out/modules-$seed-rows-$rows"
        drawn="$(cat "$run/drawn")"
        cp -r "$of_rows/zero_shot.eval" "$of_rows/in_context.eval" "$run"
        [ ! -e "$of_rows/full.json" ] || cp "$of_rows/full.json" "$run"
        adapt "$run" lorahub_published "lorahub:mode=as-published,budget=$budget" --library "$library" --experts "$drawn" --seed "$seed"
        adapt "$run" lorahub lorahub --library "$library" --experts "$drawn" --seed "$seed"
        adapt "$run" five_rows no_library --fraction 0.05 --seed "$seed" --set "${settings[@]}"
        once "$lorakit" merge --library "$library" --base "$base" --method cat --experts "$drawn" --out "$run/mean" \
            --overwrite "${options[@]}" > /dev/null
        once "$lorakit" library add --library "$run/merged" --base "$base" "mean=$run/mean" "${options[@]}" > /dev/null
        once "$lorakit" eval --base "$base" --library "$run/merged" --tasks "$bbh" --router expert:mean "${limit[@]}" \
            --out "$run/mean.eval" "${options[@]}"
    done
done
strict=()
[ "$mode" != smoke ] || strict=(--strict)
"$lorakit" compare "${strict[@]}" "$root/configs/tables/lorahub.toml" --runs "${runs[@]}" --out "$out/lorahub"
