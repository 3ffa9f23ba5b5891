//! Damaged and inconsistent adapters: each is refused, and the message names the tensor or key.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use lorakit_adapter::{Adapter, CONFIG_FILE, LowRank, WEIGHTS_FILE};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{chain, own_modules, small_adapter};

const Q0_A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const Q0_B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn f32s(shape: &[usize], value: f32) -> Stored {
    let count: usize = shape.iter().product();
    Stored { dtype: Dtype::F32, shape: shape.to_vec(), bytes: value.to_le_bytes().repeat(count) }
}

/// The folder of a valid adapter.
fn sound() -> TempDir {
    let temporary = tempfile::tempdir().unwrap();
    small_adapter(1).write(&temporary.path().join("a")).unwrap();
    temporary
}

fn change_tensors(folder: &Path, change: impl FnOnce(&mut HashMap<String, Stored>)) {
    let bytes = fs::read(folder.join(WEIGHTS_FILE)).unwrap();
    let mut tensors: HashMap<String, Stored> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(key, view)| {
            let stored = Stored { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
            (key.to_owned(), stored)
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(key, t)| (key, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    fs::write(folder.join(WEIGHTS_FILE), safetensors::serialize(views, None).unwrap()).unwrap();
}

fn change_config(folder: &Path, key: &str, value: Value) {
    let path = folder.join(CONFIG_FILE);
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

/// The error message of a valid adapter after `damage`.
fn message(damage: impl FnOnce(&Path)) -> String {
    let temporary = sound();
    let folder = temporary.path().join("a");
    damage(&folder);
    let message = chain(Adapter::read(&folder).unwrap_err());
    assert!(message.contains(folder.to_str().unwrap()), "{message}");
    message
}

#[track_caller]
fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn a_missing_factor_of_a_pair() {
    let message = message(|folder| change_tensors(folder, |tensors| drop(tensors.remove(Q0_B))));
    assert_names(&message, &[WEIGHTS_FILE, Q0_B, "missing"]);
}

/// The adapter that is left of a valid one after `change`, and what reading it warned about.
fn changed(change: impl FnOnce(&Path)) -> (Adapter, String) {
    let temporary = sound();
    let folder = temporary.path().join("a");
    change(&folder);
    let adapter = Adapter::read(&folder).unwrap();
    let warnings = adapter.warnings().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    (adapter, warnings)
}

/// What PEFT 0.21.2 loads with a warning or none is read with a warning.
#[test]
fn a_missing_module_that_other_layers_have() {
    let (adapter, warnings) = changed(|folder| {
        change_tensors(folder, |tensors| tensors.retain(|key, _| !key.contains("layers.1.self_attn.v_proj")));
    });
    assert_names(&warnings, &["model.layers.1.self_attn.v_proj", "no tensor"]);
    let error = chain(adapter.check_against(&own_modules(&small_adapter(1))).unwrap_err());
    assert_names(&error, &["model.layers.1.self_attn.v_proj", "no tensors"]);
}

#[test]
fn entries_of_target_modules_and_layers_without_tensors() {
    let (adapter, warnings) =
        changed(|folder| change_config(folder, "target_modules", json!(["q_proj", "v_proj", "query_key_value"])));
    assert_eq!(adapter.modules(), small_adapter(1).modules());
    assert_names(&warnings, &["target_modules `query_key_value`"]);
    let (adapter, warnings) = changed(|folder| change_config(folder, "layers_to_transform", json!([0, 1, 7, -1])));
    assert_eq!(adapter.modules(), small_adapter(1).modules());
    assert_names(&warnings, &["layers_to_transform -1", "layers_to_transform 7"]);
    let (_, warnings) = changed(|folder| {
        change_config(folder, "target_modules", json!(["q_proj", "v_proj", "o_proj"]));
        change_config(folder, "exclude_modules", json!(["o_proj"]));
    });
    assert_eq!(warnings, "", "what is excluded is not expected");
    let (_, warnings) = changed(|folder| change_config(folder, "layers_pattern", json!(["layers"])));
    assert_names(&warnings, &["layers_pattern", "without effect"]);
}

#[test]
fn patterns_that_match_nothing() {
    for key in ["rank_pattern", "alpha_pattern"] {
        let (adapter, warnings) = changed(|folder| change_config(folder, key, json!({"o_proj": 3})));
        assert_eq!(adapter.modules(), small_adapter(1).modules());
        assert_names(&warnings, &[key, "`o_proj` matches no module"]);
    }
}

/// PEFT leaves such tensors out without a word.
#[test]
fn tensors_that_the_configuration_does_not_select() {
    let only = |kept: &str, key: &str, value: Value| {
        let (adapter, warnings) = changed(|folder| change_config(folder, key, value));
        assert!(adapter.modules().len() == 2 && adapter.modules().keys().all(|path| path.contains(kept)), "{key}");
        assert_names(&warnings, &["does not select", "left out"]);
        warnings
    };
    assert_names(&only("q_proj", "target_modules", json!(["q_proj"])), &["model.layers.0.self_attn.v_proj"]);
    only("layers.1", "exclude_modules", json!(r"model\.layers\.0\..*"));
    only("layers.0", "layers_to_transform", json!([0]));
    let none = message(|folder| change_config(folder, "target_modules", json!(["o_proj"])));
    assert_names(&none, &["target_modules", "selects none", "model.layers.0.self_attn.q_proj"]);
}

#[test]
fn a_rank_that_the_tensors_do_not_have() {
    let message = message(|folder| change_config(folder, "r", json!(4)));
    assert_names(&message, &[Q0_A, "found shape [2, 6]", "expected [4, 6]"]);
    let pattern =
        self::message(|folder| change_config(folder, "rank_pattern", json!({"layers.1.self_attn.v_proj": 3})));
    assert_names(&pattern, &["layers.1.self_attn.v_proj.lora_A.weight", "expected [3, 6]"]);
    let other_factor = self::message(|folder| {
        change_tensors(folder, |tensors| drop(tensors.insert(Q0_B.into(), f32s(&[6, 3], 1.0))));
    });
    assert_names(&other_factor, &[Q0_B, "found shape [6, 3]", "expected [6, 2]"]);
}

#[test]
fn shapes_that_are_not_a_matrix() {
    for (shape, part) in [(&[2, 6, 1, 1][..], "convolution"), (&[12], "two dimensions"), (&[0, 6], "expected [2, 6]")] {
        let message = message(|folder| {
            change_tensors(folder, |tensors| drop(tensors.insert(Q0_A.into(), f32s(shape, 1.0))));
        });
        assert_names(&message, &[Q0_A, part]);
    }
}

#[test]
fn values_that_are_not_finite() {
    for (value, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let message = message(|folder| {
            change_tensors(folder, |tensors| drop(tensors.insert(Q0_B.into(), f32s(&[6, 2], value))));
        });
        assert_names(&message, &[Q0_B, name, "row 0, column 0"]);
    }
}

#[test]
fn values_of_another_type() {
    let message = message(|folder| {
        change_tensors(folder, |tensors| {
            let whole = Stored { dtype: Dtype::I64, shape: vec![2, 6], bytes: vec![0; 96] };
            tensors.insert(Q0_A.into(), whole);
        });
    });
    assert_names(&message, &[Q0_A, "I64", "F32"]);
}

#[test]
fn doubles_are_rounded() {
    let folder = sound();
    let inner = folder.path().join("a");
    let values = [1.0 / 3.0, -2.0, 1e-3, 0.1];
    let bytes: Vec<u8> = values.iter().cycle().take(12).flat_map(|value: &f64| value.to_le_bytes()).collect();
    change_tensors(&inner, |tensors| {
        tensors.insert(Q0_A.into(), Stored { dtype: Dtype::F64, shape: vec![2, 6], bytes });
    });
    let read = Adapter::read(&inner).unwrap();
    let a = read.modules()["model.layers.0.self_attn.q_proj"].a().values().into_owned();
    assert_eq!(a[..4], values.map(|value| value as f32));
}

#[test]
fn tensors_other_than_lora_factors() {
    for (key, part) in [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", "lora_bias"),
        ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias", "the base itself"),
        ("base_model.model.score.weight", "modules_to_save"),
    ] {
        let message = message(|folder| {
            change_tensors(folder, |tensors| drop(tensors.insert(key.into(), f32s(&[6], 1.0))));
        });
        assert_names(&message, &[key, part]);
    }
}

#[test]
fn a_folder_of_adapters_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let error = || Adapter::read(folder.path()).unwrap_err().to_string();
    for name in ["c", "a", "b"] {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("adapter_config.json"), "{}").unwrap();
        if name == "c" {
            assert_names(&error(), &["did you mean", "c`?"]);
        }
    }
    assert_names(&error(), &["3 folders with one", "a ... ", "c"]);
}

#[test]
fn several_adapters_or_two_tensors_of_one_name() {
    let several = message(|folder| {
        change_tensors(folder, |tensors| {
            let a = tensors[Q0_A].clone();
            tensors.insert(Q0_A.replace("lora_A", "lora_A.second"), a);
        });
    });
    assert_names(&several, &["second", "several adapters"]);
    let twice = message(|folder| {
        change_tensors(folder, |tensors| {
            let a = tensors[Q0_A].clone();
            tensors.insert(Q0_A.replace("base_model.model.", ""), a);
        });
    });
    assert_names(&twice, &["two tensors", Q0_A]);
}

fn rename(folder: &Path, renamed: impl Fn(&str) -> String) {
    change_tensors(folder, |tensors| {
        *tensors = tensors.drain().map(|(key, tensor)| (renamed(&key), tensor)).collect();
    });
}

#[test]
fn keys_without_prefix_or_with_the_adapters_name_are_read_with_a_warning() {
    for (from, to) in [("base_model.model.", ""), (".weight", ".default.weight")] {
        let (adapter, _) = changed(|folder| rename(folder, |key| key.replacen(from, to, 1)));
        assert_eq!(adapter.modules(), small_adapter(1).modules());
        assert_eq!(adapter.warnings().len(), 1);
    }
}

#[test]
fn keys_with_the_prefixes_of_wrappers_are_read_with_a_warning() {
    for (from, to, named) in [
        ("base_model.", "_orig_mod.base_model.", "torch.compile"),
        ("layers.", "_orig_mod.layers.", "torch.compile"),
        ("base_model.model.", "base_model.model._fsdp_wrapped_module.", "FSDP"),
        ("base_model.", "module.base_model.", "DistributedDataParallel"),
        ("base_model.model.", "base_model.model.base_model.model.", "twice"),
    ] {
        let (adapter, warnings) = changed(|folder| rename(folder, |key| key.replacen(from, to, 1)));
        assert_eq!(adapter.modules(), small_adapter(1).modules(), "{to}");
        assert_eq!(adapter.warnings().len(), 1, "{warnings}");
        assert_names(&warnings, &[named]);
    }
}

#[test]
fn the_language_model_of_a_multimodal_one_keeps_its_path_of_today() {
    for (tower, warned) in [("model.language_model.", false), ("language_model.model.", true)] {
        let (adapter, warnings) =
            changed(|folder| rename(folder, |key| key.replacen("model.layers.", &format!("{tower}layers."), 1)));
        let paths: Vec<String> =
            adapter.modules().keys().map(|path| path.replacen("model.language_model.", "model.", 1)).collect();
        assert_eq!(paths, small_adapter(1).modules().keys().cloned().collect::<Vec<_>>(), "{tower}");
        assert!(adapter.modules().keys().all(|path| path.starts_with("model.language_model.")), "{tower}");
        assert_eq!(adapter.warnings().len(), usize::from(warned), "{warnings}");
        assert_eq!(warnings.contains("multimodal"), warned, "{warnings}");
    }
}

/// The configuration was written for the paths in the file: they select, and patterns match them.
#[test]
fn renamed_modules_are_selected_by_their_paths_in_the_file() {
    let (adapter, _) = changed(|folder| {
        rename(folder, |key| key.replacen(".model.model.", ".model.language_model.model.", 1));
        change_config(folder, "target_modules", json!(r"language_model\.model\.layers\..*_proj"));
        change_config(folder, "alpha_pattern", json!({r"^language_model\.model\.layers\.0\..*": 6}));
    });
    let scales: Vec<f64> = adapter.modules().values().map(LowRank::scale).collect();
    assert_eq!(scales, [3.0, 3.0, 2.0, 2.0]);
    let temporary = tempfile::tempdir().unwrap();
    let again = temporary.path().join("again");
    adapter.write(&again).unwrap();
    assert_eq!(
        Adapter::read(&again).unwrap().modules().keys().collect::<Vec<_>>(),
        adapter.modules().keys().collect::<Vec<_>>()
    );
}

#[test]
fn sixteen_bit_tensors_are_read() {
    let temporary = sound();
    let folder = temporary.path().join("a");
    change_tensors(&folder, |tensors| {
        for tensor in tensors.values_mut() {
            let values = tensor.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            tensor.bytes = values.flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect();
            tensor.dtype = Dtype::BF16;
        }
    });
    let cosine = Adapter::read(&folder).unwrap().cosine(&small_adapter(1)).unwrap();
    assert!((cosine - 1.0).abs() < 1e-4, "{cosine}");
}

#[test]
fn a_truncated_file_or_a_wrong_header() {
    let whole = fs::read(sound().path().join("a").join(WEIGHTS_FILE)).unwrap();
    let mut long = u64::MAX.to_le_bytes().to_vec();
    long.extend(&whole[8..]);
    let mut large = (50_000_000u64).to_le_bytes().to_vec();
    large.extend(&whole[8..]);
    let huge = r#"{"x":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}"#;
    let mut overflowing = (huge.len() as u64).to_le_bytes().to_vec();
    overflowing.extend(huge.as_bytes());
    overflowing.extend([0; 8]);
    for bytes in [&[][..], &whole[..4], &whole[..100], &whole[..whole.len() - 1], &long, &large, &overflowing, &[0; 64]]
    {
        let message = message(|folder| fs::write(folder.join(WEIGHTS_FILE), bytes).unwrap());
        assert_names(&message, &[WEIGHTS_FILE]);
    }
}

#[test]
fn folders_that_hold_no_adapter_or_its_weights_in_another_form() {
    let no_config = message(|folder| fs::remove_file(folder.join(CONFIG_FILE)).unwrap());
    assert_names(&no_config, &["no adapter_config.json"]);
    let no_weights = message(|folder| fs::remove_file(folder.join(WEIGHTS_FILE)).unwrap());
    assert_names(&no_weights, &["no adapter_model.safetensors"]);
    let one_of_two = message(|folder| {
        fs::rename(folder.join(WEIGHTS_FILE), folder.join("adapter_model-00001-of-00002.safetensors")).unwrap();
    });
    assert_names(&one_of_two, &["adapter_model-00002-of-00002.safetensors", "missing"]);
    let pickle = message(|folder| fs::rename(folder.join(WEIGHTS_FILE), folder.join("adapter_model.bin")).unwrap());
    assert_names(&pickle, &["adapter_model.bin", "torch.save"]);
    let temporary = sound();
    let outside = chain(Adapter::read(temporary.path()).unwrap_err());
    assert_names(&outside, &["did you mean", temporary.path().join("a").to_str().unwrap()]);
    assert!(Adapter::read(&temporary.path().join("nowhere")).is_err());
}

#[test]
fn shards_are_read_together() {
    let (adapter, warnings) = changed(|folder| {
        let all = fs::read(folder.join(WEIGHTS_FILE)).unwrap();
        for (index, kept) in [(1, "layers.0"), (2, "layers.1")] {
            fs::write(folder.join(WEIGHTS_FILE), &all).unwrap();
            change_tensors(folder, |tensors| tensors.retain(|key, _| key.contains(kept)));
            let shard = format!("adapter_model-0000{index}-of-00002.safetensors");
            fs::rename(folder.join(WEIGHTS_FILE), folder.join(shard)).unwrap();
        }
    });
    assert_eq!((adapter.modules(), warnings.as_str()), (small_adapter(1).modules(), ""));
}

#[test]
fn an_exponential_pattern_is_stopped_quickly() {
    let started = std::time::Instant::now();
    let message = message(|folder| {
        change_tensors(folder, |tensors| {
            let long = "a".repeat(80);
            *tensors = tensors.drain().map(|(key, tensor)| (key.replace("self_attn", &long), tensor)).collect();
        });
        change_config(folder, "target_modules", json!(r"(?=m).*?((a+)+)+\2\.z"));
    });
    assert_names(&message, &["without nested repetition"]);
    assert!(started.elapsed().as_secs_f64() < 2.0);
}
