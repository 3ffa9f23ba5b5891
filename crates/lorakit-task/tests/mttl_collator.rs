//! Tokens compared with those of mttl's collator (the code of arXiv:2405.11157) in cases where both follow the same
//! rule.
//!
//! mttl puts a space between source and target if neither has white space there, encodes both as one text, appends EOS,
//! computes the loss on the target and truncates from the left: so does this crate. Not compared: truncation from the
//! right (never done here), padding (absent here), and the source `the mat `, whose trailing space mttl merges into the
//! target's first token, so that training and generation see different prompts; here the prompt is unchanged and the
//! target is encoded separately. mttl adds no BOS, nor does its tokenizer.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use lorakit_task::{Answer, Example, Row, Tokenizer};
use serde_json::{Map, Value};

struct Oracle {
    tokenizer: Tokenizer,
    numbers: Value,
}

fn oracle() -> Oracle {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracles");
    let tokenizer = std::fs::read(folder.join("mttl_tokenizer.json")).unwrap();
    let numbers = std::fs::read(folder.join("mttl_oracle.json")).unwrap();
    Oracle {
        tokenizer: Tokenizer::from_bytes(&tokenizer, "<|endoftext|>").unwrap(),
        numbers: serde_json::from_slice(&numbers).unwrap(),
    }
}

fn row(source: &str, answer: Answer) -> Row {
    Row { delimiter: None, ..Row::plain(1, Map::new(), source, "", answer) }
}

fn ids(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

/// The tokens of a row without padding, and its labels.
fn unpadded(batch: &Value, i: usize) -> (Vec<i64>, Vec<i64>) {
    let mask = ids(&batch["attention_mask"][i]);
    let kept = |key: &str| {
        let all = ids(&batch[key][i]).into_iter().zip(&mask);
        all.filter(|&(_, &mask)| mask == 1).map(|(id, _)| id).collect::<Vec<_>>()
    };
    (kept("input_ids"), kept("labels"))
}

fn ours(example: &Example) -> (Vec<i64>, Vec<i64>) {
    let ids = example.tokens.iter().map(|&id| i64::from(id)).collect();
    let masked = example.prompt().iter().map(|_| -100);
    (ids, masked.chain(example.target().iter().map(|&id| i64::from(id))).collect())
}

#[test]
#[ignore = "needs ../shared"]
fn examples_and_prompts_equal_those_of_the_collator() {
    let Oracle { tokenizer, numbers } = oracle();
    let mut compared = 0;
    for case in numbers["collator"].as_array().unwrap() {
        // Rows that fit are the same under either truncation side.
        if case["truncation_side"] != "left" {
            continue;
        }
        let max_length = case["max_input_length"].as_u64().unwrap() as usize;
        for (i, source) in numbers["collator_batch"].as_array().unwrap().iter().enumerate() {
            let (source, target) = (source["source"].as_str().unwrap(), source["target"].as_str().unwrap());
            let (theirs, labels) = if case["for_generation"] == true {
                let prompt = Example::encode_prompt(source, &tokenizer, max_length).unwrap();
                let prompt: Vec<i64> = prompt.into_iter().map(i64::from).collect();
                assert_eq!(prompt, unpadded_prompt(case, i));
                compared += 1;
                continue;
            } else {
                unpadded(case, i)
            };
            if source == "the mat " {
                continue;
            }
            let row = row(source, Answer::Text(vec![target.into()]));
            let example = Example::encode(&row, &tokenizer, max_length).unwrap();
            assert_eq!(ours(&example), (theirs, labels));
            compared += 1;
        }
    }
    assert!(compared >= 20, "{compared}");
}

fn unpadded_prompt(case: &Value, i: usize) -> Vec<i64> {
    let mask = ids(&case["attention_mask"][i]);
    let all = ids(&case["input_ids"][i]).into_iter().zip(mask);
    all.filter(|&(_, mask)| mask == 1).map(|(id, _)| id).collect()
}

#[test]
#[ignore = "needs ../shared"]
fn choices_with_eos_equal_those_of_the_collator() {
    let Oracle { tokenizer, numbers } = oracle();
    let batch = &numbers["mc_collator"];
    let (mut next, mut compared) = (0, 0);
    for options in ids(&batch["num_options"]) {
        let source = batch["sources_texts"][next].as_str().unwrap();
        let text = |i: usize| batch["labels_texts"][i].as_str().unwrap().to_string();
        let texts: Vec<_> = (next..next + options as usize).map(text).collect();
        let row = row(source, Answer::Choices { texts, gold: 0 });
        for example in Example::encode_choices(&row, &tokenizer, 64).unwrap() {
            assert_eq!(ours(&example), unpadded(batch, next));
            next += 1;
            compared += 1;
        }
    }
    assert_eq!(compared, 4);
}
