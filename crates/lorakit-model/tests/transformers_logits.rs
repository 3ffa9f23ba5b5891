//! Configs whose keys are easily read otherwise than by transformers: logits of transformers 5.23 over weights of fixtures.
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/differences/mod.rs"]
mod differences;

use candle_core::{Device, Tensor};
use differences::largest_difference;
use lorakit_lora::{Patches, Sequence, SequenceBatch};
use lorakit_model::{Base, BaseOptions, CachedDecoder};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

const IDS: [u32; 20] = [3, 9, 27, 19, 5, 11, 30, 4, 12, 7, 21, 8, 17, 29, 6, 13, 10, 22, 14, 31];

/// The base of a fixture with other keys in its config; null removes a key.
fn edited(fixture: &str, keys: Value) -> Base {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/peft");
    let (own, folder) = (fixtures.join(fixture).join("base"), tempfile::tempdir().unwrap());
    let mut config: Value = serde_json::from_slice(&fs::read(own.join("config.json")).unwrap()).unwrap();
    for (key, value) in keys.as_object().unwrap() {
        match value {
            Value::Null => config.as_object_mut().unwrap().remove(key),
            value => config.as_object_mut().unwrap().insert(key.clone(), value.clone()),
        };
    }
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    fs::copy(own.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    Base::open(folder.path(), &BaseOptions::default()).unwrap()
}

fn logits(base: &Base) -> Tensor {
    base.logits(&IDS, SequenceBatch::packed([IDS.len()]), &Patches::none()).unwrap()
}

/// The first logits after the last token.
fn assert_last_logits(base: &Base, expected: [f32; 4]) {
    let found = logits(base).narrow(0, IDS.len() - 1, 1).unwrap().narrow(1, 0, 4).unwrap();
    let expected = Tensor::new(&[expected], &Device::Cpu).unwrap();
    assert!(largest_difference(&found, &expected) < 1e-5, "{found} {expected}");
}

#[test]
fn a_mistral_with_layer_types_has_its_window_in_some_layers() {
    let mixed = edited("mistral", json!({ "layer_types": ["sliding_attention", "full_attention"] }));
    assert_last_logits(&mixed, [0.816555, 1.039779, -0.541367, -1.893341]);
    let types = ["full_attention", "sliding_attention"];
    let ministral = edited("mistral", json!({ "model_type": "ministral", "layer_types": types }));
    assert_last_logits(&ministral, [-0.088716, 1.33727, -0.036267, -2.341079]);
    // The same window everywhere, however it is said.
    let (plain, all) = (edited("mistral", json!({})), json!({ "layer_types": vec!["sliding_attention"; 2] }));
    assert_eq!(edited("mistral", all).identity().fingerprint, plain.identity().fingerprint);
}

/// A Ministral 3 whose queries grow from position 8 on. A key for biases is none of its.
fn ministral3() -> Base {
    let rope = json!({
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8,
        "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5,
    });
    let mut keys = json!({ "model_type": "ministral3", "sliding_window": null, "attention_bias": true });
    keys["rope_parameters"] = rope;
    edited("mistral", keys)
}

#[test]
fn the_queries_of_ministral_3_grow_beyond_the_length_of_the_pretraining() {
    let base = ministral3();
    assert!(base.config().warnings.is_empty(), "{:?}", base.config().warnings);
    assert_eq!(base.config().max_positions, 64);
    assert_last_logits(&base, [0.246622, 1.211702, 0.080768, -2.421286]);
}

#[test]
fn cached_tokens_of_ministral_3_equal_those_of_whole_rows() {
    let (base, none) = (ministral3(), Patches::none());
    let whole = logits(&base).narrow(0, IDS.len() - 1, 1).unwrap();
    let mut decoder = CachedDecoder::new(&base, &none, IDS.len()).unwrap();
    let row = decoder.open(IDS.len(), Sequence::default()).unwrap();
    decoder.next_logits(&[(row, &IDS[..13])]).unwrap();
    for token in 13..IDS.len() - 1 {
        decoder.next_logits(&[(row, &IDS[token..=token])]).unwrap();
    }
    let last = decoder.next_logits(&[(row, &IDS[IDS.len() - 1..])]).unwrap();
    assert!(largest_difference(&last, &whole) < 1e-5);
}

#[test]
fn the_length_of_the_pretraining_beside_the_rotary_parameters_goes_before_one_among_them() {
    let llama3 = edited("llama", json!({ "original_max_position_embeddings": 8 }));
    assert_last_logits(&llama3, [-0.132316, 0.132918, 0.226393, -0.4116]);
    let yarn = json!({ "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32 });
    let yarn = edited("llama", json!({ "original_max_position_embeddings": 8, "rope_parameters": yarn }));
    assert_last_logits(&yarn, [0.780974, 0.148105, 1.434792, -0.646007]);
}

#[test]
fn what_phi_3_calls_yarn_is_longrope() {
    let scaling = json!({ "type": "yarn", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.0, 4.0] });
    let base = edited("phi3", json!({ "rope_parameters": null, "rope_theta": 10000.0, "rope_scaling": scaling }));
    assert_last_logits(&base, [0.199388, 0.212658, -1.814241, 0.153655]);
}

#[test]
fn a_granite_4_may_name_its_layers_by_the_older_key() {
    let base = edited("granite4", json!({ "layer_types": null, "layers_block_type": ["attention", "attention"] }));
    assert_last_logits(&base, [-0.070544, -0.211093, 0.445366, -0.203676]);
}
