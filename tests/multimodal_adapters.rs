//! Adapters of a text model within a multimodal one: over it and over the text model alone, converted, and with what they
//! change in its image encoder.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;
mod differences;
mod gguf_converter;

use binary::{assert_contains, words};
use candle_core::safetensors::{load, save};
use candle_core::{DType, Device, Tensor};
use differences::largest_difference;
use gguf_converter::{GgufModel, Types};
use lorakit_adapter::{Adapter, CONFIG_FILE, WEIGHTS_FILE};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Writes pico in f32, and as the text model of a multimodal model, whose other tensors have a name alone.
fn write_both_forms(alone: &str, within: &str) {
    words(&format!("base write --out {alone}")).ok();
    fs::create_dir(within).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(format!("{alone}/{file}"), format!("{within}/{file}")).unwrap();
    }
    let config: Value = serde_json::from_slice(&fs::read(format!("{alone}/config.json")).unwrap()).unwrap();
    let config = json!({
        "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": config,
        "tie_word_embeddings": true, "vision_config": {},
    });
    fs::write(format!("{within}/config.json"), config.to_string()).unwrap();
    let path = format!("{alone}/model.safetensors");
    let tensors = load(&path, &Device::Cpu).unwrap().into_iter();
    let tensors: HashMap<String, Tensor> =
        tensors.map(|(name, tensor)| (name, tensor.to_dtype(DType::F32).unwrap())).collect();
    save(&tensors, &path).unwrap();
    let renamed =
        tensors.into_iter().map(|(name, tensor)| (name.replacen("model.", "language_model.model.", 1), tensor));
    let mut tensors: HashMap<String, Tensor> = renamed.collect();
    tensors.insert("vision_tower.weight".to_owned(), Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap());
    save(&tensors, format!("{within}/model.safetensors")).unwrap();
}

/// The adapter's files alone, without the record of its base.
fn copied(from: &str, to: String) -> String {
    fs::create_dir(&to).unwrap();
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        fs::copy(Path::new(from).join(file), Path::new(&to).join(file)).unwrap();
    }
    to
}

/// The logits of a base under these options.
fn logits(base: &str, options: &str, scratch: &Path) -> Tensor {
    let [ids, out] = ["ids", "logits"].map(|name| scratch.join(name).display().to_string());
    let all_ids: Vec<i64> = (0..40).map(|at| at * at * 7 % 99).collect();
    let tensor = Tensor::from_vec(all_ids, (2, 20), &Device::Cpu).unwrap();
    save(&HashMap::from([("input_ids".to_owned(), tensor)]), &ids).unwrap();
    words(&format!("logits --base {base} {options} --input {ids} --out {out}")).ok();
    load(out, &Device::Cpu).unwrap().remove("logits").unwrap()
}

