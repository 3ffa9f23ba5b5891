//! The configs of bases that people use, as the Hub has them: read as transformers reads them, or refused with what is
//! missing.
#![allow(clippy::unwrap_used)]

use lorakit_model::BaseConfig;
use lorakit_model::architecture::{QueryScale, RopeScaling};
use serde_json::{Value, json};

fn read(config: &Value) -> BaseConfig {
    BaseConfig::parse(&config.to_string(), "config.json").unwrap()
}

fn refusal(config: &Value) -> String {
    BaseConfig::parse(&config.to_string(), "config.json").unwrap_err().to_string()
}

/// Hidden width, layers, heads of queries and of keys, and features of a head.
fn shape(config: &BaseConfig) -> [usize; 5] {
    [config.hidden, config.layers, config.heads, config.kv_heads, config.head_dim]
}

/// The windows of some layers.
fn windows(config: &BaseConfig, layers: &[usize]) -> Vec<Option<usize>> {
    layers.iter().map(|&layer| config.layer_attention(layer).window).collect()
}

/// The base of the rotary frequencies of a layer, and how they are scaled; none without rope.
fn rope(config: &BaseConfig, layer: usize) -> Option<(f64, RopeScaling)> {
    let rope = config.layer_attention(layer).rope.clone()?;
    Some((rope.theta, rope.scaling))
}

/// Qwen2.5-0.5B.
#[test]
fn qwen_2_5_has_no_window_unless_it_is_used() {
    let mut config = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 896,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_mrope": false,
        "use_sliding_window": false, "vocab_size": 151936,
    });
    let base = read(&config);
    assert_eq!((shape(&base), base.tied), ([896, 24, 14, 2, 64], true));
    assert_eq!((windows(&base, &[0, 23]), rope(&base, 0)), (vec![None, None], Some((1e6, RopeScaling::None))));
    let bias = |base: &BaseConfig| (base.descriptor.attention_input.bias, base.descriptor.attention_output.bias);
    assert_eq!(bias(&base), (true, false));
    config["use_sliding_window"] = true.into();
    config["max_window_layers"] = 20.into();
    assert_eq!(windows(&read(&config), &[19, 20]), [None, Some(32768)]);
}

/// Qwen3-0.6B, whose heads together are wider than the residual stream.
#[test]
fn qwen_3_has_heads_of_their_own_width() {
    let base = read(&json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": false, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
        "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936,
    }));
    assert_eq!((shape(&base), base.max_positions), ([1024, 28, 16, 8, 128], 40960));
    assert!(base.descriptor.qk_norm.is_some() && !base.descriptor.attention_input.bias);
}

/// gemma-3-1b-it, and gemma-3-4b-it, whose text model leaves out what is as in the first one.
#[test]
fn gemma_3_alternates_local_and_global_layers() {
    let base = read(&json!({
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attention_bias": false,
        "attn_logit_softcapping": null, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
        "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
        "intermediate_size": 6912, "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 26,
        "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000,
        "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
        "vocab_size": 262144,
    }));
    assert_eq!((shape(&base), base.tied), ([1152, 26, 4, 1, 256], true));
    assert_eq!(windows(&base, &[0, 4, 5, 6]), [Some(512), Some(512), None, Some(512)]);
    let [local, global] = [0, 5].map(|layer| rope(&base, layer).unwrap());
    assert_eq!([local, global], [(1e4, RopeScaling::None), (1e6, RopeScaling::None)]);
    assert_eq!((base.scales.attention, base.scales.embedding), (Some(0.0625), 1152f64.sqrt()));

    let mut config = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "boi_token_index": 255999,
        "image_token_index": 262144, "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    });
    let base = read(&config);
    assert_eq!((shape(&base), base.vocabulary), ([2560, 34, 8, 4, 256], 262_208));
    assert_eq!(windows(&base, &[4, 5]), [Some(1024), None]);
    assert_eq!(rope(&base, 5), Some((1e6, RopeScaling::Linear { factor: 8.0 })));
    assert_eq!(rope(&base, 4), Some((1e4, RopeScaling::None)));
    // transformers 5.23 keeps the default kind where the scaling's is under its older name.
    config["text_config"]["rope_scaling"] = json!({"factor": 8.0, "type": "linear"});
    let base = read(&config);
    assert_eq!(rope(&base, 5), Some((1e6, RopeScaling::None)));
    let message = base.warnings.iter().find(|warning| warning.contains("`rope_scaling`")).unwrap();
    assert!(message.contains("\"linear\"") && message.contains("name it `rope_type`"), "{message}");
    // With parameters that leave the kind open it is read.
    config["text_config"]["rope_parameters"] = json!({"full_attention": {"rope_theta": 1e6}});
    assert_eq!(rope(&read(&config), 5), Some((1e6, RopeScaling::Linear { factor: 8.0 })));
}

