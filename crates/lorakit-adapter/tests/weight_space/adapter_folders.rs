//! Adapter folders are written in PEFT's format, and reading gives back what was written.

use std::collections::BTreeMap;
use std::fs;

use lorakit_adapter::{Adapter, AdapterMetadata, BaseModule, CONFIG_FILE, LowRank, PeftConfig, TaskType, WEIGHTS_FILE};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::{chain, difference, random_update, shared, small_adapter};

fn config(dir: &std::path::Path) -> Value {
    serde_json::from_str(&fs::read_to_string(dir.join(CONFIG_FILE)).unwrap()).unwrap()
}

fn updates(list: &[(&str, usize, f64)]) -> BTreeMap<String, LowRank> {
    let update = |(at, (path, rank, scale)): (usize, &(&str, usize, f64))| {
        ((*path).to_owned(), random_update(at as u64, *rank, 6, 5, *scale))
    };
    list.iter().enumerate().map(update).collect()
}

#[test]
fn an_adapter_is_read_as_it_was_written() {
    let temporary = tempfile::tempdir().unwrap();
    let metadata = AdapterMetadata {
        base_model: Some("org/base".into()),
        revision: Some("main".into()),
        task_type: TaskType::SeqCls,
        dropout: 0.05,
        rslora: true,
        fan_in_fan_out: true,
        ..AdapterMetadata::default()
    };
    let adapter = small_adapter(1).with_metadata(metadata);
    adapter.write(&temporary.path().join("a")).unwrap();
    let again = Adapter::read(&temporary.path().join("a")).unwrap();
    assert_eq!(again.modules(), adapter.modules());
    assert_eq!(again.metadata(), adapter.metadata());
}

#[test]
fn writing_is_deterministic_and_survives_a_round_trip() {
    let temporary = tempfile::tempdir().unwrap();
    let places: Vec<_> = ["a", "b"].map(|name| temporary.path().join(name)).into();
    small_adapter(1).write(&places[0]).unwrap();
    Adapter::read(&places[0]).unwrap().write(&places[1]).unwrap();
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        assert_eq!(fs::read(places[0].join(file)).unwrap(), fs::read(places[1].join(file)).unwrap(), "{file}");
    }
}

/// The keys that PEFT 0.7 knows; it refuses all others.
const KEYS_OF_PEFT_0_7: [&str; 20] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
];

#[test]
fn the_configuration_has_sorted_keys_that_old_versions_know_and_short_targets() {
    let temporary = tempfile::tempdir().unwrap();
    let place = temporary.path().join("a");
    let metadata = AdapterMetadata { base_model: Some("org/base".into()), ..AdapterMetadata::default() };
    small_adapter(1).with_metadata(metadata).write(&place).unwrap();
    let text = fs::read_to_string(place.join(CONFIG_FILE)).unwrap();
    assert!(text.starts_with("{\n  \"base_model_name_or_path\": \"org/base\",\n  \"bias\": \"none\","), "{text}");
    let written = config(&place);
    let keys: Vec<_> = written.as_object().unwrap().keys().cloned().collect();
    assert!(keys.is_sorted() && keys.iter().all(|key| KEYS_OF_PEFT_0_7.contains(&key.as_str())), "{text}");
    assert!(written.as_object().unwrap().values().all(|value| !value.is_null()));
    assert_eq!(written["target_modules"], json!(["q_proj", "v_proj"]));
    assert_eq!((&written["r"], &written["lora_alpha"]), (&json!(2), &json!(4)));
    assert_eq!(PeftConfig::parse(&text).unwrap().warnings, []);
}

/// A module's name in all layers may be short only where the base is known to have no others: here the base may have
/// more layers.
#[test]
fn an_unknown_base_gives_whole_paths_and_sources_with_short_names_give_short_ones() {
    let temporary = tempfile::tempdir().unwrap();
    let place = temporary.path().join("a");
    let source = small_adapter(1);
    Adapter::new(source.modules().clone()).write(&place).unwrap();
    assert_eq!(config(&place)["target_modules"], json!(source.modules().keys().collect::<Vec<_>>()));
    let narrowed = Adapter::read(&place).unwrap();
    for (sources, expected) in [
        (vec![&source, &source], json!(["q_proj", "v_proj"])),
        (vec![&source, &narrowed], json!(["q_proj", "v_proj"])),
        (vec![&Adapter::new(source.modules().clone())], json!(source.modules().keys().collect::<Vec<_>>())),
    ] {
        Adapter::new(source.modules().clone()).with_target_names_of(sources).write(&place).unwrap();
        assert_eq!(config(&place)["target_modules"], expected);
    }
}

