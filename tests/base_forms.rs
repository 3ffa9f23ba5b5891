//! `verify --other-base`: the difference of logits between two forms of a base.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::{assert_contains, peft_fixture, run};
use candle_core::safetensors::{load, save};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::fs;

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