/// Phi-4-mini-instruct and Phi-3.5-mini-instruct, whose longrope has divisors of all or of some features.
#[test]
fn phi_3_rotates_a_part_of_a_head_by_longrope() {
    for (partial, pairs, heads, keys) in [(Some(0.75), 48, 24, 8), (None, 48, 32, 32)] {
        let mut config = json!({
            "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "attention_bias": false, "embd_pdrop": 0.0,
            "full_attn_mod": 1, "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
            "interpolate_factor": 1, "lm_head_bias": false, "max_position_embeddings": 131072, "mlp_bias": false,
            "num_attention_heads": heads, "num_hidden_layers": 32, "num_key_value_heads": keys,
            "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "rope_scaling": {"long_factor": vec![2.0; pairs], "short_factor": vec![1.0; pairs], "type": "longrope"},
            "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": true, "vocab_size": 200064,
        });
        if let Some(partial) = partial {
            config["partial_rotary_factor"] = partial.into();
        }
        let base = read(&config);
        assert_eq!(shape(&base), [3072, 32, heads, keys, 3072 / heads]);
        let Some((_, RopeScaling::LongRope { long, original, attention_factor, .. })) = rope(&base, 0) else {
            panic!("{:?}", rope(&base, 0))
        };
        assert_eq!((long.len(), original), (48, 4096.0));
        assert!((attention_factor - (1.0 + 32f64.ln() / 4096f64.ln()).sqrt()).abs() < 1e-12);
    }
}

/// Llama-3.2-1B, and DeepSeek-R1-Distill-Qwen-1.5B, which is a Qwen 2 with a head of its own.
#[test]
fn llama_3_2_and_distilled_models() {
    let base = read(&json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": false, "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "mlp_bias": false, "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": true,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "vocab_size": 128256,
    }));
    let scaling = RopeScaling::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192.0 };
    assert_eq!((shape(&base), rope(&base, 3)), ([2048, 16, 32, 8, 64], Some((5e5, scaling))));
    let base = read(&json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 1536,
        "intermediate_size": 8960, "max_position_embeddings": 131072, "max_window_layers": 21, "num_attention_heads": 12,
        "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 10000,
        "sliding_window": 4096, "tie_word_embeddings": false, "use_mrope": false, "use_sliding_window": false,
        "vocab_size": 151936,
    }));
    assert_eq!((base.tied, rope(&base, 0), windows(&base, &[27])), (false, Some((1e4, RopeScaling::None)), vec![None]));
}

/// SmolLM3-3B: every fourth layer has no rope.
#[test]
fn smollm_3_has_layers_without_rope() {
    let mut config = json!({
        "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "attention_bias": false, "bos_token_id": null,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11008, "max_position_embeddings": 65536,
        "layer_types": vec!["full_attention"; 36], "max_window_layers": 28, "mlp_bias": false,
        "no_rope_layer_interval": 4, "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4,
        "pretraining_tp": 2, "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 5000000.0,
        "sliding_window": null, "use_sliding_window": false, "vocab_size": 128256,
    });
    let by_interval = read(&config);
    config["no_rope_layers"] = (0..36).map(|layer| u8::from((layer + 1) % 4 != 0)).collect();
    let base = read(&config);
    assert_eq!(base, by_interval);
    assert_eq!((shape(&base), base.tied), ([2048, 36, 16, 4, 128], true));
    assert_eq!((rope(&base, 2), rope(&base, 3)), (Some((5e6, RopeScaling::None)), None));
    // What it says of further layers, as where layers were taken away, is not read.
    let mut items = config["no_rope_layers"].as_array().unwrap().clone();
    items.extend([json!(0), json!(1)]);
    config["no_rope_layers"] = items.into();
    assert_eq!(read(&config), base);
    config["no_rope_layers"] = json!([1, 0]);
    assert!(refusal(&config).contains("`no_rope_layers` has 2 items for 36 layers"));
}

