//! `generate`: generates text from prompts.

use crate::args::adapter_args::{self, AdapterArgs, GivenPrompts};
use crate::args::sampling_args::SamplingArgs;
use crate::args::usage::{self, count};
use crate::base::base_source::BaseSource;
use crate::command_context::CommandContext;
use crate::generation::cache_memory::cache_bytes;
use crate::generation::generated_rows::{self, GeneratedRows, document};
use crate::generation::prompt_row::PromptRow;
use crate::output::progress_bar;
use anyhow::{Context as _, Result};
use clap::Args;
use lorakit_eval::{EvalError, GenerateOptions, GenerationEvent, PatchedModel, TokenBudget, TruncatedRows, generate};
use lorakit_fit::pluralize;
use lorakit_model::TokenPrecision;
use serde_json::json;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// The arguments of `generate`.
#[derive(Args, Debug)]
#[command(after_help = adapter_args::routers(), group = clap::ArgGroup::new("prompts").required(true).args(["prompt", "input"]))]
pub struct GenerateArgs {
    /// Base model: a model folder, a GGUF file, hub:ORG/NAME[@REV][/FILE.gguf], or pico
    #[arg(long, value_name = "B")]
    base: BaseSource,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// Prompt; - reads it from stdin
    #[arg(long, value_name = "TEXT|-", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// JSON lines with a `prompt` (a text) or `messages` each; needs --output
    #[arg(long, value_name = "FILE.jsonl", requires = "output")]
    input: Option<PathBuf>,
    /// JSON lines: the fields of each row of --input, with its text
    #[arg(long, value_name = "FILE.jsonl")]
    output: Option<PathBuf>,
    /// System message before each prompt; needs --chat
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    system: Option<String>,
    /// Maximum number of new tokens, also limited by the base model [default: 256]
    #[arg(long, value_name = "N", value_parser = count)]
    max_new_tokens: Option<NonZeroUsize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Stop before this text, which may be a special token; can be repeated. For a text that starts with a hyphen: --stop=-x
    #[arg(long, value_name = "TEXT", value_parser = stop)]
    stop: Vec<String>,
}

fn stop(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("expected a text that is not empty") } else { Ok(text.to_owned()) }
}

/// The default of `--max-new-tokens`.
const NEW_TOKENS: usize = 256;

/// Generates text from the prompts.
pub fn run(args: GenerateArgs, context: &CommandContext) -> Result<()> {
    args.adapter.ensure_usage()?;
    args.sampling.ensure_usage()?;
    usage::ensure(args.output.is_none() || args.input.is_some(), || "--output needs --input".to_owned())?;
    let rows = match (&args.input, &args.prompt) {
        (Some(path), _) => PromptRow::read(path)?,
        (None, prompt) => vec![PromptRow::typed(prompt.as_deref().unwrap_or_default())?],
    };
    if let (Some(input), Some(output)) = (&args.input, &args.output) {
        let message = || "--output is the file of --input, which it would replace".to_owned();
        usage::ensure(!usage::is_same_file(input, output), message)?;
        generated_rows::ensure_new_keys(&rows)?;
    }
    let chat = args.adapter.encoding.chat;
    let rows: Vec<PromptRow> = match chat {
        true => rows.into_iter().map(|row| row.into_chat(args.system.as_deref())).collect::<Result<_>>()?,
        false => rows,
    };
    let resolved = args.base.resolve(context)?;
    let (base, tokenizer) = resolved.base_and_tokenizer(&context.decoding_options()?, context)?;
    let tokenizer = tokenizer.with_encoding(args.adapter.encoding.encoding());
    let are_chats: BTreeSet<bool> = rows.iter().map(PromptRow::is_chat).collect();
    let given = GivenPrompts { tokenizer: &tokenizer, are_chats: &are_chats.into_iter().collect::<Vec<_>>() };
    let routed = args.adapter.open(&base, &resolved, Some(given), context)?;
    let (patches, routing) = (&routed.patches, routed.templates.as_ref());
    let model = PatchedModel { base: &base, tokenizer: &tokenizer, patches, routing, precision: TokenPrecision::Exact };
    let prompts = args.prompts(&rows, &model, context)?;
    let options = GenerateOptions {
        max_new_tokens: args.new_tokens(),
        stop: args.stop,
        sampling: args.sampling.options(),
        seed: context.seed,
        samples: args.sampling.samples.get(),
        cache_bytes: cache_bytes(&base),
        ..GenerateOptions::default()
    };
    let run = GenerateRun { model: &model, options, context };
    match &args.output {
        Some(path) => run.write_file(&rows, &prompts, path),
        None => run.to_stdout(&rows[0], &prompts, chat),
    }
}

impl GenerateArgs {
    fn new_tokens(&self) -> usize {
        self.max_new_tokens.map_or(NEW_TOKENS, NonZeroUsize::get)
    }