#[test]
fn adapters_of_the_text_model_within_a_multimodal_one_serve_it_and_the_text_model_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let [alone, within, library] = ["alone", "within", "library"].map(path);
    write_both_forms(&alone, &within);
    let task = "suite:skills@5/shift_up1";
    words(&format!(
        "train-experts --base {within} --tasks {task} --library {library} -q --set max_steps=3 --set batch_size=2 \
         --set eval_steps=0 --set learning_rate=3e-2 --set rank=2 --set target_modules=all-linear"
    ))
    .ok();
    let of_library = format!("--base {within} --library {library}");
    let scores = words(&format!("eval {of_library} --tasks {task} --split all --limit 2 --router uniform --json")).ok();
    assert!(!scores.stdout.is_empty());
    words(&format!("generate {of_library} --router uniform --prompt ab --max-new-tokens 2")).ok();
    words(&format!("verify {of_library}")).ok();
    for [base, other] in [[&within, &alone], [&alone, &within]] {
        let forms = words(&format!("verify --base {base} --other-base {other} --library {library} --json")).json();
        let compared = forms["compared"].as_array().unwrap();
        assert_eq!(compared.len(), 2);
        assert!(compared.iter().all(|of| of["difference"] == 0.0), "{forms}");
        assert!(compared[1]["effect"].as_f64().unwrap() > 1e-2, "{forms}");
    }
    let (merged, model) = (path("merged"), path("model"));
    words(&format!("merge {of_library} --method cat --out {merged}")).ok();
    words(&format!("merge {of_library} --method cat --out {model} --into-base")).ok();

    let logits = |base: &str, adapter: Option<&str>| {
        logits(base, &adapter.map(|adapter| format!("--adapter {adapter}")).unwrap_or_default(), folder.path())
    };
    let (bare, own) = (logits(&within, None), logits(&within, Some(&merged)));
    assert_eq!(largest_difference(&logits(&alone, None), &bare), 0.0);
    assert!(largest_difference(&own, &bare) > 1e-2);
    assert!(largest_difference(&logits(&model, None), &own) < 1e-4);

    // The paths are those of the base that it was made over, which PEFT needs.
    let paths = |adapter: &str| Adapter::read(adapter.as_ref()).unwrap().modules().keys().cloned().collect::<Vec<_>>();
    assert!(paths(&merged).iter().all(|path| path.starts_with("model.language_model.layers.")));
    let foreign = copied(&merged, path("foreign"));
    assert_eq!(largest_difference(&logits(&alone, Some(&foreign)), &own), 0.0);
    let other = path("other");
    let added = words(&format!("library add --library {other} --base {alone} e={foreign}")).ok();
    assert_contains(&added.stderr, &["written for another form of the base", "model.language_model."]);
    let served = format!("{other}/experts/e");
    assert!(paths(&served).iter().all(|path| path.starts_with("model.layers.")));
    let back = copied(&served, path("back"));
    assert_eq!(largest_difference(&logits(&within, Some(&back)), &own), 0.0);
}

#[test]
fn a_library_over_a_multimodal_base_serves_its_text_model_in_gguf_and_the_reverse() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let [alone, within] = ["alone", "within"].map(path);
    write_both_forms(&alone, &within);
    fs::create_dir(path("gguf")).unwrap();
    let gguf = path("gguf/text.gguf");
    GgufModel::of_folder(Path::new(&alone), Types::Whole).write(Path::new(&gguf));
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(format!("{alone}/{file}"), path(&format!("gguf/{file}"))).unwrap();
    }
    let task = "suite:skills@5/shift_up1";
    let train = |base: &str, library: &str| {
        words(&format!(
            "train-experts --base {base} --tasks {task} --library {library} -q --set max_steps=3 batch_size=2 eval_steps=0 \
             learning_rate=3e-2 rank=2 target_modules=all-linear"
        ))
    };
    for (own, other, prefix) in [(&within, &gguf, "model.language_model.layers."), (&gguf, &within, "model.layers.")] {
        let library = path(&format!("library_{}", own.len()));
        train(own, &library).ok();
        let expert = Adapter::read(format!("{library}/experts/shift_up1").as_ref()).unwrap();
        assert!(expert.modules().keys().all(|path| path.starts_with(prefix)));
        for router in ["expert:shift_up1", "arrow"] {
            let of = |base: &str| logits(base, &format!("--library {library} --router {router}"), folder.path());
            assert!(largest_difference(&of(other), &of(own)) < 1e-4);
            assert!(largest_difference(&of(other), &logits(other, "", folder.path())) > 1e-2);
        }
        let scored =
            words(&format!("eval --base {other} --library {library} --tasks {task} --limit 2 --router uniform")).ok();
        assert_contains(&scored.stderr, &["is taken to be another form of it"]);
        // The paths of experts of both would differ, so that nothing is added over the other.
        assert_contains(&train(other, &library).failed(1), &["belongs to the base", "(mistral3)", "(llama)"]);
    }
}

