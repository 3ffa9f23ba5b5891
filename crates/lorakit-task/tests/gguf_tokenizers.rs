//! Tokenizers and chat templates out of GGUF metadata.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lorakit_format::gguf::GgufValue;
use lorakit_task::{Conversation, Message, Tokenizer, gguf_tokenizer_files};
use serde_json::Value;

type Metadata = BTreeMap<String, GgufValue>;

fn text(text: &str) -> GgufValue {
    GgufValue::Text(text.to_owned())
}

fn texts<'a>(list: impl IntoIterator<Item = &'a str>) -> GgufValue {
    GgufValue::Array(list.into_iter().map(text).collect())
}

fn types(list: impl IntoIterator<Item = i32>) -> GgufValue {
    GgufValue::Array(list.into_iter().map(GgufValue::I32).collect())
}

/// Keys below `tokenizer.ggml`, but for those with a dot.
fn metadata<const N: usize>(keys: [(&str, GgufValue); N]) -> Metadata {
    let place = |key: &str| if key.contains('.') { key.to_owned() } else { format!("tokenizer.ggml.{key}") };
    keys.into_iter().map(|(key, value)| (place(key), value)).collect()
}

/// A byte-level vocabulary of a few words.
fn byte_level(pre: &str) -> Metadata {
    metadata([
        ("model", text("gpt2")),
        ("pre", text(pre)),
        ("tokens", texts(["<|end|>", "a", "b", "Ġ", "1", "2", "ab", "Ġab", "12", "ĠĠ", "Ġ1", "<t>", "b1"])),
        ("token_type", types([3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4, 5])),
        ("merges", texts(["a b", "Ġ ab", "1 2", "Ġ Ġ", "Ġ 1"])),
        ("bos_token_id", GgufValue::U32(0)),
        ("eos_token_id", GgufValue::U32(0)),
    ])
}

/// A SentencePiece vocabulary of a few pieces.
fn pieces() -> Metadata {
    let bytes = ["<0x0A>", "<0xC3>", "<0xA9>"];
    let tokens =
        ["<unk>", "<s>", "</s>"].into_iter().chain(bytes).chain(["▁", "a", "b", "ab", "▁a", "▁ab", "<t>", "  "]);
    let scores = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -7.0, -8.0, -2.0, -1.0, -3.0, 0.0, 0.0].map(GgufValue::F32);
    metadata([
        ("model", text("llama")),
        ("tokens", texts(tokens)),
        ("scores", GgufValue::Array(scores.into())),
        ("token_type", types([2, 3, 3, 6, 6, 6, 1, 1, 1, 1, 1, 1, 3, 4])),
    ])
}

fn with<const N: usize>(mut of: Metadata, keys: [(&str, GgufValue); N]) -> Metadata {
    of.extend(metadata(keys));
    of
}

fn spell(tokenizer: &Tokenizer, text: &str) -> String {
    let spelled: Vec<_> = tokenizer.encode(text).unwrap().iter().map(|&id| tokenizer.token(id).unwrap()).collect();
    spelled.join(" ")
}

#[test]
fn bytes_are_merged_within_the_words_of_the_pre_tokenizer() {
    for (pre, expected) in [
        ("gpt-2", "ab Ġ Ġab Ġ 12 <t> 12"),
        ("smollm", "ab Ġ Ġab Ġ 1 2 <t> 1 2"),
        ("llama-bpe", "<|end|> ab Ġ Ġab Ġ 12 <t> 12"),
        ("qwen2", "ab Ġ Ġab Ġ 1 2 <t> 1 2"),
        ("tekken", "<|end|> ab Ġ Ġab Ġ 1 2 <t> 1 2"),
        ("default", "ab Ġ Ġab Ġ 12 <t> 12"),
    ] {
        let tokenizer = Tokenizer::from_gguf(&byte_level(pre)).unwrap();
        assert_eq!(spell(&tokenizer, "ab  ab 12<t>12"), expected, "{pre}");
        assert_eq!(tokenizer.decode(&tokenizer.encode("ab  ab 12<t>12<|end|>").unwrap()).unwrap(), "ab  ab 12<t>12");
    }
    let asked = with(byte_level("gpt-2"), [("add_bos_token", GgufValue::Bool(true))]);
    assert_eq!(spell(&Tokenizer::from_gguf(&asked).unwrap(), "ab"), "<|end|> ab");
    // A word that is a token is not merged in tokenizers of Llama 3's kind.
    let word = with(byte_level("llama-bpe"), [("merges", texts(["1 2"]))]);
    assert_eq!(spell(&Tokenizer::from_gguf(&word).unwrap(), "ab"), "<|end|> ab");
}

