//! The tokenizer classes of all architectures that a base may have.

use lorakit_model::architecture::ARCHITECTURES;
use lorakit_task::registered_tokenizer_class;

/// By transformers 5.23's `TOKENIZER_MAPPING_NAMES`.
#[test]
fn every_architecture_has_the_class_that_transformers_registers() {
    let registered = [
        ("gemma2", Some("GemmaTokenizer")),
        ("gemma3", Some("GemmaTokenizer")),
        ("gemma3_text", Some("GemmaTokenizer")),
        ("granite", Some("TokenizersBackend")),
        ("granitemoehybrid", Some("TokenizersBackend")),
        ("llama", None),
        ("ministral", Some("TokenizersBackend")),
        ("ministral3", Some("TokenizersBackend")),
        ("mistral", Some("TokenizersBackend")),
        ("mistral3", Some("TokenizersBackend")),
        ("olmo2", Some("TokenizersBackend")),
        ("olmo3", Some("TokenizersBackend")),
        ("phi", Some("GPT2Tokenizer")),
        ("phi3", Some("TokenizersBackend")),
        ("qwen2", Some("Qwen2Tokenizer")),
        ("qwen3", Some("Qwen2Tokenizer")),
        ("smollm3", None),
        ("t5", Some("T5Tokenizer")),
    ];
    let mut known: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.model_type).collect();
    known.sort_unstable();
    assert_eq!(registered.map(|(model_type, _)| model_type).as_slice(), known);
    for (model_type, class) in registered {
        assert_eq!(registered_tokenizer_class(model_type), class, "{model_type}");
    }
}
