//! The same rows from every file format and folder, and what is refused.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use lorakit_task::{ColumnNames, Row, RowKind, Split, SplitFiles, Task, TaskLoader};
use serde_json::{Map, Value};

/// The files that `fixtures/make_rows.py` wrote.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn load(path: &Path) -> Task {
    Task::load(&path.display().to_string(), None).unwrap().remove(0)
}

fn fields(rows: &[&Row]) -> Vec<Map<String, Value>> {
    rows.iter().map(|row| row.fields.clone()).collect()
}

fn all(path: &Path) -> Vec<Map<String, Value>> {
    fields(&load(path).rows(Split::All, None).unwrap())
}

/// The columns of `choices` and `answer` are of another row format; these rows are read by `input` and `output`.
fn load_text(path: &Path) -> Task {
    let folder = tempfile::tempdir().unwrap();
    let toml = folder.path().join("t.toml");
    let rows = path.display().to_string();
    fs::write(&toml, format!("rows = {rows:?}\nprompt = \"{{{{ input }}}}\"\ntarget = \"output\"")).unwrap();
    load(&toml)
}

fn text_fields(name: &str, split: Split) -> Vec<Map<String, Value>> {
    fields(&load_text(&fixture(name)).rows(split, None).unwrap())
}

fn message(spec: &Path) -> String {
    format!("{:#}", anyhow::Error::from(Task::load(&spec.display().to_string(), None).unwrap_err()))
}

#[test]
fn every_file_gives_the_values_of_the_json_lines() {
    let expected = text_fields("rows.jsonl", Split::All);
    assert_eq!(expected.len(), 7);
    for name in ["snappy.parquet", "zstd.parquet", "gzip.parquet", "none.parquet", "pages.parquet", "dataset"] {
        assert_eq!(text_fields(name, Split::All), expected, "{name}");
    }
}

#[test]
fn a_folder_of_splits_has_the_splits_of_its_files() {
    let expected = text_fields("rows.jsonl", Split::All);
    for (name, [train, validation, test]) in [("dict", [4, 0, 3]), ("hub/data", [4, 1, 2])] {
        let task = load_text(&fixture(name));
        assert_eq!(
            [Split::Train, Split::Validation, Split::Test].map(|split| task.count(split)),
            [train, validation, test]
        );
        assert_eq!(text_fields(name, Split::All), expected, "{name}");
        assert_eq!(text_fields(name, Split::Test), expected[7 - test..], "{name}");
    }
}

#[test]
fn folders_are_tasks_named_after_them() {
    let folder = tempfile::tempdir().unwrap();
    let row = |text: &str| format!("{{\"input\": \"{text}\", \"output\": \"o\"}}\n");
    for (file, text) in [
        ("pets/train-00000-of-00002.jsonl", row("a")),
        ("pets/train-00001-of-00002.jsonl", row("b")),
        ("pets/test-00000-of-00001.jsonl", row("c")),
        ("words/data/train.jsonl", row("d")),
        ("words/data/dev.jsonl", row("e")),
        ("words/README.md", "x".to_string()),
        ("loose/train.jsonl", row("f")),
        ("only/train-00000-of-00001.jsonl", (0..50).map(|i| row(&i.to_string())).collect()),
    ] {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let tasks = Task::load(&folder.path().display().to_string(), None).unwrap();
    let counts = |task: &Task| [Split::Train, Split::Validation, Split::Test].map(|split| task.count(split));
    let found: Vec<_> = tasks.iter().map(|task| (task.name.as_str(), task.count(Split::All))).collect();
    assert_eq!(found, [("train", 1), ("only", 50), ("pets", 3), ("words", 2)]);
    assert_eq!((counts(&tasks[2]), counts(&tasks[3])[1]), ([2, 0, 1], 1));
    // Rows of a train split alone are split by hash.
    assert!(counts(&tasks[1]).iter().all(|count| *count > 0), "{:?}", counts(&tasks[1]));
    assert_eq!(load(&folder.path().join("words/data")).name, "words");

    fs::remove_file(folder.path().join("pets/train-00001-of-00002.jsonl")).unwrap();
    let error = message(&folder.path().join("pets"));
    assert!(error.contains("train has no shard 00001 of 00002"), "{error}");
}

#[test]
fn of_the_same_rows_in_several_formats_one_is_read() {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("train.jsonl", "{\"input\": \"a\", \"output\": \"o\"}\n"),
        ("train.csv", "input,output\na,o\n"),
        ("test.csv", "input,output\nb,o\n"),
    ] {
        fs::write(folder.path().join(file), text).unwrap();
    }
    let task = load(folder.path());
    assert_eq!([Split::Train, Split::Test].map(|split| task.count(split)), [1, 1]);
}

