//! `generate`: text after a prompt, as it is written.

use crate::args::adapter_args::{self, AdapterArgs};
use crate::args::usage::{self, count};
use crate::base::base_source::BaseSource;
use crate::context::Context;
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
    /// The base: a model folder, hub:ORG/NAME[@REV], or pico
    #[arg(long, value_name = "B")]
    base: BaseSource,
    #[command(flatten)]
    slots: AdapterArgs,
    /// The text to go on from; - reads it from stdin
    #[arg(long, value_name = "TEXT|-", allow_hyphen_values = true)]
    prompt: String,
    /// Where the text ends at the latest, in tokens; sooner where the base has no more room [default: 256]
    #[arg(long, value_name = "N", value_parser = count)]
    max_new_tokens: Option<NonZeroUsize>,
    /// 0 takes the likeliest token; above, tokens are drawn by --seed, the more freely the higher
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    temperature: f64,
    /// Draw among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = top_p)]
    top_p: f64,
    /// A text before which to end; for several, give it several times. One that starts with a hyphen: --stop=-x
    #[arg(long, value_name = "TEXT", value_parser = stop)]
    stop: Vec<String>,
}

fn stop(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("an empty text would end every text before it begins") } else { Ok(text.to_owned()) }
}

fn temperature(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|t: &f64| t.is_finite() && *t >= 0.0).ok_or("expected a number of at least 0")
}

fn top_p(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|p: &f64| *p > 0.0 && *p <= 1.0).ok_or("expected a number above 0 and at most 1")
}

/// Writes text after the prompt.
pub fn run(args: GenerateArgs, context: &Context) -> Result<()> {
    args.slots.ensure_usage()?;
    usage::ensure(args.top_p == 1.0 || args.temperature > 0.0, || {
        "--top-p chooses at random; give a --temperature above 0".to_owned()
    })?;
    let place = args.base.resolve(context)?;
    let (base, vocabulary) = (place.base(context)?, place.tokenizer()?);
    let filling = args.slots.fill(&base, &place, context)?;
    let prompt = prompt(&args.prompt)?;
    let whole = Example::encode_prompt(&prompt, &vocabulary, usize::MAX)?.len();
    let room = Room::of(whole, args.max_new_tokens.map(NonZeroUsize::get), base.config().max_positions);
    let tokens = Example::encode_prompt(&prompt, &vocabulary, room.prompt)?;
    if let Some(notice) = room.warning(whole, args.max_new_tokens, base.config().max_positions) {
        context.output.warn(notice);
    }
    let choice = if args.temperature == 0.0 {
        SamplingStrategy::Greedy
    } else {
        SamplingStrategy::Random { temperature: args.temperature, top_p: args.top_p }
    };
    let config = GenerateOptions {
        max_new_tokens: room.new,
        stop: args.stop,
        choice,
        seed: context.seed,
        ..GenerateOptions::default()
    };
    let (patches, routing) = (&filling.patches, filling.templates.as_ref());
    let model = PatchedModel { base: &base, tokenizer: &vocabulary, patches, routing };

    let mut written = Ok(());
    let mut hear = |_: usize, event: GenerationEvent| {
        if let (false, GenerationEvent::Text(piece), Ok(())) = (context.output.json, event, &written) {
            written = context.output.raw(piece);
        }
    };
    let generated = generate(&model, &[tokens], &config, &mut hear)?;
    written?;
    let generated = generated.first().context("one prompt has one text")?;
    if !context.output.json {
        return context.output.raw("\n");
    }
    let (text, tokens, finish) = (&generated.text, generated.tokens, generated.finish);
    context.output.result(&json!({ "prompt": prompt, "text": text, "tokens": tokens, "finish": finish }), String::new)
}

/// New tokens where the user does not say how many.
const NEW_TOKENS: usize = 256;

/// New tokens that are written, at most, where the prompt alone fills the base.
const AT_THE_PROMPTS_EXPENSE: usize = 16;

/// How the positions that the base was made for are shared, in tokens.
#[derive(Debug, PartialEq, Eq)]
struct Room {
    /// The end of the prompt that is read.
    prompt: usize,
    /// What is written, at most.
    new: usize,
}

impl Room {
    /// A prompt of `whole` tokens stays whole where it leaves room for a token, and what is written has the rest. One
    /// that alone does not fit is cut from the left, by no more than a few tokens need.
    fn of(whole: usize, wanted: Option<usize>, positions: usize) -> Self {
        let wanted = wanted.unwrap_or(NEW_TOKENS);
        if whole < positions {
            return Self { prompt: whole, new: wanted.min(positions - whole) };
        }
        let new = wanted.min((positions / 2).clamp(1, AT_THE_PROMPTS_EXPENSE));
        Self { prompt: positions.saturating_sub(new).max(1), new }
    }

    /// What the user should know, where it is not as it was asked for.
    fn warning(&self, whole: usize, wanted: Option<NonZeroUsize>, positions: usize) -> Option<String> {
        let Self { prompt, new } = self;
        if *prompt < whole {
            return Some(format!(
                "the prompt has {whole} tokens, and the base was made for {positions}: the last {prompt} are read, \
                 which leaves room for {new} new ones"
            ));
        }
        let wanted = wanted.map(NonZeroUsize::get).filter(|wanted| new < wanted)?;
        Some(format!(
            "--max-new-tokens {wanted}: the base was made for {positions} tokens, and beside the prompt's {whole} there \
             is room for {new}"
        ))
    }
}

/// The prompt as typed, or what stdin has.
fn prompt(typed: &str) -> Result<String> {
    if typed != "-" {
        return Ok(typed.to_owned());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("the prompt cannot be read from stdin")?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_that_fits_stays_whole_and_the_new_tokens_have_the_rest() {
        let of = |whole, wanted, positions| {
            let room = Room::of(whole, wanted, positions);
            (room.prompt, room.new)
        };
        assert_eq!(of(8, None, 4096), (8, 256));
        assert_eq!(of(8, None, 256), (8, 248));
        assert_eq!(of(8, Some(255), 256), (8, 248));
        assert_eq!(of(255, Some(300), 256), (255, 1));
        assert_eq!(of(300, None, 256), (240, 16), "one that does not fit is cut by a few tokens");
        assert_eq!(of(256, Some(200), 256), (240, 16));
        assert_eq!(of(300, Some(2), 256), (254, 2));
        assert_eq!(of(5, None, 1), (1, 1));
    }
}
