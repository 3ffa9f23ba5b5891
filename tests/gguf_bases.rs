//! Every command over a base in GGUF: what it computes is what it computes over a folder with the dequantized weights.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;
mod differences;
mod gguf_converter;

use binary::{Ran, assert_contains, command, run, words};
use candle_core::{DType, Device, Tensor, safetensors};
use differences::largest_difference;
use gguf_converter::{GgufModel, Types};
use lorakit_adapter::Adapter;
use lorakit_format::gguf::GgufShards;
use lorakit_model::Checkpoint;
use lorakit_model::architecture::gguf_config_json;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

/// pico in GGUF, quantized, and as a folder with the dequantized weights; both have its tokenizer.
struct Work {
    folder: tempfile::TempDir,
}

impl Work {
    fn new() -> Self {
        let work = Self { folder: tempfile::tempdir().unwrap() };
        words(&format!("base write --out {}", work.path("pico"))).ok();
        fs::create_dir(work.path("gguf")).unwrap();
        GgufModel::of_folder(Path::new(&work.path("pico")), Types::Quantized).write(Path::new(&work.gguf()));
        write_dequantized(Path::new(&work.gguf()), Path::new(&work.path("dequantized")));
        for folder in ["gguf", "dequantized"] {
            for file in ["tokenizer.json", "tokenizer_config.json"] {
                fs::copy(work.path(&format!("pico/{file}")), work.path(&format!("{folder}/{file}"))).unwrap();
            }
        }
        work
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn gguf(&self) -> String {
        self.path("gguf/pico.gguf")
    }

    /// Trains two experts for 20 steps.
    fn train(&self, base: &str, library: &str) {
        let library = self.path(library);
        words(&format!(
            "train-experts --base {base} --tasks suite:skills --library {library} --experts shift_up1,join_dash \
             --set max_steps=20 learning_rate=1e-2 eval_steps=10 max_grad_norm=1"
        ))
        .ok();
    }

    fn expert(&self, library: &str, name: &str) -> (Adapter, Vec<f64>) {
        let folder = self.folder.path().join(library).join("experts").join(name);
        let record: Value = serde_json::from_str(&fs::read_to_string(folder.join("expert.json")).unwrap()).unwrap();
        let mut losses = Vec::new();
        numbers(&record["losses"], &mut losses);
        (Adapter::read(&folder).unwrap(), losses)
    }
}

/// All numbers of a JSON document, in order.
fn numbers(value: &Value, all: &mut Vec<f64>) {
    match value {
        Value::Number(number) => all.extend(number.as_f64()),
        Value::Array(values) => values.iter().for_each(|value| numbers(value, all)),
        Value::Object(map) => map.values().for_each(|value| numbers(value, all)),
        _ => {}
    }
}

/// All numbers under the key `loss`, in order.
fn losses_of(value: &Value, all: &mut Vec<f64>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| losses_of(value, all)),
        Value::Object(map) => map.iter().for_each(|(key, value)| match key.as_str() {
            "loss" => numbers(value, all),
            _ => losses_of(value, all),
        }),
        _ => {}
    }
}

/// Writes a folder with the weights of a GGUF file, dequantized.
fn write_dequantized(file: &Path, folder: &Path) {
    let shards = GgufShards::open(file).unwrap();
    fs::create_dir(folder).unwrap();
    fs::write(folder.join("config.json"), gguf_config_json(&shards).unwrap().to_string()).unwrap();
    Checkpoint::of_gguf(shards).unwrap().write_edited(folder, &BTreeSet::new(), &mut |_, _| Ok(())).unwrap();
}

