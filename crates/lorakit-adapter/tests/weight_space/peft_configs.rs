//! Published configurations: each is accepted, or refused naming the unsupported key.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lorakit_adapter::{AdapterError, PeftConfig, UnsupportedConfig};

use crate::{chain, shared};

fn json_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            json_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "json") {
            found.push(path);
        }
    }
}

#[test]
#[ignore = "needs ../shared"]
fn every_published_configuration_is_accepted_or_refused_by_key() {
    let folder = shared("data/adapter_configs");
    let mut files = Vec::new();
    json_files(&folder, &mut files);
    let mut verdicts: BTreeMap<String, usize> = BTreeMap::new();
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let lora = value["peft_type"] == "LORA";
        let verdict = match PeftConfig::read(file) {
            Ok(config) => {
                assert!(lora, "{}: accepted", file.display());
                assert_eq!(config.rank as u64, value["r"].as_u64().unwrap());
                assert_eq!(config.alpha, value["lora_alpha"].as_f64().unwrap());
                "accepted".to_owned()
            }
            Err(error) => {
                let message = chain(error);
                assert!(message.contains(file.file_name().unwrap().to_str().unwrap()), "{message}");
                let refused = unsupported(PeftConfig::parse(&text).unwrap_err());
                for unsupported in &refused.keys {
                    assert!(message.contains(&unsupported.key) && !unsupported.reason.is_empty(), "{message}");
                    assert_eq!(unsupported.key == "peft_type", !lora, "{message}");
                }
                refused.keys.iter().map(|unsupported| unsupported.key.as_str()).collect::<Vec<_>>().join(" + ")
            }
        };
        *verdicts.entry(verdict).or_default() += 1;
    }
    println!("{} configurations: {verdicts:#?}", files.len());
    assert!(files.len() >= 411);
    assert!(verdicts["accepted"] >= 60 && verdicts["use_dora"] >= 15 && verdicts["init_lora_weights"] >= 5);
}

/// A configuration with `keys` besides the required ones.
fn parse_with(keys: &str) -> Result<PeftConfig, UnsupportedConfig> {
    let base = r#""peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"]"#;
    PeftConfig::parse(&format!("{{{base}, {keys}}}")).map_err(unsupported)
}

/// The keys that an error refuses.
fn unsupported(error: AdapterError) -> UnsupportedConfig {
    match error {
        AdapterError::Config(unsupported) => unsupported,
        other => panic!("{other}"),
    }
}

#[test]
fn each_key_that_goes_beyond_plain_lora_is_refused_by_name() {
    for keys in [
        r#""use_dora": true"#,
        r#""lora_bias": 1"#,
        r#""bias": "some""#,
        r#""bias": true"#,
        r#""target_parameters": ["experts.w"]"#,
        r#""modules_to_save": ["score"]"#,
        r#""trainable_token_indices": [1]"#,
        r#""layer_replication": [[0, 2]]"#,
        r#""use_qalora": true"#,
        r#""alora_invocation_tokens": [1, 2]"#,
        r#""use_bdlora": {"x": 1}"#,
        r#""arrow_config": {"top_k": 2}"#,
        r#""kasa_config": {"beta": 1}"#,
        r#""monteclora_config": {"x": 1}"#,
        r#""ensure_weight_tying": "yes""#,
        r#""megatron_config": {"x": 1}"#,
        r#""enable_lora": [true, false, true]"#,
        r#""init_lora_weights": "pissa""#,
        r#""init_lora_weights": "pissa_niter_16""#,
        r#""init_lora_weights": "olora""#,
        r#""init_lora_weights": "corda""#,
        r#""init_lora_weights": "loftq""#,
        r#""init_lora_weights": "lora_ga""#,
        r#""init_lora_weights": "something new""#,
        r#""task_type": "SING""#,
        r#""r": 4.0"#,
        r#""r": 0"#,
        r#""r": "8""#,
        r#""lora_alpha": "16""#,
        r#""use_rslora": "yes""#,
        r#""fan_in_fan_out": 1"#,
        r#""target_modules": []"#,
        r#""target_modules": [1]"#,
        r#""target_modules": "(""#,
        r#""exclude_modules": "*""#,
        r#""exclude_modules": {"a": 1}"#,
        r#""rank_pattern": {"(": 4}"#,
        r#""rank_pattern": {"q": 0}"#,
        r#""rank_pattern": ["q"]"#,
        r#""alpha_pattern": {"q": "x"}"#,
        r#""layers_to_transform": "all""#,
        r#""peft_type": "lora""#,
        r#""peft_type": "IA3""#,
        r#""base_model_name_or_path": 7"#,
    ] {
        let key = keys.split('"').nth(1).unwrap();
        let message = parse_with(keys).unwrap_err().to_string();
        assert!(message.contains(&format!("{key}: ")), "{keys}: {message}");
    }
}

