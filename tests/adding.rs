//! `library add`: several adapters of which some are refused, and adapters of a base with other projections.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;
mod differences;

use binary::{Ran, assert_contains, copy_adapter, peft_fixture, run};
use differences::{assert_same_logits, difference_of_values};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[test]
fn repeated_or_invalid_names_create_no_library() {
    let (adapter, folder) = (peft_fixture("mistral").join("adapters/e0"), tempfile::tempdir().unwrap());
    let library = folder.path().join("library");
    let twin = format!("a={}", adapter.display());
    let twins = run(["library", "add", "--library", &library.display().to_string(), &twin, &twin]);
    assert_contains(&twins.failed(1), &["two adapters are named `a`", "nothing was added"]);
    assert!(!library.exists());
    let unnamed = format!("..={}", adapter.display());
    let refused = run(["library", "add", "--library", &library.display().to_string(), &unnamed]);
    assert_contains(&refused.failed(1), &["the expert's name `..` starts with a dot", "NAME="]);
    assert!(!library.exists());
}

#[test]
fn every_refusal_is_listed_and_the_others_are_added_on_request() {
    let (mistral, folder) = (peft_fixture("mistral"), tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let made = |name: &str, keys: Value| copy_adapter(&mistral.join("adapters/e0"), &folder.path().join(name), keys);
    made("good", json!({}));
    made("fine", json!({}));
    made("dora", json!({ "use_dora": true }));
    made("ranks", json!({ "r": 3 }));
    copy_adapter(&peft_fixture("phi").join("adapters/e0"), &folder.path().join("other"), json!({}));
    let base = mistral.join("base").display().to_string();
    let add = |names: &[&str], options: &[&str]| {
        let fixed = ["library", "add", "--json", "--base", &base, "--library", &path("library")].map(str::to_owned);
        let names = names.iter().map(|name| path(name));
        run(fixed.into_iter().chain(names).chain(options.iter().map(|&option| option.to_owned())))
    };
    let all = ["good", "dora", "ranks", "other", "absent", "fine"];
    let message = add(&all, &[]).failed(1);
    let summary = "4 of 6 adapters were refused, and nothing was added; --skip-refused takes the others";
    assert_contains(
        &message,
        &[summary, "  dora: ", "use_dora", "  ranks: ", "r and rank_pattern", "  other: ", "  absent: "],
    );
    assert!(!Path::new(&path("library")).exists(), "refused adapters create no library");

    let Ran { stdout, stderr, .. } = add(&all, &["--skip-refused"]).ok();
    assert_contains(&stderr, &["not added: dora: ", "not added: ranks: ", "not added: other: ", "not added: absent: "]);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let names = |of: &str| -> Vec<String> {
        let mut names: Vec<_> =
            report[of].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names("added"), ["fine", "good"]);
    assert_eq!(names("refused"), ["absent", "dora", "other", "ranks"]);

    // `library import` reads the same folders.
    let import = |options: &[&str]| {
        let fixed = ["library", "import", "--base", &base, "--library", &path("imported")].map(str::to_owned);
        let names = all.iter().map(|name| path(name));
        run(fixed.into_iter().chain(names).chain(options.iter().map(|&option| option.to_owned())))
    };
    assert_contains(&import(&[]).failed(1), &[summary, "  dora: ", "  ranks: ", "  other: ", "  absent: "]);
    assert!(!Path::new(&path("imported")).exists(), "refused adapters create no library");
    import(&["--skip-refused"]).ok();
    let experts = |of: &str| -> Vec<String> {
        let experts = fs::read_dir(Path::new(&path(of)).join("experts")).unwrap();
        let mut names: Vec<_> = experts.map(|one| one.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(experts("imported"), ["fine", "good"]);

    // The names are taken now, and all that are left are refused.
    let message = add(&all, &["--skip-refused"]).failed(1);
    assert_contains(&message, &["6 of 6 adapters were refused, and nothing was added:", "`good` already exists"]);
    let message = add(&["dora"], &["--skip-refused"]).failed(1);
    assert!(message.contains("use_dora") && !message.contains("of 1"), "{message}");
}

/// A base as Phi-3 stores it, and the same as Llama does.
struct Bases(tempfile::TempDir);

impl Bases {
    fn new() -> Self {
        let (source, bases) = (peft_fixture("phi3").join("base"), Self(tempfile::tempdir().unwrap()));
        let mut config: Value = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
        let rope = json!({ "rope_theta": 10000.0, "rope_type": "default" });
        let plain = json!({ "sliding_window": null, "partial_rotary_factor": 1.0, "rope_parameters": rope,
            "original_max_position_embeddings": config["max_position_embeddings"] });
        plain.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
        let weights = fs::read(source.join("model.safetensors")).unwrap();
        let fused = SafeTensors::deserialize(&weights).unwrap();
        let fused: BTreeMap<String, TensorView> = fused.iter().map(|(name, view)| (name.to_owned(), view)).collect();
        bases.write("fused", &config, &fused);
        config["architectures"] = json!(["LlamaForCausalLM"]);
        config["model_type"] = "llama".into();
        bases.write("split", &config, &split(&fused));
        let ids: Vec<u8> = (0..12_i64).flat_map(|at| (at * at * 7 % 32).to_le_bytes()).collect();
        let ids = TensorView::new(Dtype::I64, vec![1, 12], &ids).unwrap();
        fs::write(bases.path("ids"), safetensors::serialize([("input_ids", ids)], None).unwrap()).unwrap();
        bases
    }

    fn write(&self, name: &str, config: &Value, tensors: &BTreeMap<String, TensorView>) {
        let folder = self.0.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        fs::write(folder.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// The logits of a base under these options, and what was said.
    fn logits(&self, base: &str, options: &[&str]) -> (Vec<f32>, String) {
        let (base, ids, out) = (self.path(base), self.path("ids"), self.path("logits"));
        let fixed = ["logits", "--base", &base, "--input", &ids, "--out", &out];
        let ran = run(fixed.into_iter().chain(options.iter().copied())).ok();
        let bytes = fs::read(out).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let values =
            file.tensor("logits").unwrap().data().as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value));
        (values.collect(), ran.stderr)
    }
}

/// The tensors with q, k and v, and gate and up, each on its own: 32, 16 and 16 rows, and 40 and 40.
fn split<'a>(fused: &BTreeMap<String, TensorView<'a>>) -> BTreeMap<String, TensorView<'a>> {
    let mut tensors = fused.clone();
    for (whole, parts) in [
        ("qkv_proj", &[("q_proj", 32), ("k_proj", 16), ("v_proj", 16)][..]),
        ("gate_up_proj", &[("gate_proj", 40), ("up_proj", 40)]),
    ] {
        for (name, view) in fused.iter().filter(|(name, _)| name.contains(whole)) {
            tensors.remove(name);
            let row = view.data().len() / view.shape()[0];
            let mut at = 0;
            for &(part, rows) in parts {
                let data = &view.data()[at * row..(at + rows) * row];
                let shape = vec![rows, view.shape()[1]];
                tensors.insert(name.replace(whole, part), TensorView::new(view.dtype(), shape, data).unwrap());
                at += rows;
            }
        }
    }
    tensors
}

#[test]
fn adapters_serve_bases_of_the_same_form_with_other_projections() {
    let bases = Bases::new();
    let (plain, _) = bases.logits("fused", &[]);
    assert_same_logits(&bases.logits("split", &[]).0, &plain);
    for name in ["e0", "rs"] {
        let adapter = peft_fixture("phi3").join("adapters").join(name).display().to_string();
        let (expected, silent) = bases.logits("fused", &["--adapter", &adapter]);
        assert!(!silent.contains("projections"), "{silent}");
        let moved = difference_of_values(&expected, &plain);
        assert!(moved > 0.1, "{name} does something: {moved}");
        let (found, said) = bases.logits("split", &["--adapter", &adapter]);
        assert_same_logits(&found, &expected);
        assert_contains(&said, &["other projections", "qkv_proj as q_proj, k_proj, v_proj"]);

        // As an expert of the split base, which names the split projections, and back on the fused one.
        let library = bases.path(&format!("library-{name}"));
        run(["library", "add", "--library", &library, "--base", &bases.path("split"), &adapter]).ok();
        run(["library", "check", "--library", &library, "--base", &bases.path("split")]).ok();
        let router = format!("expert:{name}");
        assert_same_logits(&bases.logits("split", &["--library", &library, "--router", &router]).0, &expected);
        let expert = format!("{library}/experts/{name}");
        let config = fs::read_to_string(format!("{expert}/adapter_config.json")).unwrap();
        assert!(config.contains("q_proj") && !config.contains("qkv_proj"), "{config}");
        let (found, said) = bases.logits("fused", &["--adapter", &expert]);
        assert_same_logits(&found, &expected);
        assert_contains(&said, &["other projections", "q_proj, k_proj, v_proj as qkv_proj"]);
    }
}