/// Asserts that two trainings had the same losses within 1e-3 and made the same adapter within 1e-2.
fn assert_same_training(one: (Adapter, Vec<f64>), other: (Adapter, Vec<f64>)) {
    assert!(one.1.len() > 3 && one.1.len() == other.1.len(), "{:?} {:?}", one.1, other.1);
    for (a, b) in one.1.iter().zip(&other.1) {
        assert!((a - b).abs() < 1e-3 * b.abs().max(1.0), "losses {:?} and {:?}", one.1, other.1);
    }
    for (module, update) in one.0.modules() {
        let (own, others) = (update.delta(), other.0.modules()[module].delta());
        let distance = |pairs: &mut dyn Iterator<Item = (f32, f32)>| {
            pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        let difference = distance(&mut own.iter().copied().zip(others.iter().copied()));
        let size = distance(&mut others.iter().map(|&value| (value, 0.0)));
        assert!(difference <= 1e-2 * size, "{module}: {difference} of {size}");
    }
}

#[test]
fn training_and_serving_over_gguf_are_those_over_the_dequantized_folder() {
    let work = Work::new();
    let (gguf, folder) = (work.gguf(), work.path("dequantized"));
    work.train(&gguf, "quantized");
    work.train(&folder, "plain");
    for name in ["shift_up1", "join_dash"] {
        assert_same_training(work.expert("quantized", name), work.expert("plain", name));
    }
    let library = work.path("quantized");
    let record = fs::read_to_string(work.path("quantized/experts/join_dash/expert.json")).unwrap();
    assert_contains(&record, &["\"base_form\": \"GGUF Q8_0 F16 F32\""]);

    let task = "suite:skills/join_dash";
    let scores = |base: &str| {
        let options = "--router base arrow expert:join_dash --limit 8 --json";
        let ran = words(&format!("eval --base {base} --library {library} --tasks {task} {options}")).ok();
        let results: Value = serde_json::from_str(&ran.stdout).unwrap();
        let mut losses = Vec::new();
        losses_of(&results, &mut losses);
        (losses, ran.stderr)
    };
    let ((own, _), (others, warning)) = (scores(&gguf), scores(&folder));
    assert!(own.len() >= 3 && own.len() == others.len(), "{own:?} {others:?}");
    assert!(own.iter().zip(&others).all(|(a, b)| (a - b).abs() < 1e-3), "{own:?} {others:?}");
    assert_contains(&warning, &["another form of it", "GGUF Q8_0 F16 F32"]);

    let text = |base: &str| {
        let fixed = ["generate", "--base", base, "--library", &library, "--exact"];
        run(fixed.into_iter().chain(["--router", "uniform", "--prompt", "-:ab;\n"])).ok().stdout
    };
    assert_eq!(text(&gguf), text(&folder));
    words(&format!("verify --base {gguf} --library {library}")).ok();
    words(&format!("explain --base {gguf} --library {library} --router arrow --prompt ab --json")).ok();
    words(&format!("cluster --library {library} -k 2 --out {}", work.path("c.json"))).ok();
    words(&format!("library check --library {library} --base {gguf}")).ok();
    words(&format!("library check --library {library}")).ok();
}

/// Rows of an answer and of choices are scored with activations of 8 bits, which only weights that decoding rounds them for
/// can be, and results say so.
#[test]
fn rows_are_scored_with_activations_of_eight_bits_where_it_is_asked_for() {
    let work = Work::new();
    let (gguf, folder, out) = (work.gguf(), work.path("dequantized"), work.path("scores"));
    let choices = work.path("choices.jsonl");
    let row =
        |i: usize| format!("{{\"input\":\"{i}:ab\",\"choices\":[\"a{i}\",\"ba\",\"zz\"],\"answer\":{}}}\n", i % 3);
    fs::write(&choices, (0..6).map(row).collect::<String>()).unwrap();
    let tasks = format!("--tasks suite:skills/join_dash {choices} --split all --limit 6 --router base --json");
    let scored = |base: &str, more: &str| words(&format!("eval --base {base} {tasks} {more}"));
    let losses = |ran: Value| {
        let mut losses = Vec::new();
        losses_of(&ran, &mut losses);
        losses
    };
    words(&format!("eval --base {gguf} --tasks suite:skills/join_dot --router base --limit 2 --out {out}")).ok();
    let exact = losses(scored(&gguf, &format!("--out {out}")).json());
    let flags = format!("--quantize-activations --out {out} --log-samples");
    let ran = scored(&gguf, &flags).ok();
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["config"]["quantize_activations"], true);
    assert_contains(&ran.stderr, &["computed with other settings (quantize_activations)"]);
    let rounded = losses(document);
    assert!(exact.len() >= 2 && exact.len() == rounded.len(), "{exact:?} {rounded:?}");
    for (exact, rounded) in exact.iter().zip(&rounded) {
        assert!(exact != rounded && (exact - rounded).abs() < 0.02 * exact, "{exact} {rounded}");
    }
    let samples = fs::read_to_string(work.folder.path().join("scores/samples_base_choices.jsonl")).unwrap();
    assert!(samples.lines().count() == 6 && samples.lines().all(|line| line.contains("\"quantize_activations\":true")));
    assert!(scored(&gguf, "").json()["config"]["quantize_activations"].is_null());
    let error = scored(&folder, "--quantize-activations").failed(1);
    assert_contains(&error, &["--quantize-activations: ", "no weights that are multiplied with activations of 8 bits"]);
    assert_contains(&scored(&gguf, "--quantize-activations --exact").failed(2), &["cannot be used with"]);
}

