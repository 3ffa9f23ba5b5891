//! `verify --other-base`: the difference of logits between two forms of a base.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;
mod differences;

use binary::{assert_contains, peft_fixture, run, words};
use candle_core::safetensors::{load, save};
use candle_core::{DType, Device, Tensor};
use differences::largest_difference;
use lorakit_adapter::{Adapter, CONFIG_FILE, WEIGHTS_FILE};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

#[test]
fn a_base_is_compared_with_its_rounded_form_bare_and_with_each_expert() {
    let oracle = peft_fixture("mistral");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let base = oracle.join("base").display().to_string();
    let rounded = path("rounded");
    fs::create_dir(&rounded).unwrap();
    fs::copy(format!("{base}/config.json"), format!("{rounded}/config.json")).unwrap();
    let tensors = load(format!("{base}/model.safetensors"), &Device::Cpu).unwrap().into_iter();
    let tensors: HashMap<String, Tensor> =
        tensors.map(|(name, tensor)| (name, tensor.to_dtype(DType::BF16).unwrap())).collect();
    save(&tensors, format!("{rounded}/model.safetensors")).unwrap();
    let adapters = ["e0", "e1"].map(|name| oracle.join("adapters").join(name).display().to_string());
    let add = ["library", "add", "--library", &path("library"), "--base", &base].map(str::to_owned);
    run(add.into_iter().chain(adapters)).ok();

    let verify = |other: &str, options: &[&str]| {
        let fixed = ["verify", "--base", &base, "--other-base", other];
        run(fixed.into_iter().chain(options.iter().copied()))
    };
    let same = verify(&base, &["--json"]).json();
    assert_eq!((&same["compared"][0]["name"], &same["compared"][0]["difference"]), (&"base".into(), &0.0.into()));
    assert_eq!(same["compared"][0]["same_prediction"], 1.0);
    let library = path("library");
    let found = verify(&rounded, &["--json", "--library", &library, "--tokens", "20"]).json();
    let compared = found["compared"].as_array().unwrap();
    let names: Vec<&str> = compared.iter().map(|of| of["name"].as_str().unwrap()).collect();
    assert_eq!((names, &found["tokens"]), (vec!["base", "e0", "e1"], &20.into()));
    for of in compared {
        let number = |key: &str| of[key].as_f64().unwrap();
        assert!(number("difference") > 0.0 && number("root_mean_square") < number("difference"), "{of}");
        assert_eq!(of["effect"].is_null(), of["name"] == "base");
    }
    let one = verify(&rounded, &["--library", &library, "--experts", "e1"]).ok().stdout;
    let has_line = |name: &str| one.lines().any(|line| line.split_whitespace().next() == Some(name));
    assert!(has_line("e1") && !has_line("e0") && one.contains("adapter's effect"), "{one}");
    let far = verify(&rounded, &["--tolerance", "1e-9"]);
    assert_eq!(far.code, 1);
    assert_contains(&far.stderr, &["beyond the tolerance", "base"]);
    let other = peft_fixture("phi").join("base").display().to_string();
    assert_contains(&verify(&other, &[]).failed(1), &["expected two forms of one base"]);
    assert_contains(&verify(&base, &["--experts", "e0"]).failed(2), &["--library"]);
    assert_contains(&run(["verify", "--base", &base]).failed(2), &["--library"]);
}

#[test]
fn logits_that_are_not_finite_are_no_comparison() {
    let base = peft_fixture("mistral").join("base").display().to_string();
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().display().to_string();
    fs::copy(format!("{base}/config.json"), format!("{broken}/config.json")).unwrap();
    let mut tensors = load(format!("{base}/model.safetensors"), &Device::Cpu).unwrap();
    let norm = tensors.get_mut("model.norm.weight").unwrap();
    *norm = norm.affine(f64::NAN, 0.0).unwrap();
    save(&tensors, format!("{broken}/model.safetensors")).unwrap();
    let found = run(["verify", "--base", &base, "--other-base", &broken]);
    assert_eq!(found.code, 1);
    assert_contains(&found.stderr, &["logits that are not finite: base"]);
}

