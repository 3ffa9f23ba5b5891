//! Choosing the next token from logits, as transformers' `generate` does.

use crate::vector_math::largest;
use candle_core::{Device, Result, Tensor, bail};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use candle_transformers::utils::apply_repeat_penalty;
use lorakit_format::rng::{Key, RngCore};
use lorakit_lora::kernels::simd::{self, Simd, WithSimd};
use std::num::NonZeroUsize;

/// How tokens are chosen, with transformers' names. The fields are in the order in which they apply.
///
/// Unlike in transformers, no base's `generation_config.json` changes the defaults, and `top_k` is not 50 without one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Above 0. Each token that occurred in prompt or text has its logit divided by it if positive, else multiplied
    /// (<https://arxiv.org/abs/1909.05858>). 1 changes nothing.
    pub repetition_penalty: f32,
    /// The logits are divided by it. 0 takes the most probable token, of equals the first; nothing below applies then.
    pub temperature: f64,
    /// Only the k most probable tokens, and those as probable as the last of them.
    pub top_k: Option<NonZeroUsize>,
    /// Only the most probable tokens that together reach this probability, in (0, 1] (nucleus sampling,
    /// <https://arxiv.org/abs/1904.09751>).
    pub top_p: f64,
    /// Only tokens of at least this share, in [0, 1], of the most probable token's probability
    /// (<https://arxiv.org/abs/2407.01082>).
    pub min_p: f64,
}

/// Greedy decoding.
impl Default for SamplingOptions {
    fn default() -> Self {
        Self { repetition_penalty: 1.0, temperature: 0.0, top_k: None, top_p: 1.0, min_p: 0.0 }
    }
}

/// Chooses the tokens of one text. What is drawn for a step depends on the options, the key and the step alone.
pub struct Sampler {
    options: SamplingOptions,
    key: Key,
}

/// The most probable token; of equals the first.
pub fn greedy(logits: &[f32]) -> u32 {
    let (best, _) = simd::dispatch(Extremes(logits));
    logits.iter().position(|&logit| logit == best).unwrap_or(0) as u32
}

/// The largest logit, and how many are NaN or positive infinity.
struct Extremes<'a>(&'a [f32]);

impl WithSimd for Extremes<'_> {
    type Output = (f32, u32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> (f32, u32) {
        let wrong = |count: u32, &logit: &f32| count + u32::from(logit.is_nan() || logit == f32::INFINITY);
        (largest(self.0), self.0.iter().fold(0, wrong))
    }
}

impl Sampler {
    /// A sampler of the text that `key` names.
    pub fn new(options: SamplingOptions, key: Key) -> Self {
        Self { options, key }
    }

    /// The token of a step, counted from 0, after `seen`, the tokens of prompt and text, with the `logits` that follow
    /// them, `[vocabulary]`.
    ///
    /// # Errors
    /// If a logit is NaN or positive infinity.
    pub fn next(&self, logits: &[f32], seen: &[u32], step: usize) -> Result<u32> {
        let (_, wrong) = simd::dispatch(Extremes(logits));
        if wrong > 0 {
            bail!("{wrong} of the next token's {} logits are NaN or infinite; are all weights finite?", logits.len());
        }
        if self.options.temperature == 0.0 && self.options.repetition_penalty == 1.0 {
            return Ok(greedy(logits));
        }
        let scores = self.options.scores(logits, seen)?;
        if self.options.temperature == 0.0 {
            return Ok(greedy(&scores));
        }
        let seed = self.key.clone().number(step as u64).stream().next_u64();
        let mut processor = LogitsProcessor::from_sampling(seed, Sampling::All { temperature: 1.0 });
        processor.sample(&Tensor::from_slice(&scores, scores.len(), &Device::Cpu)?)
    }
}

impl SamplingOptions {
    /// The logits after penalty and temperature, those of tokens that are not candidates as negative infinity. With a
    /// temperature they are less the largest.
    fn scores(&self, logits: &[f32], seen: &[u32]) -> Result<Vec<f32>> {
        let mut scores = logits.to_vec();
        if self.repetition_penalty != 1.0 {
            let logits = Tensor::from_vec(scores, logits.len(), &Device::Cpu)?;
            scores = apply_repeat_penalty(&logits, self.repetition_penalty, seen)?.to_vec1()?;
        }
        if self.temperature == 0.0 {
            return Ok(scores);
        }
        // The largest becomes 0, so that no temperature makes it infinite.
        let highest = f64::from(maximum(&scores));
        scores.iter_mut().for_each(|score| *score = ((f64::from(*score) - highest) / self.temperature) as f32);
        if let Some(k) = self.top_k {
            keep_top_k(&mut scores, k.get());
        }
        // Not candle's own top-p after top-k, which does not normalize the probabilities in between.
        if self.top_p < 1.0 {
            keep_top_p(&mut scores, self.top_p);
        }
        if self.min_p > 0.0 {
            let highest = maximum(&scores);
            keep(&mut scores, |score| f64::from(score - highest).exp() >= self.min_p);
        }
        Ok(scores)
    }
}