/// OLMo-2-0425-1B and Olmo-3-7B-Instruct, whose scaling is of global layers alone.
#[test]
fn olmo_2_and_3() {
    let mut config = json!({
        "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "attention_bias": false, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 4096, "num_attention_heads": 16,
        "num_hidden_layers": 16, "num_key_value_heads": 16, "rms_norm_eps": 1e-6, "rope_scaling": null,
        "rope_theta": 500000, "tie_word_embeddings": false, "vocab_size": 100352,
    });
    let base = read(&config);
    assert_eq!((shape(&base), rope(&base, 0)), ([2048, 16, 16, 16, 128], Some((5e5, RopeScaling::None))));
    config["model_type"] = "olmo3".into();
    config["num_hidden_layers"] = 32.into();
    config["max_position_embeddings"] = 65536.into();
    config["sliding_window"] = 4096.into();
    config["layer_types"] =
        (0..32).map(|layer| if layer % 4 == 3 { "full_attention" } else { "sliding_attention" }).collect();
    config["rope_scaling"] = json!({
        "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0,
        "original_max_position_embeddings": 8192, "rope_type": "yarn",
    });
    let base = read(&config);
    assert_eq!((windows(&base, &[2, 3]), base.max_positions), (vec![Some(4096), None], 65536));
    assert_eq!(rope(&base, 2), Some((5e5, RopeScaling::None)));
    let Some((theta, RopeScaling::Yarn { factor, attention_factor, .. })) = rope(&base, 3) else {
        panic!("{:?}", rope(&base, 3))
    };
    assert_eq!((theta, factor, attention_factor), (5e5, 8.0, 1.2079441541679836));
    config.as_object_mut().unwrap().remove("layer_types");
    assert_eq!(read(&config), base);
}

/// granite-3.3-2b-instruct, and granite-4.0-1b, a dense model with the config of the hybrids.
#[test]
fn granite_3_and_dense_granite_4() {
    let mut config = json!({
        "architectures": ["GraniteForCausalLM"], "model_type": "granite", "attention_bias": false,
        "attention_multiplier": 0.015625, "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 8192, "logits_scaling": 8.0, "max_position_embeddings": 131072, "mlp_bias": false,
        "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8, "residual_multiplier": 0.22,
        "rms_norm_eps": 1e-5, "rope_scaling": null, "rope_theta": 10000000.0, "tie_word_embeddings": true,
        "vocab_size": 49159,
    });
    let granite = read(&config);
    assert_eq!((granite.scales.logits, granite.scales.attention), (0.125, Some(0.015625)));
    config["model_type"] = "granitemoehybrid".into();
    config["num_local_experts"] = 0.into();
    config["num_experts_per_tok"] = 0.into();
    config["shared_intermediate_size"] = 4096.into();
    config["position_embedding_type"] = "rope".into();
    config["layer_types"] = vec!["attention"; 40].into();
    let dense = read(&config);
    assert_eq!((dense.intermediate, dense.scales, &dense.attention), (4096, granite.scales, &granite.attention));
    assert_eq!(dense.descriptor.mlp_output.projections[0].module, "shared_mlp.output_linear");
    config["position_embedding_type"] = Value::Null;
    assert_eq!(rope(&read(&config), 0), None);
    let mut without = config.clone();
    without["layer_types"] = Value::Null;
    assert!(refusal(&without).contains("`layer_types` is missing"));
    // granite-4.0-h-micro and granite-4.0-h-tiny.
    config["layer_types"][3] = "mamba".into();
    assert!(refusal(&config).contains("layers of linear attention or state spaces"));
    config["num_local_experts"] = 64.into();
    assert!(refusal(&config).contains("mixtures of experts"));
}