#[test]
fn pieces_are_merged_by_their_scores() {
    let tokenizer = Tokenizer::from_gguf(&pieces()).unwrap();
    // `▁a` scores more than `ab`, and both more than `▁ab`.
    assert_eq!(spell(&tokenizer, "ab"), "<s> ▁ab");
    assert_eq!(spell(&tokenizer, "bab é\n"), "<s> ▁ b ab ▁ <0xC3> <0xA9> <0x0A>");
    assert_eq!(spell(&tokenizer, "a<t>ab  a"), "<s> ▁a <t> ▁ab    ▁a");
    assert_eq!(tokenizer.decode(&tokenizer.encode("bab é\n").unwrap()).unwrap(), "bab é\n");
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.stop_tokens()), (Some(1), 2, &[2][..]));
    let reversed = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -7.0, -8.0, -1.0, -2.0, -9.0, 0.0, 0.0].map(GgufValue::F32);
    let without = with(
        pieces(),
        [
            ("scores", GgufValue::Array(reversed.into())),
            ("token_type", types([2, 3, 3, 6, 6, 6, 1, 1, 1, 1, 1, 5, 3, 4])),
        ],
    );
    assert_eq!(spell(&Tokenizer::from_gguf(&without).unwrap(), "ab"), "<s> ▁ ab");
    let none = [("add_space_prefix", GgufValue::Bool(false)), ("add_bos_token", GgufValue::Bool(false))];
    assert_eq!(spell(&Tokenizer::from_gguf(&with(pieces(), none)).unwrap(), "ab a"), "ab ▁a");
    // Phi-3's tokens take the white space after them.
    let phi = Tokenizer::from_gguf(&with(pieces(), [("general.architecture", text("phi3"))])).unwrap();
    assert_eq!(spell(&phi, "a<t>\nab"), "<s> ▁a <t> ▁ab");
}

#[test]
fn the_chat_template_has_the_names_of_the_special_tokens() {
    let template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}";
    let chat = |of: Metadata| {
        let tokenizer = Tokenizer::from_gguf(&of).unwrap();
        let conversation = Conversation::new(vec![Message::new("user", "hi")]);
        Some(tokenizer.chat_template().ok()?.render(&conversation, false).unwrap().text)
    };
    assert_eq!(chat(pieces()), None);
    assert_eq!(chat(with(pieces(), [("tokenizer.chat_template", text(template))])).unwrap(), "<s>hi</s>");
    let more = [("tokenizer.chat_template", text(template)), ("tokenizer.chat_template.tool_use", text("tools"))];
    assert_eq!(chat(with(pieces(), more)).unwrap(), "<s>hi</s>");
    let ends =
        with(byte_level("gpt-2"), [("eos_token_id", GgufValue::U32(1)), ("tokenizer.chat_template", text("<|end|>"))]);
    assert_eq!(Tokenizer::from_gguf(&ends).unwrap().stop_tokens(), [0, 1], "the end of a turn stops, too");
}

