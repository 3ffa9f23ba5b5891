//! How much more strongly a task's own expert responds to the task's rows than the other experts do: the premise of Arrow.
//!
//! Figure 5 of "Towards Modular LLMs" (<https://arxiv.org/abs/2405.11157>) shows, for each sample, the mean over layers of the
//! ratio of `|A B h|` of the sample's own expert to that of a random expert. Here, for a row whose tokens are `x_1 .. x_T` at
//! a site, that is at the projections `p` of a layer that read the same input:
//!
//! ```text
//! r_e   = 1/T sum_t sqrt(sum_p |s_p B_p A_p x_t|²) / |x_t|        the response of expert e at the site
//! ratio = mean over sites of  r_own / (mean over e != own of r_e)
//! ```
//!
//! - The mean of the other experts is the expectation of a random expert's response: nothing is drawn.
//! - Division by `|x_t|` lets every token count alike. It would cancel in a ratio of one token, but not in this one of means,
//!   which the few tokens of very large activations would decide without it.
//! - Every site of a layer that any expert adapts counts, also where the own expert has nothing. Sites where the others' mean
//!   is zero are left out. So are embedding and head.
//! - An expert of large weights responds strongly to every row. As in the paper, the ratio does not tell this apart from an
//!   expert that responds to its own task alone.
//!
//! The tokens are those that the loss reads: the prompt and the answer but for its last token, through the base alone.

use crate::error::{FitError, Result};
use lorakit_eval::{EvalOptions, Sample, TaskScores, TruncatedRows};
use lorakit_model::{Base, TokenBatch};
use lorakit_route::{LibraryStack, ResponseMeasure, ResponseProbe};
use lorakit_task::{Example, Task, Tokenizer};

/// The metric's name in `results.json`.
pub const RESPONSE_RATIO: &str = "response_ratio";

/// Measures the ratio over the rows of tasks, see [the module](self).
pub struct ResponseRatio<'a> {
    base: &'a Base,
    tokenizer: &'a Tokenizer,
    experts: usize,
    probe: ResponseProbe,
}

impl<'a> ResponseRatio<'a> {
    /// Of these experts over their base.
    ///
    /// # Errors
    /// If there are fewer than two experts.
    pub fn new(base: &'a Base, tokenizer: &'a Tokenizer, experts: &LibraryStack) -> Result<Self> {
        if experts.len() < 2 {
            return Err(FitError::NoOtherExpert);
        }
        let probe = ResponseProbe::new(experts, ResponseMeasure::Energy)?;
        Ok(Self { base, tokenizer, experts: experts.len(), probe })
    }

    /// The mean of [`RESPONSE_RATIO`] over the rows of a task whose own expert has the index `own`. A row to which no other
    /// expert responds has none.
    ///
    /// # Errors
    /// If a row cannot be tokenized, or a response is not finite.
    pub fn score(&self, task: &Task, own: usize, options: &EvalOptions) -> Result<TaskScores> {
        let (parallel, length) = (self.base.batch_parallel(options.batch_tokens), self.base.config().max_positions);
        let (mut samples, mut batches) = (Vec::new(), Vec::<TokenBatch>::new());
        for row in task.rows(options.split, options.limit)? {
            let example = Example::encode(row, self.tokenizer, length)?;
            samples.push(Sample::new(row, Example::prompt_text(row, self.tokenizer)?));
            let has_room = |batch: &&mut TokenBatch| batch.ids().len() + example.len() <= parallel.tokens();
            match batches.last_mut().filter(has_room) {
                Some(batch) => batch.push_masked(&example.tokens, &example.loss, None),
                None => {
                    let mut batch = TokenBatch::default();
                    batch.push_masked(&example.tokens, &example.loss, None);
                    batches.push(batch);
                }
            }
        }
        let mut ratios = Vec::with_capacity(samples.len());
        let measure = |batch: &TokenBatch| self.row_ratios(batch, own);
        parallel.run(&batches, measure, |found| {
            ratios.extend(found);
            Ok(())
        })?;
        for (sample, ratio) in samples.iter_mut().zip(ratios) {
            let Some(ratio) = ratio else { continue };
            if !ratio.is_finite() {
                return Err(FitError::NonFiniteResponse { row: sample.row });
            }
            sample.metrics.insert(RESPONSE_RATIO.to_owned(), ratio);
        }
        Ok(TaskScores::of(samples, TruncatedRows::default()))
    }

    /// The ratio of each row of a batch.
    fn row_ratios(&self, batch: &TokenBatch, own: usize) -> Result<Vec<Option<f64>>> {
        let pass = self.probe.start();
        self.base.hidden_states(batch.ids(), &self.base.plan(batch.sequences()), &pass.patches())?;
        let sites = pass.responses();
        let ratio = |row: usize| {
            let of_row = sites.iter().filter_map(|(_, responses)| responses.chunks_exact(self.experts).nth(row));
            let ratios: Vec<f64> = of_row.filter_map(|responses| site_ratio(responses, own)).collect();
            (!ratios.is_empty()).then(|| ratios.iter().sum::<f64>() / ratios.len() as f64)
        };
        Ok((0..batch.len()).map(ratio).collect())
    }
}