#[test]
fn files_beside_others_are_tasks_by_themselves() {
    let names = |files: &[&str]| -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "{\"input\": \"a\", \"output\": \"o\"}\n").unwrap();
        }
        let tasks = Task::load(&folder.path().join("d").display().to_string(), None).unwrap();
        tasks.into_iter().map(|task| task.name).collect()
    };
    assert_eq!(names(&["d/train.jsonl", "d/sub/other.jsonl"]), ["other", "train"]);
    assert_eq!(names(&["d/train.jsonl", "d/test.jsonl", "d/sub/other.jsonl"]), ["other", "test", "train"]);
    assert_eq!(names(&["d/train.jsonl", "d/eval.jsonl"]), ["eval", "train"]);
    assert_eq!(names(&["d/test.jsonl"]), ["test"]);
    assert_eq!(names(&["d/train.jsonl", "d/test.jsonl", "d/images/a.png"]), ["d"]);
}

/// As a dataset on the Hub: `hub:datasets/...` of the same files. A test split alone is enough for a folder.
#[test]
fn a_folder_without_test_rows_has_the_splits_that_the_hub_s_dataset_has() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, rows: std::ops::Range<usize>| {
        let path = folder.path().join(name);
        let lines: Vec<String> = rows.map(|n| format!(r#"{{"input": "{n}", "output": "x"}}"#)).collect();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, lines.join("\n")).unwrap();
        vec![path]
    };
    for (number, (validation, test)) in [(0, 7), (7, 0), (7, 8)].into_iter().enumerate() {
        let split = |name: &str, rows| write(&format!("{number}/{name}.jsonl"), rows);
        let of = |name: &str, count: usize, from: usize| match count {
            0 => Vec::new(),
            count => split(name, from..from + count),
        };
        let files = SplitFiles {
            name: number.to_string(),
            train: of("train", 40, 0),
            validation: of("validation", validation, 100),
            test: of("test", test, 200),
        };
        let downloads = [("hub:datasets/a/d".to_owned(), files)].into();
        let hub = TaskLoader { downloads, ..TaskLoader::default() }.load(&["hub:datasets/a/d".into()]).unwrap();
        let local = load(&folder.path().join(number.to_string()));
        if (validation, test) == (0, 7) {
            let counts = [Split::Train, Split::Validation, Split::Test].map(|split| local.count(split));
            assert_eq!(counts, [40, 0, 7]);
            continue;
        }
        for split in [Split::Train, Split::Validation, Split::Test] {
            let rows = |task: &Task| fields(&task.rows(split, None).unwrap());
            assert_eq!(rows(&local), rows(&hub[0]), "{split}, {validation} validation, {test} test");
        }
        assert_eq!((&local.name, local.sha256()), (&hub[0].name, hub[0].sha256()));
    }
}

#[test]
fn files_about_a_dataset_are_no_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let row = "{\"input\": \"a\", \"output\": \"o\"}\n";
    let about = "{\"default\": {\"features\": {}}}";
    for (file, text) in [
        ("pets/data/train-00000-of-00001.jsonl", row),
        ("pets/dataset_infos.json", about),
        ("words/train.jsonl", row),
        ("words/test.jsonl", row),
        ("words/dataset_info.json", about),
    ] {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let names = |path: &Path| -> Vec<String> {
        Task::load(&path.display().to_string(), None).unwrap().into_iter().map(|task| task.name).collect()
    };
    assert_eq!(names(folder.path()), ["pets", "words"]);
    assert_eq!(names(&folder.path().join("pets")), ["pets"]);
}

#[test]
fn columns_that_are_null_are_absent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.jsonl");
    let read = |row: &str| {
        fs::write(&path, format!("{row}\n")).unwrap();
        Task::load(&path.display().to_string(), None)
    };
    let row = |text: &str| {
        let row = read(text).unwrap()[0].rows(Split::All, None).unwrap()[0].clone();
        (row.prompt.clone(), row.target().to_owned())
    };
    let expected = |prompt: &str| (prompt.to_owned(), "hi".to_owned());
    assert_eq!(row(r#"{"instruction": "Say hi", "input": null, "output": "hi"}"#), expected("Say hi\n"));
    assert_eq!(row(r#"{"instruction": null, "input": "x", "output": "hi"}"#), expected("x\n"));
    assert_eq!(row(r#"{"instruction": null, "input": "x", "output": "hi", "n": 2.50}"#), expected("x\n"));
    let others = ["messages", "choices", "chosen", "conversations", "prompt", "completion", "text"];
    for other in others {
        assert_eq!(row(&format!(r#"{{"{other}": null, "input": "x", "output": "hi"}}"#)), expected("x\n"), "{other}");
    }
    assert_eq!(row(r#"{"prompt": null, "chosen": "a hi", "rejected": "a no"}"#), ("a".into(), " hi".into()));
    let text = read(r#"{"text": "hi", "label": null}"#).unwrap().remove(0);
    assert_eq!(text.rows(Split::All, None).unwrap()[0].kind, RowKind::Text);
    let error = |text: &str| format!("{:#}", anyhow::Error::from(read(text).unwrap_err()));
    let null = "`output`: expected a text or a number, found null";
    assert!(error(r#"{"input": "x", "output": null}"#).ends_with(null));
    assert!(error(r#"{"text": "x", "output": null}"#).contains("has no `input`; it has `text`"));
    let missing = error(r#"{"messages": null, "input": "x"}"#);
    assert!(missing.contains("has no `output`; it has `messages` (null), `input`"), "{missing}");
    // A task's own instruction takes the place of one that is null.
    fs::write(folder.path().join("i.toml"), "rows = \"t.jsonl\"\ninstruction = \"Do.\"").unwrap();
    fs::write(&path, r#"{"instruction": null, "input": "x", "output": "hi"}"#).unwrap();
    let own = load(&folder.path().join("i.toml"));
    assert_eq!(own.rows(Split::All, None).unwrap()[0].prompt, "Do.\nx\n");
    // A template sees what the row has.
    let toml = "rows = \"t.jsonl\"\nprompt = \"{% if instruction %}!{% endif %}{{ input }}\"";
    fs::write(folder.path().join("p.toml"), toml).unwrap();
    assert_eq!(load(&folder.path().join("p.toml")).rows(Split::All, None).unwrap()[0].prompt, "x");
}

/// KTO's rows say of each completion whether it is desired.
#[test]
fn undesired_completions_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kto.jsonl");
    let row = |n: usize, label: &str| format!(r#"{{"prompt": "p{n}", "completion": " c", "label": {label}}}"#);
    let rows = [row(1, "true"), row(2, "false"), row(3, "null"), row(4, "false")];
    fs::write(&path, rows.join("\n")).unwrap();
    let task = load(&path);
    let numbers: Vec<usize> = task.rows(Split::All, None).unwrap().iter().map(|row| row.number).collect();
    assert_eq!(numbers, [1, 3]);
    let expected =
        "2 of 4 rows are left out: their `label` or `kto_tag` is false or 0, so that their completions are not desired";
    assert_eq!(task.warnings, [expected]);
    fs::write(&path, row(2, "false")).unwrap();
    assert!(
        message(&path).contains("no row is left: the `label` or `kto_tag` of each is false or 0"),
        "{}",
        message(&path)
    );
    // As numbers, and as CSV has them.
    fs::write(&path, [row(1, "1"), row(2, "0"), row(3, "0.0")].join("\n")).unwrap();
    assert_eq!(load(&path).count(Split::All), 1);
    // Classes are no such labels.
    fs::write(&path, [row(1, "1"), row(2, "0"), row(3, "2")].join("\n")).unwrap();
    assert_eq!((load(&path).count(Split::All), load(&path).warnings), (3, vec![]));
    let named = "rows = \"kto.jsonl\"\n[columns]\nlabel = \"liked\"\n";
    fs::write(&path, [row(1, "true"), row(2, "false")].join("\n").replace("label", "liked")).unwrap();
    fs::write(folder.path().join("named.toml"), named).unwrap();
    assert_eq!(load(&folder.path().join("named.toml")).count(Split::All), 1);
    let csv = folder.path().join("kto.csv");
    fs::write(&csv, "prompt,completion,label\np1,c,True\np2,c,False\np3,c,false\n").unwrap();
    assert_eq!(load(&csv).count(Split::All), 1);
    // LLaMA-Factory's name is one in rows of any format.
    let ask = r#"{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}"#;
    let turns = r#"{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}"#;
    let [alpaca, chat, share] = [
        r#"{"instruction": "a", "output": "b""#.to_owned(),
        format!(r#"{{"messages": [{ask}]"#),
        format!(r#"{{"conversations": [{turns}]"#),
    ];
    let count = |start: &str, name: &str, labels: [&str; 2]| {
        fs::write(&path, labels.map(|label| format!("{start}, \"{name}\": {label}}}")).join("\n")).unwrap();
        load(&path).count(Split::All)
    };
    let completion = r#"{"prompt": "a", "completion": " b""#;
    for start in [&alpaca, &chat, &share, completion] {
        assert_eq!(count(start, "kto_tag", ["true", "false"]), 1, "{start}");
    }
    let labels = [&alpaca, &chat, &share].map(|start| count(start, "label", ["true", "false"]));
    assert_eq!((labels, count(&chat, "label", ["1", "0"])), ([2, 1, 1], 2));
    fs::write(&path, [format!("{alpaca}, \"liked\": 1}}"), format!("{alpaca}, \"liked\": 0}}")].join("\n")).unwrap();
    assert_eq!(load(&folder.path().join("named.toml")).count(Split::All), 1);
    fs::write(&path, row(2, "false")).unwrap();
    // A template reads them as it says.
    let toml = "rows = \"kto.jsonl\"\nprompt = \"{{ prompt }}\"\ntarget = \"{{ label }}\"";
    fs::write(folder.path().join("t.toml"), toml).unwrap();
    assert_eq!(load(&folder.path().join("t.toml")).count(Split::All), 1);
}

#[test]
fn csv_and_tsv_are_known_by_their_extensions() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let csv = "\u{feff}input,output,n\r\n\"a, \"\"b\"\"\r\nc\",größe,1\r\n,007,2\r\n";
    let tsv = "input\toutput\tn\n\"a, \"\"b\"\"\r\nc\"\tgröße\t1\n\t007\t2\n";
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(csv.as_bytes()).unwrap();
    let rows = all(&write("x.csv", csv.as_bytes()));
    assert_eq!(Value::from(rows[0].clone()), serde_json::json!({"input": "a, \"b\"\r\nc", "output": "größe", "n": 1}));
    assert_eq!(rows[1]["output"], "007");
    assert_eq!(all(&write("y.tsv", tsv.as_bytes())), rows);
    assert_eq!(all(&write("z.csv.gz", &gzip.finish().unwrap())), rows);
    assert_eq!(load(&folder.path().join("z.csv.gz")).name, "z");
    assert!(message(&write("bad.csv", b"input,output\na,b,c\n")).contains("line: 2"));
    assert!(message(&write("latin.csv", b"input,output\n\xe9,b\n")).contains("not UTF-8"));
}

#[test]
fn numbers_are_as_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.jsonl");
    let outputs = ["37778931862957161709568", "1e6", "2.50", "-0", "[\"a\", 1.10]"];
    let line = |output: &&str| format!("{{\"input\": \"x\", \"output\": {output}}}\n");
    fs::write(&path, outputs.iter().map(line).collect::<String>()).unwrap();
    let accepted = |task: &Task| -> Vec<Vec<String>> {
        task.rows(Split::All, None).unwrap().iter().map(|row| row.accepted().to_vec()).collect()
    };
    let expected = [vec!["37778931862957161709568"], vec!["1e6"], vec!["2.50"], vec!["-0"], vec!["a", "1.10"]];
    assert_eq!(accepted(&load(&path)), expected);
    assert_eq!(accepted(&load_text(&path)), expected);
    // One row, and rows inside a document.
    fs::write(&path, line(&"2.50")).unwrap();
    assert_eq!(accepted(&load(&path)), [["2.50"]]);
    fs::write(&path, format!("{{\"examples\": {{\"1\": {}}}}}", line(&"2.50"))).unwrap();
    assert_eq!(accepted(&load(&path)), [["2.50"]]);
}

#[test]
fn one_nested_row_is_read_as_two_are() {
    let row = r#"{"question":"Why?","choices":{"text":["x","y"],"label":["A","B"]},"answerKey":"B"}"#;
    let toml = "prompt=\"{{ question }}\"\nchoices=\"choices.text\"\nanswer=\"choices.label | index(answerKey)\"\n";
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str, text: String| {
        fs::write(folder.path().join(format!("{name}.jsonl")), text).unwrap();
        fs::write(folder.path().join(format!("{name}.toml")), format!("rows=\"{name}.jsonl\"\n{toml}")).unwrap();
        load(&folder.path().join(format!("{name}.toml"))).rows(Split::All, None).unwrap()[0].clone()
    };
    assert_eq!(read("one", row.to_string()), read("two", format!("{row}\n{row}\n")));
    fs::write(folder.path().join("elsewhere.json"), format!("{{\"Instances\": [{row}]}}")).unwrap();
    let error = message(&folder.path().join("elsewhere.json"));
    assert!(error.contains("`rows_at`") && error.contains("`Instances`"), "{error}");
    // A conversation is a row, whatever else is wrong with it.
    fs::write(folder.path().join("chat.jsonl"), r#"{"messages": [{"role": "user", "content": "Hi"}]}"#).unwrap();
    let error = message(&folder.path().join("chat.jsonl"));
    assert!(error.contains("row 1: the conversation has no message of the role `assistant`"), "{error}");
}

fn renamed(columns: &ColumnNames) -> TaskLoader {
    TaskLoader { columns: columns.clone(), ..TaskLoader::default() }
}

#[test]
fn other_columns_stand_for_the_standard_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qa.jsonl");
    fs::write(&path, "{\"question\": \"Q?\", \"answer\": 2.50}\n").unwrap();
    let error = message(&path);
    assert!(error.contains("row 1: the row has no `input`; it has `question`, `answer`"), "{error}");
    assert!(error.contains("--columns input=question,output=answer"), "{error}");
    let specs = [path.display().to_string()];
    let columns: ColumnNames = "input=question,output=answer".parse().unwrap();
    let task = renamed(&columns).load(&specs).unwrap().remove(0);
    let row = task.rows(Split::All, None).unwrap()[0];
    assert_eq!((row.prompt.as_str(), row.target()), ("Q?\n", "2.50"));
    fs::write(
        folder.path().join("t.toml"),
        "rows = \"qa.jsonl\"\n[columns]\ninput = \"question\"\noutput = \"answer\"\n",
    )
    .unwrap();
    let from_toml = load(&folder.path().join("t.toml"));
    assert_eq!(from_toml.rows(Split::All, None).unwrap()[0], row);
    assert_eq!(from_toml.sha256(), task.sha256());
    let wrong: ColumnNames = "input=text".parse().unwrap();
    let error = renamed(&wrong).load(&specs).unwrap_err();
    let error = format!("{:#}", anyhow::Error::from(error));
    assert!(error.contains("row 1") && error.contains("no column `text`, which is to be `input`"), "{error}");
}

#[test]
fn a_file_without_the_named_columns_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("qa.jsonl"), "{\"question\": \"Q?\", \"answer\": \"A\"}\n").unwrap();
    fs::write(path("plain.jsonl"), "{\"input\": \"I\", \"output\": \"O\"}\n").unwrap();
    fs::write(path("plain.toml"), "rows = \"plain.jsonl\"\n[columns]\ninput = \"input\"\noutput = \"output\"\n")
        .unwrap();
    let columns: ColumnNames = "input=question,output=answer".parse().unwrap();
    // Standard names do not help: the file may hold other rows than the user thinks.
    let error = renamed(&columns).load(&[path("qa.jsonl"), path("plain.jsonl")]).unwrap_err();
    let error = format!("{:#}", anyhow::Error::from(error));
    for part in
        [&path("plain.jsonl"), "no column `question`", "the row has `input`, `output`", "task TOML", "[columns]"]
    {
        assert!(error.contains(part), "{error}");
    }
    // As the message says.
    let tasks = renamed(&columns).load(&[path("qa.jsonl"), path("plain.toml")]).unwrap();
    let prompts: Vec<&str> = tasks.iter().map(|task| task.rows(Split::All, None).unwrap()[0].prompt.as_str()).collect();
    assert_eq!(prompts, ["Q?\n", "I\n"]);
}

#[test]
fn files_that_are_not_what_their_names_say_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    for (name, content, expected) in [
        ("rows.parquet", &b"\x80\xfe\x00"[..], "does not begin with `PAR1`"),
        ("rows.parquet.gz", &b"\x80\xfe\x00"[..], "does not begin with `PAR1`"),
        ("rows.parquet", pointer.as_bytes(), "git lfs pull"),
        ("rows.jsonl", pointer.as_bytes(), "git lfs pull"),
    ] {
        let path = folder.path().join(name).display().to_string();
        fs::write(&path, content).unwrap();
        let error = format!("{:#}", anyhow::Error::from(Task::load(&path, None).unwrap_err()));
        assert!(error.contains(&path) && error.contains(expected), "{error}");
    }
    // Text in a file with another format's extension is read as what it is.
    let path = folder.path().join("text.parquet").display().to_string();
    fs::write(&path, "{\"input\": \"a\", \"output\": \"b\"}\n".repeat(4)).unwrap();
    assert_eq!(Task::load(&path, None).unwrap()[0].count(Split::All), 4);
}

#[test]
fn truncated_and_altered_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["snappy.parquet", "pages.parquet", "dataset/data-00000-of-00002.arrow"] {
        let whole = fs::read(fixture(name)).unwrap();
        let path = folder.path().join("t.bin");
        for length in (4..whole.len()).step_by(97) {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(Task::load(&path.display().to_string(), None).is_err(), "{name}: {length} bytes");
        }
    }
    // A body that is longer than the file, and buffers outside their message.
    let whole = fs::read(fixture("dataset/data-00000-of-00002.arrow")).unwrap();
    for at in (0..whole.len()).step_by(8) {
        let mut altered = whole.clone();
        altered[at..at + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
        let path = folder.path().join("t.bin");
        fs::write(&path, altered).unwrap();
        let _ = Task::load(&path.display().to_string(), None);
    }
}

#[test]
#[ignore = "needs ../shared"]
fn the_same_rows_in_the_shapes_that_people_have_give_the_same_examples() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/cases/rows");
    let of = |name: &str, split| {
        let task = load(&shared.join(name));
        let rows = task.rows(split, None).unwrap();
        rows.iter().map(|row| (row.prompt.clone(), row.target().to_string())).collect::<Vec<_>>()
    };
    let expected = of("rows.csv", Split::All);
    assert_eq!((expected.len(), expected[0].1.as_str()), (24, "cats"));
    for name in ["rows.parquet", "hfds"] {
        assert_eq!(of(name, Split::All), expected, "{name}");
        assert_eq!(of(name, Split::Test), of("rows.csv", Split::Test), "{name}");
    }
    let task = load(&shared.join("hfdict"));
    let own = |split| task.rows(split, None).unwrap().len();
    assert_eq!(task.name, "hfdict");
    // It has no validation split, but a test split: its rows are as they are.
    assert_eq!(task.count(Split::Validation), 0);
    assert!(own(Split::Train) > 0 && own(Split::Test) > 0);
    assert!(of("hfdict", Split::All).iter().all(|row| expected.contains(row)));
}

#[test]
fn a_misspelled_standard_name_is_recognized() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("frage.jsonl").display().to_string();
    fs::write(&path, "{\"id\": 1, \"frage\": \"Q?\", \"antwort\": \"A\"}\n").unwrap();
    let columns: ColumnNames = "inptu=frage,output=antwort".parse().unwrap();
    let error = renamed(&columns).load(&[path]).unwrap_err();
    let error = format!("{:#}", anyhow::Error::from(error));
    // The columns of the file, and not those that --columns adds.
    assert!(error.contains("the row has no `input`; it has `id`, `frage`, `antwort`. `inptu`"), "{error}");
    assert!(error.contains("did you mean `input`?"), "{error}");
}
