//! Model folders whose config disagrees with itself or with the weights are read as transformers 5 reads them.
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/differences/mod.rs"]
mod differences;

use candle_core::{DType, Device, Tensor, safetensors};
use differences::largest_difference;
use lorakit_format::rng::Key;
use lorakit_lora::{Patches, SequenceBatch};
use lorakit_model::sampling::{Sampler, SamplingOptions};
use lorakit_model::weights::INDEX_FILE;
use lorakit_model::{Base, BaseConfig, BaseOptions, Checkpoint};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

const IDS: [u32; 20] = [3, 9, 27, 19, 5, 11, 30, 4, 12, 7, 21, 8, 17, 29, 6, 13, 10, 22, 14, 31];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/peft").join(name).join("base")
}

fn config(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(name).join("config.json")).unwrap()).unwrap()
}

fn tensors(name: &str) -> HashMap<String, Tensor> {
    safetensors::load(fixture(name).join("model.safetensors"), &Device::Cpu).unwrap()
}

fn write(folder: &Path, config: &Value, tensors: &HashMap<String, Tensor>) {
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    safetensors::save(tensors, folder.join("model.safetensors")).unwrap();
}

fn open(folder: &Path) -> Base {
    Base::open(folder, &BaseOptions::default()).unwrap()
}

fn logits(base: &Base) -> Tensor {
    base.logits(&IDS, SequenceBatch::packed([IDS.len()]), &Patches::none()).unwrap()
}

#[test]
fn a_head_in_the_file_that_differs_from_the_embedding_is_not_tied() {
    let (folder, mut tensors) = (tempfile::tempdir().unwrap(), tensors("mistral"));
    let embedding = tensors["model.embed_tokens.weight"].clone();
    let tied = open(&fixture("mistral"));
    write(folder.path(), &config("mistral"), &tensors);
    let without_head = open(folder.path());
    for (factor, warnings) in [(1.0, 0), (2.0, 1)] {
        tensors.insert("lm_head.weight".to_owned(), (&embedding * factor).unwrap());
        write(folder.path(), &config("mistral"), &tensors);
        let base = open(folder.path());
        assert_eq!((base.config().tied, base.config().warnings.len()), (factor == 1.0, warnings));
        assert!(largest_difference(&logits(&base), &(logits(&tied) * factor).unwrap()) < 1e-5);
        // A head that is the embedding is counted once.
        let head = if factor == 1.0 { 0 } else { embedding.elem_count() as u64 };
        assert_eq!(base.parameters(), without_head.parameters() + head);
        // The file's header has an entry more.
        let header = base.weight_bytes() - without_head.weight_bytes() - 4 * head;
        assert!(header < 128, "{header}");
    }
    let base = open(folder.path());
    let message = &base.config().warnings[0];
    assert!(message.contains("model.safetensors") && message.contains("`lm_head.weight` differs"), "{message}");
}

/// Writes the base of a folder again, as when an adapter is merged into it; its logits and the names of its tensors.
fn written_again(folder: &Path) -> (Tensor, Vec<String>) {
    let again = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(folder).unwrap();
    checkpoint.write_edited(again.path(), &BTreeSet::new(), &mut |_, _| Ok(())).unwrap();
    fs::copy(folder.join("config.json"), again.path().join("config.json")).unwrap();
    let mut names: Vec<String> =
        safetensors::load(again.path().join("model.safetensors"), &Device::Cpu).unwrap().into_keys().collect();
    names.sort();
    (logits(&open(again.path())), names)
}

fn sorted_names(name: &str) -> Vec<String> {
    let mut names: Vec<String> = tensors(name).into_keys().collect();
    names.sort();
    names
}

#[test]
fn weights_that_automodel_saved_are_those_of_the_whole_model() {
    for name in ["mistral", "llama"] {
        let folder = tempfile::tempdir().unwrap();
        let bare = |(name, tensor): (String, Tensor)| (name.trim_start_matches("model.").to_owned(), tensor);
        let mut bare: HashMap<String, Tensor> = tensors(name).into_iter().map(bare).collect();
        write(folder.path(), &config(name), &bare);
        let expected = logits(&open(&fixture(name)));
        assert_eq!(largest_difference(&logits(&open(folder.path())), &expected), 0.0);
        let (again, names) = written_again(folder.path());
        assert_eq!((largest_difference(&again, &expected), names), (0.0, sorted_names(name)));
        if bare.remove("lm_head.weight").is_some() {
            write(folder.path(), &config(name), &bare);
            let error = Base::open(folder.path(), &BaseOptions::default()).err().unwrap().to_string();
            assert!(error.contains("`lm_head.weight` is missing") && error.contains("AutoModel does not"), "{error}");
        }
    }
}

