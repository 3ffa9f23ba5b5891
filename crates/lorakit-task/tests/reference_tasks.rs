//! The task files in `configs/tasks` with the data sets that they describe, which are not in the repository.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lorakit_task::{Example, Row, Split, Task, Tokenizer, choice_requests};

/// A path in `../shared`.
fn shared(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path);
    assert!(path.exists(), "{} does not exist", path.display());
    path
}

fn config(name: &str) -> String {
    format!("{}/../../configs/tasks/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn load(name: &str, data: &Path) -> Vec<Task> {
    Task::load(&config(name), Some(data)).unwrap_or_else(|error| panic!("{name}: {error:#}"))
}

#[test]
#[ignore = "needs ../shared"]
fn task_files_load_where_their_data_is_here() {
    let data = shared("data/tasks");
    let mut all = Vec::new();
    for (file, count) in [
        ("function_vectors.toml", 56),
        ("instruction_induction.toml", 24),
        ("instruction_induction_composed.toml", 9),
        ("bbh.toml", 22),
        ("llm_adapters.toml", 7),
        ("gsm8k.toml", 1),
        ("humaneval.toml", 1),
        ("superni.toml", 15),
    ] {
        let tasks = load(file, &data);
        assert_eq!(tasks.len(), count, "{file}");
        all.extend(tasks);
    }
    for task in &all {
        assert!(task.count(Split::Train) > 0, "{}", task.name);
        assert_eq!(task.sha256().len(), 64);
    }
}

#[test]
#[ignore = "needs ../shared"]
fn data_files_of_known_formats_load_without_a_task_file() {
    let data = shared("data/tasks");
    let folder = data.join("function_vectors").display().to_string();
    let tasks = Task::load(&folder, None).unwrap();
    assert_eq!(tasks.len(), 56);
    let instructed = load("function_vectors.toml", &data);
    for bare in &tasks {
        let with_instruction = instructed.iter().find(|task| task.name == bare.name).unwrap();
        let (bare, with) = (bare.rows(Split::Test, Some(1)), with_instruction.rows(Split::Test, Some(1)));
        let (bare, with) = (bare.unwrap()[0].clone(), with.unwrap()[0].clone());
        // The same split, and the same row after a line of instruction.
        assert_eq!(bare.number, with.number);
        assert_eq!(with.prompt.split_once('\n').unwrap().1, bare.prompt);
    }

    let induction = data.join("instruction_induction/raw/execute");
    let needs_template = ["cause_and_effect.json", "common_concept.json"];
    for entry in std::fs::read_dir(induction).unwrap() {
        let path = entry.unwrap().path();
        let loaded = Task::load(&path.display().to_string(), None);
        let odd = needs_template.iter().any(|name| path.ends_with(name));
        assert_eq!(loaded.is_err(), odd, "{}", path.display());
    }
    let arc = data.join("llm_adapters/ARC-Easy/test.json").display().to_string();
    let arc = Task::load(&format!("arc={arc}"), None).unwrap().remove(0);
    assert!(arc.rows(Split::All, None).unwrap()[0].target().starts_with("the correct answer is"));
}

#[test]
#[ignore = "needs ../shared"]
fn rows_match_their_task_files() {
    let data = shared("data/tasks");
    let first = |spec: &str, split| {
        let task = load(spec, &data).remove(0);
        task.rows(split, Some(1)).unwrap()[0].clone()
    };
    let row = first("instruction_induction.toml:cause_and_effect", Split::Test);
    assert_eq!(row.prompt.lines().count(), 2, "{}", row.prompt);
    assert!(row.prompt.ends_with('\n') && row.prompt.contains("\nSentence 1: "));
    assert!(row.prompt.contains(row.target()));
    let row = first("instruction_induction.toml:common_concept", Split::Test);
    assert!(row.prompt.ends_with("rock climbing, elevators, helicopters\n"), "{}", row.prompt);
    assert_eq!(row.accepted().len(), 2);
    let row = first("superni.toml:task875_emotion_classification", Split::Test);
    assert!(row.prompt.starts_with("Definition: ") && row.prompt.ends_with("\nOutput:"));
    assert_eq!(row.delimiter_before(row.target()), " ");

    let gsm8k = load("gsm8k.toml", &data).remove(0);
    assert_eq!(gsm8k.count(Split::Test), 1319);
    let row = gsm8k.rows(Split::Test, Some(1)).unwrap()[0];
    let extract = gsm8k.generation.extract.as_ref().unwrap();
    assert_eq!(extract.apply(row.target()), Some("18"));
    for task in load("llm_adapters.toml", &data) {
        let extract = task.generation.extract.as_ref().unwrap();
        for row in task.rows(Split::All, None).unwrap() {
            assert_eq!(extract.apply(row.target()), row.fields["answer"].as_str(), "{}", task.name);
        }
    }
}

/// Under paraphrases, and without instructions, the rows, their order and their answers are the same.
#[test]
#[ignore = "needs ../shared"]
fn other_prompts_of_instruction_induction_ask_for_the_same_answers() {
    let data = shared("data/tasks");
    let [instructed, paraphrased, bare] =
        ["", "_paraphrased", "_bare"].map(|form| load(&format!("instruction_induction{form}.toml"), &data));
    assert_eq!((paraphrased.len(), bare.len()), (instructed.len(), instructed.len()));
    for ((task, paraphrased), bare) in instructed.iter().zip(&paraphrased).zip(&bare) {
        let rows = task.rows(Split::Test, None).unwrap();
        let [reworded, inputs] = [paraphrased, bare].map(|task| task.rows(Split::All, None).unwrap());
        assert_eq!((paraphrased.name.as_str(), bare.name.as_str()), (task.name.as_str(), task.name.as_str()));
        assert_eq!((reworded.len(), inputs.len()), (rows.len(), rows.len()), "{}", task.name);
        let mut wordings = BTreeSet::new();
        for ((row, reworded), input) in rows.iter().zip(reworded).zip(inputs) {
            let (instruction, rest) = row.prompt.split_once('\n').unwrap();
            let (wording, same) = reworded.prompt.split_once('\n').unwrap();
            assert_eq!((same, input.prompt.as_str()), (rest, rest), "{}", task.name);
            assert_eq!((reworded.accepted(), input.accepted()), (row.accepted(), row.accepted()), "{}", task.name);
            assert_ne!(wording, instruction, "{}", task.name);
            wordings.insert(wording.to_owned());
        }
        assert_eq!(wordings.len(), 3, "{}: {wordings:?}", task.name);
    }
}

/// The answer of a composition is what the second task answers to the first one's answer, where it has a row of that input.
#[test]
#[ignore = "needs ../shared"]
fn compositions_continue_with_the_answer_of_their_first_task() {
    let data = shared("data/tasks");
    let answers = |name: &str| -> BTreeMap<String, String> {
        let task = load(&format!("instruction_induction.toml:{name}"), &data).remove(0);
        let rows = task.rows(Split::All, None).unwrap();
        let input = |row: &Row| row.prompt.split_once('\n').unwrap().1.trim_end().to_owned();
        rows.iter().map(|row| (input(row), row.target().to_owned())).collect()
    };
    for (name, first, second, least) in [
        ("sum_in_words", "sum", "num_to_verbal", 5050),
        ("difference_in_words", "diff", "num_to_verbal", 5050),
        ("antonym_letters", "antonyms", "letters_list", 300),
        ("antonym_first_letter", "antonyms", "first_word_letter", 300),
    ] {
        let (inner, outer) = (answers(first), answers(second));
        let task = load(&format!("instruction_induction_composed.toml:{name}"), &data).remove(0);
        let mut compared = 0;
        for row in task.rows(Split::All, None).unwrap() {
            let input = row.prompt.split_once('\n').unwrap().1.trim_end();
            if let Some(answer) = outer.get(&inner[input]) {
                assert_eq!(row.target(), answer, "{name}: {input}");
                compared += 1;
            }
        }
        assert!(compared >= least, "{name}: {compared}");
    }
}

#[test]
#[ignore = "needs ../shared"]
fn a_llama_tokenizer_reproduces_the_text() {
    let folder = shared("data/models/stories260K-hf");
    let tokenizer = Tokenizer::open(&folder).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.size()), (Some(1), 2, 512));
    let data = shared("data/tasks");
    for task in load("function_vectors.toml:antonym,english-french,conll2003_person", &data) {
        for row in task.rows(Split::Train, Some(50)).unwrap() {
            let example = Example::encode(row, &tokenizer, 512).unwrap();
            assert_eq!(example.tokens[0], 1);
            assert_eq!(example.prompt().iter().filter(|&&id| id == 1).count(), 1);
            assert_eq!(example.target().last(), Some(&2));
            let whole = example.tokens.clone();
            let text = format!("{}{}", row.prompt, row.target());
            assert_eq!(tokenizer.decode(&whole).unwrap(), text);
        }
    }
}