/// Of a file that names `</s>` alone, with some ends of other models as tokens of these types.
fn with_ends() -> Metadata {
    let ends =
        ["<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "_<EOT>", "<｜end▁of▁sentence｜>", "<end_of_utterance>"];
    let tokens = ["<unk>", "<s>", "</s>"].into_iter().chain(ends).chain(["<|eot_id|>", "▁a"]);
    metadata([
        ("model", text("llama")),
        ("tokens", texts(tokens)),
        ("token_type", types([2, 3, 3, 3, 3, 4, 3, 3, 1, 1, 1])),
    ])
}

#[test]
fn every_token_that_ends_a_text_in_llama_cpp_stops() {
    let stops = |of: Metadata| Tokenizer::from_gguf(&of).unwrap().stop_tokens().to_vec();
    assert_eq!(stops(with_ends()), [2, 3, 4, 5, 6, 7], "those that are a token of their own");
    let template = [("tokenizer.chat_template", text("{{ messages[0].content }}<|eot_id|>"))];
    assert_eq!(stops(with(with_ends(), template)), [2, 3, 4, 5, 6, 7, 9], "and those that the template writes");
}

#[test]
fn files_of_a_folder_give_the_same_tokens() {
    let template = [("tokenizer.chat_template", text("{{ bos_token }}{{ messages[0].content }}"))];
    let byte_levels = ["qwen2", "llama-bpe"].map(|pre| with(byte_level(pre), template.clone()));
    for of in byte_levels.into_iter().chain([pieces(), with_ends()]) {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in gguf_tokenizer_files(&of).unwrap() {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let (file, opened) = (Tokenizer::from_gguf(&of).unwrap(), Tokenizer::open(folder.path()).unwrap());
        for text in ["ab  ab 12<t>12", "bab é\n", "a<t>ab <|end|>"] {
            assert_eq!(file.encode(text).unwrap(), opened.encode(text).unwrap(), "{text}");
        }
        assert_eq!((file.eos(), file.bos(), file.stop_tokens()), (opened.eos(), opened.bos(), opened.stop_tokens()));
        assert_eq!(file.has_chat_template(), opened.has_chat_template());
    }
}

#[test]
fn ids_beyond_the_tokens_and_empty_tokens_are_read_as_in_llama_cpp() {
    let none = GgufValue::U32(u32::MAX);
    let keys = ["bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id"];
    let plain = Tokenizer::from_gguf(&pieces()).unwrap();
    let beyond = Tokenizer::from_gguf(&with(pieces(), keys.map(|key| (key, none.clone())))).unwrap();
    assert_eq!((beyond.bos(), beyond.eos()), (plain.bos(), plain.eos()));
    assert_eq!(spell(&beyond, "bab é"), spell(&plain, "bab é"));
    for key in keys {
        let expected = format!("`tokenizer.ggml.{key}` is 4294967295, not the id of one of the 14 tokens");
        assert!(beyond.warnings().iter().any(|warning| warning.contains(&expected)), "{:?}", beyond.warnings());
    }
    let tokens = ["<|end|>", "a", "b", "Ġ", "", "2", "ab", "Ġab", "", "ĠĠ", "Ġ1", "<t>", "b1"];
    let empty = with(byte_level("gpt-2"), [("tokens", texts(tokens)), ("merges", texts(["a b"]))]);
    let empty = Tokenizer::from_gguf(&empty).unwrap();
    assert_eq!([empty.token(4), empty.token(8)].map(Option::unwrap), ["[EMPTY_4]", "[EMPTY_8]"]);
    assert_eq!(spell(&empty, "ab"), "ab");
}

#[test]
fn what_contradicts_itself_is_refused_by_key() {
    let error = |of: Metadata| format!("{:#}", anyhow::Error::from(Tokenizer::from_gguf(&of).unwrap_err()));
    let changed = |key: &str, value| error(with(byte_level("gpt-2"), [(key, value)]));
    assert!(error(Metadata::new()).contains("tokenizer.ggml.tokens: the file has no tokens; give the model's own"));
    assert!(changed("model", text("t5")).contains("`t5`"));
    let pre = changed("pre", text("martian"));
    assert!(pre.contains("unknown pre-tokenizer `martian`") && pre.contains("--tokenizer"), "{pre}");
    assert!(changed("tokens", texts(["a", "a"])).contains("`a` is both token 0 and token 1"));
    assert!(changed("tokens", GgufValue::U32(3)).contains("tokenizer.ggml.tokens: expected a list of texts"));
    assert!(changed("token_type", types([1, 1])).contains("expected 13 numbers, one for each token, found 2"));
    assert!(changed("merges", texts(["ab"])).contains("tokenizer.ggml.merges: expected two tokens"));
    assert!(changed("merges", texts(["a 2"])).contains("`a2`"));
    assert!(changed("eos_token_id", text("b")).contains("the id of a token"));
    let scores = with(pieces(), [("scores", GgufValue::Array(vec![GgufValue::F32(1.0)]))]);
    assert!(error(scores).contains("tokenizer.ggml.scores"));
    let few = metadata([("model", text("gpt2")), ("tokens", texts(["a"]))]);
    assert!(error(few).contains("no token ends a text"));
}

fn shared(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path)
}

/// Every text of ../shared/data/text, and every conversation of the chat oracle as the template of a base renders it; where
/// the base has none, as all templates of the oracle do.
fn all_texts(base: &Tokenizer) -> Vec<String> {
    let files = ["tinyshakespeare/input.txt", "wikitext-2/test.txt", "wikitext-2/valid.txt"];
    let mut all: Vec<String> =
        files.iter().map(|file| std::fs::read_to_string(shared("data/text").join(file)).unwrap()).collect();
    let oracle = std::fs::read_to_string(shared("oracles/chat_oracle.json")).unwrap();
    let oracle: Value = serde_json::from_str(&oracle).unwrap();
    let values = |of: &'static str| oracle[of].as_object().unwrap().values();
    match base.chat_template() {
        Ok(template) => {
            for messages in values("conversations") {
                let messages = messages.as_array().unwrap().iter().map(|message| Message::read(message).unwrap());
                let conversation = Conversation::new(messages.collect());
                all.extend([false, true].map(|prompt| template.render(&conversation, prompt).unwrap().text));
            }
        }
        Err(_) => {
            let cases = values("templates").flat_map(|cases| cases.as_object().unwrap().values());
            all.extend(cases.filter_map(|case| case["text"].as_str()).map(str::to_owned));
        }
    }
    all
}

/// The GGUF metadata that stands for a tokenizer.json, as llama.cpp's converter writes it, but for `keys`.
fn converted<const N: usize>(folder: &str, keys: [(&str, GgufValue); N]) -> Metadata {
    let json = std::fs::read(shared("data/models").join(folder).join("tokenizer.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let vocabulary = json["model"]["vocab"].as_object().unwrap().iter();
    let mut tokens: BTreeMap<u64, &str> =
        vocabulary.map(|(token, id)| (id.as_u64().unwrap(), token.as_str())).collect();
    let mut kinds: BTreeMap<u64, i32> = tokens.keys().map(|&id| (id, 1)).collect();
    for added in json["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap();
        tokens.insert(id, added["content"].as_str().unwrap());
        kinds.insert(id, if added["special"] == true { 3 } else { 4 });
    }
    let merges = json["model"]["merges"].as_array().unwrap().iter().map(|merge| match merge.as_array() {
        Some(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        None => merge.as_str().unwrap().to_owned(),
    });
    let merges: Vec<String> = merges.collect();
    with(
        metadata([
            ("model", text("gpt2")),
            ("tokens", texts(tokens.into_values())),
            ("token_type", types(kinds.into_values())),
            ("merges", texts(merges.iter().map(String::as_str))),
        ]),
        keys,
    )
}

fn assert_same_tokens(folder: &str, of: &Metadata) {
    let (file, folder) =
        (Tokenizer::from_gguf(of).unwrap(), Tokenizer::open(&shared("data/models").join(folder)).unwrap());
    let (texts, of_folder) = (all_texts(&file), all_texts(&folder));
    assert!(texts == of_folder, "the chat templates differ");
    for text in texts {
        let start: String = text.chars().take(60).collect();
        assert!(file.encode(&text).unwrap() == folder.encode(&text).unwrap(), "{start}");
    }
    assert_eq!((file.bos(), file.eos()), (folder.bos(), folder.eos()));
    // A file in GGUF does not say all that stops; what it has of llama.cpp's list does.
    assert!(folder.stop_tokens().iter().all(|stop| file.stop_tokens().contains(stop)));
}

#[test]
#[ignore = "needs ../shared"]
fn byte_level_tokens_are_those_of_the_folder() {
    let id = GgufValue::U32;
    let template = std::fs::read_to_string(shared("data/models/smollm2-135m-instruct/chat_template.jinja")).unwrap();
    let keys = [
        ("pre", text("smollm")),
        ("bos_token_id", id(1)),
        ("eos_token_id", id(2)),
        ("tokenizer.chat_template", text(&template)),
    ];
    assert_same_tokens("smollm2-135m-instruct", &converted("smollm2-135m-instruct", keys));
    let keys = [("pre", text("gpt-2")), ("bos_token_id", id(50256)), ("eos_token_id", id(50256))];
    assert_same_tokens("tokenizers/gpt2", &converted("tokenizers/gpt2", keys));
}

/// The scores of llama2.c's tok512.bin: the length of the longest token, then each token's score, length and bytes.
fn scores() -> Vec<GgufValue> {
    let bytes = std::fs::read(shared("data/models/stories260K/tok512.bin")).unwrap();
    let (mut scores, mut rest) = (Vec::new(), &bytes[4..]);
    while let Some((head, tail)) = rest.split_at_checked(8) {
        scores.push(GgufValue::F32(f32::from_le_bytes(head[..4].try_into().unwrap())));
        rest = &tail[u32::from_le_bytes(head[4..].try_into().unwrap()) as usize..];
    }
    scores
}

#[test]
#[ignore = "needs ../shared"]
fn pieces_are_those_of_the_folder() {
    let kinds = (0..512).map(|id| [2, 3, 3].get(id).copied().unwrap_or(if id < 259 { 6 } else { 1 }));
    let keys = [("model", text("llama")), ("scores", GgufValue::Array(scores())), ("token_type", types(kinds))];
    assert_same_tokens("stories260K-hf", &converted("stories260K-hf", keys));
}