#[test]
fn a_merge_into_gguf_writes_the_dequantized_folder() {
    let work = Work::new();
    let (gguf, folder) = (work.gguf(), work.path("dequantized"));
    work.train(&gguf, "l");
    let library = work.path("l");
    let merged = work.path("merged");
    let method = "--method linear --experts join_dash,shift_up1";
    words(&format!("merge --base {gguf} --library {library} {method} --into-base --out {merged}")).ok();
    let again = work.path("again");
    words(&format!("merge --base {folder} --library {library} {method} --into-base --out {again}")).ok();
    let [own, others] = [&merged, &again].map(|folder| {
        let tensors = safetensors::load(Path::new(folder).join("model.safetensors"), &Device::Cpu).unwrap();
        tensors.into_iter().collect::<HashMap<String, Tensor>>()
    });
    assert_eq!(own.keys().collect::<BTreeSet<_>>(), others.keys().collect::<BTreeSet<_>>());
    let unmerged = safetensors::load(Path::new(&folder).join("model.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(own.keys().collect::<BTreeSet<_>>(), unmerged.keys().collect::<BTreeSet<_>>());
    for (name, own) in &own {
        let [own, other, unmerged] =
            [own, &others[name], &unmerged[name]].map(|tensor| tensor.to_dtype(DType::F32).unwrap());
        assert!(largest_difference(&own, &other) < 1e-6, "{name}");
        // What the experts adapt has changed, and nothing else.
        let changed = largest_difference(&own, &unmerged);
        assert!(if name.contains(".self_attn.") { changed > 1e-4 } else { changed == 0.0 }, "{name}: {changed}");
    }
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(Path::new(&merged).join(file).is_file(), "{file}");
    }
    words(&format!("generate --base {merged} --prompt ab --max-new-tokens 4")).ok();
}

#[test]
fn a_file_is_recorded_as_given_and_found_again() {
    let work = Work::new();
    let in_folder = |line: &str| {
        let output = command(line.split_whitespace()).current_dir(work.folder.path()).output().unwrap();
        Ran::from(output).ok()
    };
    in_folder(
        "train-experts --base gguf/pico.gguf --tasks suite:skills --library l --experts join_dash --set max_steps=1",
    );
    let config = fs::read_to_string(work.path("l/experts/join_dash/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["base_model_name_or_path"], "gguf/pico.gguf");
    let merged = in_folder("merge --library l --method linear --into-base --out merged");
    assert_contains(&merged.stderr, &["--base gguf/pico.gguf, which the library records"]);
    assert!(Path::new(&work.path("merged/model.safetensors")).is_file());
}

#[test]
fn info_shows_the_types_of_the_weights() {
    let work = Work::new();
    let info = words(&format!("base info {} --json", work.gguf())).json();
    let types: Vec<&str> =
        info["weight_types"].as_array().unwrap().iter().map(|of| of["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["Q8_0", "F16", "F32"]);
    let bytes: u64 = info["weight_types"].as_array().unwrap().iter().map(|of| of["bytes"].as_u64().unwrap()).sum();
    assert_eq!(info["memory"]["training"][0]["base"].as_u64(), Some(bytes));
    assert!(bytes < info["file_bytes"].as_u64().unwrap());
    let human = words(&format!("base info {}", work.gguf())).ok().stdout;
    assert_contains(&human, &["weight types", "Q8_0"]);
}

#[test]
fn what_names_no_one_file_or_tokenizer_is_refused() {
    let work = Work::new();
    let folder = work.path("gguf");
    let error = words(&format!("base info {folder}")).failed(1);
    assert_contains(&error, &["its weights are in GGUF; name one file: --base", "pico.gguf"]);
    let error = words(&format!("base info {} --tokenizer {folder}", work.path("dequantized"))).failed(2);
    assert_contains(&error, &["--tokenizer is for a base in GGUF"]);
    let error = words(&format!("base info {}", work.path("absent.gguf"))).failed(1);
    assert_contains(&error, &["absent.gguf"]);
    fs::write(work.path("cut.gguf"), &fs::read(work.gguf()).unwrap()[..5000]).unwrap();
    let error = words(&format!("base info {}", work.path("cut.gguf"))).failed(1);
    assert_contains(&error, &["cut.gguf: ", "incomplete or damaged"]);
    // A tokenizer elsewhere.
    fs::rename(work.gguf(), work.path("alone.gguf")).unwrap();
    let alone = work.path("alone.gguf");
    words(&format!("generate --base {alone} --tokenizer {folder} --prompt ab --max-new-tokens 2")).ok();
}