fn maximum(scores: &[f32]) -> f32 {
    scores.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Keeps the scores for which `is_candidate` holds.
fn keep(scores: &mut [f32], is_candidate: impl Fn(f32) -> bool) {
    scores.iter_mut().filter(|score| !is_candidate(**score)).for_each(|score| *score = f32::NEG_INFINITY);
}

fn keep_top_k(scores: &mut [f32], k: usize) {
    if k < scores.len() {
        let mut sorted = scores.to_vec();
        let (_, least, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        let least = *least;
        keep(scores, |score| score >= least);
    }
}

fn keep_top_p(scores: &mut [f32], p: f64) {
    let highest = maximum(scores);
    let mut ascending: Vec<(usize, f64)> =
        scores.iter().map(|score| f64::from(score - highest).exp()).enumerate().collect();
    ascending.sort_by(|a, b| a.1.total_cmp(&b.1));
    let total: f64 = ascending.iter().map(|token| token.1).sum();
    // The most probable token always stays.
    ascending.pop();
    let mut below = 0.0;
    for (token, probability) in ascending {
        below += probability;
        if below > (1.0 - p) * total {
            break;
        }
        scores[token] = f32::NEG_INFINITY;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LOGITS: [f32; 8] = [2.5, -1.0, 0.5, 3.0, 3.0, -4.0, 1.25, 0.0];
    /// A token counts once, however often it occurred.
    const SEEN: [u32; 6] = [3, 1, 3, 7, 0, 1];

    fn options(repetition_penalty: f32, temperature: f64, top_k: usize, top_p: f64, min_p: f64) -> SamplingOptions {
        SamplingOptions { repetition_penalty, temperature, top_k: NonZeroUsize::new(top_k), top_p, min_p }
    }

    /// Scores of transformers 5.23's RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper,
    /// TopPLogitsWarper and MinPLogitsWarper, in the order of its `_get_logits_processor`.
    #[test]
    fn scores_are_those_of_transformers() {
        let no = f32::NEG_INFINITY;
        let table = [
            ((1.3, 1.0, 0, 1.0, 0.0), [1.923077, -1.3, 0.5, 2.307692, 3.0, -4.0, 1.25, 0.0]),
            ((1.0, 0.7, 5, 1.0, 0.0), [3.571429, no, 0.714286, 4.285714, 4.285714, no, 1.785714, no]),
            ((1.0, 1.0, 1, 1.0, 0.0), [no, no, no, 3.0, 3.0, no, no, no]),
            ((1.0, 1.0, 0, 0.8, 0.0), [2.5, no, no, 3.0, 3.0, no, no, no]),
            ((1.0, 1.0, 0, 0.3, 0.0), [no, no, no, no, 3.0, no, no, no]),
            ((1.0, 1.0, 0, 1.0, 0.2), [2.5, no, no, 3.0, 3.0, no, no, no]),
            ((1.3, 0.7, 4, 0.85, 0.0), [2.747253, no, no, 3.296703, 4.285714, no, no, no]),
            ((0.8, 1.5, 6, 0.95, 0.15), [2.083333, no, no, 2.5, 2.0, no, 0.833333, no]),
            ((1.0, 2.0, 5, 0.9, 0.0), [1.25, no, no, 1.5, 1.5, no, 0.625, no]),
            ((1.0, 1.0, 4, 0.93, 0.0), [2.5, no, no, 3.0, 3.0, no, no, no]),
        ];
        for ((penalty, temperature, k, p, min_p), expected) in table {
            let scores = options(penalty, temperature, k, p, min_p).scores(&LOGITS, &SEEN).unwrap();
            // Those here are less the largest.
            let highest = maximum(&expected) - maximum(&scores);
            let close = |(a, b): (&f32, &f32)| *a == b - highest || (a - (b - highest)).abs() < 1e-5;
            assert!(scores.iter().zip(&expected).all(close), "{penalty} {temperature} {k} {p} {min_p}: {scores:?}");
        }
    }

    #[test]
    fn greedy_decoding_heeds_the_penalty_alone() {
        let next =
            |options: SamplingOptions| Sampler::new(options, Key::new(0, "test")).next(&LOGITS, &SEEN, 0).unwrap();
        assert_eq!(next(SamplingOptions::default()), 3);
        assert_eq!(next(options(1.3, 0.0, 1, 0.5, 0.5)), 4);
    }

    #[test]
    fn draws_follow_the_probabilities_and_depend_on_the_key_and_the_step_alone() {
        let draws = |seed| -> Vec<u32> {
            let sampler = Sampler::new(options(1.0, 1.0, 0, 1.0, 0.0), Key::new(seed, "test"));
            (0..4000).map(|step| sampler.next(&LOGITS, &SEEN, step).unwrap()).collect()
        };
        let (first, again, other) = (draws(1), draws(1), draws(2));
        assert!(first == again && first != other);
        let total: f64 = LOGITS.iter().map(|&logit| f64::from(logit).exp()).sum();
        for (token, &logit) in LOGITS.iter().enumerate() {
            let share = first.iter().filter(|&&drawn| drawn as usize == token).count() as f64 / 4000.0;
            assert!((share - f64::from(logit).exp() / total).abs() < 0.03, "{token}: {share}");
        }
    }

    #[test]
    fn the_lowest_temperatures_draw_the_most_probable_token() {
        for temperature in [1e-6, 1e-38, 5e-324] {
            let sampler = Sampler::new(options(1.0, temperature, 2, 0.9, 0.0), Key::new(0, "test"));
            for (logits, best) in [([200.0, 300.0, 1.0], 1), ([-2.0, -3.0, -1.0], 2)] {
                let drawn = (0..20).map(|step| sampler.next(&logits, &[], step).unwrap());
                assert!(drawn.into_iter().all(|token| token == best), "{temperature}");
            }
        }
    }

    #[test]
    fn logits_that_are_not_finite_are_an_error() {
        let sampler = Sampler::new(SamplingOptions::default(), Key::new(0, "test"));
        let error = sampler.next(&[0.0, f32::NAN, 1.0], &[], 0).unwrap_err().to_string();
        assert!(error.starts_with("1 of the next token's 3 logits are NaN or infinite"), "{error}");
        assert_eq!(sampler.next(&[f32::NEG_INFINITY, 1.0], &[], 0).unwrap(), 1);
    }
}
