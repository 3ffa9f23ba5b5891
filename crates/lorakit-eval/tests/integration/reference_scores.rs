//! Scores compared with a slow reference, computed one row at a time from all logits.

use crate::fixture::{Fixture, carrying, choice_task, task};
use candle_core::{DType, Tensor};
use lorakit_eval::{
    EvalOptions, EvalProgress, EvalStage, GenerateOptions, PatchedModel, PromptRouting, chosen, evaluate,
    example_losses, generate, samples_jsonl, score_choices,
};
use lorakit_model::TokenBatch;
use lorakit_task::{Example, LossTokens, Metric, Row, RowEncoding, Split, choice_requests};
use serde_json::{Value, json};

/// The negative log-likelihood of every token of `target` after `prompt`, from all logits of one row.
fn slow_nll(model: &PatchedModel, prompt: &[u32], target: &[u32]) -> Vec<f64> {
    let mut alone = TokenBatch::default();
    let tokens = [prompt, target].concat();
    alone.push(&tokens, &[0], None);
    alone.for_each_sequence(|row| {
        *row = lorakit_eval::Sequence { len: row.len, ..model.routing.route(&[prompt]).unwrap().remove(0) }
    });
    let logits = model.base.logits(&tokens, alone.sequences(), model.patches).unwrap();
    let logits: Vec<Vec<f64>> = logits.to_dtype(DType::F64).unwrap().to_vec2().unwrap();
    let nll = |(i, &id): (usize, &u32)| {
        let row = &logits[prompt.len() + i - 1];
        row.iter().map(|l| l.exp()).sum::<f64>().ln() - row[id as usize]
    };
    target.iter().enumerate().map(nll).collect()
}

#[test]
fn losses_match_the_reference_at_any_batch_size() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture::pico().bend();
    let task = choice_task(folder.path());
    let model = fixture.model();
    let rows = task.rows(Split::All, None).unwrap();
    let examples: Vec<Example> = rows.iter().map(|row| Example::encode(row, model.tokenizer, 256).unwrap()).collect();
    let slow = examples.iter().map(|example| {
        let nll = slow_nll(&model, example.prompt(), example.target());
        nll.iter().sum::<f64>() / nll.len() as f64
    });
    let slow: Vec<f64> = slow.collect();
    for batch_tokens in [1, 700, 100_000] {
        let mut heard = Vec::new();
        let losses = example_losses(&model, &examples, batch_tokens, &mut |done| heard.push(done)).unwrap();
        for (found, expected) in losses.iter().zip(&slow) {
            assert!((found - expected).abs() < 1e-4, "{batch_tokens}: {found} {expected}");
        }
        assert!(heard.is_sorted() && heard.last() == Some(&24), "{heard:?}");
    }
}

#[test]
fn choices_with_a_shared_prompt_score_the_same_as_alone() {
    let folder = tempfile::tempdir().unwrap();
    for fixture in [Fixture::pico(), Fixture::pico().bend()] {
        let task = choice_task(folder.path());
        check_choices(&fixture.model(), &task.rows(Split::All, None).unwrap());
    }
}

fn check_choices(model: &PatchedModel, rows: &[&Row]) {
    let together = score_choices(model, rows, 4096, &mut |_| ()).unwrap();
    let alone = score_choices(model, rows, 1, &mut |_| ()).unwrap();
    let mut cut = 0;
    for ((row, together), alone) in rows.iter().zip(together).zip(alone) {
        let length = model.base.config().max_positions;
        let requests = choice_requests(row, model.tokenizer, length).unwrap();
        let examples = Example::encode_choices(row, model.tokenizer, length).unwrap();
        cut += usize::from(examples[0].truncation.prompt > 0);
        for (i, (request, example)) in requests.iter().zip(&examples).enumerate() {
            let sum = -slow_nll(model, &request.context, &request.continuation).iter().sum::<f64>();
            let nll = slow_nll(model, example.prompt(), example.target());
            let mean = nll.iter().sum::<f64>() / nll.len() as f64;
            for score in [&together[i], &alone[i]] {
                let (likelihood, loss) = (score.log_likelihood, score.loss);
                assert!((likelihood - sum).abs() < 1e-4 * sum.abs().max(1.0), "{likelihood} {sum}");
                assert!((loss - mean).abs() < 1e-4, "{loss} {mean}");
                assert_eq!(score.characters, score.text.chars().count());
            }
        }
    }
    assert!(cut > 0, "no row was long enough to be truncated");
}

