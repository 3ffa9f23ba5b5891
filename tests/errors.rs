//! Errors: exit codes and messages.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::{assert_contains, peft_fixture, run, words};
use std::fs;
use std::path::Path;

/// Writes a safetensors file with one tensor.
fn write_tensor(path: &Path, name: &str, dtype: safetensors::Dtype, shape: Vec<usize>, bytes: &[u8]) {
    let view = safetensors::tensor::TensorView::new(dtype, shape, bytes).unwrap();
    fs::write(path, safetensors::serialize([(name, view)], None).unwrap()).unwrap();
}

#[test]
fn missing_files_are_named() {
    for (line, parts) in [
        ("base info no/such/folder", &["no/such/folder", "hub:ORG/NAME"][..]),
        ("base info microsoft/phi-2", &["microsoft/phi-2: no such folder", "did you mean hub:microsoft/phi-2?"]),
        ("library ls --library no/such", &["no/such", "library.json", "train-experts"]),
        ("cluster --library no/such -k 2 --out c.json", &["no/such"]),
        ("task ls no/such.json", &["no/such.json"]),
        ("task ls suite:none", &["none"]),
        ("train-experts --base b --library l --tasks no/such.json", &["no/such.json"]),
        ("train-experts --base b --library l --tasks t --config no/such.toml", &["no/such.toml"]),
        ("library check --config no/such.json", &["no/such.json"]),
        ("library add --library no/such/library no/such/adapter", &["no/such/adapter"]),
    ] {
        let message = words(line).failed(1);
        assert!(message.starts_with("error: "), "`{line}`: {message}");
        assert_eq!(message.trim_end().lines().count(), 1, "the message is one line: {message}");
        assert_contains(&message, parts);
    }
}

#[test]
fn tasks_are_checked_before_the_base_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("t.jsonl"), "{\"input\": \"a\", \"output\": \"b\"}\n{\"input\": \"c\"}\n").unwrap();
    fs::write(path("one.json"), "[{\"input\": \"a\", \"output\": \"b\"}]").unwrap();
    let train = |tasks: &[&str]| {
        let fixed = ["train-experts", "--base", "b", "--library", "l", "--tasks"];
        run(fixed.into_iter().chain(tasks.iter().copied())).failed(1)
    };
    assert_contains(&train(&[&path("t.jsonl")]), &["t.jsonl", "row 2", "output"]);
    assert_contains(&train(&[&path("one.json"), &path("one.json")]), &["one", "NAME="]);
    let outside = format!("../x={}", path("one.json"));
    let outside = run(["train-experts", "--base", "b", "--library", "l", "--tasks", &outside]).failed(2);
    assert_contains(&outside, &["`../x` cannot name a task", "without `/`"]);
    let fixed = ["eval", "--base", "b", "--router", "base", "--split", "all", "--limit", "1", "--tasks"];
    assert_contains(
        &run(fixed.into_iter().chain([path("one.json").as_str(), &format!("one={}", path("t.jsonl"))])).failed(1),
        &["t.jsonl", "row 2"],
    );
    fs::write(path("empty.json"), "[{\"input\": \"a\", \"output\": \"b\"}]").unwrap();
    let splits = ["train", "validation", "test"].map(|split| {
        run(["eval", "--base", "b", "--router", "base", "--split", split, "--tasks", &path("empty.json")]).failed(1)
    });
    assert_eq!(
        splits.iter().filter(|message| message.contains("has no")).count(),
        2,
        "one row is in one split: {splits:?}"
    );
}

