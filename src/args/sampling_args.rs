//! Options for how generated tokens are chosen, with transformers' names and meanings.

use crate::args::usage::{self, bounded_count, count, fraction};
use anyhow::Result;
use clap::Args;
use lorakit_model::sampling::SamplingOptions;
use std::num::NonZeroUsize;

/// How tokens are chosen, in the order in which the options apply.
#[derive(Args, Debug)]
pub struct SamplingArgs {
    /// Repetition penalty: divide positive logits of tokens already seen by R, and multiply negative ones
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = penalty)]
    repetition_penalty: f32,
    /// Sampling temperature; 0 is greedy decoding
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    temperature: f64,
    /// Sample from the K most likely tokens [default: all]
    #[arg(long, value_name = "K", value_parser = count)]
    top_k: Option<NonZeroUsize>,
    /// Nucleus sampling: sample from the most likely tokens with this total probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = top_p)]
    top_p: f64,
    /// Sample from tokens of at least this share of the most likely token's probability
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = fraction)]
    min_p: f64,
    /// Number of texts for each prompt
    #[arg(short = 'n', value_name = "N", default_value = "1", value_parser = bounded_count)]
    pub samples: NonZeroUsize,
}

fn penalty(text: &str) -> Result<f32, &'static str> {
    text.parse().ok().filter(|r: &f32| r.is_finite() && *r > 0.0).ok_or("expected a number above 0")
}

fn temperature(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|t: &f64| t.is_finite() && *t >= 0.0).ok_or("expected a number of at least 0")
}

fn top_p(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|p: &f64| *p > 0.0 && *p <= 1.0).ok_or("expected a number above 0 and at most 1")
}

impl SamplingArgs {
    /// Refuses options that have no effect in greedy decoding.
    pub fn ensure_usage(&self) -> Result<()> {
        let sampling = [
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p != 1.0),
            ("--min-p", self.min_p != 0.0),
            ("-n", self.samples.get() > 1),
        ];
        let without_effect = sampling.iter().find(|(_, given)| *given && self.temperature == 0.0);
        without_effect.map_or(Ok(()), |(option, _)| {
            Err(usage::usage_error(format!("{option} needs sampling; set --temperature above 0")))
        })
    }

    /// The options for the sampler.
    pub fn options(&self) -> SamplingOptions {
        let &Self { repetition_penalty, temperature, top_k, top_p, min_p, .. } = self;
        SamplingOptions { repetition_penalty, temperature, top_k, top_p, min_p }
    }
}