/// Mistral-Small-3.2-24B-Instruct and Ministral-3-3B-Instruct, which come with a model of images.
#[test]
fn the_text_models_of_mistral_s_multimodal_folders() {
    let mut config = json!({
        "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "image_token_index": 10,
        "multimodal_projector_bias": false, "spatial_merge_size": 2, "vision_feature_layer": -1,
        "text_config": {
            "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
            "intermediate_size": 32768, "max_position_embeddings": 131072, "model_type": "mistral",
            "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
            "rope_theta": 1000000000.0, "sliding_window": null, "vocab_size": 131072,
        },
        "vision_config": {"model_type": "pixtral", "hidden_size": 1024},
    });
    let base = read(&config);
    assert_eq!((shape(&base), base.model_type.as_str()), ([5120, 40, 32, 8, 128], "mistral3"));
    assert_eq!((windows(&base, &[0]), rope(&base, 0)), (vec![None], Some((1e9, RopeScaling::None))));
    assert_eq!(base.descriptor.layers, "model.language_model.layers");
    config["text_config"]["model_type"] = "ministral3".into();
    config["text_config"]["rope_parameters"] = json!({
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384, "rope_theta": 1000000.0, "rope_type": "yarn",
    });
    config["text_config"].as_object_mut().unwrap().remove("rope_theta");
    let base = read(&config);
    let Some((theta, RopeScaling::Yarn { factor, attention_factor, .. })) = rope(&base, 0) else {
        panic!("{:?}", rope(&base, 0))
    };
    assert_eq!((theta, factor, attention_factor, base.max_positions), (1e6, 16.0, 1.0, 16384 * 16));
    assert_eq!(base.scales.query_scale, Some(QueryScale { beta: 0.1, original: 16384.0 }));
    assert!(base.warnings.is_empty(), "{:?}", base.warnings);
    config["text_config"].as_object_mut().unwrap().remove("rope_parameters");
    assert_eq!(read(&config), base);
    config["text_config"]["model_type"] = "mistral4".into();
    assert!(refusal(&config).contains("`mistral4`"));
}

/// Files may leave out what is as in the first model of a kind.
#[test]
fn keys_that_are_missing_have_the_defaults_of_their_own_architecture() {
    for (model_type, kv_heads, positions) in [
        ("llama", 64, 2048),
        ("mistral", 8, 131_072),
        ("ministral", 8, 131_072),
        ("ministral3", 8, 262_144),
        ("qwen2", 32, 32_768),
        ("qwen3", 32, 32_768),
        ("gemma2", 4, 8192),
        ("gemma3_text", 4, 131_072),
        ("phi", 64, 2048),
        ("phi3", 64, 4096),
        ("olmo2", 64, 2048),
        ("olmo3", 64, 2048),
        ("granite", 64, 2048),
        ("smollm3", 4, 32_768),
    ] {
        let mut config = json!({
            "model_type": model_type, "vocab_size": 61, "hidden_size": 512, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 64,
        });
        let base = read(&config);
        assert_eq!((base.kv_heads, base.max_positions), (kv_heads, positions), "{model_type}");
        // Null is not missing.
        config["num_key_value_heads"] = Value::Null;
        assert_eq!(read(&config).kv_heads, 64, "{model_type}");
    }
}

#[test]
fn values_of_another_type_are_refused() {
    let plain = json!({
        "model_type": "qwen2", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "use_sliding_window": true,
    });
    for (key, value, expected) in [
        ("rope_scaling", json!("linear"), "an object"),
        ("rope_scaling", json!([1]), "an object"),
        ("rope_parameters", json!("x"), "an object"),
        ("rope_scaling", json!({ "rope_type": 5, "factor": 2.0 }), "a text"),
        ("rope_scaling", json!({ "type": ["yarn"], "factor": 2.0 }), "a text"),
        ("rope_scaling", json!({ "type": "yarn", "factor": 2.0, "mscale": "1", "mscale_all_dim": 1.0 }), "a number"),
        ("hidden_act", json!(5), "a text"),
        ("max_window_layers", json!("x"), "a whole number"),
        ("quantization_config", json!("bitsandbytes"), "an object"),
    ] {
        let mut config = plain.clone();
        config[key] = value;
        let message = refusal(&config);
        assert!(message.contains(&format!("expected {expected}")), "{key}: {message}");
    }
    // Values of which the frequencies would not be finite.
    for (scaling, expected) in [
        (json!({ "type": "yarn", "factor": 2.0, "rope_theta": 1.0 }), "rope_theta 1"),
        (
            json!({ "type": "longrope", "factor": 2.0, "original_max_position_embeddings": 1,
                    "short_factor": [1, 1, 1, 1], "long_factor": [1, 1, 1, 1] }),
            "the attention factor of the rope scaling is inf",
        ),
    ] {
        let mut config = plain.clone();
        config["rope_scaling"] = scaling;
        assert!(refusal(&config).contains(expected), "{}", refusal(&config));
    }
    let mut config = plain;
    config["rope_scaling"] = Value::Null;
    assert_eq!(rope(&read(&config), 0), Some((1e4, RopeScaling::None)));
}

#[test]
fn bases_without_causal_attention_are_refused() {
    let mut config = json!({
        "model_type": "llama", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "is_causal": true,
    });
    read(&config);
    for value in [json!(false), Value::Null] {
        config["is_causal"] = value;
        assert!(refusal(&config).contains("`is_causal` is not true; lorakit has causal attention only"));
    }
    let text = json!({"model_type": "gemma3_text", "is_causal": false});
    assert!(refusal(&json!({"model_type": "gemma3", "text_config": text})).contains("`is_causal`"));
}