#[test]
fn the_weights_are_f32_and_marked_for_pytorch() {
    let temporary = tempfile::tempdir().unwrap();
    let place = temporary.path().join("a");
    small_adapter(1).write(&place).unwrap();
    let bytes = fs::read(place.join(WEIGHTS_FILE)).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    let tensors = metadata.tensors();
    assert_eq!(tensors.len(), 8);
    let a = tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"];
    assert_eq!((a.dtype, a.shape.as_slice()), (safetensors::Dtype::F32, [2, 6].as_slice()));
}

#[test]
fn ranks_and_scales_that_differ_are_written_as_anchored_patterns() {
    // The last path ends like the first: an unanchored pattern would match it too.
    let modules = updates(&[
        ("layers.0.q", 8, 0.3),
        ("layers.0.v", 4, 2.0),
        ("layers.1.q", 4, 2.0),
        ("layers.1.v", 4, 2.0),
        ("twin.layers.0.q", 4, 2.0),
    ]);
    let temporary = tempfile::tempdir().unwrap();
    let place = temporary.path().join("a");
    Adapter::new(modules.clone()).write(&place).unwrap();
    let written = config(&place);
    assert_eq!(written["rank_pattern"], json!({ r"^layers\.0\.q": 8 }));
    assert_eq!(written["alpha_pattern"], json!({ r"^layers\.0\.q": 0.3 * 8.0 }));
    assert_eq!((&written["r"], &written["lora_alpha"]), (&json!(4), &json!(8)));
    let again = Adapter::read(&place).unwrap();
    for (path, update) in &modules {
        assert_eq!(again.modules()[path].rank(), update.rank());
        assert!((again.modules()[path].scale() - update.scale()).abs() < 1e-15);
    }
}

/// PEFT before 0.14 looks for a key after a dot: no key may begin with the first segment, or an anchor.
#[test]
fn patterns_begin_after_the_first_segment_where_that_is_unambiguous() {
    let modules = updates(&[("model.layers.1.q", 2, 1.0), ("model.layers.2.q", 2, 1.0), ("model.layers.11.q", 3, 2.0)]);
    let temporary = tempfile::tempdir().unwrap();
    let place = temporary.path().join("a");
    Adapter::new(modules).write(&place).unwrap();
    let written = config(&place);
    assert_eq!(written["rank_pattern"], json!({ r"layers\.11\.q": 3 }));
    assert_eq!(written["alpha_pattern"], json!({ r"layers\.11\.q": 6 }));
    let again = Adapter::read(&place).unwrap();
    assert_eq!(again.modules().values().map(LowRank::scale).collect::<Vec<_>>(), [1.0, 2.0, 1.0]);
}

#[test]
fn modules_that_short_names_cannot_select_are_named_by_full_path() {
    let temporary = tempfile::tempdir().unwrap();
    let place = temporary.path().join("a");
    let adapter =
        Adapter::new(updates(&[("m.layers.0.q", 2, 1.0), ("m.layers.0.v", 2, 1.0), ("m.layers.1.q", 2, 1.0)]));
    adapter.write(&place).unwrap();
    assert_eq!(config(&place)["target_modules"], json!(["m.layers.0.q", "m.layers.0.v", "m.layers.1.q"]));
    assert!(Adapter::read(&place).is_ok());
}

#[test]
fn with_a_known_base_short_names_are_used_exactly_where_they_fit() {
    let temporary = tempfile::tempdir().unwrap();
    let place = temporary.path().join("a");
    let module = |path: &str| BaseModule { path: path.into(), input: 6, output: 5, ..BaseModule::default() };
    let adapter = Adapter::new(updates(&[("m.layers.0.q", 2, 1.0), ("m.layers.0.v", 2, 1.0)]));
    let shallow: Vec<_> = ["m.layers.0.q", "m.layers.0.v", "m.layers.0.o"].map(module).into();
    let deep: Vec<_> = ["m.layers.0.q", "m.layers.0.v", "m.layers.1.q", "m.layers.1.v"].map(module).into();
    for (base, names) in [(&shallow, ["q", "v"]), (&deep, ["m.layers.0.q", "m.layers.0.v"])] {
        adapter.clone().with_target_names(base).write(&place).unwrap();
        assert_eq!(config(&place)["target_modules"], json!(names));
        Adapter::read(&place).unwrap().check_against(base).unwrap();
    }
}

