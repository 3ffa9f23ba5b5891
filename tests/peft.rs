//! PEFT and transformers load lorakit's output and give the same logits; torch pickles are imported.
//!
//! Needs a Python with torch, transformers and peft: `python3`, or the one that `LORAKIT_PYTHON` names. The tests are
//! ignored by default. `LORAKIT_OLD_PEFT` may name folders with unpacked wheels of older versions of peft, separated by
//! colons, which then load the same adapters.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod binary;

use binary::{PEFT_FIXTURES, outer_adapter, peft_fixture, run, words};
use lorakit_adapter::{Adapter, LowRank};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tolerance of logits in f32. `rs` has such large updates that PEFT's own rounding error is 1.5e-4; see
/// tests/parity.rs.
const TOLERANCE: f64 = 4e-4;

/// A Python with the packages that the script needs.
fn python() -> String {
    let python = std::env::var("LORAKIT_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", "import torch, transformers, peft, safetensors"]).output();
    let found = has.is_ok_and(|ran| ran.status.success());
    assert!(found, "{python} has no torch, transformers and peft; set LORAKIT_PYTHON");
    python
}

/// Runs the script, which must succeed, with what `packages` holds before what is installed.
fn script_with(packages: &str, python: &str, arguments: &[&str]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/peft_check.py");
    let ran = Command::new(python).env("PYTHONPATH", packages).arg(path).args(arguments).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

/// Runs the script with the installed peft.
fn script(python: &str, arguments: &[&str]) -> String {
    script_with("", python, arguments)
}

/// Cases for the script, and a working folder.
struct Cases {
    folder: tempfile::TempDir,
    list: Vec<Value>,
}

impl Cases {
    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Computes the logits of a base, alone or with an adapter, and adds them as a case.
    fn add(&mut self, base: &str, adapter: Option<&str>, ids: &Path) {
        let logits = self.path(&format!("logits{}.safetensors", self.list.len()));
        let ids = ids.to_str().unwrap();
        let options = adapter.map(|adapter| ["--adapter", adapter]);
        let fixed = ["logits", "--base", base, "--input", ids, "--out", &logits];
        run(fixed.into_iter().chain(options.into_iter().flatten())).ok();
        self.list.push(json!({ "base": base, "adapter": adapter, "ids": ids, "logits": logits }));
    }

    /// The largest difference of each case, over all versions of peft.
    fn differences(&self, python: &str) -> Vec<f64> {
        let file = self.path("cases.json");
        fs::write(&file, serde_json::to_string(&self.list).unwrap()).unwrap();
        let old = std::env::var("LORAKIT_OLD_PEFT").unwrap_or_default();
        let versions = std::iter::once("").chain(old.split(':').filter(|folder| !folder.is_empty()));
        let found = versions.map(|packages| -> Vec<f64> {
            let printed = script_with(packages, python, &["compare", &file]);
            serde_json::from_str(printed.lines().last().unwrap()).unwrap()
        });
        found
            .reduce(|one, other| {
                one.into_iter()
                    .zip(other)
                    .map(|(one, other)| [one, other].into_iter().max_by(f64::total_cmp).unwrap())
                    .collect()
            })
            .unwrap()
    }
}

/// A few of the 300 random adapters that the script judges by default.
#[test]
#[ignore = "needs Python with torch, transformers and peft"]
fn python_random_adapters_are_judged_as_by_peft() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/peft_adapters_check.py");
    let bases = PEFT_FIXTURES.map(|name| peft_fixture(name).join("base"));
    let command = Command::new(python())
        .arg(script)
        .arg(env!("CARGO_BIN_EXE_lorakit"))
        .args(bases)
        .args(["--count", "40"])
        .output();
    let ran = command.unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

fn write_ids(path: &Path, vocabulary: i64) {
    let ids: Vec<u8> = (0..2 * 20).flat_map(|at: i64| (at * at * 7 % vocabulary).to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![2, 20], &ids).unwrap();
    fs::write(path, safetensors::serialize([("input_ids", view)], None).unwrap()).unwrap();
}

/// The updates of the text model within a multimodal one, by the paths that it has alone.
fn renamed(adapter: &Adapter) -> BTreeMap<String, LowRank> {
    let alone = |path: &String| path.replace("model.language_model.", "model.");
    adapter.modules().iter().map(|(path, update)| (alone(path), update.clone())).collect()
}

/// The text model within a multimodal one, and adapters of it in both forms.
fn add_multimodal(cases: &mut Cases) {
    let oracle = peft_fixture("mistral3");
    let (base, library, ids) =
        (oracle.join("base").display().to_string(), cases.path("mistral3"), oracle.join("expected.safetensors"));
    let (own, alone) = (oracle.join("adapters/rs"), cases.path("alone"));
    Adapter::new(renamed(&Adapter::read(&own).unwrap())).write(alone.as_ref()).unwrap();
    words(&format!("library add --library {library} --base {base} own={} alone={alone}", own.display())).ok();
    let (adapter, model) = (cases.path("mistral3-adapter"), cases.path("mistral3-model"));
    let merge = format!("merge --library {library} --method cat --weights=0.4,0.2 --base {base}");
    words(&format!("{merge} --out {adapter}")).ok();
    words(&format!("{merge} --out {model} --into-base")).ok();
    for adapter in [adapter, format!("{library}/experts/own"), format!("{library}/experts/alone")] {
        cases.add(&base, Some(&adapter), &ids);
    }
    cases.add(&model, None, &ids);
}

#[test]
#[ignore = "needs Python with torch, transformers and peft"]
fn python_peft_computes_the_same_logits() {
    let python = python();
    let mut cases = Cases { folder: tempfile::tempdir().unwrap(), list: Vec::new() };

    // Trained, exported and merged over the bundled base, which needs no other data.
    let (library, pico, ids) = (cases.path("pico-library"), cases.path("pico"), cases.folder.path().join("ids"));
    words(&format!("base write --out {pico}")).ok();
    words(&format!(
        "train-experts --base {pico} --tasks suite:skills --library {library} -q --set max_steps=3 --set batch_size=2 \
         --set eval_steps=0 --set learning_rate=3e-2 --set rank=2 --set target_modules=all-linear"
    ))
    .ok();
    let document = words(&format!("library export --library {library} --out {} --json", cases.path("hub"))).json();
    write_ids(&ids, 99);
    for of in document["exported"].as_array().unwrap().iter().take(2) {
        cases.add(&pico, of["folder"].as_str(), &ids);
    }
    for method in ["cat", "ties_svd:density=0.3"] {
        let out = cases.path(&format!("pico-{}", &method[..3]));
        words(&format!("merge --library {library} --method {method} --base {pico} --out {out}")).ok();
        cases.add(&pico, Some(&out), &ids);
    }
    let model = cases.path("pico-model");
    words(&format!("merge --library {library} --method cat --base {pico} --into-base --out {model}")).ok();
    cases.add(&model, None, &ids);

    // Every architecture, with experts of several ranks, scales and module sets.
    for name in PEFT_FIXTURES {
        let oracle = peft_fixture(name);
        let (base, library) = (oracle.join("base").display().to_string(), cases.path(name));
        let adapters = ["e0", "e1", "e3", "rs"].map(|name| oracle.join("adapters").join(name).display().to_string());
        let fixed = ["library", "add", "--library", &library, "--base", &base].map(str::to_owned);
        run(fixed.into_iter().chain(adapters)).ok();
        let (adapter, model) = (cases.path(&format!("{name}-adapter")), cases.path(&format!("{name}-model")));
        let merge = format!("merge --library {library} --method cat --weights=0.5,-0.7,0.4,0.2 --base {base}");
        words(&format!("{merge} --out {adapter}")).ok();
        words(&format!("{merge} --out {model} --into-base")).ok();
        let ids = oracle.join("expected.safetensors");
        cases.add(&base, Some(&adapter), &ids);
        cases.add(&model, None, &ids);
        cases.add(&base, Some(&format!("{library}/experts/rs")), &ids);
    }

    add_multimodal(&mut cases);

    // A tied head that becomes a weight of its own.
    for name in ["mistral", "gemma3"] {
        let oracle = peft_fixture(name);
        let base = oracle.join("base").display().to_string();
        for (expert, module) in [("head", "lm_head"), ("embedding", "model.embed_tokens")] {
            let [adapter, library, model] =
                ["", "-library", "-model"].map(|end| cases.path(&format!("{name}-{expert}{end}")));
            outer_adapter(base.as_ref(), module).write(adapter.as_ref()).unwrap();
            words(&format!("library add --library {library} --base {base} {adapter}")).ok();
            words(&format!("merge --library {library} --method cat --base {base} --into-base --out {model}")).ok();
            cases.add(&model, None, &oracle.join("expected.safetensors"));
        }
    }

    let differences = cases.differences(&python);
    for (case, difference) in cases.list.iter().zip(&differences) {
        eprintln!("{difference:.1e} {} {}", case["base"], case["adapter"]);
    }
    assert!(differences.len() >= 5 && differences.iter().all(|difference| *difference < TOLERANCE), "{differences:?}");
}

#[test]
#[ignore = "needs Python with torch, transformers and peft"]
fn python_torch_pickles_are_imported() {
    let python = python();
    let oracle = peft_fixture("phi");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for name in ["e0", "e1"] {
        let adapter: PathBuf = oracle.join("adapters").join(name);
        script(&python, &["write-mttl", adapter.to_str().unwrap(), &path("mttl"), name]);
    }
    let base = oracle.join("base").display().to_string();
    run(["library", "import", "--library", &path("library"), "--base", &base, &path("mttl")]).ok();
    for name in ["e0", "e1"] {
        let before = Adapter::read(&oracle.join("adapters").join(name)).unwrap();
        let after = Adapter::read(&folder.path().join("library/experts").join(name)).unwrap();
        assert_eq!(before.modules(), after.modules());
    }
    let shown = run(["library", "show", "--library", &path("library"), "e0", "--json"]).json();
    assert_eq!(shown["experts"][0]["record"]["settings"]["imported"]["tasks"], json!(["boolq", "piqa"]));
}
