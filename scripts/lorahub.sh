#!/usr/bin/env bash
# LoraHub (arXiv 2307.13269) over a decoder: on each task of BIG-Bench Hard, 20 modules drawn from a library of Flan's tasks
# are weighed by 5 rows, with 40 evaluations. Beside it the zero-shot base, 5 rows in context, an adapter trained on the 5
# rows, and the mean of the 20 modules. SEEDS draws the modules, ROWS the rows, apart from each other.
#
# BASE     a model folder or hub:ORG/NAME; the paper's Flan-T5 is an encoder and decoder, which lorakit has not
# LIBRARY  a library of experts, such as OUT/seed-0/private of modular_llms/zero_shot.sh
# DATA     the folder with bbh/ of https://github.com/suzgunmirac/BIG-Bench-Hard
# OUT      the folder for results; an interrupted run can be resumed
#
# As in the paper, 100 rows of a task are the pool of examples and the others are scored. The paper's numbers are of
# Flan-T5-large. Not here: IA3 and full fine-tuning on 5 rows, which lorakit does not train. "Best single module" of some
# tables is chosen on test rows, and left out.
#
# Usage: [SEEDS="0 1 2 3 4"] [ROWS="0 1 2"] scripts/lorahub.sh BASE LIBRARY DATA OUT [OPTIONS...]
#        scripts/lorahub.sh --smoke OUT
source "$(dirname "$0")/paper_run.sh"
[ "$mode" != small ] || usage # over a small base: lora_soups.sh --small, whose ten targets LoraHub is fitted to too
modules=20 limit=()
if [ "$mode" = smoke ]; then
    [ $# -eq 1 ] || usage
    base=pico out="$1" library="$1/library" data="$1/data" modules=3 limit=(--limit 2)
    settings=(max_steps=2 learning_rate=1e-2 eval_steps=0)
    "$lorakit" train-experts -q --base pico --tasks suite:skills --library "$library" --set "${settings[@]}" \
        --experts shift_up1,shift_down1,join_dash,join_dot > /dev/null
    mkdir -p "$data/bbh/bbh" "$data/bbh/cot-prompts"
    for name in navigate snarks; do
        python3 -c 'import json; print(json.dumps({"canary": "none", "examples": [{"input": f"Row {i}?", "target": "(A)"} for i in range(110)]}))' \
            > "$data/bbh/bbh/$name.json"
        printf 'canary\n-----\nAnswer it.\n\nQ: ...\n' > "$data/bbh/cot-prompts/$name.txt"
    done
elif [ $# -ge 4 ]; then
    base="$1" library="$2" data="$3" out="$4"
    options=("${@:5}")
    settings=(rank=16 alpha=32 learning_rate=2e-4 num_epochs=20 batch_size=5 eval_steps=0)
else
    usage
fi
cost 27 500 $((40 * 5 * 27 + 4000 * 6)) "$data"/bbh/bbh/*.json

# pool SEED: a file of 100 rows for examples and one of the others for each task, by the reference code's prompt.
pool() {
    python3 - "$data/bbh" "$out/rows-$1" "$1" <<'END'
import json, pathlib, random, sys

source, out, seed = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
out.mkdir(parents=True, exist_ok=True)
names = []
for file in sorted((source / "bbh").glob("*.json")):
    # The third line of the published prompt describes the task.
    description = (source / "cot-prompts" / f"{file.stem}.txt").read_text().splitlines()[2]
    rows = [
        {"input": f"{description}\n\nQ: {row['input']}\nA:", "output": row["target"]}
        for row in json.loads(file.read_text())["examples"]
    ]
    random.Random(f"{seed} {file.stem}").shuffle(rows)
    for split, part in (("train", rows[:100]), ("test", rows[100:])):
        (out / f"{file.stem}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    names.append(file.stem)
head = 'train = "{name}.train.jsonl"\ntest = "{name}.test.jsonl"\nprompt = "{{ input }}"\ntarget = "output"\n'
head += 'metrics = ["exact_match"]\nstop = ["\\n"]\nmax_new_tokens = 32\n'
(out / "bbh.toml").write_text(head + "".join(f'\n[[task]]\nname = "{name}"\n' for name in names))
END
}

# draw COUNT SEED: so many of the lines at random, in random order, separated by commas.
draw() {
    python3 -c 'import random, sys
lines = sorted(sys.stdin.read().splitlines())
print(",".join(random.Random(int(sys.argv[2])).sample(lines, min(int(sys.argv[1]), len(lines)))))' "$@"
}

# adapt RUN NAME METHOD OPTIONS...: writes the scores of the adapted tasks, once.
adapt() {
    local file="$1/$2.json"
    [ ! -e "$file" ] || return 0
    echo "== $(basename "$1"): $2"
    "$lorakit" adapt --json -q --base "$base" --tasks "$bbh" --method "${@:3}" "${limit[@]}" --out "$1/$2" "${options[@]}" > "$file.new"
    mv "$file.new" "$file"
}

runs=()
for rows in ${ROWS:-0}; do
    pool "$rows"
    bbh="$out/rows-$rows/bbh.toml"
    for seed in "${seeds[@]}"; do
        run="$out/modules-$seed-rows-$rows"
        runs+=("$run")
        mkdir -p "$run"
        # The modules of a seed, in a random order, since the authors' search depends on it.
        drawn="$(find "$library/experts" -mindepth 1 -maxdepth 1 -type d ! -name '.*' -printf '%f\n' | draw "$modules" "$seed")"
        adapt "$run" lorahub_published lorahub:mode=as-published --library "$library" --experts "$drawn" --seed "$seed"
        adapt "$run" lorahub lorahub --library "$library" --experts "$drawn" --seed "$seed"
        adapt "$run" five_rows no_library --fraction 0.05 --seed "$seed" --set "${settings[@]}"
        once "$lorakit" merge --library "$library" --base "$base" --method cat --experts "$drawn" --out "$run/mean" \
            --overwrite "${options[@]}" > /dev/null
        once "$lorakit" library add --library "$run/merged" --base "$base" "mean=$run/mean" "${options[@]}" > /dev/null
        once "$lorakit" eval --base "$base" --library "$run/merged" --tasks "$bbh" --chance --router base expert:mean \
            "${limit[@]}" --out "$run/zero_shot.eval" "${options[@]}"
        once "$lorakit" eval --base "$base" --tasks "$bbh" --router base --num-fewshot 5 "${limit[@]}" \
            --out "$run/in_context.eval" "${options[@]}"
    done
done
strict=()
[ "$mode" != smoke ] || strict=(--strict)
"$lorakit" compare "${strict[@]}" "$root/configs/tables/lorahub.toml" --runs "${runs[@]}" --out "$out/lorahub"
