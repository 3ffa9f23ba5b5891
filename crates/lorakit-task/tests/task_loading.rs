//! Loading of tasks: specs, folders, names, splits, hashes and errors.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use lorakit_task::{Metric, Split, Task, TaskLoader};
use tempfile::TempDir;

/// A folder with files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn at(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

fn names(tasks: &[Task]) -> Vec<&str> {
    tasks.iter().map(|task| task.name.as_str()).collect()
}

fn message(result: lorakit_task::Result<Vec<Task>>) -> String {
    format!("{:#}", anyhow::Error::from(result.unwrap_err()))
}

/// Twenty rows whose splits for seed 0 are asserted in `split.rs`.
fn twenty() -> String {
    (0..20).map(|i| format!("{{\"input\": \"row {i}\", \"output\": \"o\"}}\n")).collect()
}

fn numbers(task: &Task, split: Split) -> Vec<usize> {
    task.rows(split, None).unwrap().iter().map(|row| row.number).collect()
}

const ROW: &str = r#"[{"input": "a", "output": "b"}]"#;

#[test]
fn a_task_is_named_after_its_file_unless_a_name_is_given() {
    let folder = folder(&[("x.json", ROW), ("y.jsonl", &twenty())]);
    assert_eq!(names(&Task::load(&at(&folder, "x.json"), None).unwrap()), ["x"]);
    let spec = format!("other={}", at(&folder, "y.jsonl"));
    assert_eq!(names(&Task::load(&spec, None).unwrap()), ["other"]);
}

/// Of a dataset's own repository, whose card may give files another meaning.
#[test]
fn configurations_of_a_card_are_said_to_be_unread() {
    let card = "---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: b.jsonl\n---\n# B";
    let warnings = |files: &[(&str, &str)]| -> Vec<String> {
        let tasks = Task::load(&at(&folder(files), ""), None).unwrap();
        tasks.into_iter().flat_map(|task| task.warnings).collect()
    };
    let found = warnings(&[("a.jsonl", &twenty()), ("b.jsonl", ROW), ("README.md", card)]);
    assert!(found.len() == 1 && found[0].contains("README.md are not read"), "{found:?}");
    assert!(warnings(&[("a.jsonl", &twenty()), ("README.md", "# configs:\nconfigs:\n")]).is_empty());
    // Files named after splits are read by their names, which the card only repeats.
    assert!(warnings(&[("train.jsonl", &twenty()), ("test.jsonl", ROW), ("README.md", card)]).is_empty());
    assert!(warnings(&[("a.toml", "rows = \"a.jsonl\""), ("a.jsonl", ROW), ("README.md", card)]).is_empty());
}

#[test]
fn a_folder_loads_its_task_files_in_order() {
    let toml = "rows = \"data.jsonl\"\ninstruction = \"Do.\"";
    let folder = folder(&[
        ("b.json", ROW),
        ("a.jsonl", &twenty()),
        ("sub/c.json", ROW),
        ("sub/d.toml", toml),
        ("sub/data.jsonl", &twenty()),
        ("LICENSE", "x"),
        ("README.md", "x"),
        (".hidden.json", "x"),
    ]);
    let tasks = Task::load(&folder.path().display().to_string(), None).unwrap();
    // `sub/data.jsonl` is the data of `d`, not a task of its own.
    assert_eq!(names(&tasks), ["a", "b", "c", "d"]);
    assert_eq!(tasks[3].rows(Split::All, Some(1)).unwrap()[0].prompt, "Do.\nrow 0\n");

    let spec = format!("name={}", folder.path().display());
    assert!(message(Task::load(&spec, None)).contains("`name=` names one task"));
    let empty = tempfile::tempdir().unwrap();
    let error = message(Task::load(&empty.path().display().to_string(), None));
    assert!(error.contains("no task in"), "{error}");
}

#[test]
fn duplicate_task_names_are_an_error_that_names_both_files() {
    let folder = folder(&[("one/x.json", ROW), ("two/x.json", ROW)]);
    let specs = ["one/x.json", "two/x.json"].map(|name| at(&folder, name));
    let error = message(TaskLoader::default().load(&specs));
    let expected =
        format!("two tasks are named `x`: {} and {}. Give one of them another name: NAME=FILE", specs[0], specs[1]);
    assert_eq!(error, expected);
    let renamed = [specs[0].clone(), format!("z={}", specs[1])];
    assert_eq!(names(&TaskLoader::default().load(&renamed).unwrap()), ["x", "z"]);
}