#[test]
fn an_adapter_folder_is_replaced_and_any_other_is_left_alone() {
    let temporary = tempfile::tempdir().unwrap();
    let place = temporary.path().join("a");
    small_adapter(1).write(&place).unwrap();
    small_adapter(2).write(&place).unwrap();
    assert_eq!(Adapter::read(&place).unwrap().modules(), small_adapter(2).modules());
    fs::write(place.join("notes.txt"), "mine").unwrap();
    let error = chain(small_adapter(3).write(&place).unwrap_err());
    assert!(error.contains("notes.txt"), "{error}");
    assert_eq!(fs::read_to_string(place.join("notes.txt")).unwrap(), "mine");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1);
    assert!(Adapter::new(BTreeMap::new()).write(&temporary.path().join("b")).is_err());
    assert!(!temporary.path().join("b").exists());
}

#[test]
#[ignore = "needs ../shared"]
fn peft_folders_survive_a_round_trip() {
    let folder = shared("oracles/peft");
    let temporary = tempfile::tempdir().unwrap();
    let mut read = 0;
    for base in fs::read_dir(folder).unwrap() {
        for entry in fs::read_dir(base.unwrap().path().join("adapters")).unwrap() {
            let source = entry.unwrap().path();
            let adapter = Adapter::read(&source).unwrap();
            assert_eq!(adapter.warnings(), [], "{}", source.display());
            let place = temporary.path().join(format!("a{read}"));
            adapter.write(&place).unwrap();
            let again = Adapter::read(&place).unwrap();
            assert_eq!(again.modules().len(), adapter.modules().len());
            for (path, update) in adapter.modules() {
                assert!(difference(update, &again.modules()[path]) <= 1e-7, "{}: {path}", source.display());
            }
            let mut names: Vec<String> = serde_json::from_value(config(&source)["target_modules"].clone()).unwrap();
            names.sort();
            let [written, expected] = [&place, &source].map(|folder| config(folder));
            assert_eq!(written["target_modules"], json!(names));
            assert!(written.as_object().unwrap().keys().all(|key| expected.get(key).is_some()));
            // The weights file is byte-identical to PEFT's.
            assert!(fs::read(source.join(WEIGHTS_FILE)).unwrap() == fs::read(place.join(WEIGHTS_FILE)).unwrap());
            read += 1;
        }
    }
    assert!(read >= 24, "{read}");
}

#[test]
#[ignore = "needs ../shared"]
fn rslora_and_patterns_give_each_module_its_own_scale() {
    let folder = shared("oracles/peft/mistral/adapters/rs");
    let adapter = Adapter::read(&folder).unwrap();
    for (path, update) in adapter.modules() {
        let rank = if path.ends_with("q_proj") { 8 } else { 4 };
        let alpha = if path.contains("layers.1.") && path.ends_with("o_proj") { 3.0 } else { 16.0 };
        assert_eq!(update.rank(), rank, "{path}");
        assert!((update.scale() - alpha / (rank as f64).sqrt()).abs() < 1e-12, "{path}");
    }
}

#[test]
fn an_alpha_that_was_whole_stays_so() {
    for rank in 1..=64 {
        for alpha in [1.0, 8.0, 16.0, 32.0] {
            let update = random_update(1, rank, 3, 3, alpha / rank as f64);
            let folder = tempfile::tempdir().unwrap();
            let place = folder.path().join("a");
            Adapter::new([("m.q".to_owned(), update.clone())].into()).write(&place).unwrap();
            let text = fs::read_to_string(place.join(CONFIG_FILE)).unwrap();
            let config: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(config["lora_alpha"], alpha as i64, "rank {rank}");
            assert_eq!(Adapter::read(&place).unwrap().modules()["m.q"].scale(), update.scale());
        }
    }
}

#[test]
fn a_file_in_place_of_a_folder_is_refused_with_what_to_give() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("a");
    Adapter::new([("m.q".to_owned(), random_update(1, 2, 3, 3, 1.0))].into()).write(&place).unwrap();
    let message = |path: &std::path::Path| Adapter::read(path).unwrap_err().to_string();
    let expected = format!("give its folder {}", place.display());
    assert!(message(&place.join(WEIGHTS_FILE)).ends_with(&expected), "{}", message(&place.join(WEIGHTS_FILE)));
    let [gguf, other] = ["a.gguf", "a.txt"].map(|name| folder.path().join(name));
    fs::write(&gguf, "").unwrap();
    fs::write(&other, "").unwrap();
    assert!(message(&gguf).contains("a GGUF adapter; add it to a library with `lorakit library add`"));
    assert!(message(&other).contains("a file; expected the folder"), "{}", message(&other));
}