#[test]
#[ignore = "needs ../shared"]
fn a_byte_level_tokenizer_reproduces_the_text_and_adds_no_bos() {
    let folder = shared("data/models/tokenizers/gpt2");
    let tokenizer = Tokenizer::open(&folder).unwrap();
    assert_eq!((tokenizer.eos(), tokenizer.adds_bos()), (50256, false));
    let data = shared("data/tasks");
    for task in load("gsm8k.toml", &data) {
        for row in task.rows(Split::Test, Some(50)).unwrap() {
            let example = Example::encode(row, &tokenizer, 4096).unwrap();
            assert_eq!(tokenizer.encode(&row.prompt).unwrap(), example.prompt());
            let target = format!(" {}", row.target());
            assert_eq!(tokenizer.decode(example.target()).unwrap(), target);
        }
    }
}

#[test]
#[ignore = "needs ../shared"]
fn continuations_begin_with_the_newline_of_the_prompt() {
    let folder = shared("data/models/tokenizers/gpt2");
    let tokenizer = Tokenizer::open(&folder).unwrap();
    let file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    let row = r#"[{"input": "Question: is it?\nAnswer:", "choices": ["no", "yes"], "answer": 1}]"#;
    std::fs::write(file.path(), row).unwrap();
    let task = Task::load(&file.path().display().to_string(), None).unwrap().remove(0);
    let row = task.rows(Split::All, None).unwrap()[0];
    let requests = choice_requests(row, &tokenizer, 1024).unwrap();
    // The newline at the end of the plain prompt belongs to the continuation, as in lm-eval.
    let spelled: BTreeSet<String> =
        requests.iter().map(|request| tokenizer.decode(&request.continuation).unwrap()).collect();
    assert_eq!(spelled, BTreeSet::from(["\nno".to_string(), "\nyes".to_string()]));
    assert_eq!(requests[0].continuation.len(), 2);
}
