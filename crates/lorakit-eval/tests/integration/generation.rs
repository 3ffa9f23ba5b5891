//! What a real model writes.

use crate::fixture::{Fixture, shared};
use lorakit_eval::{FinishReason, GenerateOptions, GenerationEvent, generate};
use lorakit_model::sampling::SamplingStrategy;
use lorakit_task::Example;

fn prompts(stories: &Fixture, texts: &[&str]) -> Vec<Vec<u32>> {
    texts.iter().map(|text| Example::encode_prompt(text, &stories.tokenizer, 400).unwrap()).collect()
}

#[test]
#[ignore = "needs ../shared"]
fn greedy_text_is_the_published_one() {
    let stories = Fixture::stories();
    let page = shared("data/models/stories260K/stories260K.md");
    let page = std::fs::read_to_string(page).unwrap();
    let golden = page.split("-t 0.0\n").nth(1).unwrap().split("\n```").next().unwrap();
    let mut pieces = String::new();
    let config = GenerateOptions { max_new_tokens: 256, ..GenerateOptions::default() };
    let written = generate(&stories.model(), &prompts(&stories, &[""]), &config, &mut |_, event| {
        if let GenerationEvent::Text(text) = event {
            pieces.push_str(text);
        }
    });
    let written = written.unwrap().remove(0);
    assert!(written.text.trim_start().starts_with(golden), "{}", written.text);
    assert_eq!(written.text, pieces);
}

#[test]
#[ignore = "needs ../shared"]
fn rows_write_together_what_they_write_alone() {
    let stories = Fixture::stories().bend();
    let texts =
        ["Once upon a time", "Lily wanted to play with the ball, but", "Tom", "The sun was", "Ten big dogs ran to"];
    let prompts = prompts(&stories, &texts);
    for choice in [SamplingStrategy::Greedy, SamplingStrategy::Random { temperature: 0.8, top_p: 0.9 }] {
        let config = GenerateOptions {
            max_new_tokens: 40,
            stop: vec!["said".into(), ".".into()],
            sampling: choice,
            seed: 7,
            ..GenerateOptions::default()
        };
        let together = generate(&stories.model(), &prompts, &config, &mut |_, _| ()).unwrap();
        let few = GenerateOptions { batch_tokens: 1, ..config.clone() };
        let alone = generate(&stories.model(), &prompts, &few, &mut |_, _| ()).unwrap();
        assert_eq!(together, alone);
        let lengths: std::collections::BTreeSet<usize> = together.iter().map(|written| written.tokens).collect();
        assert!(lengths.len() > 1, "rows should finish at different times: {together:?}");
    }
}

#[test]
#[ignore = "needs ../shared"]
fn prompts_draw_from_streams_of_their_own() {
    let stories = Fixture::stories();
    let config = GenerateOptions {
        max_new_tokens: 20,
        sampling: SamplingStrategy::Random { temperature: 1.0, top_p: 1.0 },
        ..GenerateOptions::default()
    };
    let write = |seed| {
        let config = GenerateOptions { seed, ..config.clone() };
        generate(&stories.model(), &prompts(&stories, &["Once", "Once"]), &config, &mut |_, _| ()).unwrap()
    };
    let (first, again, other) = (write(1), write(1), write(2));
    assert_eq!(first, again);
    assert!(first[0] != first[1] && first[0] != other[0] && first[1] != other[0]);
}

#[test]
#[ignore = "needs ../shared"]
fn texts_end_before_a_stop_text_and_at_their_length() {
    let stories = Fixture::stories();
    let prompts = prompts(&stories, &["Once upon a time, there was a little girl named"]);
    let write = |stop: &[&str], max_new_tokens| {
        let stop = stop.iter().map(|text| text.to_string()).collect();
        let config = GenerateOptions { stop, max_new_tokens, ..GenerateOptions::default() };
        let mut events = Vec::new();
        let written = generate(&stories.model(), &prompts, &config, &mut |_, event| match event {
            GenerationEvent::Text(text) => events.push(text.to_string()),
            GenerationEvent::End(finish) => events.push(format!("{finish:?}")),
        });
        (written.unwrap().remove(0), events.concat())
    };
    let (written, events) = write(&["outside", "to play"], 60);
    assert_eq!((written.text.as_str(), written.finish), (" Lily. She loved ", FinishReason::Stop));
    assert_eq!(events, " Lily. She loved Stop");
    let (written, events) = write(&[], 3);
    assert_eq!((written.tokens, written.finish), (3, FinishReason::Length));
    assert_eq!(events, format!("{}Length", written.text));
    // The base was made for 512 positions.
    let (written, _) = write(&[], 10_000);
    assert!(written.finish == FinishReason::Eos || prompts[0].len() + written.tokens == 512, "{written:?}");
}

#[test]
#[ignore = "needs ../shared"]
fn what_cannot_be_gone_on_from_is_refused() {
    let stories = Fixture::stories();
    let refusal = |prompt: Vec<u32>| {
        let config = GenerateOptions::default();
        generate(&stories.model(), &[vec![1], prompt], &config, &mut |_, _| ()).unwrap_err().to_string()
    };
    assert!(refusal(Vec::new()).contains("prompt 2 has no token"));
    assert!(refusal(vec![5; 512]).contains("prompt 2 has 512 tokens"));
}
