//! Adapters of the embedding and the head, what their files hold besides, and weights in several files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lorakit_adapter::{Adapter, AdapterMetadata, BaseModule, CONFIG_FILE, ModuleKind, WEIGHTS_FILE};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

use crate::{chain, random_update};

const EMBEDDING: &str = "model.embed_tokens";
const Q: &str = "model.layers.0.self_attn.q_proj";

/// The modules of a base with 6 features and 9 tokens.
fn base() -> Vec<BaseModule> {
    let module = |path: &str, input, output, kind| BaseModule { path: path.to_owned(), input, output, kind };
    vec![
        module(Q, 6, 6, ModuleKind::Linear),
        module(EMBEDDING, 9, 6, ModuleKind::Embedding),
        module("lm_head", 6, 9, ModuleKind::LmHead),
    ]
}

/// An adapter of all three modules.
fn adapter() -> Adapter {
    let modules = [
        (Q.to_owned(), random_update(1, 2, 6, 6, 2.0)),
        (EMBEDDING.to_owned(), random_update(2, 2, 9, 6, 2.0)),
        ("lm_head".to_owned(), random_update(3, 2, 6, 9, 2.0)),
    ];
    let metadata = AdapterMetadata { embeddings: [EMBEDDING.to_owned()].into(), ..AdapterMetadata::default() };
    Adapter::new(modules.into()).with_metadata(metadata).with_target_names(&base())
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn tensors(folder: &Path) -> Tensors {
    let bytes = fs::read(folder.join(WEIGHTS_FILE)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let owned = |(key, view): (&str, TensorView)| (key.to_owned(), (view.shape().to_vec(), view.data().to_vec()));
    file.iter().map(owned).collect()
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let views =
        tensors.iter().map(|(key, (shape, bytes))| (key, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn f32s(shape: &[usize], value: f32) -> (Vec<usize>, Vec<u8>) {
    (shape.to_vec(), value.to_le_bytes().repeat(shape.iter().product()))
}

/// The adapter's folder after a change of its tensors and its config.
fn changed(change: impl FnOnce(&mut Tensors, &mut Value)) -> tempfile::TempDir {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("a");
    adapter().write(&folder).unwrap();
    let config = folder.join(CONFIG_FILE);
    let (mut stored, mut keys) = (tensors(&folder), serde_json::from_slice(&fs::read(&config).unwrap()).unwrap());
    change(&mut stored, &mut keys);
    write_tensors(&folder.join(WEIGHTS_FILE), &stored);
    fs::write(config, keys.to_string()).unwrap();
    temporary
}

fn read(folder: &tempfile::TempDir) -> Result<Adapter, String> {
    Adapter::read(&folder.path().join("a")).map_err(chain)
}

#[test]
fn an_embedding_has_the_names_that_peft_gives_it() {
    let folder = changed(|tensors, config| {
        let own: Vec<&str> = tensors.keys().map(String::as_str).filter(|key| key.contains("embed")).collect();
        assert_eq!(own, ["A", "B"].map(|factor| format!("base_model.model.{EMBEDDING}.lora_embedding_{factor}")));
        assert_eq!(config["target_modules"], json!(["embed_tokens", "lm_head", "q_proj"]));
    });
    let again = read(&folder).unwrap();
    assert_eq!((again.modules(), again.metadata()), (adapter().modules(), adapter().metadata()));
    again.check_against(&base()).unwrap();
    let mut other = base();
    other[1].kind = ModuleKind::Linear;
    assert!(again.check_against(&other).unwrap_err().to_string().contains("an embedding in the adapter"));
}

#[test]
fn all_linear_leaves_embedding_and_head_out() {
    let folder = changed(|tensors, config| {
        tensors.retain(|key, _| key.contains("q_proj"));
        config["target_modules"] = json!("all-linear");
    });
    read(&folder).unwrap().check_against(&base()).unwrap();
}

#[test]
fn the_head_of_a_tied_embedding_needs_no_target_name() {
    let tied = |tying: bool| {
        changed(|_, config| {
            config["target_modules"] = json!(["embed_tokens", "q_proj"]);
            config["ensure_weight_tying"] = tying.into();
        })
    };
    let untied = read(&tied(false)).unwrap();
    assert!(untied.modules().len() == 2 && untied.warnings()[0].text.contains("lm_head"), "{:?}", untied.warnings());
    let adapter = read(&tied(true)).unwrap();
    assert_eq!(adapter.modules().len(), 3);
    adapter.check_against(&base()).unwrap();
    let again = tempfile::tempdir().unwrap();
    adapter.write(&again.path().join("a")).unwrap();
    assert_eq!(read(&again).unwrap().modules().len(), 3);
}

#[test]
fn the_bases_own_tensors_and_zero_biases_are_set_aside() {
    let folder = changed(|tensors, config| {
        config["bias"] = "all".into();
        config["lora_bias"] = true.into();
        tensors.insert(format!("base_model.model.{EMBEDDING}.base_layer.weight"), f32s(&[9, 6], 0.5));
        tensors.insert("base_model.model.lm_head.weight".to_owned(), f32s(&[9, 6], 0.25));
        tensors.insert("base_model.model.lm_head.base_layer.bias".to_owned(), f32s(&[9], 0.75));
        tensors.insert(format!("base_model.model.{Q}.base_layer.bias"), f32s(&[6], 0.0));
        tensors.insert(format!("base_model.model.{Q}.lora_B.bias"), f32s(&[6], -0.0));
    });
    let read = read(&folder).unwrap();
    assert_eq!(read.modules(), adapter().modules());
    let own: Vec<(&str, f32)> =
        read.base_tensors().iter().map(|(name, values)| (name.as_str(), values.values()[0])).collect();
    let bias = format!("{Q}.bias");
    assert_eq!(
        own,
        [("lm_head.bias", 0.75), ("lm_head.weight", 0.25), ("model.embed_tokens.weight", 0.5), (bias.as_str(), 0.0)]
    );
    let subjects: Vec<&str> = read.warnings().iter().map(|warning| warning.subject.as_str()).collect();
    assert_eq!(subjects, ["bias", "lora_bias", "bias", "base_layer"]);
}

#[test]
fn tensors_of_a_wrapped_base_have_its_own_names_and_none_twice() {
    let keys = |more: &[&str]| {
        changed(|tensors, _| {
            more.iter().for_each(|key| drop(tensors.insert(format!("base_model.model.{key}"), f32s(&[9, 6], 0.5))));
        })
    };
    let names = |key: &str| read(&keys(&[key])).unwrap().base_tensors().keys().cloned().collect::<Vec<_>>();
    for prefix in ["_orig_mod.", "module.", "_fsdp_wrapped_module."] {
        assert_eq!(names(&format!("{prefix}model.embed_tokens.weight")), ["model.embed_tokens.weight"]);
    }
    let within = "model.language_model.embed_tokens.weight";
    assert_eq!(names("language_model.model.embed_tokens.base_layer.weight"), [within]);
    assert_eq!(names("language_model.lm_head.weight"), ["lm_head.weight"]);
    let twice = read(&keys(&["lm_head.weight", "module.lm_head.weight"])).unwrap_err();
    assert!(twice.contains("`lm_head.weight`, which the file holds twice"), "{twice}");
}

#[test]
fn biases_that_hold_something_are_refused_by_name() {
    for (key, meaning) in [("base_layer.bias", "bias of the base itself"), ("lora_B.bias", "lora_bias")] {
        let key = format!("base_model.model.{Q}.{key}");
        let folder = changed(|tensors, _| drop(tensors.insert(key.clone(), f32s(&[6], 1e-9))));
        let message = read(&folder).unwrap_err();
        assert!(message.contains(&key) && message.contains(meaning), "{message}");
    }
}

#[test]
fn weights_in_several_files_are_read_as_one() {
    let folder = changed(|_, _| {});
    let inner = folder.path().join("a");
    let all = tensors(&inner);
    fs::remove_file(inner.join(WEIGHTS_FILE)).unwrap();
    let (mut first, mut second) = (all.clone(), all);
    first.retain(|key, _| key.contains("layers"));
    second.retain(|key, _| !key.contains("layers"));
    write_tensors(&inner.join("adapter_model-00001-of-00002.safetensors"), &first);
    assert!(read(&folder).unwrap_err().contains("adapter_model-00002-of-00002.safetensors"));
    write_tensors(&inner.join("adapter_model-00002-of-00002.safetensors"), &second);
    assert_eq!(read(&folder).unwrap().modules(), adapter().modules());
}