/// Writes pico in f32, and as the text model of a multimodal model, whose other tensors have a name alone.
fn write_both_forms(alone: &str, within: &str) {
    words(&format!("base write --out {alone}")).ok();
    fs::create_dir(within).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(format!("{alone}/{file}"), format!("{within}/{file}")).unwrap();
    }
    let config: Value = serde_json::from_slice(&fs::read(format!("{alone}/config.json")).unwrap()).unwrap();
    let config = json!({
        "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": config,
        "tie_word_embeddings": true, "vision_config": {},
    });
    fs::write(format!("{within}/config.json"), config.to_string()).unwrap();
    let path = format!("{alone}/model.safetensors");
    let tensors = load(&path, &Device::Cpu).unwrap().into_iter();
    let tensors: HashMap<String, Tensor> =
        tensors.map(|(name, tensor)| (name, tensor.to_dtype(DType::F32).unwrap())).collect();
    save(&tensors, &path).unwrap();
    let renamed =
        tensors.into_iter().map(|(name, tensor)| (name.replacen("model.", "language_model.model.", 1), tensor));
    let mut tensors: HashMap<String, Tensor> = renamed.collect();
    tensors.insert("vision_tower.weight".to_owned(), Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap());
    save(&tensors, format!("{within}/model.safetensors")).unwrap();
}

/// The adapter's files alone, without the record of its base.
fn copied(from: &str, to: String) -> String {
    fs::create_dir(&to).unwrap();
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        fs::copy(Path::new(from).join(file), Path::new(&to).join(file)).unwrap();
    }
    to
}

#[test]
fn adapters_of_the_text_model_within_a_multimodal_one_serve_it_and_the_text_model_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let [alone, within, library, ids] = ["alone", "within", "library", "ids"].map(path);
    write_both_forms(&alone, &within);
    let task = "suite:skills@5/shift_up1";
    words(&format!(
        "train-experts --base {within} --tasks {task} --library {library} -q --set max_steps=3 --set batch_size=2 \
         --set eval_steps=0 --set learning_rate=3e-2 --set rank=2 --set target_modules=all-linear"
    ))
    .ok();
    let of_library = format!("--base {within} --library {library}");
    let scores = words(&format!("eval {of_library} --tasks {task} --split all --limit 2 --router uniform --json")).ok();
    assert!(!scores.stdout.is_empty());
    words(&format!("generate {of_library} --router uniform --prompt ab --max-new-tokens 2")).ok();
    words(&format!("verify {of_library}")).ok();
    let (merged, model) = (path("merged"), path("model"));
    words(&format!("merge {of_library} --method cat --out {merged}")).ok();
    words(&format!("merge {of_library} --method cat --out {model} --into-base")).ok();

    let all_ids: Vec<i64> = (0..40).map(|at| at * at * 7 % 99).collect();
    let tensor = Tensor::from_vec(all_ids, (2, 20), &Device::Cpu).unwrap();
    save(&HashMap::from([("input_ids".to_owned(), tensor)]), &ids).unwrap();
    let logits = |base: &str, adapter: Option<&str>| {
        let out = path("logits");
        let adapter = adapter.map(|adapter| format!("--adapter {adapter}")).unwrap_or_default();
        words(&format!("logits --base {base} {adapter} --input {ids} --out {out}")).ok();
        load(out, &Device::Cpu).unwrap().remove("logits").unwrap()
    };
    let (bare, own) = (logits(&within, None), logits(&within, Some(&merged)));
    assert_eq!(largest_difference(&logits(&alone, None), &bare), 0.0);
    assert!(largest_difference(&own, &bare) > 1e-2);
    assert!(largest_difference(&logits(&model, None), &own) < 1e-4);

    // The paths are those of the base that it was made over, which PEFT needs.
    let paths = |adapter: &str| Adapter::read(adapter.as_ref()).unwrap().modules().keys().cloned().collect::<Vec<_>>();
    assert!(paths(&merged).iter().all(|path| path.starts_with("model.language_model.layers.")));
    let foreign = copied(&merged, path("foreign"));
    assert_eq!(largest_difference(&logits(&alone, Some(&foreign)), &own), 0.0);
    let other = path("other");
    let added = words(&format!("library add --library {other} --base {alone} e={foreign}")).ok();
    assert_contains(&added.stderr, &["written for another form of the base", "model.language_model."]);
    let served = format!("{other}/experts/e");
    assert!(paths(&served).iter().all(|path| path.starts_with("model.layers.")));
    let back = copied(&served, path("back"));
    assert_eq!(largest_difference(&logits(&within, Some(&back)), &own), 0.0);
}
