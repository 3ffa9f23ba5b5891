//! Whole prompts and answers of the task files of "Towards Modular LLMs" (arXiv 2405.11157), over rows of the data sets' form
//! that are written here. The expected texts are what the paper's code makes of such rows.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use lorakit_task::{Row, Split, Task};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The task of a task file over one data file of `{data}`.
fn task(spec: &str, file: &str, content: &Value) -> Task {
    let data = TempDir::new().unwrap();
    let file = data.path().join(file);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, content.to_string()).unwrap();
    let spec = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/tasks").join(spec);
    let loaded = Task::load(&spec.display().to_string(), Some(data.path()));
    loaded.unwrap_or_else(|error| panic!("{error:#}: {}", spec.display())).remove(0)
}

/// The text of each choice after its prompt, as the base reads it, and which is right.
fn choices(spec: &str, file: &str, row: Value) -> (Vec<String>, usize) {
    let task = task(&format!("zero_shot.toml:{spec}"), file, &json!([row]));
    let row = task.rows(Split::Test, None).unwrap()[0];
    let (texts, gold) = row.choices().unwrap();
    let whole = |text: &String| format!("{}|{}{text}", row.prompt, row.delimiter_before(text));
    (texts.iter().map(whole).collect(), gold)
}

fn read(row: &Row) -> (&str, &str, &str) {
    (&row.prompt, row.delimiter_before(row.target()), row.target())
}

fn read_all(task: &Task) -> Vec<(&str, &str, &str)> {
    task.rows(Split::Test, None).unwrap().into_iter().map(read).collect()
}