#[test]
fn a_choice_task_has_a_loss_and_three_accuracies() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture::pico();
    let task = choice_task(folder.path());
    let model = fixture.model();
    let mut heard = Vec::new();
    let options = EvalOptions { split: Split::All, limit: Some(20), ..EvalOptions::default() };
    let scores = evaluate(&model, &task, &options, &mut |progress| heard.push(progress)).unwrap();
    assert_eq!(scores.n, 20);
    assert_eq!(scores.metrics.keys().collect::<Vec<_>>(), ["acc", "acc_norm", "acc_tok", "loss"]);
    assert_eq!(heard.last(), Some(&EvalProgress { stage: EvalStage::Choices, done: 20, total: 20 }));
    let examples = task.rows(Split::All, Some(20)).unwrap().into_iter();
    let examples: Vec<Example> = examples.map(|row| Example::encode(row, model.tokenizer, 256).unwrap()).collect();
    let losses = example_losses(&model, &examples, 2048, &mut |_| ()).unwrap();
    assert!((scores.metrics["loss"].value - losses.iter().sum::<f64>() / 20.0).abs() < 1e-4);
    let right = |metric| {
        let right = scores.samples.iter().filter(|sample| chosen(metric, &sample.choices) == sample.gold);
        right.count() as f64 / 20.0
    };
    for metric in [Metric::Acc, Metric::AccNorm, Metric::AccTok] {
        assert_eq!(scores.metrics[metric.name()].value, right(metric));
    }
    let lines = samples_jsonl(&scores.samples).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((lines.lines().count(), first["choices"].as_array().unwrap().len()), (20, 4));
    // Parsing JSON may change the last bit.
    let read = first["choices"][1]["log_likelihood"].as_f64().unwrap();
    assert!((read / scores.samples[0].choices[1].log_likelihood - 1.0).abs() < 1e-12);
}

#[test]
fn the_loss_of_a_choice_task_does_not_depend_on_the_other_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let options = EvalOptions { split: Split::All, ..EvalOptions::default() };
    for loss in LossTokens::ALL {
        let fixture = Fixture::pico();
        let tokenizer = fixture.tokenizer.with_encoding(RowEncoding { loss, ..RowEncoding::default() });
        let fixture = Fixture { tokenizer, ..fixture };
        let mut choices = choice_task(folder.path());
        let scores = evaluate(&fixture.model(), &choices, &options, &mut |_| ()).unwrap();
        choices.metrics = vec![Metric::Loss];
        let alone = evaluate(&fixture.model(), &choices, &options, &mut |_| ()).unwrap();
        let (found, expected) = (scores.metrics["loss"].value, alone.metrics["loss"].value);
        assert!((found - expected).abs() < 1e-4, "{loss}: {found} {expected}");
        assert_eq!(scores.truncated, alone.truncated);
        assert_eq!(scores.metrics.len(), 4);
    }
}

#[test]
#[ignore = "needs ../shared"]
fn a_text_task_has_a_loss_and_generated_text() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture::stories();
    let row = |input: &str, output: &str| json!({"input": input, "output": output}).to_string() + "\n";
    let rows =
        row("Once upon a time, there was a little", "girl named Lily. She") + &row("Lily's mom", "nothing of the kind");
    std::fs::write(folder.path().join("rows.jsonl"), rows).unwrap();
    let toml = "rows = \"rows.jsonl\"\nprompt = \"{{ input }}\"\nstop = [\" loved\"]\nmax_new_tokens = 20\n";
    let task = task(folder.path(), "t.toml", toml);
    let options = EvalOptions { split: Split::All, ..EvalOptions::default() };
    let mut heard = Vec::new();
    let scores = evaluate(&fixture.model(), &task, &options, &mut |progress| heard.push(progress)).unwrap();
    let names: Vec<&String> = scores.metrics.keys().collect();
    assert_eq!(names, ["exact_match", "exact_match_normalized", "loss", "rouge_l"]);
    let written = scores.samples[0].generated.as_ref().unwrap();
    assert_eq!(written.text, " girl named Lily. She");
    assert_eq!((scores.metrics["exact_match"].value, scores.samples[0].metrics["rouge_l"]), (0.5, 1.0));
    assert_eq!(heard.last(), Some(&EvalProgress { stage: EvalStage::Generation, done: 2, total: 2 }));
}