#[test]
fn tasks_of_a_file_can_be_chosen_after_a_colon() {
    let toml = "rows = \"x.json\"\n[[task]]\nname = \"p\"\n[[task]]\nname = \"q\"";
    let folder = folder(&[("many.toml", toml), ("x.json", ROW)]);
    let load = |tail: &str| Task::load(&at(&folder, &format!("many.toml{tail}")), None);
    assert_eq!(names(&load("").unwrap()), ["p", "q"]);
    assert_eq!(names(&load(":q").unwrap()), ["q"]);
    assert_eq!(names(&load(":q,p").unwrap()), ["q", "p"]);
    assert!(message(load(":r")).contains("has no task `r`; it has p, q"));
}

#[test]
fn errors_name_what_does_not_exist() {
    assert!(message(Task::load("no/such.json", None)).contains("no/such.json"));
    assert!(message(Task::load("suite:nothing", None)).contains("unknown suite `nothing`"));
    assert!(message(Task::load("", None)).contains("names no task"));
    assert!(message(Task::load("name=", None)).contains("[NAME=]TASK"));
}

#[test]
fn errors_name_the_file_the_row_and_the_key() {
    let rows = "{\"input\": \"a\", \"output\": \"b\"}\n{\"input\": \"a\", \"output\": [true]}\n";
    let toml = "rows = \"x.jsonl\"\nprompt = \"{{ inptu }}\"";
    let folder = folder(&[("x.jsonl", rows), ("bad.jsonl", "{}\n{"), ("t.toml", toml)]);
    let load = |name: &str| message(Task::load(&at(&folder, name), None));
    let path = at(&folder, "x.jsonl");
    let expected = format!("{path}: row 2: `output`: expected a text or a number, found a boolean");
    assert_eq!(load("x.jsonl"), expected);
    assert!(load("bad.jsonl").starts_with(&at(&folder, "bad.jsonl")));
    assert!(load("bad.jsonl").contains("line 2"));
    let template = load("t.toml");
    assert!(template.contains(&at(&folder, "t.toml")), "{template}");
    assert!(template.contains("`prompt`: no column `inptu`"), "{template}");
    assert!(template.contains("the columns `input`, `output`"), "{template}");
}

#[test]
fn rows_with_and_without_choices_cannot_be_mixed() {
    let rows = r#"[{"input": "a", "output": "b"}, {"input": "a", "choices": ["b"], "answer": 0}]"#;
    let folder = folder(&[("x.json", rows)]);
    let error = message(Task::load(&at(&folder, "x.json"), None));
    assert!(error.contains("x.json: row 2 has choices, unlike the task's first"), "{error}");
}

#[test]
fn rows_fall_into_splits_by_hash_and_stay_in_file_order() {
    let folder = folder(&[("x.jsonl", &twenty())]);
    let task = Task::load(&at(&folder, "x.jsonl"), None).unwrap().remove(0);
    let (train, test) = (numbers(&task, Split::Train), numbers(&task, Split::Test));
    assert!(train.is_sorted() && test.is_sorted());
    assert_eq!(task.count(Split::All), 20);
    assert_eq!(numbers(&task, Split::All), (1..=20).collect::<Vec<_>>());
    assert_eq!(task.rows(Split::Train, Some(3)).unwrap().len(), 3);
}

#[test]
fn an_empty_split_is_an_error_when_it_is_used() {
    let folder = folder(&[("x.json", ROW)]);
    let task = Task::load(&at(&folder, "x.json"), None).unwrap().remove(0);
    let empty =
        [Split::Train, Split::Validation, Split::Test].into_iter().find(|&split| task.count(split) == 0).unwrap();
    let error = task.rows(empty, None).unwrap_err().to_string();
    assert!(error.contains(&format!("has no {empty} rows: its 1 rows are")), "{error}");
    assert_eq!(task.rows(Split::All, None).unwrap().len(), 1);
}

#[test]
fn a_file_for_a_split_replaces_its_hashed_rows_and_no_row_is_lost() {
    let toml = "rows = \"x.jsonl\"\ntest = \"test.json\"";
    let folder = folder(&[("t.toml", toml), ("x.jsonl", &twenty()), ("test.json", ROW)]);
    let task = Task::load(&at(&folder, "t.toml"), None).unwrap().remove(0);
    assert_eq!(task.count(Split::Test), 1);
    assert_eq!(task.rows(Split::Test, None).unwrap()[0].prompt, "a\n");
    assert_eq!(task.count(Split::Train) + task.count(Split::Validation), 20);
}

#[test]
fn a_data_file_is_hashed_by_its_bytes() {
    let folder = folder(&[("x.json", ROW), ("y/x.json", ROW)]);
    let hash = |name: &str| Task::load(&at(&folder, name), None).unwrap()[0].sha256().to_string();
    // printf '[{"input": "a", "output": "b"}]' | sha256sum
    let expected = "188bbd440fbc9986c5a0f07dbe3b3a9fc8e8a32e70a35639de0af1fa3225fb50";
    assert_eq!(hash("x.json"), expected);
    assert_eq!(hash("y/x.json"), expected);
}