#[test]
fn questions_with_choices() {
    let arc = json!({"question": "Why?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"});
    let asked = (vec!["Question: Why?\nAnswer:| x".to_owned(), "Question: Why?\nAnswer:| y".to_owned()], 1);
    for (name, file) in [
        ("arc_easy", "ai2_arc/ARC-Easy/test-00000-of-00001.parquet"),
        ("arc_challenge", "ai2_arc/ARC-Challenge/test-00000-of-00001.parquet"),
    ] {
        assert_eq!(choices(name, file, arc.clone()), asked);
    }
    let openbookqa =
        json!({"question_stem": "The sky is", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"});
    assert_eq!(
        choices("openbookqa", "openbookqa/main/test-00000-of-00001.parquet", openbookqa),
        (vec!["The sky is| x".to_owned(), "The sky is| y".to_owned()], 0)
    );
    let boolq = json!({"question": "is it so", "passage": "It is so.", "idx": 0, "label": 1});
    assert_eq!(
        choices("boolq", "super_glue/boolq/validation-00000-of-00001.parquet", boolq),
        (["no", "yes"].map(|answer| format!("It is so.\nQuestion: is it so?\nAnswer:| {answer}")).to_vec(), 1)
    );
    let piqa = json!({"goal": "To go,", "sol1": "walk", "sol2": " sit", "label": 0});
    assert_eq!(
        choices("piqa", "piqa/plain_text/validation/0000.parquet", piqa),
        (["walk", "sit"].map(|answer| format!("Question: To go,\nAnswer:| {answer}")).to_vec(), 0)
    );
}

/// Activity, context and endings are cleaned alike. White space that the cleaning leaves at an ending's start is not doubled.
#[test]
fn hellaswag_is_cleaned() {
    let row = json!({"activity_label": " Washing [title] hands", "ctx_a": "He [title] Opens  it. [step] Then", "ctx_b": "",
        "endings": ["[substeps] Use  water. [title] Rinse it.", " He  walks. "], "label": "0"});
    let prompt = "Washing. hands: He. Opens it. Then";
    assert_eq!(
        choices("hellaswag", "hellaswag/data/validation-00000-of-00001.parquet", row),
        (["Use water.. Rinse it.", "He walks."].map(|ending| format!("{prompt}| {ending}")).to_vec(), 0)
    );
    let row = json!({"activity_label": "Cooking", "ctx_a": "She cooks.", "ctx_b": "the Soup", "endings": ["a", "b"], "label": "1"});
    let (texts, gold) = choices("hellaswag", "hellaswag/data/validation.parquet", row);
    assert_eq!((texts[1].as_str(), gold), ("Cooking: She cooks. The soup| b", 1));
}

/// The rest of the sentence comes after one space, whatever is in the file; the option where the blank was.
#[test]
fn winogrande_has_the_texts_of_the_paper() {
    let of = |sentence: &str| {
        let row = json!({"sentence": sentence, "option1": "Ann", "option2": "Eve", "answer": "2"});
        choices("winogrande", "winogrande/winogrande_xl/validation-00000-of-00001.parquet", row)
    };
    let both = |prefix: &str, rest: &str| (["Ann", "Eve"].map(|name| format!("{prefix}{name} {rest}")).to_vec(), 1);
    assert_eq!(of("Ann met Eve and _ left."), both("Ann met Eve and| ", "left."));
    assert_eq!(of("He said \"_'s here_.\""), both("He said \"|", "'s here_.\""));
}

#[test]
fn super_natural_instructions_end_in_punctuation() {
    let file = "natural-instructions/tasks/task1557_jfleg_answer_generation.json";
    let prompts = |definition: &str, inputs: &[&str]| {
        let instances: Vec<Value> = inputs.iter().map(|input| json!({"input": input, "output": ["a", "b"]})).collect();
        let content = json!({"Definition": [definition], "Instances": instances});
        let task = task("superni_paper.toml:task1557_jfleg_answer_generation", file, &content);
        let rows = task.rows(Split::All, None).unwrap();
        rows.into_iter().map(|row| (row.prompt.clone(), row.accepted().to_vec())).collect::<Vec<_>>()
    };
    let expected = |definition: &str, input: &str| {
        let prompt =
            format!("Task definition: {definition}\nNow complete the following example -\nInput: {input}\nOutput:");
        (prompt, vec!["a".to_owned(), "b".to_owned()])
    };
    let definition = "Mend it.\nKeep its sense";
    assert_eq!(
        prompts(&format!(" {definition} \n"), &[" a word\n", "word!", "`word`", "wörd…", ""]),
        ["a word.", "word!", "`word`", "wörd….", "."].map(|input| expected(&format!("{definition}."), input))
    );
    assert_eq!(prompts("Mend it?", &["x\ny"]), [expected("Mend it?", "x\ny.")]);
}

/// The examples are the file's first rows, which are scored too; a row is not its own example.
#[test]
fn big_bench_hard_shows_the_first_five_rows() {
    let examples: Vec<Value> = (0..7).map(|n| json!({"input": format!("q{n}"), "target": format!("a{n}")})).collect();
    let content = json!({"canary": "", "examples": examples});
    let task = task("bbh_paper.toml:word_sorting", "bbh/bbh/word_sorting.json", &content);
    let shown = task.with_few_shot(5, Split::Test).unwrap();
    let asked = |n: usize| format!("Solve the following problem: q{n}\nAnswer:");
    let example = |n: usize| format!("{} a{n}\n\n", asked(n));
    let prompt = |examples: [usize; 5], n: usize| examples.map(example).concat() + &asked(n);
    let rows = read_all(&shown);
    assert_eq!(rows.len(), 7);
    assert_eq!(rows[6], (prompt([0, 1, 2, 3, 4], 6).as_str(), " ", "a6"));
    assert_eq!(rows[1].0, prompt([0, 2, 3, 4, 5], 1));
    assert_eq!((shown.generation.stop.as_slice(), shown.generation.max_new_tokens), (&["\n\n".to_owned()][..], 128));
}

#[test]
fn programs_continue_a_function() {
    let row = json!({"task_id": "HumanEval/0", "prompt": "\n\ndef f(x):\n    \"\"\" Do it. \"\"\"\n", "entry_point": "f",
        "canonical_solution": "    return x\n", "test": "def check(f):\n    assert f(1) == 1\n"});
    let humaneval = task("programs.toml:humaneval_programs", "humaneval/HumanEval.jsonl.gz", &json!([row]));
    assert_eq!(read_all(&humaneval), [("def f(x):\n    \"\"\" Do it. \"\"\"\n", "", "    return x\n")]);
    let tests = ["assert f(1, 2) == 1", "assert f(3, 2) == 3"];
    let row = json!({"task_id": 2, "prompt": "Return the first.", "code": "import re\ndef f(a, b):\n  x = {1: a}\n  return a",
        "test_list": tests, "test_imports": []});
    let mbpp = task("programs.toml:mbpp_programs", "mbpp/sanitized-mbpp.json", &json!([row]));
    let prompt =
        format!("import re\ndef f(a, b):\n\t\"\"\"\n\tReturn the first.\n\t{}\n\t{}\n\t\"\"\"\n", tests[0], tests[1]);
    assert_eq!(read_all(&mbpp), [(prompt.as_str(), "", "  x = {1: a}\n  return a")]);
    for task in [humaneval, mbpp] {
        assert_eq!(
            (task.generation.stop.as_slice(), task.generation.max_new_tokens),
            (&["\n\n", "\ndef"].map(str::to_owned)[..], 300)
        );
    }
    let row = json!({"input": "How many?", "code": "def solution():\n    return 1", "target": 1.0});
    let gsm_hard = task("programs.toml:gsm_hard_programs", "gsm-hard/gsmhardv2.jsonl", &json!([row]));
    assert_eq!(
        read_all(&gsm_hard)[0].0,
        "Write a Python function solution() that returns the answer.\nHow many?\n```python\n"
    );
}

/// As in the task file that scripts/modular_llms/flan.sh writes.
#[test]
fn a_target_of_flan_may_bring_its_own_white_space() {
    let folder = TempDir::new().unwrap();
    let rows = [("Q:", " b"), ("Q:", "b"), ("Q:\n", "b"), ("Q:", "\nb")];
    let rows: Vec<Value> = rows.iter().map(|(source, target)| json!({"source": source, "target": target})).collect();
    fs::write(folder.path().join("t.json"), json!(rows).to_string()).unwrap();
    let toml = folder.path().join("flan.toml");
    fs::write(&toml, "test = \"t.json\"\nprompt = \"{{ source }}\"\ntarget = \"target\"\n").unwrap();
    let task = Task::load(&toml.display().to_string(), None).unwrap().remove(0);
    let whole: Vec<String> =
        read_all(&task).iter().map(|(prompt, between, target)| format!("{prompt}{between}{target}")).collect();
    assert_eq!(whole, ["Q: b", "Q: b", "Q:\nb", "Q:\nb"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/modular_llms/flan.sh");
    let script = fs::read_to_string(script).unwrap();
    assert!(script.contains(r#"prompt = "{{ source }}"\ntarget = "target"\n"#) && !script.contains("target_delimiter"));
}