/// One expert's response over the mean of the others', none where that is zero; NaN where a response is not finite.
fn site_ratio(responses: &[f32], own: usize) -> Option<f64> {
    let others = responses.iter().enumerate().filter(|(expert, _)| *expert != own).map(|(_, r)| f64::from(*r));
    let mean = others.sum::<f64>() / (responses.len() - 1) as f64;
    match mean.is_finite() {
        true => (mean > 0.0).then(|| f64::from(responses[own]) / mean),
        false => Some(f64::NAN),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::Tensor;
    use lorakit_adapter::{Adapter, LowRank, Matrix};
    use lorakit_format::rng::CounterRng;
    use lorakit_lora::{Outputs, Patch, Patches, SequenceBatch, Site};
    use lorakit_model::BaseOptions;
    use lorakit_route::Expert;
    use lorakit_task::Split;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex};

    /// Keeps a site's input.
    #[derive(Default)]
    struct KeptInput(Mutex<Vec<Vec<f32>>>);

    impl Patch for KeptInput {
        fn add(&self, x: &Tensor, _: &SequenceBatch, _: &mut Outputs) -> candle_core::Result<()> {
            *self.0.lock().unwrap() = x.to_vec2()?;
            Ok(())
        }
    }

    fn low_rank(rank: usize, input: usize, output: usize, scale: f64) -> LowRank {
        let mut stream = CounterRng::seeded(7, (rank * output) as u64);
        let mut matrix = |rows: usize, columns: usize| {
            let values = (0..rows * columns).map(|_| stream.uniform() - 0.5).collect();
            Matrix::new(rows, columns, values).unwrap()
        };
        let (a, b) = (matrix(rank, input), matrix(output, rank));
        LowRank::new(a, b, scale).unwrap()
    }

    fn expert(name: &str, modules: impl IntoIterator<Item = (&'static str, LowRank)>) -> Expert {
        let modules = modules.into_iter().map(|(module, low_rank)| (format!("model.layers.{module}"), low_rank));
        Expert::new(name, Adapter::new(modules.collect()))
    }

    /// Experts of other ranks, scales and modules each, over pico: 128 features, keys of 64, an MLP of 344.
    fn uneven(base: &Base) -> LibraryStack {
        let own = [
            ("0.self_attn.q_proj", low_rank(2, 128, 128, 1.5)),
            ("0.self_attn.k_proj", low_rank(2, 128, 64, 0.5)),
            ("2.mlp.down_proj", low_rank(1, 344, 128, 0.1)),
            // No other expert has anything here: the site is left out.
            ("3.mlp.gate_proj", low_rank(4, 128, 344, 9.0)),
        ];
        let other = [
            ("0.self_attn.k_proj", low_rank(5, 128, 64, 0.3)),
            // The own expert has nothing here: a ratio of zero.
            ("1.self_attn.o_proj", low_rank(3, 128, 128, 1.0)),
        ];
        let third = [
            ("0.self_attn.q_proj", low_rank(7, 128, 128, 4.0)),
            ("0.self_attn.v_proj", low_rank(6, 128, 64, 2.0)),
            ("2.mlp.down_proj", low_rank(3, 344, 128, 0.7)),
        ];
        let experts = [expert("a", other), expert("own", own), expert("z", third)];
        LibraryStack::new(experts, &base.adaptable_sites(), base.device()).unwrap()
    }

    fn norm(values: impl Iterator<Item = f64>) -> f64 {
        values.map(|value| value * value).sum::<f64>().sqrt()
    }

    /// An expert's response at a site, by dense deltas.
    fn dense_response(experts: &LibraryStack, expert: usize, site: &Site, inputs: &[Vec<f32>]) -> f64 {
        let dot = |d: &[f32], x: &[f32]| d.iter().zip(x).map(|(d, x)| f64::from(*d) * f64::from(*x)).sum::<f64>();
        let deltas = site.projections.iter().filter_map(|projection| experts.module(expert, &projection.module));
        let deltas: Vec<f32> = deltas.flat_map(LowRank::delta).collect();
        let of_token = |x: &Vec<f32>| {
            let added = deltas.chunks_exact(site.input).map(|row| dot(row, x));
            norm(added) / norm(x.iter().map(|x| f64::from(*x)))
        };
        inputs.iter().map(of_token).sum::<f64>() / inputs.len() as f64
    }

    /// The ratio of the expert `own` for tokens of one row, by dense deltas.
    fn dense_ratio(base: &Base, experts: &LibraryStack, own: usize, ids: &[u32]) -> f64 {
        let kept: Vec<Arc<KeptInput>> = experts.sites().iter().map(|_| Arc::default()).collect();
        let patches = Patches::new(kept.iter().map(|kept| Some(kept.clone() as Arc<dyn Patch>)).collect());
        base.hidden_states(ids, &base.plan(SequenceBatch::packed([ids.len()])), &patches).unwrap();
        let mut ratios = Vec::new();
        for (site, kept) in experts.sites().iter().zip(&kept).filter(|(site, _)| site.layer.is_some()) {
            let inputs = kept.0.lock().unwrap();
            let responses: Vec<f64> = (0..3).map(|expert| dense_response(experts, expert, site, &inputs)).collect();
            let others = (responses.iter().sum::<f64>() - responses[own]) / 2.0;
            if others > 1e-12 {
                ratios.push(responses[own] / others);
            }
        }
        assert_eq!(ratios.len(), 3, "qkv of layer 0, o of layer 1, down of layer 2");
        ratios.iter().sum::<f64>() / 3.0
    }

    fn pico() -> (Base, Tokenizer) {
        let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/pico");
        (Base::open(&folder, &BaseOptions::default()).unwrap(), Tokenizer::open(&folder).unwrap())
    }

    fn task() -> Task {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let row = |i: usize| format!("{{\"input\": \"+{i}:{}\", \"output\": \"b{i}\"}}\n", "ab".repeat(i + 1));
        std::fs::write(&path, (0..4).map(row).collect::<String>()).unwrap();
        Task::load(&path.display().to_string(), None).unwrap().remove(0)
    }

    #[test]
    fn the_ratio_is_that_of_dense_deltas() {
        let ((base, tokenizer), task) = (pico(), task());
        let experts = uneven(&base);
        // Two or more rows share a forward.
        let options = EvalOptions { split: Split::All, batch_tokens: 30, ..EvalOptions::default() };
        let ratio = ResponseRatio::new(&base, &tokenizer, &experts).unwrap();
        let own = experts.index("own").unwrap();
        let scores = ratio.score(&task, own, &options).unwrap();
        let found: Vec<f64> = scores.samples.iter().map(|sample| sample.metrics[RESPONSE_RATIO]).collect();
        assert_eq!(found.len(), 4);
        for (row, found) in task.rows(Split::All, None).unwrap().into_iter().zip(&found) {
            let tokens = Example::encode(row, &tokenizer, 256).unwrap().tokens;
            let expected = dense_ratio(&base, &experts, own, &tokens[..tokens.len() - 1]);
            assert!((found - expected).abs() < 1e-4 * expected, "{found} {expected}");
        }
        let score = scores.metrics[RESPONSE_RATIO];
        assert!((score.value - found.iter().sum::<f64>() / 4.0).abs() < 1e-12);
        assert!(score.stderr.is_some_and(|error| error > 0.0), "{score:?}");
    }

    #[test]
    fn rows_without_another_s_response_have_no_ratio() {
        assert_eq!(site_ratio(&[2.0, 1.0, 3.0], 0), Some(1.0));
        assert_eq!(site_ratio(&[0.0, 1.0], 0), Some(0.0));
        assert_eq!(site_ratio(&[1.0, 0.0], 0), None);
        let (base, tokenizer) = &pico();
        let apart = [
            expert("a", [("0.self_attn.q_proj", low_rank(2, 128, 128, 1.0))]),
            expert("b", [("0.mlp.down_proj", low_rank(2, 344, 128, 0.0))]),
        ];
        let experts = LibraryStack::new(apart, &base.adaptable_sites(), base.device()).unwrap();
        let ratio = ResponseRatio::new(base, tokenizer, &experts).unwrap();
        let options = EvalOptions { split: Split::All, ..EvalOptions::default() };
        let scores = ratio.score(&task(), 0, &options).unwrap();
        assert!(scores.n == 4 && scores.metrics.is_empty(), "{scores:?}");
    }

    #[test]
    fn one_expert_and_infinite_responses_are_refused() {
        let (base, tokenizer) = &pico();
        let stack = |experts: Vec<Expert>| LibraryStack::new(experts, &base.adaptable_sites(), base.device()).unwrap();
        let good = || expert("a", [("0.self_attn.q_proj", low_rank(2, 128, 128, 1.0))]);
        let alone = ResponseRatio::new(base, tokenizer, &stack(vec![good()]));
        assert!(matches!(alone.err(), Some(FitError::NoOtherExpert)));
        let huge = Matrix::new(1, 128, vec![1e30; 128]).unwrap();
        let broken = LowRank::new(huge, Matrix::new(128, 1, vec![1.0; 128]).unwrap(), 1.0).unwrap();
        let experts = stack(vec![good(), expert("b", [("0.self_attn.q_proj", broken)])]);
        let options = EvalOptions { split: Split::All, ..EvalOptions::default() };
        for own in 0..2 {
            let ratio = ResponseRatio::new(base, tokenizer, &experts).unwrap();
            let error = ratio.score(&task(), own, &options).unwrap_err();
            assert!(matches!(error, FitError::NonFiniteResponse { row: 1 }), "{error}");
        }
    }
}