#[test]
fn all_unsupported_keys_are_named_at_once() {
    let refused = parse_with(r#""use_dora": true, "bias": "some", "init_lora_weights": "olora""#).unwrap_err();
    let mut keys: Vec<_> = refused.keys.iter().map(|unsupported| unsupported.key.as_str()).collect();
    keys.sort();
    assert_eq!(keys, ["bias", "init_lora_weights", "use_dora"]);
}

/// Python writes NaN, which JSON does not have.
#[test]
fn a_nan_is_read_where_it_has_no_effect() {
    let warnings = parse_with(r#""loraplus": NaN"#).unwrap().warnings;
    assert!(warnings[0].subject == "loraplus", "{warnings:?}");
    let refused = parse_with(r#""lora_dropout": NaN"#).unwrap_err().to_string();
    assert!(refused.contains("lora_dropout: found \"NaN\"; expected a finite number"), "{refused}");
}

#[test]
fn keys_without_effect_are_accepted_and_unknown_ones_cause_a_warning() {
    let quiet = r#""use_dora": false, "bias": "none", "modules_to_save": null, "init_lora_weights": "gaussian",
        "loftq_config": {}, "qalora_group_size": 16, "megatron_core": "megatron.core", "task_type": null, "layers_pattern": null,
        "exclude_modules": null, "peft_version": "0.20.1.dev0@UNKNOWN", "auto_mapping": {"a": "b"}, "trainable_token_indices": []"#;
    assert_eq!(parse_with(quiet).unwrap().warnings, []);
    let loud = parse_with(r#""brand_new_key": 1, "eva_config": {"rho": 2}"#).unwrap().warnings;
    assert_eq!(
        loud.iter().map(|warning| warning.subject.as_str()).collect::<Vec<_>>(),
        ["brand_new_key", "eva_config"]
    );
    let minimal = PeftConfig::parse(r#"{"peft_type": "LORA", "target_modules": ["q"]}"#).unwrap();
    assert_eq!((minimal.rank, minimal.alpha, minimal.warnings.len()), (8, 8.0, 2));
}

#[test]
fn ranks_and_scales_follow_the_first_pattern_that_matches_the_end_of_the_path() {
    let config = parse_with(
        r#""rank_pattern": {"self_attn.q": 2, "q": 16}, "alpha_pattern": {"^model\\.layers\\.0\\.mlp\\.q$": 0.5, "layers\\.1\\..*": 6}"#,
    )
    .unwrap();
    assert_eq!(config.rank_of("model.layers.0.self_attn.q").unwrap(), 2);
    assert_eq!(config.rank_of("model.layers.0.mlp.q").unwrap(), 16);
    assert_eq!(config.rank_of("model.layers.0.mlp.my_q").unwrap(), 4);
    assert_eq!(config.scale_of("model.layers.0.mlp.q").unwrap(), 0.5 / 16.0);
    assert_eq!(config.scale_of("model.layers.1.self_attn.q").unwrap(), 3.0);
    // PEFT 0.21.2: r = 2, alpha = 6 under rsLoRA scales by 4.2426.
    let stabilized = parse_with(r#""use_rslora": true, "rank_pattern": {"q": 2}, "alpha_pattern": {"q": 6}"#).unwrap();
    assert!((stabilized.scale_of("model.q").unwrap() - 4.242_640_687).abs() < 1e-9);
}

#[test]
fn invalid_configurations_are_refused() {
    for text in ["", "[]", "{", "null", "\"LORA\"", &"[".repeat(100_000)] {
        let error = chain(PeftConfig::parse(text).unwrap_err());
        assert!(error.starts_with("not a JSON object: ") && !error.contains("LoRA"), "{error}");
    }
    for text in ["{}", r#"{"peft_type": null}"#] {
        assert_eq!(unsupported(PeftConfig::parse(text).unwrap_err()).keys[0].key, "peft_type");
    }
    let error = PeftConfig::read(Path::new("no/such/adapter_config.json")).unwrap_err();
    assert!(chain(error).contains("no/such/adapter_config.json"));
}

#[test]
fn an_adapter_of_parameters_alone_is_refused_for_these_alone() {
    let keys = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": [], "target_parameters": ["w"]}"#;
    let refused = unsupported(PeftConfig::parse(keys).unwrap_err());
    let keys: Vec<&str> = refused.keys.iter().map(|refused| refused.key.as_str()).collect();
    assert_eq!(keys, ["target_parameters"]);
}

#[test]
fn a_warning_names_the_task_type_as_the_file_does() {
    let keys = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"], "task_type": "SEQ_CLS"}"#;
    let warnings: Vec<String> = PeftConfig::parse(keys).unwrap().warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.iter().any(|warning| warning.contains("SEQ_CLS: only")), "{warnings:?}");
}