/// transformers 5.23 reads `truncate` beside the kinds of layers, where there are several.
#[test]
fn truncate_within_a_kind_of_layers_has_no_effect() {
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32});
    for model_type in ["gemma3_text", "olmo3"] {
        let mut config = json!({
            "model_type": model_type, "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        });
        let truncate = |config: &Value| {
            let base = read(config);
            let global = base.attention.iter().find_map(|kind| match kind.rope.as_ref()?.scaling {
                RopeScaling::Yarn { truncate, .. } => Some(truncate),
                _ => None,
            });
            (global.unwrap(), base.warnings.iter().any(|warning| warning.contains("`truncate`")))
        };
        let whole = yarn.as_object().unwrap().clone();
        let mut cut = whole.clone();
        cut.insert("truncate".to_owned(), false.into());
        config["rope_parameters"] = json!({"full_attention": cut, "sliding_attention": {"rope_type": "default"}});
        assert_eq!(truncate(&config), (true, true), "{model_type}");
        config["rope_parameters"] = json!({"full_attention": whole, "sliding_attention": {}, "truncate": false});
        assert_eq!(truncate(&config), (false, false), "{model_type}");
        config["rope_parameters"] = Value::Null;
        config["rope_scaling"] = cut.into();
        assert_eq!(truncate(&config), (true, true), "{model_type}");
    }
}

#[test]
fn activations_have_the_names_of_transformers() {
    let mut config = json!({
        "model_type": "llama", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "hidden_act": "silu",
    });
    let silu = read(&config);
    config["hidden_act"] = "swish".into();
    assert_eq!(read(&config), silu);
    let mut config = json!({
        "model_type": "t5", "vocab_size": 61, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2,
    });
    for (name, activation) in
        [("relu", "Relu"), ("gated-gelu", "GeGlu"), ("gated-silu", "SwiGlu"), ("gated-swish", "SwiGlu")]
    {
        config["feed_forward_proj"] = name.into();
        assert_eq!(format!("{:?}", read(&config).descriptor.activation), activation);
    }
    config["feed_forward_proj"] = "gated-relu".into();
    assert!(refusal(&config).contains("supported are relu, gated-gelu and gated-silu"));
}

#[test]
fn phi_3_has_no_other_scaling_than_longrope() {
    let mut config = json!({
        "model_type": "phi3", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "rope_scaling": { "type": "linear", "factor": 2.0 },
    });
    assert!(refusal(&config).contains("`linear`; supported for Phi-3 are default and longrope"));
    config["rope_scaling"] = json!({ "type": "default" });
    assert_eq!(rope(&read(&config), 0), Some((1e4, RopeScaling::None)));
}

#[test]
fn other_bases_are_refused_with_what_is_missing() {
    let experts = "mixtures of experts";
    let linear = "linear attention";
    for (model_type, missing) in [
        ("phi3small", "block-sparse attention"),
        ("phimoe", experts),
        ("qwen3_moe", experts),
        ("gpt_oss", experts),
        ("llama4", experts),
        ("mixtral", experts),
        ("qwen3_next", linear),
        ("qwen3_5", linear),
        ("lfm2", linear),
        ("falcon_h1", linear),
        ("nemotron_h", linear),
        ("gemma3n", "images"),
        ("gemma4", "images"),
        ("mllama", "images"),
        ("qwen3_vl", "images"),
        ("phi4_multimodal", "images"),
    ] {
        let message = refusal(&json!({ "model_type": model_type }));
        assert!(message.contains(&format!("`{model_type}`, which needs")) && message.contains(missing), "{message}");
    }
    // Names that say nothing.
    for (keys, missing) in [
        (json!({"n_routed_experts": 64}), experts),
        (json!({"text_config": {"num_experts": 8}}), experts),
        (json!({"layer_types": ["full_attention", "mamba"]}), linear),
        (json!({"vision_config": {"hidden_size": 8}}), "images"),
    ] {
        let mut config = keys;
        config["model_type"] = "newest".into();
        let message = refusal(&config);
        assert!(message.contains("`newest`, which needs") && message.contains(missing), "{message}");
    }
    let message = refusal(&json!({ "model_type": "newest" }));
    assert!(message.contains("`newest`; supported are mistral, mistral3, ministral"), "{message}");
}
