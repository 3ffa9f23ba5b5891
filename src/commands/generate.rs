//! `generate`: text after a prompt, as it is written.

use crate::base_source::BaseSource;
use crate::context::Context;
use crate::slots::{self, SlotArgs};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use lorakit_eval::{Event, GenerationConfig, Model, generate};
use lorakit_model::sample::Choice;
use lorakit_task::Example;
use serde_json::json;
use std::io::Read;
use std::num::NonZeroUsize;

/// The arguments of `generate`.
#[derive(Args, Debug)]
#[command(after_help = slots::routers())]
pub struct GenerateArgs {
    /// The base: a model folder, hub:ORG/NAME[@REV], or pico
    #[arg(long, value_name = "B")]
    base: BaseSource,
    #[command(flatten)]
    slots: SlotArgs,
    /// The text to go on from; - reads it from stdin
    #[arg(long, value_name = "TEXT|-", allow_hyphen_values = true)]
    prompt: String,
    /// Where the text ends at the latest, in tokens [default: 256, or what the base has room for]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<NonZeroUsize>,
    /// 0 takes the likeliest token; above, tokens are drawn by --seed, the more freely the higher
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    temperature: f64,
    /// Draw among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = top_p)]
    top_p: f64,
    /// Texts before which to end
    #[arg(long, num_args = 1.., value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
}

fn temperature(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|t: &f64| t.is_finite() && *t >= 0.0).ok_or("expected a number of at least 0")
}

fn top_p(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|p: &f64| *p > 0.0 && *p <= 1.0).ok_or("expected a number above 0 and at most 1")
}

/// Writes text after the prompt.
pub fn run(args: GenerateArgs, context: &Context) -> Result<()> {
    ensure!(
        args.stop.iter().all(|stop| !stop.is_empty()),
        "--stop: an empty text would end every text before it begins"
    );
    let place = args.base.locate(context)?;
    let (base, vocabulary) = (place.base(context)?, place.vocabulary()?);
    let filling = args.slots.fill(&base, &place, context)?;
    let prompt = prompt(&args.prompt)?;
    let whole = Example::encode_prompt(&prompt, &vocabulary, usize::MAX)?.len();
    // The base was made for so many tokens, those to be written among them; one at least stays for the prompt.
    let positions = base.config().max_positions;
    let max_new_tokens = args.max_new_tokens.map_or_else(|| new_tokens(whole, positions), NonZeroUsize::get);
    let tokens = Example::encode_prompt(&prompt, &vocabulary, positions.saturating_sub(max_new_tokens).max(1))?;
    if whole > tokens.len() {
        context.output.notice(format!(
            "the prompt has {whole} tokens; its last {} are read, which leaves room for {max_new_tokens} new ones",
            tokens.len()
        ));
    }
    let choice = if args.temperature == 0.0 {
        Choice::Greedy
    } else {
        Choice::Random { temperature: args.temperature, top_p: args.top_p }
    };
    let config =
        GenerationConfig { max_new_tokens, stop: args.stop, choice, seed: context.seed, ..GenerationConfig::default() };
    let (patches, templates) = (&filling.patches, filling.templates.as_ref());
    let model = Model { base: &base, vocabulary: &vocabulary, patches, templates };

    let mut written = Ok(());
    let mut hear = |_: usize, event: Event| {
        if let (false, Event::Text(piece), Ok(())) = (context.output.json, event, &written) {
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

/// How many tokens are written where the user does not say: what a prompt of `whole` tokens leaves room for, and a
/// few at the prompt's expense where it leaves none.
fn new_tokens(whole: usize, positions: usize) -> usize {
    positions.saturating_sub(whole).clamp((positions / 2).clamp(1, 16), 256)
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
    fn a_short_context_keeps_the_prompt() {
        assert_eq!(new_tokens(8, 256), 248);
        assert_eq!(new_tokens(8, 4096), 256);
        assert_eq!(new_tokens(255, 256), 16);
        assert_eq!(new_tokens(5, 1), 1);
    }
}