#[test]
fn one_weight_of_embedding_and_head_may_have_the_name_of_the_head() {
    let (folder, mut tensors) = (tempfile::tempdir().unwrap(), tensors("mistral"));
    let embedding = tensors.remove("model.embed_tokens.weight").unwrap();
    tensors.insert("lm_head.weight".to_owned(), embedding);
    write(folder.path(), &config("mistral"), &tensors);
    let expected = logits(&open(&fixture("mistral")));
    assert_eq!(largest_difference(&logits(&open(folder.path())), &expected), 0.0);
    let (again, names) = written_again(folder.path());
    assert_eq!((largest_difference(&again, &expected), names), (0.0, sorted_names("mistral")));
}

/// Shards in a subfolder, both with one of the tensors.
#[test]
fn a_tensor_may_be_in_two_shards_with_the_same_values() {
    let (folder, again, all) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tensors("mistral"));
    let shards = folder.path().join("w");
    fs::create_dir(&shards).unwrap();
    let norm = "model.norm.weight";
    let is_first = |name: &str| name.contains("layers.0.");
    let save = |factor: f64| {
        for (file, first) in [("1.safetensors", true), ("2.safetensors", false)] {
            let own = all.iter().filter(|(name, _)| is_first(name) == first || *name == norm);
            let scale = if first { factor } else { 1.0 };
            let own = own.map(|(name, tensor)| {
                (name.clone(), if name == norm { (tensor * scale).unwrap() } else { tensor.clone() })
            });
            safetensors::save(&own.collect::<HashMap<_, _>>(), shards.join(file)).unwrap();
        }
    };
    let place = |name: &String| if is_first(name) { "w/1.safetensors" } else { "w/2.safetensors" };
    let map: HashMap<&String, &str> = all.keys().map(|name| (name, place(name))).collect();
    let index = |map: Value| fs::write(folder.path().join(INDEX_FILE), json!({"weight_map": map}).to_string()).unwrap();
    index(json!(map));
    fs::write(folder.path().join("config.json"), config("mistral").to_string()).unwrap();
    save(1.0);
    let expected = logits(&open(&fixture("mistral")));
    assert_eq!(largest_difference(&logits(&open(folder.path())), &expected), 0.0);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    checkpoint.write_edited(again.path(), &BTreeSet::new(), &mut |_, _| Ok(())).unwrap();
    let written: usize = ["1.safetensors", "2.safetensors"]
        .map(|file| safetensors::load(again.path().join(file), &Device::Cpu).unwrap().len())
        .iter()
        .sum();
    assert_eq!(written, all.len());
    let bytes: usize = all.values().map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum();
    assert_eq!(checkpoint.written_bytes(), bytes as u64, "the norm counts once");
    save(2.0);
    let refusal = || Checkpoint::open(folder.path()).err().unwrap().to_string();
    assert!(refusal().contains("with other values"), "{}", refusal());
    index(json!({"a": "../w/1.safetensors"}));
    assert!(refusal().contains("is not the path of a file within the folder"), "{}", refusal());
}