#[test]
fn wrong_clusters_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("a.json"), "[{\"input\": \"a\", \"output\": \"b\"}]").unwrap();
    let train = |clusters: &str| {
        fs::write(path("clusters.json"), clusters).unwrap();
        run([
            "train-experts",
            "--base",
            "b",
            "--library",
            &path("l"),
            "--tasks",
            &path("a.json"),
            "--clusters",
            &path("clusters.json"),
        ])
        .failed(1)
    };
    assert_contains(&train("{}"), &["clusters.json", "method"]);
    assert_contains(
        &train(r#"{"method": "given", "clusters": {"x": ["e"]}, "tasks": {"x": ["a", "absent"]}}"#),
        &["clusters.json", "`x`", "`absent`", "--tasks"],
    );
    assert_contains(&train(r#"{"method": "given", "clusters": {"x": ["e"]}}"#), &["`x`", "`e`"]);
    let message = train("[]");
    assert_contains(&message, &["clusters.json", "expected an object"]);
    assert!(!message.contains("struct"), "{message}");
}

#[test]
fn an_adapter_given_as_a_base_is_refused_with_its_base() {
    let folder = tempfile::tempdir().unwrap();
    for (config, advice) in [
        (r#"{"base_model_name_or_path": "acme/tiny"}"#, "it was made for --base hub:acme/tiny"),
        (r#"{"base_model_name_or_path": "pico"}"#, "it was made for --base pico"),
        ("{}", "an adapter, not a base"),
    ] {
        fs::write(folder.path().join("adapter_config.json"), config).unwrap();
        let message = run(["base", "info", folder.path().to_str().unwrap()]).failed(1);
        assert_contains(&message, &["an adapter, not a base", advice]);
    }
}

#[test]
fn wrong_input_ids_are_refused() {
    let base = peft_fixture("phi").join("base");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("in.safetensors");
    let out = folder.path().join("out.safetensors").display().to_string();
    let logits = |options: &[&str]| {
        let fixed = ["logits", "--base", base.to_str().unwrap(), "--input", file.to_str().unwrap(), "--out", &out];
        run(fixed.into_iter().chain(options.iter().copied()))
    };
    assert_contains(&logits(&[]).failed(1), &["in.safetensors"]);
    fs::write(&file, b"no tensors").unwrap();
    assert_contains(&logits(&[]).failed(1), &["in.safetensors", "safetensors"]);
    use safetensors::Dtype;
    let bytes = |values: &[i64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    for (name, dtype, shape, values, parts) in [
        ("ids", Dtype::I64, vec![1, 2], bytes(&[1, 2]), &["input_ids", "ids"][..]),
        ("input_ids", Dtype::F64, vec![1, 2], bytes(&[0, 0]), &["F64", "i64"]),
        ("input_ids", Dtype::I64, vec![2], bytes(&[1, 2]), &["[2]", "[batch, seq]"]),
        ("input_ids", Dtype::I64, vec![1, 0], bytes(&[]), &["[1, 0]"]),
        ("input_ids", Dtype::I64, vec![1, 2], bytes(&[1, 32]), &["[0, 1]", "32", "31"]),
        ("input_ids", Dtype::I64, vec![1, 2], bytes(&[-1, 2]), &["[0, 0]", "-1"]),
    ] {
        write_tensor(&file, name, dtype, shape, &values);
        assert_contains(&logits(&[]).failed(1), parts);
    }
    assert!(!Path::new(&out).exists(), "a failure leaves no output");

    write_tensor(&file, "input_ids", Dtype::U32, vec![2, 1], &[1, 0, 0, 0, 2, 0, 0, 0]);
    let done = logits(&["--json"]).json();
    assert_eq!(done["shape"], serde_json::json!([2, 1, 32]));
    assert_contains(&logits(&["--router", "uniform"]).failed(2), &["--library"]);
    assert_contains(&logits(&["--adapter", "no/such"]).failed(1), &["no/such"]);
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let (mistral, phi) = (peft_fixture("mistral"), peft_fixture("phi"));
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("library");
    let add = |base: &Path, adapter: &str| {
        run([
            Path::new("library"),
            Path::new("add"),
            Path::new("--library"),
            &library,
            Path::new("--base"),
            base,
            Path::new(adapter),
        ])
    };
    let (own, foreign) = (mistral.join("adapters/e0"), phi.join("adapters/e0"));
    assert_contains(
        &add(&mistral.join("base"), &format!("other={}", foreign.display())).failed(1),
        &["phi", "dense", "another base"],
    );
    assert!(!library.exists(), "a refused adapter creates no library");
    add(&mistral.join("base"), own.to_str().unwrap()).ok();
    assert_contains(&add(&mistral.join("base"), own.to_str().unwrap()).failed(1), &["`e0`", "exists", "NAME="]);
    assert_contains(
        &add(&phi.join("base"), &format!("other={}", foreign.display())).failed(1),
        &["library", "mistral", "phi"],
    );
    let logits = |router: &str| {
        let (input, out) = (phi.join("expected.safetensors"), folder.path().join("out"));
        let fixed = [
            "logits",
            "--router",
            router,
            "--base",
            phi.join("base").to_str().unwrap(),
            "--library",
            library.to_str().unwrap(),
        ]
        .map(str::to_owned);
        let files = ["--input", input.to_str().unwrap(), "--out", out.to_str().unwrap()].map(str::to_owned);
        run(fixed.into_iter().chain(files)).failed(1)
    };
    assert_contains(&logits("uniform"), &["library", "mistral", "phi"]);
    let show = run(["library", "show", "--library", library.to_str().unwrap(), "e9"]).failed(1);
    assert_contains(&show, &["`e9`", "e0"]);
    assert_contains(
        &run(["cluster", "--library", library.to_str().unwrap(), "-k", "1", "--out", "c.json"]).failed(1),
        &["two"],
    );
}

#[test]
fn existing_outputs_are_not_overwritten() {
    let oracle = peft_fixture("mistral");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (base, library) = (oracle.join("base").display().to_string(), path("library"));
    let [e0, e1] = ["e0", "e1"].map(|name| oracle.join("adapters").join(name).display().to_string());
    run(["library", "add", "--library", &library, &e0]).ok();
    let alone = run(["cluster", "--library", &library, "-k", "1", "--out", &path("c.json")]).failed(1);
    assert_contains(&alone, &["library: 1 expert to cluster", "at least two"]);
    run(["library", "add", "--library", &library, &e1]).ok();

    assert_contains(
        &run(["library", "export", "--library", &library, "--out", &library]).failed(2),
        &["--out is inside the library"],
    );
    let within = run(["library", "export", "--library", &library, "--out", &path("library/hub/new")]);
    assert_contains(&within.failed(2), &["--out is inside the library"]);
    let verify = ["verify", "--base", &base, "--library", &library, "--merged", &path("nothing")];
    assert_contains(&run(verify).failed(1), &["nothing: no such folder"]);
    let generate = ["generate", "--base", "pico", "--prompt", "x", "--library", &path("nolib"), "--router", "base"];
    assert_contains(&run(generate).failed(1), &["nolib: not a library"]);
    let merge = |out: &str, options: &[&str]| {
        let fixed = ["merge", "--library", &library, "--method", "cat", "--out", &path(out)].map(str::to_owned);
        run(fixed.into_iter().chain(options.iter().map(|word| (*word).to_owned())))
    };
    let message = merge("m", &["--experts", "e9"]).failed(1);
    assert_eq!(message.matches(&library).count(), 1, "{message}");
    let nothing = ["--weights=0,0"];
    assert_contains(&merge("m", &["--weights=0,0", "--strict"]).failed(1), &["zero", "--strict"]);
    assert!(!Path::new(&path("m")).exists());
    assert_contains(&merge("m", &nothing).ok().stderr, &["the merged adapter is zero"]);

    merge("a/b/c", &[]).ok();
    let clusters =
        ["cluster", "--library", &library, "-k", "1", "--out", &path("d/c.json"), "--report", &path("e/r.html")];
    run(clusters).ok();
    assert!(["a/b/c/adapter_config.json", "d/c.json", "e/r.html"].iter().all(|file| Path::new(&path(file)).exists()));
    let message = run(["merge", "--library", &library, "--method", "cat", "--out", "/proc/x"]).failed(1);
    assert!(message.contains("/proc/x: cannot be created") && !message.contains(".new-"), "{message}");
    let message = run(["cluster", "--library", &library, "-k", "1", "--out", "/proc/x.json"]).failed(1);
    assert!(message.matches("/proc/x.json").count() == 1 && !message.contains(".new-"), "{message}");
}

#[test]
fn stop_texts_and_prompts_of_generate() {
    let generate = |options: &[&str]| {
        let fixed = ["generate", "--base", "pico", "--json", "--prompt", "+1:abcd;", "--stop", "q"];
        run(fixed.into_iter().chain(options.iter().copied()))
    };
    let plain = generate(&["--stop=-", "--max-new-tokens", "2", "-q"]).json();
    assert_eq!(plain["prompt"], "+1:abcd;");
    let long = generate(&["--max-new-tokens", "100000"]).ok();
    assert_contains(&long.stderr, &["--max-new-tokens 100000", "there is room for"]);
    assert!(!long.stderr.contains("are used"), "the prompt is not truncated: {}", long.stderr);
    let fewer: serde_json::Value = serde_json::from_str(&long.stdout).unwrap();
    assert!(fewer["text"].as_str().unwrap().starts_with(plain["text"].as_str().unwrap()), "{fewer}, {plain}");
}

#[test]
fn completions_and_settings() {
    let script = words("completions bash --json").json();
    assert_eq!(script["shell"], "bash");
    assert_eq!(script["script"].as_str().unwrap(), words("completions bash").ok().stdout);
    let info = words("base info pico --json --set rank=8 target_modules=q_proj").json();
    assert_eq!((&info["memory"]["rank"], &info["memory"]["target_modules"]), (&8.into(), &"q_proj".into()));
    assert_contains(&words("base info pico --set target_modules=q_proj,foo").failed(1), &["`foo`", "pico", "q_proj"]);
}

#[test]
fn check_finds_changed_files() {
    let oracle = peft_fixture("mistral");
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("library").display().to_string();
    let adapters = ["e0", "e1"].map(|name| oracle.join("adapters").join(name).display().to_string());
    run(["library", "add", "--library", &library, &adapters[0], &adapters[1]]).ok();
    run(["library", "check", "--library", &library]).ok();
    let weights = Path::new(&library).join("experts/e1/adapter_model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    let ran = run(["library", "check", "--library", &library, "--json"]);
    assert_eq!(ran.code, 1);
    assert_contains(&ran.stderr, &["1 expert of 2"]);
    let document: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["ok"], false);
    assert!(document["experts"][0]["error"].is_null());
    assert_contains(document["experts"][1]["error"].as_str().unwrap(), &["adapter_model.safetensors", "lora_"]);
    fs::write(weights.with_file_name("adapter_config.json"), "{}").unwrap();
    let listed = run(["library", "ls", "--library", &library]).ok().stdout;
    assert_contains(&listed, &["e0", "e1", "damaged"]);
    let (base, file) = (oracle.join("base"), folder.path().join("in.safetensors"));
    write_tensor(&file, "input_ids", safetensors::Dtype::U32, vec![1, 1], &[1, 0, 0, 0]);
    let out = folder.path().join("out.safetensors");
    let logits = |router: &str| {
        let files =
            ["--base", base.to_str().unwrap(), "--input", file.to_str().unwrap(), "--out", out.to_str().unwrap()];
        run(["logits", "--library", &library, "--router", router].into_iter().chain(files))
    };
    logits("expert:e0").ok();
    assert_contains(&logits("uniform").failed(1), &["e1"]);
    assert_contains(&logits("expert:e2").failed(1), &["e2", "`e0`, `e1`"]);
}

#[test]
fn check_reports_every_unsupported_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adapter_config.json");
    let judge = |text: &str, options: &[&str]| {
        fs::write(&file, text).unwrap();
        run(["library", "check", "--config", file.to_str().unwrap()].into_iter().chain(options.iter().copied()))
    };
    let plain = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": ["q_proj"]"#;
    judge(&format!("{plain}}}"), &[]).ok();
    let ran = judge(&format!("{plain}, \"use_dora\": true}}"), &[]);
    assert_eq!(ran.code, 1);
    assert_contains(&ran.stdout, &["use_dora", "DoRA"]);
    assert_contains(&ran.stderr, &["adapter_config.json", "use_dora"]);
    judge(&format!("{plain}, \"unheard_of\": 1}}"), &[]).ok();
    assert_eq!(judge(&format!("{plain}, \"unheard_of\": 1}}"), &["--strict"]).code, 1);
    let document = judge(&format!("{plain}, \"unheard_of\": 1}}"), &["--json"]).json();
    assert_eq!((&document["accepted"], &document["notices"][0]["subject"]), (&true.into(), &"unheard_of".into()));
}

#[test]
fn invalid_expert_names_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("t.json"), r#"[{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]"#).unwrap();
    let train = |task: &str, more: &[&str]| {
        let fixed = ["train-experts", "--base", "pico", "--library"].map(str::to_owned);
        let tasks = [path("l"), "--tasks".to_owned(), task.to_owned()];
        run(fixed.into_iter().chain(tasks).chain(more.iter().map(|word| (*word).to_owned())))
    };
    for name in ["..", ".hidden", "a,b", "a\nb"] {
        assert_contains(
            &train(&format!("{name}={}", path("t.json")), &[]).failed(1),
            &["name", &format!("{name:?}")[1..3]],
        );
    }
    let clusters = r#"{"method": "given", "clusters": {"../../out": ["t"]}, "tasks": {"../../out": ["t"]}}"#;
    fs::write(path("clusters.json"), clusters).unwrap();
    let refused = train(&path("t.json"), &["--clusters", &path("clusters.json")]).failed(1);
    assert_contains(&refused, &["../../out", "starts with a dot"]);
    assert!(fs::read_dir(folder.path()).unwrap().all(|entry| entry.unwrap().file_name() != "out"));
    assert!(fs::read_dir(Path::new(&path("l")).join("experts")).unwrap().next().is_none());
}

#[test]
fn byte_order_marks_and_crlf_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let rows = |name: &str, bytes: &[u8]| {
        let file = folder.path().join(name);
        fs::write(&file, bytes).unwrap();
        let listed = run(["task", "ls", "--json", file.to_str().unwrap()]).json();
        let of = |key: &str| {
            let sizes = &listed["tasks"][0][key];
            ["train", "validation", "test"].iter().map(|split| sizes[split].as_u64().unwrap()).sum::<u64>()
        };
        assert_eq!(of("characters"), 9, "2 and 5 of prompts, line breaks too, and 1 of each answer");
        of("rows")
    };
    let (one, two) = (r#"{"input": "a", "output": "b"}"#, r#"{"input": "ünï\u0000", "output": "d"}"#);
    assert_eq!(rows("bom.json", format!("\u{feff}[{one}, {two}]").as_bytes()), 2);
    assert_eq!(rows("crlf.jsonl", format!("{one}\r\n{two}\r\n").as_bytes()), 2);
    assert_eq!(rows("ünï 💾.jsonl", format!("{one}\n\n{two}").as_bytes()), 2);
}

#[test]
fn warnings_are_errors_under_strict() {
    let oracle = peft_fixture("mistral");
    let folder = tempfile::tempdir().unwrap();
    let adapter = folder.path().join("e");
    fs::create_dir(&adapter).unwrap();
    let source = oracle.join("adapters/e0");
    fs::copy(source.join("adapter_model.safetensors"), adapter.join("adapter_model.safetensors")).unwrap();
    let config = fs::read_to_string(source.join("adapter_config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["brand_new_key"] = 1.into();
    config["base_model_name_or_path"] = "someone/another-base".into();
    fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
    let library = folder.path().join("l");
    let add = |options: &[&str]| {
        let fixed = ["library", "add", "--library", library.to_str().unwrap(), adapter.to_str().unwrap()];
        run(fixed.into_iter().chain(options.iter().copied()))
    };
    assert_contains(&add(&["--strict"]).failed(1), &["brand_new_key", "--strict"]);
    assert!(!library.exists(), "a refused adapter creates no library");
    let base = oracle.join("base").display().to_string();
    let warnings = add(&["--base", &base]).ok().stderr;
    assert_contains(&warnings, &["brand_new_key", "someone/another-base"]);
    let strict = run(["library", "check", "--library", library.to_str().unwrap(), "--strict"]);
    assert_eq!(strict.code, 0, "an added expert causes no warnings: {}", strict.stdout);
}

#[test]
fn check_lists_the_modules_that_a_config_adapts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adapter_config.json");
    let text = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 16}, "exclude_modules": ["layers.0.self_attn.q_proj"]}"#;
    fs::write(&file, text).unwrap();
    let judged = run(["library", "check", "--json", "--config", file.to_str().unwrap(), "--base", "pico"]).json();
    let modules = judged["modules"].as_array().unwrap();
    assert_eq!(modules.len(), 3, "{judged}");
    assert_eq!((&modules[0]["rank"], &modules[0]["scale"]), (&16.into(), &0.5.into()));
    assert_eq!((&modules[1]["rank"], &modules[1]["scale"]), (&4.into(), &2.0.into()));
    let shown = run(["library", "check", "--config", file.to_str().unwrap(), "--base", "pico"]).ok().stdout;
    assert_contains(&shown, &["accepted: rank 4", "model.layers.1.self_attn.q_proj", "16"]);
}

#[test]
fn a_file_in_the_place_of_a_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("rows.jsonl"), "{\"input\": \"a\", \"output\": \"b\"}\n").unwrap();
    fs::write(path("file"), "kept").unwrap();
    let (rows, library) = (path("rows.jsonl"), "tests/fixtures/library_0.1");
    let scored = ["eval", "--base", "pico", "--router", "base", "--split", "all", "--tasks", &rows, "--out"];
    let generated = ["base", "write", "--out"];
    let exported = ["library", "export", "--library", library, "--out"];
    let split = ["task", "split", &rows, "--by", "output", "--out"];
    let merged = ["merge", "--library", library, "--method", "linear", "--out"];
    for words in [&scored[..], &exported, &split, &merged] {
        let message = run(words.iter().copied().chain([path("file").as_str()])).failed(1);
        assert_contains(&message, &[&path("file"), "is a file", "folder"]);
    }
    for words in [&scored[..], &generated, &exported, &split, &merged] {
        let message = run(words.iter().copied().chain([path("file/below/out").as_str()])).failed(1);
        assert_contains(&message, &[&path("file"), "is a file", "expected a folder"]);
    }
    assert_eq!(fs::read_to_string(path("file")).unwrap(), "kept");
}

