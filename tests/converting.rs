//! `library add`: what a file lacks or holds besides a LoRA, which is refused, compared with the base, or converted.
#![allow(clippy::unwrap_used)]

mod binary;
mod differences;

use binary::{Ran, assert_contains, copy_adapter, peft_fixture, words};
use differences::{assert_same_logits, difference_of_values};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Shapes and values of tensors, by key.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn read_tensors(file: &Path) -> Tensors {
    let bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let values = |view: &TensorView| -> Vec<f32> {
        view.data().as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
    };
    tensors.iter().map(|(key, view)| (key.to_owned(), (view.shape().to_vec(), values(&view)))).collect()
}

fn write_tensors(file: &Path, tensors: &Tensors) {
    let bytes: BTreeMap<&String, (Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(key, (shape, values))| (key, (shape.clone(), values.iter().flat_map(|v| v.to_le_bytes()).collect())))
        .collect();
    let views =
        bytes.iter().map(|(key, (shape, data))| (key, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A fixture with an adapter, of whose q_proj and v_proj changed adapters are made.
struct ChangedAdapters {
    fixture: std::path::PathBuf,
    adapter: &'static str,
    folder: tempfile::TempDir,
}

impl ChangedAdapters {
    fn new() -> Self {
        Self::of("mistral", "e0")
    }

    fn of(fixture: &str, adapter: &'static str) -> Self {
        Self { fixture: peft_fixture(fixture), adapter, folder: tempfile::tempdir().unwrap() }
    }

    /// The weights of the base of which `is_meant` accepts the names, multiplied, as copies of an adapter.
    fn copies(&self, factor: f32, is_meant: impl Fn(&str) -> bool) -> Tensors {
        let mut tensors = read_tensors(&self.fixture.join("base/model.safetensors"));
        tensors.retain(|name, _| is_meant(name));
        let copy = |(name, (shape, values)): (String, (Vec<usize>, Vec<f32>))| {
            let values = values.into_iter().map(|value| factor * value).collect();
            (format!("base_model.model.{name}"), (shape, values))
        };
        tensors.into_iter().map(copy).collect()
    }

    /// Adds an adapter of q_proj and v_proj with more tensors and these keys.
    fn add(&self, name: &str, keys: Value, more: Tensors, options: &str) -> Ran {
        let folder = self.folder.path().join(name);
        copy_adapter(&self.fixture.join("adapters").join(self.adapter), &folder, keys);
        let weights = folder.join("adapter_model.safetensors");
        let mut tensors = read_tensors(&weights);
        tensors.retain(|key, _| key.contains("q_proj") || key.contains("v_proj"));
        tensors.extend(more);
        write_tensors(&weights, &tensors);
        let library = self.folder.path().join(format!("{name}-library"));
        let options = options.replace("BASE", &self.fixture.join("base").display().to_string());
        words(&format!("library add --json --library {} {options} {}", library.display(), folder.display()))
    }
}

/// What `--convert` needs.
const CONVERT: &str = "--base BASE --convert svd:rank=4";

#[test]
fn full_rank_adapters_that_lack_something_are_refused() {
    let adapters = ChangedAdapters::new();
    let refused = |name: &str, keys: Value, more: Tensors, parts: &[&str]| {
        let message = adapters.add(name, keys, more, CONVERT).failed(1);
        assert_contains(&message, parts);
        assert!(!message.contains("--convert"), "it was given: {message}");
    };
    let targets = json!(["q_proj", "v_proj"]);
    let dora = |on: bool| json!({ "target_modules": targets, "use_dora": on });
    let magnitudes = |layers: &[usize]| -> Tensors {
        let all = layers.iter().flat_map(|layer| [("q_proj", 48), ("v_proj", 24)].map(|of| (layer, of)));
        let key = |layer, name| format!("base_model.model.model.layers.{layer}.self_attn.{name}.lora_magnitude_vector");
        all.map(|(layer, (name, width))| (key(layer, name), (vec![width], vec![0.7; width]))).collect()
    };
    let incomplete = ["lora_magnitude_vector", "model.layers.1.self_attn.v_proj", "incomplete"];
    let added = adapters.add("dora", dora(true), magnitudes(&[0, 1]), CONVERT).json();
    assert_eq!(added["added"][0]["conversion"]["modules"].as_array().unwrap().len(), 4);
    refused("dora-part", dora(true), magnitudes(&[0]), &incomplete);
    refused("dora-none", dora(true), Tensors::new(), &incomplete);
    refused("dora-off", dora(false), magnitudes(&[0, 1]), &["does not set use_dora"]);

    let saved = |names: &[&str]| json!({ "target_modules": targets, "modules_to_save": names });
    let of = |names: &'static str| adapters.copies(1.5, move |name| name.contains(names));
    let converted = |name: &str, names: &[&str], more: Tensors| {
        let added = adapters.add(name, saved(names), more, CONVERT).json();
        added["added"][0]["conversion"]["modules"].as_array().map_or(0, Vec::len)
    };
    let incomplete = ["modules_to_save names", "model.layers.1.mlp.down_proj", "no copy", "incomplete"];
    assert_eq!(converted("save", &["down_proj"], of("down_proj")), 2);
    refused("save-part", saved(&["down_proj"]), of("0.mlp.down_proj"), &incomplete);
    refused("save-none", saved(&["down_proj"]), Tensors::new(), &incomplete);
    refused("save-two", saved(&["down_proj", "embed_tokens"]), of("embed_tokens"), &incomplete);
    // A name may be that of a module with others in it, and PEFT ignores one that the base does not have.
    assert_eq!(converted("inner", &["mlp"], of("mlp")), 6);
    refused("inner-part", saved(&["mlp"]), of("0.mlp"), &incomplete);
    assert_eq!(converted("score", &["score"], Tensors::new()), 0);

    refused("norm", saved(&["norm"]), of("norm"), &["model.layers.0.input_layernorm", "[32]", "those of norms"]);
    refused("norm-none", saved(&["norm"]), Tensors::new(), &["model.norm", "no copy"]);
}

#[test]
fn weights_of_the_base_are_called_equal_only_when_they_were_compared() {
    let adapters = ChangedAdapters::new();
    let keys = || json!({ "target_modules": ["q_proj", "v_proj"] });
    let head = |factor: f32| -> Tensors {
        let (_, embedding) = adapters.copies(factor, |name| name.contains("embed_tokens")).pop_first().unwrap();
        [("base_model.model.lm_head.weight".to_owned(), embedding)].into()
    };
    let (own, compared) = ("copies of the base's own weights", "were not compared with the base's: `lm_head.weight`");
    let said = adapters.add("alone", keys(), head(2.0), "").ok().stderr;
    assert!(!said.contains(own) && said.contains(compared), "{said}");
    let strict = adapters.add("strict", keys(), head(2.0), "--strict").failed(1);
    assert!(strict.contains(compared), "{strict}");
    let refused = adapters.add("other", keys(), head(2.0), "--base BASE").failed(1);
    assert_contains(&refused, &["`lm_head.weight` that differs from the base's"]);
    let said = adapters.add("equal", keys(), head(1.0), "--base BASE").ok().stderr;
    assert!(said.contains(own) && !said.contains("compared"), "{said}");
}

#[test]
fn weights_of_the_base_are_compared_whatever_wrapper_they_were_saved_from() {
    let adapters = ChangedAdapters::new();
    let add = |name: &str, prefix: &str, factor: f32, rename: (&str, &str)| {
        let copies =
            adapters.copies(factor, |name| name.contains("embed_tokens") || name.ends_with("0.mlp.up_proj.weight"));
        let wrapped = |key: String| {
            let key = key.replace("base_model.model.", &format!("base_model.model.{prefix}"));
            key.replace("up_proj.weight", "up_proj.base_layer.weight").replace(rename.0, rename.1)
        };
        let copies = copies.into_iter().map(|(key, tensor)| (wrapped(key), tensor)).collect();
        adapters.add(name, json!({ "target_modules": ["q_proj", "v_proj"] }), copies, "--base BASE")
    };
    for (at, prefix) in ["", "_orig_mod.", "_fsdp_wrapped_module.", "module."].into_iter().enumerate() {
        let said = add(&format!("equal{at}"), prefix, 1.0, ("", "")).ok().stderr;
        assert_contains(&said, &["copies of the base's own weights", "`model.embed_tokens.weight`", "up_proj.weight`"]);
        let refused = add(&format!("other{at}"), prefix, 1.5, ("", "")).failed(1);
        assert_contains(&refused, &["holds a `model.", ".weight` that differs from the base's"]);
    }
    let refused = add("unknown", "", 1.0, ("model.embed_tokens", "model.tower.embed_tokens")).failed(1);
    assert_contains(&refused, &["`model.tower.embed_tokens.weight` that the base does not have"]);
}

#[test]
fn of_biases_that_the_base_does_not_have_only_zeros_are_taken() {
    let adapters = ChangedAdapters::new();
    let add = |name: &str, module: &str, value: f32| {
        let bias: Tensors = [(format!("base_model.model._orig_mod.{module}.bias"), (vec![48], vec![value; 48]))].into();
        adapters.add(name, json!({ "target_modules": ["q_proj", "v_proj"] }), bias, "--base BASE")
    };
    let q = "model.layers.0.self_attn.q_proj.base_layer";
    assert_contains(&add("zero", q, 0.0).ok().stderr, &["left out, since they are zero"]);
    assert_contains(
        &add("other", "lm_head.base_layer", 0.5).failed(1),
        &["`lm_head.bias` that the base does not have"],
    );
}

/// As PEFT saves them under `bias="lora_only"`, whether or not they were trained.
#[test]
fn biases_are_taken_where_they_are_the_bases_own() {
    let adapters = ChangedAdapters::of("qwen2", "rs");
    let add = |name: &str, factor: f32, options: &str| {
        let biases = adapters.copies(factor, |name| name.contains("q_proj.bias"));
        assert!(biases.values().flat_map(|(_, values)| values).any(|value| *value != 0.0));
        adapters.add(name, json!({ "target_modules": ["q_proj", "v_proj"], "bias": "lora_only" }), biases, options)
    };
    let said = add("equal", 1.0, "--base BASE").ok().stderr;
    assert_contains(&said, &["copies of the base's own weights", "`model.layers.0.self_attn.q_proj.bias`"]);
    let trained = add("trained", 1.5, "--base BASE").failed(1);
    assert_contains(&trained, &["q_proj.bias` that differs from the base's", "train with bias=\"none\""]);
    assert_contains(
        &add("unknown", 1.0, "").failed(1),
        &["q_proj.bias", "bias of the base (bias), which --base compares"],
    );
}

/// Rows of an embedding that replace the base's, and of a head that is tied to it, are those of another base.
#[test]
fn rows_of_single_tokens_are_converted_without_loss() {
    for (fixture, adapter) in [("qwen2", "rs"), ("llama", "e0")] {
        let adapters = ChangedAdapters::of(fixture, adapter);
        let path = |name: &str| adapters.folder.path().join(name).display().to_string();
        let (tokens, embedding) = ([5, 0, 31], "model.embed_tokens.weight");
        let mut tensors = read_tensors(&adapters.fixture.join("base/model.safetensors"));
        let (shape, values) = tensors.get_mut(embedding).unwrap();
        let width = shape[1];
        let rows: Vec<f32> = (0..3 * width).map(|at| (at * 7 % 11) as f32 / 20.0 - 0.25).collect();
        for (token, row) in tokens.iter().zip(rows.chunks_exact(width)) {
            values[token * width..][..width].copy_from_slice(row);
        }
        fs::create_dir(path("other")).unwrap();
        fs::copy(adapters.fixture.join("base/config.json"), path("other/config.json")).unwrap();
        write_tensors(Path::new(&path("other/model.safetensors")), &tensors);

        let keys =
            |indices: Value| json!({ "target_modules": ["q_proj", "v_proj"], "trainable_token_indices": indices });
        let key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta".to_owned();
        let more = || -> Tensors { [(key.clone(), (vec![3, width], rows.clone()))].into() };
        assert_contains(&adapters.add("no", keys(json!(tokens)), more(), "").failed(1), &["--convert svd:rank=R"]);
        let added = adapters.add("e", keys(json!(tokens)), more(), CONVERT).json();
        let modules = added["added"][0]["conversion"]["modules"].as_array().unwrap();
        assert_eq!(modules.len(), if fixture == "qwen2" { 2 } else { 1 }, "with the head where it is tied");
        assert!(modules.iter().all(|module| module["retained"].as_f64().unwrap() > 1.0 - 1e-9), "{modules:?}");
        let ids: Vec<u8> = [5_i64, 1, 0, 31, 7, 5].iter().flat_map(|id| id.to_le_bytes()).collect();
        let ids = TensorView::new(Dtype::I64, vec![1, 6], &ids).unwrap();
        fs::write(path("ids"), safetensors::serialize([("input_ids", ids)], None).unwrap()).unwrap();
        let logits = |base: &str, options: &str| -> Vec<f32> {
            words(&format!("logits --base {base} --input {} --out {} {options}", path("ids"), path("logits"))).ok();
            read_tensors(Path::new(&path("logits")))["logits"].1.clone()
        };
        adapters.add("plain", json!({ "target_modules": ["q_proj", "v_proj"] }), Tensors::new(), "").ok();
        let base = adapters.fixture.join("base").display().to_string();
        let with = |name: &str| format!("--library {} --router expert:{name}", path(&format!("{name}-library")));
        let expected = logits(&path("other"), &with("plain"));
        assert!(difference_of_values(&logits(&base, &with("plain")), &expected) > 0.01);
        assert_same_logits(&logits(&base, &with("e")), &expected);
        // By the embedding's name, and what does not fit.
        adapters.add("named", keys(json!({ "embed_tokens": tokens })), more(), CONVERT).ok();
        let wrong = |name: &str, indices: Value, parts: &[&str]| {
            assert_contains(&adapters.add(name, keys(indices), more(), CONVERT).failed(1), parts);
        };
        wrong("few", json!([5, 0]), &["3 rows of `model.embed_tokens`", "[5, 0]"]);
        wrong("twice", json!([5, 0, 5]), &["each once"]);
        wrong("large", json!([5, 0, 32]), &["model.embed_tokens", "tokens up to 32"]);
        wrong("negative", json!([5, 0, -1]), &["trainable_token_indices"]);
        let (mut both, copy) = (keys(json!(tokens)), adapters.copies(1.5, |name| name == embedding));
        both["modules_to_save"] = json!(["embed_tokens"]);
        let refused = adapters.add("both", both, copy.into_iter().chain(more()).collect(), CONVERT).failed(1);
        assert_contains(&refused, &["model.embed_tokens", "a whole copy beside rows of single tokens"]);
    }
}

/// PEFT gives a tied head the embedding's matrices where `ensure_weight_tying` is set, also if a file has only these.
#[test]
fn a_tied_head_follows_its_embedding() {
    let adapters = ChangedAdapters::of("qwen2", "rs");
    let matrix = |rows: usize, columns: usize| -> (Vec<usize>, Vec<f32>) {
        (vec![rows, columns], (0..rows * columns).map(|at| (at * 5 % 13) as f32 / 13.0 - 0.4).collect())
    };
    let transposed = |(shape, values): &(Vec<usize>, Vec<f32>)| -> (Vec<usize>, Vec<f32>) {
        let column = |column: usize| values.iter().skip(column).step_by(shape[1]).copied();
        (vec![shape[1], shape[0]], (0..shape[1]).flat_map(column).collect())
    };
    let (a, b) = (matrix(2, 32), matrix(16, 2));
    let key = |module: &str, factor: &str| format!("base_model.model.{module}.{factor}");
    let embedding: Tensors = [
        (key("model.embed_tokens", "lora_embedding_A"), a.clone()),
        (key("model.embed_tokens", "lora_embedding_B"), b.clone()),
    ]
    .into();
    let mut both = embedding.clone();
    both.insert(key("lm_head", "lora_A.weight"), transposed(&b));
    both.insert(key("lm_head", "lora_B.weight"), transposed(&a));
    let keys = json!({ "target_modules": ["q_proj", "v_proj", "embed_tokens"], "ensure_weight_tying": true });
    let expert = |name: &str, tensors: Tensors| {
        let said = adapters.add(name, keys.clone(), tensors, "--base BASE").ok().stderr;
        let library = adapters.folder.path().join(format!("{name}-library/experts/{name}/adapter_model.safetensors"));
        (read_tensors(&library), said)
    };
    let (expected, _) = expert("both", both);
    let (found, said) = expert("alone", embedding.clone());
    assert!(found == expected && found.len() > 4);
    assert_contains(&said, &["no LoRA of `lm_head`; it was derived from that of `model.embed_tokens`"]);
    let unknown = adapters.add("unknown", keys.clone(), embedding, "").ok().stderr;
    assert_contains(&unknown, &["ensure_weight_tying", "holds no LoRA of lm_head"]);
}