/// The tensors of a LoRA of rank 2 of some modules, by their keys within PEFT's prefix, with their outputs and inputs.
fn lora<'a>(modules: impl IntoIterator<Item = (&'a str, [usize; 2])>) -> HashMap<String, Tensor> {
    let matrix = |rows: usize, columns: usize, step: usize| {
        let values = (0..rows * columns).map(|at| ((at * step + step) % 23) as f32 / 23.0 - 0.4).collect::<Vec<_>>();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let pair = |(module, [output, input]): (&str, [usize; 2])| {
        let key = |factor: &str| format!("base_model.model.{module}.lora_{factor}.weight");
        [(key("A"), matrix(2, input, 7)), (key("B"), matrix(output, 2, 5))]
    };
    modules.into_iter().flat_map(pair).collect()
}

/// Writes a PEFT folder with these keys of its configuration besides rank and alpha.
fn write_adapter(folder: &str, keys: Value, tensors: &HashMap<String, Tensor>) {
    fs::create_dir(folder).unwrap();
    let mut config = json!({ "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 6, "bias": "none" });
    keys.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
    fs::write(Path::new(folder).join(CONFIG_FILE), config.to_string()).unwrap();
    save(tensors, Path::new(folder).join(WEIGHTS_FILE)).unwrap();
}

/// Outputs and inputs of pico's `o_proj`.
fn shape(alone: &str) -> [usize; 2] {
    let weight = load(format!("{alone}/model.safetensors"), &Device::Cpu).unwrap();
    weight["model.layers.0.self_attn.o_proj.weight"].dims().try_into().unwrap()
}

const TEXT_MODULE: &str = "model.language_model.layers.0.self_attn.o_proj";

#[test]
fn what_an_adapter_changes_in_an_image_encoder_is_refused_or_left_out_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let [alone, within] = ["alone", "within"].map(path);
    write_both_forms(&alone, &within);
    let targets = |names: &[&str]| json!({ "target_modules": names });
    let text = (TEXT_MODULE, shape(&alone));
    let images = ["model.vision_tower.transformer.layers.1.attention.o_proj", "model.multi_modal_projector.linear_1"];
    let images = images.map(|module| (module, [5, 3]));
    let [of_text, both, of_images] = ["of_text", "both", "of_images"].map(path);
    write_adapter(&of_text, targets(&[TEXT_MODULE]), &lora([text]));
    let with_images = lora([text].into_iter().chain(images));
    write_adapter(&both, targets(&[TEXT_MODULE, images[0].0, "linear_1"]), &with_images);
    write_adapter(&of_images, targets(&[images[0].0, "linear_1"]), &lora(images));

    let add = |command: &str, library: &str, rest: &str| {
        words(&format!("library {command} --library {} --base {within} {rest}", path(library)))
    };
    let refused = ["4 of its 6 tensors belong to the image encoder", "vision_tower", "--skip-image-encoder"];
    for command in ["add", "import"] {
        let library = format!("by_{command}");
        assert_contains(&add(command, &library, &both).failed(1), &refused);
        assert!(!Path::new(&path(&library)).exists());
        let added = add(command, &library, &format!("--skip-image-encoder {both} of_text={of_text}")).ok();
        assert_contains(&added.stderr, &["image encoder: 4 of its 6 tensors were left out"]);
        assert_eq!(added.stderr.matches("left out").count(), 1, "{}", added.stderr);
        let adapter = |name: &str| Adapter::read(format!("{}/experts/{name}", path(&library)).as_ref()).unwrap();
        assert_eq!(adapter("both").modules(), adapter("of_text").modules());
    }
    let of = |options: &str| logits(&within, options, folder.path());
    let library = path("by_add");
    let left = of(&format!("--library {library} --router expert:both"));
    assert_eq!(largest_difference(&left, &of(&format!("--adapter {of_text}"))), 0.0);
    assert!(largest_difference(&left, &of("")) > 1e-2);
    let served =
        words(&format!("logits --base {within} --adapter {both} --input {} --out {}", path("ids"), path("out")));
    assert_contains(&served.failed(1), &refused);
    let nothing = add("add", "by_add", &format!("--skip-image-encoder {of_images}")).failed(1);
    assert_contains(&nothing, &["all of its 4 tensors belong to the image encoder", "nothing would be left"]);

    // Whole copies of parts of the projector.
    let copied = path("copied");
    let key = "base_model.model.model.multi_modal_projector.norm.weight".to_owned();
    let copy = Tensor::ones(3, DType::F32, &Device::Cpu).unwrap();
    let tensors: HashMap<String, Tensor> =
        with_images.into_iter().filter(|(key, _)| !key.contains("projector")).chain([(key, copy)]).collect();
    write_adapter(
        &copied,
        json!({ "target_modules": [TEXT_MODULE, images[0].0], "modules_to_save": ["multi_modal_projector"] }),
        &tensors,
    );
    let convert = |options: &str| add("add", "by_add", &format!("--convert svd:rank=4 {options} {copied}"));
    assert_contains(&convert("").failed(1), &["3 of its 5 tensors belong to the image encoder"]);
    assert_contains(&convert("--skip-image-encoder").ok().stderr, &["3 of its 5 tensors were left out"]);
    let left = of(&format!("--library {library} --router expert:copied"));
    assert_eq!(largest_difference(&left, &of(&format!("--adapter {of_text}"))), 0.0);
}

#[test]
fn conversions_serve_both_forms_of_a_base() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let [alone, within] = ["alone", "within"].map(path);
    write_both_forms(&alone, &within);
    let [output, input] = shape(&alone);
    let magnitudes: Vec<f32> = (0..output).map(|row| 0.5 + (row % 5) as f32 * 0.3).collect();
    let magnitudes = Tensor::from_vec(magnitudes, output, &Device::Cpu).unwrap();
    let copied = load(format!("{alone}/model.safetensors"), &Device::Cpu).unwrap();
    let copied = (&copied["model.layers.1.mlp.down_proj.weight"] * 1.5).unwrap();
    let rank = output.max(input);
    let converted = |form: &str, base: &str| {
        let module = |path: &str| path.replacen("model.", form, 1);
        let (attention, mlp) = (module("model.layers.0.self_attn.o_proj"), module("model.layers.1.mlp.down_proj"));
        let mut tensors = lora([(attention.as_str(), [output, input])]);
        tensors.insert(format!("base_model.model.{attention}.lora_magnitude_vector"), magnitudes.clone());
        tensors.insert(format!("base_model.model.{mlp}.weight"), copied.clone());
        let keys = json!({ "target_modules": [attention], "use_dora": true, "modules_to_save": [mlp] });
        let (name, library) = (format!("{}_{}", form.replace('.', "_"), base.len()), path("library"));
        let adapter = path(&name);
        write_adapter(&adapter, keys, &tensors);
        let library = format!("{library}_{name}");
        let added =
            words(&format!("library add --library {library} --base {base} --convert svd:rank={rank} e={adapter}")).ok();
        (logits(base, &format!("--library {library} --router expert:e"), folder.path()), added.stderr)
    };
    let (own, warnings) = converted("model.", &alone);
    assert!(!warnings.contains("another form"), "{warnings}");
    assert!(largest_difference(&own, &logits(&alone, "", folder.path())) > 1e-2);
    for (form, base) in [
        ("model.language_model.", &alone),
        ("language_model.model.", &alone),
        ("model.", &within),
        ("model.language_model.", &within),
        ("language_model.model.", &within),
    ] {
        let (found, warnings) = converted(form, base);
        assert_eq!(largest_difference(&found, &own), 0.0, "{form} {base}");
        let is_own = (form == "model.") == (base == &alone);
        assert_eq!(!is_own, warnings.contains("written for another form of the base"), "{form}: {warnings}");
    }
}
