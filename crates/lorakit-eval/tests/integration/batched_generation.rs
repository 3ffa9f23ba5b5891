//! Rows that are generated together against rows alone.

use crate::fixture::{Fixture, carrying};
use lorakit_eval::{
    EvalError, GenerateOptions, GeneratedText, GenerationEvent, PatchedModel, PromptRouting, RoutingError, Sequence,
    generate,
};
use lorakit_lora::{Outputs, Patch, Patches, SequenceBatch};
use lorakit_model::sampling::SamplingOptions;
use lorakit_task::Example;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Weights that depend on the prompt's last token: rows of a batch carry different ones.
struct ByLastToken;

impl PromptRouting for ByLastToken {
    fn route(&self, prompts: &[&[u32]]) -> Result<Vec<Sequence>, RoutingError> {
        let weight = |prompt: &&[u32]| prompt.last().map_or(0.0, |&token| (token % 3) as f32 / 8.0);
        let row = |prompt| Sequence {
            expert: Some(3),
            weights: Some(Arc::from([0.5, weight(prompt)])),
            ..Sequence::default()
        };
        Ok(prompts.iter().map(row).collect())
    }
}

/// Prompts of many lengths, some with a common beginning, one of a single token.
fn prompts(count: usize) -> Vec<Vec<u32>> {
    let common: Vec<u32> = (0..40).map(|i| 3 + i * i % 50).collect();
    let prompt = |i: u32| -> Vec<u32> {
        let own = (0..1 + i * 7 % 23).map(|k| 3 + (k * k + i * 11) % 60);
        if i.is_multiple_of(3) { common.iter().copied().chain(own).collect() } else { own.collect() }
    };
    (0..count as u32).map(prompt).collect()
}

fn texts(model: &PatchedModel, prompts: &[Vec<u32>], options: &GenerateOptions) -> Vec<GeneratedText> {
    generate(model, prompts, options, &mut |_, _| ()).unwrap()
}

fn options() -> GenerateOptions {
    let stop = ["e", "t"].map(str::to_owned).to_vec();
    GenerateOptions { max_new_tokens: 30, samples: 2, seed: 5, stop, ..GenerateOptions::default() }
}

/// Room for a number of tokens.
fn cache(model: &PatchedModel, tokens: u64) -> u64 {
    tokens * model.base.cache_bytes_per_token()
}

#[test]
fn rows_that_end_make_room_and_every_row_is_as_alone() {
    let pico = Fixture::pico().bend();
    let model = pico.with(&ByLastToken);
    let prompts = prompts(20);
    let sampled = SamplingOptions { temperature: 0.9, top_p: 0.95, ..SamplingOptions::default() };
    for sampling in [SamplingOptions::default(), sampled] {
        let alone = texts(&model, &prompts, &GenerateOptions { sampling, max_rows: 1, ..options() });
        let lengths: std::collections::BTreeSet<usize> = alone.iter().map(|text| text.tokens).collect();
        assert!(lengths.len() > 3, "rows should end at different times: {lengths:?}");
        let together = options();
        let few_rows = GenerateOptions { max_rows: 3, ..options() };
        let full = GenerateOptions { cache_bytes: cache(&model, 250), ..options() };
        let no_room = GenerateOptions { cache_bytes: 0, ..options() };
        let parts = GenerateOptions { batch_tokens: 13, ..options() };
        for (what, options) in
            [("together", together), ("few rows", few_rows), ("full", full), ("no room", no_room), ("parts", parts)]
        {
            assert_eq!(texts(&model, &prompts, &GenerateOptions { sampling, ..options }), alone, "{what}");
        }
        let each = |(i, prompt): (usize, &Vec<u32>)| {
            let options = GenerateOptions { sampling, first_prompt: i, ..options() };
            texts(&model, std::slice::from_ref(prompt), &options)
        };
        let each: Vec<GeneratedText> = prompts.iter().enumerate().flat_map(each).collect();
        assert_eq!(each, alone, "prompts alone");
    }
}

/// Counts the tokens that a site reads.
struct Counting(Arc<AtomicUsize>);

impl Patch for Counting {
    fn add(&self, _: &candle_core::Tensor, rows: &SequenceBatch, _: &mut Outputs) -> candle_core::Result<()> {
        self.0.fetch_add(rows.tokens(), Ordering::Relaxed);
        Ok(())
    }
}

