//! Published adapters.

use lorakit_adapter::{Adapter, BaseModule};

use crate::{assert_close, chain, shared};

fn gpt2(name: &str) -> Adapter {
    Adapter::read(&shared(&format!("data/adapters/gpt2/{name}"))).unwrap()
}

#[test]
#[ignore = "needs ../shared"]
fn similarities_of_gpt2_adapters_reflect_their_training_data() {
    let [medical, sports, legal] = ["skeleton-medical", "skeleton-sports", "skeleton-legal"].map(gpt2);
    assert!(medical.metadata().fan_in_fan_out);
    assert_eq!(medical.modules().len(), 36);
    assert_close(medical.cosine(&sports).unwrap(), 0.714, 1e-3);
    assert_close(medical.cosine(&legal).unwrap(), 0.20, 1e-2);
    assert_close(sports.cosine(&legal).unwrap(), 0.20, 1e-2);
    assert!(medical.modules().values().all(|update| update.top_singular_vector().is_some()));
}

/// The linear modules of GPT-2 small.
fn gpt2_modules() -> Vec<BaseModule> {
    let sizes =
        [("attn.c_attn", 768, 2304), ("attn.c_proj", 768, 768), ("mlp.c_fc", 768, 3072), ("mlp.c_proj", 3072, 768)];
    let module = |layer, (name, input, output): &(&str, usize, usize)| BaseModule {
        path: format!("transformer.h.{layer}.{name}"),
        input: *input,
        output: *output,
        ..BaseModule::default()
    };
    (0..12).flat_map(|layer| sizes.iter().map(move |size| module(layer, size))).collect()
}

#[test]
#[ignore = "needs ../shared"]
fn an_adapter_fits_its_base_and_no_other() {
    let adapter = gpt2("skeleton-medical");
    let base = gpt2_modules();
    adapter.check_against(&base).unwrap();
    let fewer: Vec<_> = base.iter().filter(|module| !module.path.contains(".11.")).cloned().collect();
    let error = adapter.check_against(&fewer).unwrap_err().to_string();
    assert!(error.contains("transformer.h.11.attn.c_attn"), "{error}");
    let mut wider = base.clone();
    wider[0].input = 1024;
    let error = adapter.check_against(&wider).unwrap_err().to_string();
    assert!(
        error.contains("transformer.h.0.attn.c_attn") && error.contains("1024") && error.contains("768"),
        "{error}"
    );
    let mut more = base;
    more.push(BaseModule {
        path: "transformer.h.12.attn.c_proj".into(),
        input: 768,
        output: 768,
        ..BaseModule::default()
    });
    let error = adapter.check_against(&more).unwrap_err().to_string();
    assert!(error.contains("transformer.h.12.attn.c_proj") && error.contains("target_modules"), "{error}");
}

#[test]
#[ignore = "needs ../shared"]
fn an_adapter_of_distilgpt2_is_read() {
    let folder = shared("data/adapters/distilgpt2/niket");
    assert_eq!(Adapter::read(&folder).unwrap().modules().len(), 6);
}

#[test]
#[ignore = "needs ../shared"]
fn other_kinds_of_adapters_are_refused_by_name() {
    for (name, reason) in [
        ("gpt2/medqa-cls-modules_to_save", "modules_to_save"),
        ("peft-regression/lora_mlp_modules_to_save__0.6.1", "modules_to_save"),
        ("peft-regression/adalora_mlp__0.6.1", "ADALORA"),
        ("peft-regression/adalora_opt-350m__0.6.1", "ADALORA"),
        ("peft-regression/ia3_conv2d__0.6.1", "IA3"),
        ("peft-regression/ia3_mlp__0.6.1", "IA3"),
        ("peft-regression/ia3_no_ff_mlp__0.6.1", "IA3"),
        ("peft-regression/ia3_opt-350m__0.6.1", "IA3"),
        ("peft-regression/lora_conv2d__0.6.1", "convolutions are not supported"),
    ] {
        let folder = shared(&format!("data/adapters/{name}"));
        let error = chain(Adapter::read(&folder).unwrap_err());
        assert!(error.contains(reason) && error.contains(name), "{name}: {error}");
    }
}

#[test]
#[ignore = "needs ../shared"]
fn an_adapter_of_an_embedding_is_read() {
    let adapter = Adapter::read(&shared("data/adapters/peft-regression/lora_emb_conv1d__0.6.1")).unwrap();
    let embeddings: Vec<&str> = adapter.metadata().embeddings.iter().map(String::as_str).collect();
    assert_eq!((adapter.modules().len(), embeddings), (2, vec!["emb"]));
    let update = &adapter.modules()["emb"];
    assert_eq!((update.a().rows(), update.a().cols(), update.b().rows()), (8, 100, 5));
}

#[test]
#[ignore = "needs ../shared"]
fn pickles_are_read_as_strictly_as_safetensors() {
    let folder = shared("data/adapters/peft-regression");
    let adapter = Adapter::read(&folder.join("lora_opt-350m__0.6.1")).unwrap();
    assert_eq!(adapter.modules().len(), 48);
    assert!(adapter.norm() > 0.0);
    let temporary = tempfile::tempdir().unwrap();
    let written = temporary.path().join("a");
    adapter.write(&written).unwrap();
    assert_eq!(Adapter::read(&written).unwrap().modules(), adapter.modules());
}
