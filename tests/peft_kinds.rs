//! Adapters of every kind that PEFT makes: each is served with PEFT's logits, converted with its share stated, or refused
//! by its name.
//!
//! Needs a Python with torch, transformers and peft: `python3`, or the one that `LORAKIT_PYTHON` names; over SmolLM2 also
//! where `LORAKIT_SMOLLM2` is its folder. The tests are ignored by default.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod binary;
mod differences;

use binary::{Ran, peft_fixture, run};
use differences::difference_of_values;
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Tolerance of logits in f32; where PEFT's own error in f32 is of that size, four times that error.
const TOLERANCE: f32 = 2e-4;

/// A base with its adapters; `full_rank` is a rank at which a conversion loses nothing, of a small base.
struct Kinds {
    base: String,
    folder: tempfile::TempDir,
    full_rank: Option<usize>,
}

impl Kinds {
    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Makes the adapters; returns what is expected of each.
    fn make(&self) -> Value {
        let python = std::env::var("LORAKIT_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/peft_kinds.py");
        let ran = Command::new(python).arg(script).args([&self.base, &self.path("made")]).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        serde_json::from_str(String::from_utf8(ran.stdout).unwrap().lines().last().unwrap()).unwrap()
    }

    fn add(&self, name: &str, options: &[&str]) -> Ran {
        let (library, folder) = (self.path(&format!("{name}-library")), self.path(&format!("made/{name}")));
        let fixed = ["library", "add", "--json", "--library", &library, "--base", &self.base, &folder];
        run(fixed.into_iter().chain(options.iter().copied()))
    }

    /// The largest difference from PEFT's logits under these options.
    fn difference(&self, name: &str, options: &[&str]) -> f32 {
        let out = self.path("logits.safetensors");
        let ids = self.path("made/ids.safetensors");
        let fixed = ["logits", "--base", &self.base, "--input", &ids, "--out", &out];
        run(fixed.into_iter().chain(options.iter().copied())).ok();
        let [found, expected] = [out, self.path(&format!("made/{name}.safetensors"))].map(|path| logits(&path));
        difference_of_values(&found, &expected)
    }

    fn check_served(&self, name: &str, noise: f32) {
        self.add(name, &[]).ok();
        let library = self.path(&format!("{name}-library"));
        let (expert, folder) = (format!("expert:{name}"), format!("{library}/experts/{name}"));
        let routed = self.difference(name, &["--library", &library, "--router", &expert]);
        let alone = self.difference(name, &["--adapter", &folder]);
        eprintln!("{name}: {routed:.1e} {alone:.1e}, PEFT's own error {noise:.1e}");
        let tolerance = TOLERANCE.max(4.0 * noise);
        assert!(routed < tolerance && alone < tolerance, "{name}: {routed} {alone}");
    }

    fn check_converted(&self, name: &str) {
        let refused = self.add(name, &[]).failed(1);
        assert!(refused.contains("--convert svd:rank="), "{name}: {refused}");
        let rank = self.full_rank.unwrap_or(32);
        let added = self.add(name, &["--convert", &format!("svd:rank={rank}")]).json();
        let conversion = &added["added"][0]["conversion"];
        let least = conversion["modules"].as_array().unwrap().iter().map(|of| of["retained"].as_f64().unwrap());
        let least = least.fold(1.0, f64::min);
        let stated = conversion["logits_difference"].as_f64().unwrap();
        let library = self.path(&format!("{name}-library"));
        let record = fs::read_to_string(format!("{library}/experts/{name}/expert.json")).unwrap();
        assert!(record.contains("logits_difference") && record.contains("retained"), "{record}");
        let found = self.difference(name, &["--library", &library, "--router", &format!("expert:{name}")]);
        eprintln!("{name}: {found:.1e}, stated {stated:.1e} of {}, share {least:.4}", conversion["logits_change"]);
        if self.full_rank.is_some() {
            assert!(found < TOLERANCE && stated < 1e-3 && least > 1.0 - 1e-9, "{name}: {found} {stated} {least}");
        }
        assert!(least > 0.0 && stated.is_finite(), "{name}");
    }

    fn check(&self) {
        for (name, made) in self.make().as_object().unwrap() {
            match made["expected"].as_str().unwrap() {
                "served" => self.check_served(name, made["noise"].as_f64().unwrap() as f32),
                "converted" => self.check_converted(name),
                key => {
                    let message = self.add(name, &[]).failed(1);
                    assert!(message.contains(key), "{name}: {message}");
                    eprintln!("{name}: {}", message.trim());
                }
            }
        }
    }
}

fn logits(path: &str) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor("logits").unwrap();
    tensor.data().as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
}

#[test]
#[ignore = "needs Python with torch, transformers and peft"]
fn python_every_kind_of_adapter_is_served_converted_or_refused_by_name() {
    for name in ["mistral", "llama", "phi"] {
        let base = peft_fixture(name).join("base").display().to_string();
        eprintln!("{name}");
        Kinds { base, folder: tempfile::tempdir().unwrap(), full_rank: Some(64) }.check();
    }
    if let Ok(base) = std::env::var("LORAKIT_SMOLLM2") {
        eprintln!("SmolLM2");
        Kinds { base, folder: tempfile::tempdir().unwrap(), full_rank: None }.check();
    }
}