    /// The prompts' tokens. They are whole where they leave room for a new token; what was cut is said in one warning.
    fn prompts(&self, rows: &[PromptRow], model: &PatchedModel, context: &CommandContext) -> Result<Vec<Vec<u32>>> {
        let (positions, mut truncated) = (model.base.config().max_positions, TruncatedRows::default());
        let mut prompts = Vec::new();
        for row in rows {
            let tokens = row.tokens(model.tokenizer, usize::MAX)?;
            let (whole, budget) = (tokens.len(), TokenBudget::new(tokens.len(), self.new_tokens(), positions));
            let asked = self.max_new_tokens.map_or(0, NonZeroUsize::get);
            truncated.count_generation(budget, whole, asked);
            prompts.push(if budget.prompt < whole { row.tokens(model.tokenizer, budget.prompt)? } else { tokens });
            if let (None, Some(warning)) = (&self.input, warning(budget, whole, asked, positions)) {
                context.output.warn(warning);
            }
        }
        let TruncatedRows { generation_prompts: cut, new_tokens: fewer, .. } = truncated;
        if self.input.is_some() && cut + fewer > 0 {
            context.output.warn(format!(
                "of {}, {cut} lost their beginning and {fewer} have room for fewer new tokens than --max-new-tokens; \
                 the base supports {positions} tokens",
                pluralize(rows.len(), "prompt"),
            ));
        }
        Ok(prompts)
    }
}

/// A warning if the request had to be changed, where the prompt has `whole` tokens and `asked` new ones were asked for.
fn warning(budget: TokenBudget, whole: usize, asked: usize, positions: usize) -> Option<String> {
    let TokenBudget { prompt, new_tokens } = budget;
    if prompt < whole {
        return Some(format!(
            "the prompt has {whole} tokens but the base supports {positions}: only the last {prompt} are used, \
             leaving room for {new_tokens} new tokens"
        ));
    }
    (new_tokens < asked).then(|| {
        format!(
            "--max-new-tokens {asked}: the base supports {positions} tokens; after a prompt of {whole} \
             there is room for {new_tokens}"
        )
    })
}

/// A model and how it generates.
struct GenerateRun<'a> {
    model: &'a PatchedModel<'a>,
    options: GenerateOptions,
    context: &'a CommandContext,
}

impl GenerateRun<'_> {
    /// Prints the texts of one prompt; a single one as it is generated.
    fn to_stdout(&self, row: &PromptRow, prompts: &[Vec<u32>], chat: bool) -> Result<()> {
        let output = &self.context.output;
        let streams = !output.json && self.options.samples == 1;
        let mut written = Ok(());
        let mut on_event = |_: usize, event: GenerationEvent| {
            if let (true, GenerationEvent::Text(piece), Ok(())) = (streams, event, &written) {
                written = output.raw(piece);
            }
        };
        let generated = generate(self.model, prompts, &self.options, &mut on_event)?;
        written?;
        let empty = generated.iter().all(|text| text.text.trim().is_empty());
        if empty && !chat && self.model.tokenizer.has_chat_template() {
            output.warn("the answer is empty: the base has a chat template and may answer with --chat");
        }
        if streams {
            return output.raw("\n");
        }
        output.result(&document(row, &generated), || {
            let texts = generated.iter().enumerate().map(|(i, text)| format!("[{}] {}\n", i + 1, text.text));
            texts.collect()
        })
    }

    /// Writes the texts of all rows to a file.
    fn write_file(self, rows: &[PromptRow], prompts: &[Vec<u32>], path: &Path) -> Result<()> {
        let (samples, output) = (self.options.samples, &self.context.output);
        let mut file = GeneratedRows::open(path, rows, samples)?;
        let bar = progress_bar::bar(output, (rows.len() * samples) as u64, "generate");
        let mut written = Ok(());
        let mut on_event = |index: usize, event: GenerationEvent| {
            if let (GenerationEvent::End(text), Ok(())) = (event, &written) {
                written = file.add(index, text);
                if file.has_rows() {
                    let path = path.display();
                    self.context.interrupt.set_resume_hint(|| {
                        format!("finished rows are in {path}; the same command begins again and replaces them")
                    });
                }
                bar.inc(1);
            }
        };
        let generated = generate(self.model, prompts, &self.options, &mut on_event);
        bar.finish_and_clear();
        written?;
        let generated = match generated {
            Err(EvalError::Prompt { prompt, source }) => {
                let failed = pluralize(file.skip_failed()?, "prompt");
                let place = &rows[prompt - 1].place;
                return Err(*source).with_context(|| format!("{failed} failed; the first: {place}"));
            }
            other => other?,
        };
        let (texts, tokens) = (generated.len(), generated.iter().map(|text| text.tokens).sum::<usize>());
        let document = json!({ "output": path, "prompts": rows.len(), "texts": texts, "tokens": tokens });
        output.result(&document, || {
            let (texts, tokens) = (pluralize(texts, "text"), pluralize(tokens, "token"));
            format!("{}: wrote {texts} ({tokens}) for {}\n", path.display(), pluralize(rows.len(), "prompt"))
        })
    }
}