/// The tokens that the model reads to generate a text of one token for each of the rows.
fn tokens_read(routing: &dyn PromptRouting, prompts: &[Vec<u32>], options: &GenerateOptions) -> usize {
    let count = Arc::new(AtomicUsize::new(0));
    let pico = Fixture::pico();
    let counting = Counting(count.clone());
    let mut sites: Vec<Option<Arc<dyn Patch>>> = vec![None; pico.base.sites().len()];
    sites[0] = Some(Arc::new(counting));
    let pico = Fixture { patches: Patches::new(sites), ..pico };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let options = GenerateOptions { max_new_tokens: 1, ..options.clone() };
    pool.install(|| texts(&pico.with(routing), prompts, &options));
    count.load(Ordering::Relaxed)
}

#[test]
fn what_rows_have_in_common_is_read_once() {
    let same = Sequence::default();
    let prompt: Vec<u32> = (3..63).collect();
    let one = std::slice::from_ref(&prompt);
    // The last two tokens are read for each sample.
    for samples in [1, 5] {
        let options = GenerateOptions { samples, ..GenerateOptions::default() };
        assert_eq!(tokens_read(&same, one, &options), 60 + 2 * (samples - 1));
    }
    let few_shot = |own: u32| -> Vec<u32> { prompt[..40].iter().copied().chain([own; 3]).collect() };
    let rows: Vec<Vec<u32>> = (3..9).map(few_shot).collect();
    assert_eq!(tokens_read(&same, &rows, &GenerateOptions::default()), 43 + 5 * 3);
    // One after the other: a row that has ended is still there to be shared.
    let alone = GenerateOptions { max_rows: 1, ..GenerateOptions::default() };
    assert_eq!(tokens_read(&same, &rows, &alone), 43 + 5 * 3);
    // Rows that carry other weights have other keys: of six rows, three times two carry the same.
    assert_eq!(tokens_read(&ByLastToken, &rows, &GenerateOptions::default()), 3 * (43 + 3));
    // A few tokens are read again sooner than waited for.
    let short: Vec<Vec<u32>> = (3..9).map(|own| vec![5, 6, 7, own]).collect();
    assert_eq!(tokens_read(&same, &short, &GenerateOptions::default()), 6 * 4);
}

/// The texts that are generated from a T5, and the tokens of the sources that its encoder has read.
fn encoded(
    t5: &Fixture,
    routing: &dyn PromptRouting,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
) -> (Vec<GeneratedText>, usize) {
    let count = Arc::new(AtomicUsize::new(0));
    // The first site is one of the encoder.
    let counting = Patches::new(vec![Some(Arc::new(Counting(count.clone())) as Arc<dyn Patch>)]);
    let patches = t5.patches.clone().with(counting);
    let model = PatchedModel { patches: &patches, ..t5.with(routing) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let texts = pool.install(|| texts(&model, prompts, options));
    (texts, count.load(Ordering::Relaxed))
}

#[test]
fn an_encoder_runs_once_for_all_texts_of_a_source() {
    let t5 = Fixture::t5().bend();
    let prompt = |text: &str| Example::encode_prompt(text, &t5.tokenizer, usize::MAX).unwrap();
    // The second is longer than the first, and begins as it does; the fourth is the first again.
    let prompts = ["the cat", "the cat sat", "tea", "the cat"].map(prompt);
    let sources = prompts.each_ref().map(|prompt| prompt.len() - 1);
    let routing = carrying(0.25);
    for sampling in [SamplingOptions::default(), SamplingOptions { temperature: 1.3, ..SamplingOptions::default() }] {
        let options =
            GenerateOptions { max_new_tokens: 9, samples: 5, seed: 3, sampling, ..GenerateOptions::default() };
        // Without room for a second row, nothing is left to share.
        let no_room = GenerateOptions { cache_bytes: 0, ..options.clone() };
        let (alone, read) = encoded(&t5, &routing, &prompts, &no_room);
        assert_eq!(read, 5 * sources.iter().sum::<usize>());
        // Of rows one after the other, the first has lost its slots when its source comes again.
        let one_by_one = GenerateOptions { max_rows: 1, ..options.clone() };
        for (options, sources) in [(&options, &sources[..3]), (&one_by_one, &sources[..])] {
            let (texts, read) = encoded(&t5, &routing, &prompts, options);
            assert_eq!((texts, read), (alone.clone(), sources.iter().sum::<usize>()));
        }
        let different = |at: usize| alone[at * 5..][..5].iter().any(|text| text.text != alone[at * 5].text);
        assert_eq!((0..4).any(different), sampling.temperature > 0.0);
        assert!(alone.iter().any(|text| text.tokens > 3));
    }
    // Rows that carry other weights are not one row's.
    let options = GenerateOptions { max_new_tokens: 2, ..GenerateOptions::default() };
    let (_, read) = encoded(&t5, &ByTurns(AtomicUsize::new(0)), &[prompts[0].clone(), prompts[0].clone()], &options);
    assert_eq!(read, 2 * sources[0]);
}

/// What a decoder starts with may be in either file.
#[test]
fn a_source_is_the_prompt_whichever_token_its_answers_start_with() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/t5/base");
    let generated = |file: &str| {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            fs::copy(base.join(name), folder.path().join(name)).unwrap();
        }
        let path = folder.path().join(file);
        let keys = fs::read(&path).map(|keys| serde_json::from_slice(&keys).unwrap());
        let mut keys: Value = keys.unwrap_or_else(|_| json!({}));
        keys["decoder_start_token_id"] = 9.into();
        fs::write(&path, keys.to_string()).unwrap();
        let t5 = Fixture::open(folder.path());
        let prompts = ["the cat", "tea"].map(|text| Example::encode_prompt(text, &t5.tokenizer, usize::MAX).unwrap());
        assert!(prompts.iter().all(|prompt| prompt.last() == Some(&9)));
        texts(&t5.model(), &prompts, &GenerateOptions { max_new_tokens: 9, ..GenerateOptions::default() })
    };
    assert_eq!(generated("generation_config.json"), generated("config.json"));
}

