//! `generate`: generates text from a prompt, streamed.

use crate::args::adapter_args::{self, AdapterArgs};
use crate::args::usage::{self, count};
use crate::base::base_source::BaseSource;
use crate::command_context::CommandContext;
use anyhow::{Context as _, Result};
use clap::Args;
use lorakit_eval::{GenerateOptions, GenerationEvent, PatchedModel, generate};
use lorakit_model::sampling::SamplingStrategy;
use lorakit_task::Example;
use serde_json::json;
use std::io::Read;
use std::num::NonZeroUsize;

/// The arguments of `generate`.
#[derive(Args, Debug)]
#[command(after_help = adapter_args::routers())]
pub struct GenerateArgs {
    /// Base model: a model folder, hub:ORG/NAME[@REV], or pico
    #[arg(long, value_name = "B")]
    base: BaseSource,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// Prompt; - reads it from stdin
    #[arg(long, value_name = "TEXT|-", allow_hyphen_values = true)]
    prompt: String,
    /// Maximum number of new tokens, also limited by the base model [default: 256]
    #[arg(long, value_name = "N", value_parser = count)]
    max_new_tokens: Option<NonZeroUsize>,
    /// Sampling temperature; 0 is greedy decoding
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    temperature: f64,
    /// Nucleus sampling: sample from the most likely tokens with this total probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = top_p)]
    top_p: f64,
    /// Stop before this text; can be repeated. For a text that starts with a hyphen: --stop=-x
    #[arg(long, value_name = "TEXT", value_parser = stop)]
    stop: Vec<String>,
}

fn stop(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("expected a text that is not empty") } else { Ok(text.to_owned()) }
}

fn temperature(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|t: &f64| t.is_finite() && *t >= 0.0).ok_or("expected a number of at least 0")
}

fn top_p(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|p: &f64| *p > 0.0 && *p <= 1.0).ok_or("expected a number above 0 and at most 1")
}

/// Generates text from the prompt.
pub fn run(args: GenerateArgs, context: &CommandContext) -> Result<()> {
    args.adapter.ensure_usage()?;
    usage::ensure(args.top_p == 1.0 || args.temperature > 0.0, || {
        "--top-p needs sampling; set --temperature above 0".to_owned()
    })?;
    let place = args.base.resolve(context)?;
    let (base, vocabulary) = (place.base(context)?, place.tokenizer()?);
    let routed = args.adapter.open(&base, &place, context)?;
    let prompt = prompt(&args.prompt)?;
    let whole = Example::encode_prompt(&prompt, &vocabulary, usize::MAX)?.len();
    let budget = TokenBudget::of(whole, args.max_new_tokens.map(NonZeroUsize::get), base.config().max_positions);
    let tokens = Example::encode_prompt(&prompt, &vocabulary, budget.prompt)?;
    if let Some(warning) = budget.warning(whole, args.max_new_tokens, base.config().max_positions) {
        context.output.warn(warning);
    }
    let choice = if args.temperature == 0.0 {
        SamplingStrategy::Greedy
    } else {
        SamplingStrategy::Random { temperature: args.temperature, top_p: args.top_p }
    };
    let config = GenerateOptions {
        max_new_tokens: budget.new,
        stop: args.stop,
        sampling: choice,
        seed: context.seed,
        ..GenerateOptions::default()
    };
    let (patches, routing) = (&routed.patches, routed.templates.as_ref());
    let model = PatchedModel { base: &base, tokenizer: &vocabulary, patches, routing };

    let mut written = Ok(());
    let mut on_event = |_: usize, event: GenerationEvent| {
        if let (false, GenerationEvent::Text(piece), Ok(())) = (context.output.json, event, &written) {
            written = context.output.raw(piece);
        }
    };
    let generated = generate(&model, &[tokens], &config, &mut on_event)?;
    written?;
    let generated = generated.first().context("one prompt has one result")?;
    if !context.output.json {
        return context.output.raw("\n");
    }
    let (text, tokens, finish) = (&generated.text, generated.tokens, generated.finish);
    context.output.result(&json!({ "prompt": prompt, "text": text, "tokens": tokens, "finish": finish }), String::new)
}

/// The default of `--max-new-tokens`.
const NEW_TOKENS: usize = 256;

/// New tokens at most where the prompt alone fills the base.
const NEW_TOKENS_AFTER_CUT: usize = 16;

/// How the base's positions are divided between prompt and new tokens.
#[derive(Debug, PartialEq, Eq)]
struct TokenBudget {
    /// Tokens of the prompt, from its end.
    prompt: usize,
    /// Maximum number of new tokens.
    new: usize,
}

impl TokenBudget {
    /// A prompt that leaves room for a token is kept whole; new tokens get the rest. One that does not fit is cut from
    /// the left to make room for a few tokens.
    fn of(whole: usize, wanted: Option<usize>, positions: usize) -> Self {
        let wanted = wanted.unwrap_or(NEW_TOKENS);
        if whole < positions {
            return Self { prompt: whole, new: wanted.min(positions - whole) };
        }
        let new = wanted.min((positions / 2).clamp(1, NEW_TOKENS_AFTER_CUT));
        Self { prompt: positions.saturating_sub(new).max(1), new }
    }

    /// A warning if the request had to be changed.
    fn warning(&self, whole: usize, wanted: Option<NonZeroUsize>, positions: usize) -> Option<String> {
        let Self { prompt, new } = self;
        if *prompt < whole {
            return Some(format!(
                "the prompt has {whole} tokens but the base supports {positions}: only the last {prompt} are used, \
                 leaving room for {new} new tokens"
            ));
        }
        let wanted = wanted.map(NonZeroUsize::get).filter(|wanted| new < wanted)?;
        Some(format!(
            "--max-new-tokens {wanted}: the base supports {positions} tokens; after a prompt of {whole} \
             there is room for {new}"
        ))
    }
}

/// The prompt as typed, or from stdin.
fn prompt(typed: &str) -> Result<String> {
    if typed != "-" {
        return Ok(typed.to_owned());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from stdin")?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_that_fits_is_kept_whole() {
        let of = |whole, wanted, positions| {
            let budget = TokenBudget::of(whole, wanted, positions);
            (budget.prompt, budget.new)
        };
        assert_eq!(of(8, None, 4096), (8, 256));
        assert_eq!(of(8, None, 256), (8, 248));
        assert_eq!(of(8, Some(255), 256), (8, 248));
        assert_eq!(of(255, Some(300), 256), (255, 1));
        assert_eq!(of(300, None, 256), (240, 16), "a prompt that does not fit is cut");
        assert_eq!(of(256, Some(200), 256), (240, 16));
        assert_eq!(of(300, Some(2), 256), (254, 2));
        assert_eq!(of(5, None, 1), (1, 1));
    }
}