#[test]
fn numbers_that_are_none_are_wrong_usage() {
    for (line, expected) in [
        ("eval --base pico --tasks t.json --router base --seed -1", "whole number of at least 0"),
        ("eval --base pico --tasks t.json --router base --seed 1.5", "whole number of at least 0"),
        ("merge --library l --method linear --out o --weights=nan,1", "expected a finite number"),
        ("merge --library l --method linear --out o --weights=1,inf", "expected a finite number"),
        ("merge --library l --method linear --out o --weights=1,,1", "expected a finite number"),
        ("verify --base pico --library l --tolerance nan", "expected a finite number of at least 0"),
        ("verify --base pico --library l --tolerance=-1", "expected a finite number of at least 0"),
    ] {
        assert_contains(&words(line).failed(2), &[expected]);
    }
}

#[test]
fn a_report_is_not_written_over_other_output() {
    let folder = tempfile::tempdir().unwrap();
    let in_folder = |line: &str| {
        let output = binary::command(line.split_whitespace()).current_dir(folder.path()).output().unwrap();
        binary::Ran::from(output).failed(2)
    };
    let clusters = in_folder("cluster --library l -k 1 --out c.json --report ./c.json");
    assert_contains(&clusters, &["--report and --out are the same file, c.json"]);
    let scores = in_folder("eval --base pico --router base --tasks t.json --out d --report ./d/results.json");
    assert_contains(&scores, &["--report is the file of results in --out"]);
}