/// Every row carries another weight.
struct ByTurns(AtomicUsize);

impl PromptRouting for ByTurns {
    fn route(&self, prompts: &[&[u32]]) -> Result<Vec<Sequence>, RoutingError> {
        Ok(prompts.iter().map(|_| carrying(self.0.fetch_add(1, Ordering::Relaxed) as f32 / 8.0)).collect())
    }
}

/// NaN for rows that carry the weight 1.
struct Broken;

impl Patch for Broken {
    fn add(&self, _: &candle_core::Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        let factor = |row: &Sequence| if row.expert == Some(1) { f32::NAN } else { 1.0 };
        let factors: Vec<f32> = rows.iter().flat_map(|row| vec![factor(row); row.len]).collect();
        let factors = candle_core::Tensor::from_slice(&factors, (factors.len(), 1), out.tensor().device())?;
        let delta = (out.tensor().broadcast_mul(&factors)? - out.tensor())?;
        out.add(&delta)
    }
}

/// The second prompt goes to a broken expert.
struct SecondIsBroken;

impl PromptRouting for SecondIsBroken {
    fn route(&self, prompts: &[&[u32]]) -> Result<Vec<Sequence>, RoutingError> {
        let row = |prompt: &&[u32]| Sequence { expert: Some(usize::from(prompt[0] == 9)), ..Sequence::default() };
        Ok(prompts.iter().map(row).collect())
    }
}

#[test]
fn a_row_whose_logits_are_nan_is_named_after_all_others_have_ended() {
    let pico = Fixture::pico();
    let patches = pico.base.sites().iter().map(|_| Some(Arc::new(Broken) as Arc<dyn Patch>)).collect();
    let pico = Fixture { patches: Patches::new(patches), ..pico };
    let model = pico.with(&SecondIsBroken);
    let prompts = [vec![4; 5], vec![9; 5], vec![5; 5]];
    let options = GenerateOptions { max_new_tokens: 3, ..GenerateOptions::default() };
    let mut ended = Vec::new();
    let error = generate(&model, &prompts, &options, &mut |index, event| {
        ended.extend(matches!(event, GenerationEvent::End(_)).then_some(index));
    });
    let error = error.unwrap_err();
    ended.sort_unstable();
    assert_eq!(ended, [0, 2]);
    assert!(matches!(error, EvalError::Prompt { prompt: 2, .. }), "{error:?}");
    assert_eq!(texts(&model, &prompts[..1], &options).len(), 1);
}