#[test]
fn nan_weights_are_reported_by_row() {
    let folder = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::pico();
    struct Broken;
    impl lorakit_lora::Patch for Broken {
        fn add(
            &self,
            _: &Tensor,
            _: &lorakit_lora::SequenceBatch,
            out: &mut lorakit_lora::Outputs,
        ) -> candle_core::Result<()> {
            let delta = (out.tensor() * f64::NAN)?;
            out.add(&delta)
        }
    }
    fixture.patches = lorakit_eval::Patches::new(vec![Some(std::sync::Arc::new(Broken))]);
    let choices = choice_task(folder.path());
    let text = task(folder.path(), "text.jsonl", "{\"input\": \"a\", \"output\": \"b\"}\n");
    for task in [choices, text] {
        let options = EvalOptions { split: Split::All, limit: Some(3), ..EvalOptions::default() };
        let error = evaluate(&fixture.model(), &task, &options, &mut |_| ()).unwrap_err();
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let message = causes.map(|cause| cause.to_string()).collect::<Vec<_>>().join(": ");
        let named = [task.name.as_str(), "row ", "NaN"];
        assert!(named.iter().all(|part| message.contains(part)), "{message}");
    }
}

/// Gives each row a weight that depends on the length of its prompt.
struct ByLength;

impl ByLength {
    fn row(prompt: &[u32]) -> lorakit_eval::Sequence {
        carrying(0.1 + 0.2 * (prompt.len() % 3) as f32)
    }
}

impl PromptRouting for ByLength {
    fn route(&self, prompts: &[&[u32]]) -> Result<Vec<lorakit_eval::Sequence>, lorakit_eval::RoutingError> {
        Ok(prompts.iter().map(|prompt| Self::row(prompt)).collect())
    }
}

#[test]
fn each_row_is_routed_by_its_own_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture::pico().bend();
    let task = choice_task(folder.path());
    let together = fixture.with(&ByLength);
    let rows = task.rows(Split::All, Some(7)).unwrap();
    let length = fixture.base.config().max_positions;
    let encode = |row: &&Row| Example::encode(row, &fixture.tokenizer, length).unwrap();
    let examples: Vec<Example> = rows.iter().map(encode).collect();
    let losses = example_losses(&together, &examples, 2048, &mut |_| ()).unwrap();
    let choices = score_choices(&together, &rows, 2048, &mut |_| ()).unwrap();
    let prompts: Vec<Vec<u32>> = examples.iter().map(|example| example.prompt().to_vec()).collect();
    let config = GenerateOptions { max_new_tokens: 8, ..GenerateOptions::default() };
    let texts = generate(&together, &prompts, &config, &mut |_, _| ()).unwrap();
    let mut weights = std::collections::BTreeSet::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let row = ByLength::row(prompt);
        weights.insert(row.weights.as_ref().unwrap()[1].to_bits());
        let alone = fixture.with(&row);
        let loss = example_losses(&alone, &examples[i..=i], 2048, &mut |_| ()).unwrap()[0];
        assert!((loss - losses[i]).abs() < 1e-4, "{loss} {}", losses[i]);
        let choice = &score_choices(&alone, &rows[i..=i], 2048, &mut |_| ()).unwrap()[0];
        for (found, expected) in choices[i].iter().zip(choice) {
            assert!((found.log_likelihood - expected.log_likelihood).abs() < 1e-2);
        }
        assert_eq!(generate(&alone, &prompts[i..=i], &config, &mut |_, _| ()).unwrap()[0].text, texts[i].text);
    }
    assert!(weights.len() > 1, "the rows must carry different weights");
}