#[test]
fn an_empty_value_is_no_file_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let rows = "{\"topic\": \"\", \"input\": \"a\"}\n{\"topic\": \"x\", \"input\": \"b\"}\n";
    fs::write(path("rows.jsonl"), rows).unwrap();
    let (rows, out) = (path("rows.jsonl"), path("out"));
    let split = ["task", "split", &rows, "--by", "topic", "--out", &out];
    assert_contains(&run(split).failed(2), &["`topic`", "--drop ''"]);
    assert!(!Path::new(&out).exists());
    run(split.into_iter().chain(["--drop", ""])).ok();
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
}

#[test]
fn a_split_leaves_no_tasks_of_an_earlier_one_and_counts_equal_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let row = |topic: &str, input: &str| format!("{{\"topic\": \"{topic}\", \"input\": \"{input}\"}}\n");
    fs::write(path("rows.jsonl"), [row("x", "a"), row("y", "b"), row("x", "a"), row("x", "c")].concat()).unwrap();
    let (rows, out) = (path("rows.jsonl"), path("out"));
    let split = ["task", "split", &rows, "--by", "topic", "--out", &out];
    let expected = format!("2 tasks with 3 rows in {out}; 1 row equal to one of them was left out\n");
    for _ in 0..2 {
        assert!(run(split).ok().stdout.ends_with(&expected), "the same split again");
    }
    assert_eq!(run(split.into_iter().chain(["--json"])).json()["duplicates"], 1);
    let fewer = run(split.into_iter().chain(["--drop", "x"])).failed(1);
    assert_contains(&fewer, &[&path("out/x.jsonl"), "not of this split", "another --out"]);
    fs::rename(path("out/x.jsonl"), path("out/old.csv")).unwrap();
    assert_contains(&run(split.into_iter().chain(["--drop", "x"])).failed(1), &[&path("out/old.csv")]);
    fs::remove_file(path("out/old.csv")).unwrap();
    fs::write(path("out/tasks.toml"), "").unwrap();
    let ran = run(split.into_iter().chain(["--drop", "x"])).ok();
    assert!(ran.stdout.ends_with(&format!("1 task with 1 row in {out}\n")), "{}", ran.stdout);
}
