//! Logits of merged adapters compared with PEFT's, and with those of a base that the adapter was merged into.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod binary;
mod differences;

use binary::{PEFT_FIXTURES, SHARED_ORACLES, peft_fixture, shared_oracle};
use candle_core::{DType, Device, Tensor, safetensors};
use differences::largest_difference;
use lorakit_adapter::Adapter;
use lorakit_lora::{Patches, SequenceBatch};
use lorakit_model::{Base, BaseOptions};
use lorakit_route::merge::{Coefficients, Concatenation, MergeMethod, Orientation, add_to_weight, parse_merge};
use lorakit_route::{Expert, LibraryStack, single_expert};
use std::collections::HashMap;
use std::path::PathBuf;

/// Tolerance of logits in f32.
const TOLERANCE: f32 = 2e-4;

struct Oracle {
    folder: PathBuf,
    ids: Vec<Vec<u32>>,
    logits: HashMap<String, Tensor>,
    cases: serde_json::Value,
}

impl Oracle {
    fn open(folder: PathBuf) -> Self {
        let logits = safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
        let ids = logits["input_ids"].to_dtype(DType::U32).unwrap().to_vec2().unwrap();
        let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
        let recorded: serde_json::Value = serde_json::from_str(&text).unwrap();
        Self { folder, ids, logits, cases: recorded["cases"].clone() }
    }

    fn base(&self) -> Base {
        Base::open(&self.folder.join("base"), &BaseOptions::default()).unwrap()
    }

    fn logits_of(&self, base: &Base, patches: &Patches) -> Tensor {
        base.logits(&self.ids.concat(), SequenceBatch::packed(self.ids.iter().map(Vec::len)), patches).unwrap()
    }

    fn expert(&self, name: &str) -> Expert {
        Expert::new(name, Adapter::read(&self.folder.join("adapters").join(name)).unwrap())
    }

    /// Repeats PEFT's merge of that kind.
    fn merged(&self, kind: &str) -> Adapter {
        let case = &self.cases[format!("merge/{kind}")];
        let names: Vec<String> = serde_json::from_value(case["adapters"].clone()).unwrap();
        let experts: Vec<Expert> = names.iter().map(|name| self.expert(name)).collect();
        let weights = serde_json::from_value(case["weights"].clone()).unwrap();
        let density = case["density"].as_f64().map_or_else(String::new, |density| format!(":density={density}"));
        let merge = parse_merge(&format!("{kind}{density}")).unwrap();
        merge.merge(&experts, &Coefficients::new(weights)).unwrap().adapter
    }
}

fn patches(base: &Base, adapter: Adapter) -> Patches {
    let experts = LibraryStack::new([Expert::new("merged", adapter)], &base.adaptable_sites(), &Device::Cpu).unwrap();
    single_expert(&experts, 0).unwrap()
}

/// Merged adapters give the same logits as PEFT's.
fn check_merges(name: &str, oracle: &Oracle) {
    let base = oracle.base();
    let plain = oracle.logits["base"].flatten(0, 1).unwrap();
    for kind in ["linear", "cat", "svd", "ties", "magnitude_prune"] {
        let expected = oracle.logits[&format!("merge/{kind}")].flatten(0, 1).unwrap();
        let found = oracle.logits_of(&base, &patches(&base, oracle.merged(kind)));
        let (apart, effect) = (largest_difference(&found, &expected), largest_difference(&plain, &expected));
        println!("{name}, {kind}: {apart:.1e} apart, of a change of {effect:.2}");
        assert!(apart < TOLERANCE && effect > 100.0 * TOLERANCE, "{name}, {kind}: {apart}, {effect}");
    }
}

/// A merged base gives the same logits as the merged adapter over the original base.
fn check_merged_base(name: &str, oracle: &Oracle) {
    let base = oracle.base();
    // Ranks, alphas and rsLoRA differ between the two.
    let experts = [oracle.expert("e0"), oracle.expert("rs")];
    let merged = Concatenation.merge(&experts, &Coefficients::new(vec![0.6, -0.8])).unwrap().adapter;
    let dynamic = oracle.logits_of(&base, &patches(&base, merged.clone()));

    let file = oracle.folder.join("base/model.safetensors");
    let mut tensors = safetensors::load(file, &Device::Cpu).unwrap();
    for (module, update) in merged.modules() {
        let weight = tensors.get_mut(&format!("{module}.weight")).unwrap();
        let mut values: Vec<f32> = weight.flatten_all().unwrap().to_vec1().unwrap();
        add_to_weight(module, update, &mut values, Orientation::OutIn).unwrap();
        *weight = Tensor::from_vec(values, weight.dims(), &Device::Cpu).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    std::fs::copy(oracle.folder.join("base/config.json"), folder.path().join("config.json")).unwrap();
    let changed = Base::open(folder.path(), &BaseOptions::default()).unwrap();
    let apart = largest_difference(&oracle.logits_of(&changed, &Patches::none()), &dynamic);
    println!("{name}: {apart:.1e} apart");
    assert!(apart < TOLERANCE, "{name}: {apart}");
}

#[test]
fn merges_match_peft() {
    for name in PEFT_FIXTURES {
        check_merges(name, &Oracle::open(peft_fixture(name)));
    }
}

#[test]
#[ignore = "needs ../shared"]
fn merges_match_peft_on_shared_bases() {
    for name in SHARED_ORACLES {
        check_merges(name, &Oracle::open(shared_oracle(name)));
    }
}

#[test]
fn merged_bases_match_merged_adapters() {
    for name in PEFT_FIXTURES {
        check_merged_base(name, &Oracle::open(peft_fixture(name)));
    }
}

#[test]
#[ignore = "needs ../shared"]
fn merged_bases_match_merged_adapters_on_shared_bases() {
    for name in SHARED_ORACLES {
        check_merged_base(name, &Oracle::open(shared_oracle(name)));
    }
}