#[test]
fn numbers_that_only_python_reads_are_as_null() {
    let plain = config("granite4").to_string();
    let more = plain.replacen('{', r#"{"limits": [0.0, Infinity], "lower": -Infinity, "not_a_number": NaN, "#, 1);
    let [plain, more] = [plain, more].map(|json| BaseConfig::parse(&json, "config.json").unwrap());
    assert_eq!(plain, more);
}

fn rope_of(change: impl FnOnce(&mut Value)) -> BaseConfig {
    let mut config = config("llama");
    change(&mut config);
    BaseConfig::parse(&config.to_string(), "config.json").unwrap()
}

#[test]
fn llama3_scaling_without_an_original_length_has_that_of_all_positions() {
    let without = rope_of(|config| {
        config["rope_parameters"].as_object_mut().unwrap().remove("original_max_position_embeddings");
    });
    let with = rope_of(|config| {
        config["rope_parameters"]["original_max_position_embeddings"] = config["max_position_embeddings"].clone();
    });
    assert_eq!(without, with);
    assert_ne!(without.attention, rope_of(|_| ()).attention);
}

#[test]
fn rope_scaling_and_the_flat_keys_go_before_rope_parameters() {
    let scaling = json!({ "type": "linear", "factor": 3.0 });
    let both = rope_of(|config| config["rope_scaling"] = scaling.clone());
    let alone = rope_of(|config| {
        config.as_object_mut().unwrap().remove("rope_parameters");
        config["rope_scaling"] = scaling.clone();
    });
    assert_eq!(both.attention, alone.attention);
    assert!(both.warnings[0].contains("`rope_scaling` and `rope_parameters` are both there"), "{:?}", both.warnings);
    // An empty one says nothing.
    assert_eq!(rope_of(|config| config["rope_scaling"] = json!({})), rope_of(|_| ()));
}

/// The fixture's config has a soft cap of scores, and its logits are those of transformers.
#[test]
fn gemma_3_does_not_cap_its_scores_and_says_so() {
    let capped = BaseConfig::parse(&config("gemma3").to_string(), "config.json").unwrap();
    let mut json = config("gemma3");
    json["attn_logit_softcapping"] = Value::Null;
    let plain = BaseConfig::parse(&json.to_string(), "config.json").unwrap();
    assert_eq!((capped.scales, plain.warnings.len()), (plain.scales, 0));
    assert!(capped.warnings[0].contains("`attn_logit_softcapping` is 6.0"), "{:?}", capped.warnings);
}

/// The text model of a multimodal folder, by the names of transformers 5 and by those before.
#[test]
fn the_text_model_of_a_multimodal_folder_equals_the_text_model_alone() {
    let alone = logits(&open(&fixture("gemma3")));
    let text = config("gemma3");
    for (prefix, vision) in
        [("model.language_model.", "model.vision_tower."), ("language_model.model.", "vision_tower.")]
    {
        let folder = tempfile::tempdir().unwrap();
        let renamed = tensors("gemma3").into_iter().map(|(name, tensor)| (name.replacen("model.", prefix, 1), tensor));
        let mut renamed: HashMap<String, Tensor> = renamed.collect();
        let weight = Tensor::ones((7, 5), DType::F32, &Device::Cpu).unwrap();
        renamed.insert(format!("{vision}embeddings.weight"), weight);
        write(folder.path(), &json!({ "model_type": "gemma3", "text_config": text, "vision_config": {} }), &renamed);
        let base = open(folder.path());
        assert_eq!(largest_difference(&logits(&base), &alone), 0.0);
        assert_eq!(base.parameters(), open(&fixture("gemma3")).parameters());
        assert_eq!(base.modules()[0].path, "model.language_model.layers.0.self_attn.q_proj");
        let warnings = &base.config().warnings;
        assert!(warnings.iter().any(|warning| warning.contains("only the text model is used")), "{warnings:?}");
        let trainable = BaseOptions { trainable: true, ..BaseOptions::default() };
        let trained = Base::open(folder.path(), &trainable).unwrap();
        let text: Vec<&str> = trained.variables().iter().map(|(name, _)| name.as_str()).collect();
        assert!(text.iter().all(|name| name.starts_with("model.language_model.")), "{text:?}");
    }
}

#[test]
fn a_value_that_is_not_a_number_is_an_error_when_text_is_generated() {
    let (folder, mut tensors) = (tempfile::tempdir().unwrap(), tensors("llama"));
    let norm = tensors["model.norm.weight"].to_vec1::<f32>().unwrap();
    let broken: Vec<f32> = norm.iter().enumerate().map(|(i, &x)| if i == 3 { f32::NAN } else { x }).collect();
    tensors.insert("model.norm.weight".to_owned(), Tensor::new(broken, &Device::Cpu).unwrap());
    write(folder.path(), &config("llama"), &tensors);
    let (base, none) = (open(folder.path()), Patches::none());
    let mut decoder = lorakit_model::CachedDecoder::new(&base, &none, 4).unwrap();
    let row = decoder.open(4, lorakit_lora::Sequence::default()).unwrap();
    let logits: Vec<f32> = decoder.next_logits(&[(row, &[3, 4])]).unwrap().squeeze(0).unwrap().to_vec1().unwrap();
    let sampler = Sampler::new(SamplingOptions::default(), Key::new(0, "test"));
    let message = sampler.next(&logits, &[3, 4], 0).unwrap_err().to_string();
    assert!(message.contains("are NaN or infinite"), "{message}");
}