#[test]
fn the_hash_depends_on_templates_and_data_but_not_on_names_and_metrics() {
    let hash = |toml: &str, data: &str| {
        let folder = folder(&[("t.toml", toml), ("x.json", data)]);
        Task::load(&at(&folder, "t.toml"), None).unwrap()[0].sha256().to_string()
    };
    let toml = "rows = \"x.json\"\ninstruction = \"Do.\"\n";
    let base = hash(toml, ROW);
    assert_eq!(hash(&format!("{toml}name = \"n\"\nmetrics = [\"rouge_l\"]"), ROW), base);
    assert_ne!(hash(&toml.replace("Do", "Be"), ROW), base);
    assert_ne!(hash(toml, &ROW.replace("\"b\"", "\"c\"")), base);
}

#[test]
fn default_metrics_depend_on_the_kind_of_answer() {
    let choice = r#"[{"input": "a", "choices": ["b", "c"], "answer": "c"}]"#;
    let wrong = "rows = \"x.json\"\nmetrics = [\"acc\"]";
    let folder = folder(&[("x.json", ROW), ("c.json", choice), ("t.toml", wrong)]);
    let metrics = |name: &str| Task::load(&at(&folder, name), None).unwrap()[0].metrics.clone();
    assert_eq!(metrics("x.json"), [Metric::Loss, Metric::ExactMatch, Metric::RougeL]);
    assert_eq!(metrics("c.json"), [Metric::Loss, Metric::Acc, Metric::AccNorm, Metric::AccTok]);
    let error = message(Task::load(&at(&folder, "t.toml"), None));
    assert!(error.contains("acc compares choices"), "{error}");
}

#[test]
fn the_data_folder_replaces_its_placeholder() {
    let toml = "rows = \"{data}/{name}.json\"\n[[task]]\nname = \"x\"";
    let folder = folder(&[("configs/t.toml", toml), ("data/x.json", ROW)]);
    let (spec, data): (_, PathBuf) = (at(&folder, "configs/t.toml"), folder.path().join("data"));
    assert_eq!(names(&Task::load(&spec, Some(&data)).unwrap()), ["x"]);
    assert!(message(Task::load(&spec, None)).contains("--data DIR"));
    let missing = message(Task::load(&spec, Some(Path::new("nowhere"))));
    assert!(missing.contains("nowhere/x.json"), "{missing}");
}

#[test]
fn shards_stand_for_a_parquet_file_that_is_not_there() {
    let toml = "test = \"{data}/{name}.parquet\"\nprompt = \"{{ input }}:\"\n[[task]]\nname = \"one\"\n[[task]]\nname = \"cut\"\n[[task]]\nname = \"none\"";
    let folder = folder(&[
        ("t.toml", toml),
        ("one.parquet", ROW),
        ("one-00000-of-00001.parquet", &twenty()),
        ("other-00000-of-00001.parquet", &twenty()),
        ("cut-00001-of-00002.parquet", &twenty()),
        ("cut-00000-of-00002.parquet", ROW),
    ]);
    let load = |name: &str| Task::load(&format!("{}:{name}", at(&folder, "t.toml")), Some(folder.path()));
    let count = |name: &str| load(name).unwrap()[0].count(Split::Test);
    assert_eq!((count("one"), count("cut")), (1, 21));
    let cut = load("cut").unwrap().remove(0);
    assert_eq!(cut.rows(Split::Test, None).unwrap()[0].prompt, "a:");
    let none = message(load("none"));
    assert!(none.contains("none.parquet: there is no such file") && none.contains("none-*-of-*.parquet"), "{none}");
    fs::remove_file(folder.path().join("cut-00000-of-00002.parquet")).unwrap();
    assert!(message(load("cut")).contains("cut has no shard 00000 of 00002"), "{}", message(load("cut")));
}

#[test]
fn extensions_in_upper_case_are_those_of_tasks() {
    let csv = "input,output\na,b\n";
    let tasks = folder(&[("A.CSV", csv), ("b.csv", csv), ("c.JSONL", ROW), ("d.TOML", "rows = \"b.csv\"")]);
    // The rows of `d` are no task of their own.
    assert_eq!(names(&Task::load(&at(&tasks, ""), None).unwrap()), ["A", "c", "d"]);
    let dataset = folder(&[("f/TRAIN.CSV", csv), ("f/test.csv", csv)]);
    let loaded = Task::load(&at(&dataset, "f"), None).unwrap();
    assert_eq!(names(&loaded), ["f"], "one dataset");
    assert_eq!(loaded[0].count(Split::Train), 1);
}
