//! Rows of an encoder-decoder, by a tokenizer of T5's kind: the tokens of transformers' `T5Tokenizer`.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use lorakit_task::{
    Answer, Conversation, Example, IncrementalDecoder, LossTokens, Message, Row, RowEncoding, RowKind, RowLayout,
    TaskError, Tokenizer, choice_requests,
};
use serde_json::{Map, Value};

const START: u32 = 0;
const EOS: u32 = 1;

fn fixture() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/t5")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&fixture().join("base")).unwrap()
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture().join("expected.json")).unwrap()).unwrap()
}

fn row(prompt: &str, answer: &str) -> Row {
    Row::plain(1, Map::new(), prompt, " ", Answer::Text(vec![answer.into()]))
}

fn message(error: TaskError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

#[test]
fn a_source_has_the_tokens_of_transformers_and_no_bos() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.layout(), RowLayout::SourceTarget { start: START });
    for (text, ids) in expected()["texts"].as_object().unwrap() {
        let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
        assert_eq!(tokenizer.encode_whole(text).unwrap(), ids, "{text:?}");
        assert_eq!(Example::encode_prompt(text, &tokenizer, 99).unwrap(), [&ids[..], &[START]].concat(), "{text:?}");
    }
}

#[test]
fn source_and_target_are_encoded_apart() {
    let tokenizer = tokenizer();
    let example = Example::encode(&row("the cat\n", "the cat"), &tokenizer, 99).unwrap();
    let [the, cat] = [5, 4];
    assert_eq!((example.prompt(), example.target()), (&[the, cat, EOS, START][..], &[the, cat, EOS][..]));
    assert!(example.has_plain_loss() && example.loss_tokens() == 3);
    // An answer that spells EOS gets no second one, and an empty prompt is EOS.
    let spelled = Example::encode(&row("", "cat</s>"), &tokenizer, 99).unwrap();
    assert_eq!(spelled.tokens, [EOS, START, cat, EOS]);
    assert_eq!(Example::encode_row_prompt(&row("the cat\n", ""), &tokenizer, 99).unwrap(), example.prompt());
    assert_eq!(tokenizer.bare_prompt_len().unwrap(), 2);
}

#[test]
fn a_long_row_keeps_the_end_of_its_source() {
    let tokenizer = tokenizer();
    let encode = |max_length| Example::encode(&row("a the cat", "the cat"), &tokenizer, max_length);
    let short = encode(6).unwrap();
    assert_eq!(short.tokens, [4, EOS, START, 5, 4, EOS]);
    assert_eq!((short.truncation.prompt, short.truncation.target), (2, 0));
    let shortest = encode(3).unwrap();
    assert_eq!((shortest.tokens, shortest.truncation.target), (vec![EOS, START, 5], 2));
    assert!(message(encode(2).unwrap_err()).contains("at least 3"));
    let prompt = |max_length| Example::encode_prompt("the cat", &tokenizer, max_length);
    assert!((1..=2).all(|length| message(prompt(length).unwrap_err()).contains("nothing of a prompt of 4")));
    assert_eq!(prompt(3).unwrap(), [4, EOS, START]);
}

#[test]
fn choices_share_their_source() {
    let texts = vec!["cat".to_owned(), "the cat".to_owned()];
    let row = Row::plain(1, Map::new(), "a the ", " ", Answer::Choices { texts, gold: 0 });
    let requests = choice_requests(&row, &tokenizer(), 99).unwrap();
    let examples = Example::encode_choices(&row, &tokenizer(), 99).unwrap();
    for (request, example) in requests.iter().zip(&examples) {
        assert_eq!(request.context, example.prompt());
        assert_eq!([request.continuation.as_slice(), &[EOS]].concat(), example.target());
    }
    assert_eq!(requests[1].continuation, [5, 4]);
}

#[test]
fn generated_text_does_not_continue_its_source() {
    let (tokenizer, expected) = (tokenizer(), expected());
    let prompt = Example::encode_prompt("the cat", &tokenizer, 99).unwrap();
    let rows: Vec<Vec<u32>> = serde_json::from_value(expected["greedy"].clone()).unwrap();
    for (ids, text) in rows.iter().zip(expected["decoded"].as_array().unwrap()) {
        let mut decoder = IncrementalDecoder::new(&tokenizer, &prompt).unwrap();
        let pieces = ids[1..].iter().filter_map(|&id| decoder.push(id).unwrap()).collect::<String>();
        assert_eq!(pieces + &decoder.finish().unwrap(), text.as_str().unwrap());
    }
}

#[test]
fn what_needs_one_stream_is_refused() {
    let tokenizer = tokenizer();
    let turns = vec![Message::new("user", "a"), Message::new("assistant", "b")];
    let conversation = Row { kind: RowKind::Conversation(Conversation::new(turns)), ..row("a", "b") };
    let refused = |row: &Row, tokenizer: &Tokenizer| message(Example::encode(row, tokenizer, 99).unwrap_err());
    assert!(refused(&conversation, &tokenizer).contains("the base is an encoder-decoder"));
    let chat = tokenizer.clone().with_encoding(RowEncoding { chat: true, ..RowEncoding::default() });
    let chat_row = Row { kind: RowKind::Plain { instruction: "a".into(), input: String::new() }, ..row("a", "b") };
    assert!(refused(&chat_row, &chat).contains("without --chat"));
    assert!(refused(&Row { kind: RowKind::Text, ..row("", "b") }, &tokenizer).contains("a text without a prompt"));
    let all = tokenizer.with_encoding(RowEncoding { loss: LossTokens::All, ..RowEncoding::default() });
    assert!(refused(&row("a", "b"), &all).contains("leave out loss=all"));
}
