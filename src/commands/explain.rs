//! `explain`: shows which experts a router chooses for each token.

use crate::args::router_arg::RouterArg;
use crate::args::row_encoding_args::PromptEncodingArgs;
use crate::args::task_args::DataArgs;
use crate::base::base_source::BaseSource;
use crate::command_context::CommandContext;
use crate::encoding_check::EncodingCheck;
use crate::generation::prompt_row::PromptRow;
use crate::output::console::make_parent;
use crate::output::text_table::table;
use crate::pages::routing_trace_page;
use crate::routing_trace::{ExpertWeight, RoutingTrace, TraceObserver, TracedToken, UNASSIGNED};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use lorakit_fit::FitContext;
use lorakit_fit::router::{build_router, warn_of_router_seeds};
use lorakit_lora::{Sequence, SequenceBatch};
use lorakit_task::Tokenizer;
use std::path::PathBuf;
use std::sync::Arc;

/// Experts listed per token.
const LEADING: usize = 3;

/// The arguments of `explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// Base model: a model folder, a GGUF file, hub:ORG/NAME[@REV][/FILE.gguf], or pico
    #[arg(long, value_name = "B")]
    base: BaseSource,
    /// Library of experts
    #[arg(long, value_name = "L")]
    library: PathBuf,
    /// Router that chooses by its input, such as arrow:top_k=2
    #[arg(long, value_name = "R")]
    router: RouterArg,
    /// Text to route
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Write all choices as an HTML page
    #[arg(long, value_name = "FILE.html")]
    out: Option<PathBuf>,
    /// Tasks to fit the router to [default: each expert's own tasks]
    #[arg(long, num_args = 1.., value_name = "[NAME=]T")]
    fit: Vec<String>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    encoding: PromptEncodingArgs,
}

/// Runs the base over the prompt with the router, and shows its choices.
pub fn run(args: ExplainArgs, context: &CommandContext) -> Result<()> {
    let typed = &args.router;
    let resolved = args.base.resolve(context)?;
    let (base, tokenizer) = resolved.base_and_tokenizer(&context.base_options()?, context)?;
    let tokenizer = tokenizer.with_encoding(args.encoding.encoding());
    let opened = context.open_library(&args.library, &base, &[])?;
    EncodingCheck::of(&opened, |name| typed.uses(name)).warn_of_prompts(args.encoding.chat, &tokenizer, context);
    let fit = args.data.load_fit(&args.fit, context)?;
    let (read_tokenizer, load_tasks) = (|| Ok(tokenizer.clone()), args.data.load_recorded(context));
    let over = FitContext {
        base: &base,
        library: &opened,
        tokenizer: &read_tokenizer,
        tasks: &fit,
        load_tasks: &load_tasks,
        seed: context.seed,
        reporter: context,
    };
    let observer = Arc::new(TraceObserver::default());
    warn_of_router_seeds(&over, &*typed.router);
    let routed = build_router(&over, &*typed.router, None, Some(observer.clone()))
        .with_context(|| format!("--router {typed}"))?;

    let ids = args.prompt_tokens(&tokenizer, base.config().max_positions, context)?;
    let template = routed.templates.route(&[&ids]).map_err(anyhow::Error::from_boxed)?.pop().unwrap_or_default();
    let rows = SequenceBatch::new([Sequence { len: ids.len(), ..template }]);
    base.hidden_states(&ids, &base.plan(rows), &routed.patches)?;
    let trace = RoutingTrace {
        router: typed.text.clone(),
        prompt: args.prompt,
        tokens: TracedToken::of_prompt(&ids, &tokenizer)?,
        experts: &opened.experts,
        choices: observer.take(ids.len(), tokenizer.layout().source_len(ids.len())),
    };
    ensure!(
        !trace.choices.is_empty(),
        "--router {typed} gives every token the same experts, so there is nothing to explain; \
         `lorakit eval --help` lists the routers"
    );
    if let Some(path) = &args.out {
        make_parent(path)?;
        lorakit_format::atomic::write_file(path, routing_trace_page::html(&trace)?.as_bytes())?;
        context.output.status(format!("all choices were written to {}", path.display()));
    }
    context.output.result(&trace.document(), || text(&trace))
}

impl ExplainArgs {
    /// The tokens of the prompt, with a warning where they are too many.
    fn prompt_tokens(&self, tokenizer: &Tokenizer, longest: usize, context: &CommandContext) -> Result<Vec<u32>> {
        let row = PromptRow::of_text(&self.prompt);
        let row = if self.encoding.chat { row.into_chat(None)? } else { row };
        let whole = row.tokens(tokenizer, usize::MAX)?;
        ensure!(!whole.is_empty(), "--prompt has no tokens");
        if whole.len() <= longest {
            return Ok(whole);
        }
        let found = whole.len();
        context
            .output
            .warn(format!("--prompt has {found} tokens but the base takes at most {longest}; the start is cut off"));
        row.tokens(tokenizer, longest)
    }
}

/// A row per token: its leading experts, averaged over all choices. One row where they are the same for every token, as of
/// a router that decides once per prompt.
fn text(trace: &RoutingTrace) -> String {
    let averaged = trace.averaged(trace.choices.iter());
    let cells = |shares: &[ExpertWeight]| {
        let cell = |share: &ExpertWeight| format!("{} {:.2}", trace.name(share.expert), share.weight);
        let named: Vec<String> = shares.iter().take(LEADING).map(cell).collect();
        if named.is_empty() { UNASSIGNED.to_owned() } else { named.join(", ") }
    };
    let line = |(place, (token, shares)): (usize, (&TracedToken, &Vec<ExpertWeight>))| {
        vec![place.to_string(), printable(&token.text), cells(shares)]
    };
    let once = trace.tokens.len() > 1 && averaged.iter().all(|shares| *shares == averaged[0]);
    let mut lines: Vec<Vec<String>> = match once {
        true => Vec::new(),
        false => trace.tokens.iter().zip(&averaged).enumerate().map(line).collect(),
    };
    let all = if once { "all tokens alike" } else { "all tokens" };
    lines.push(vec![String::new(), all.to_owned(), cells(&trace.overall())]);
    table(["", "token", "leading experts, averaged over sites"], lines)
}

/// A token's text with its line breaks and other control characters escaped, and with spaces at its ends shown as `␣`.
fn printable(text: &str) -> String {
    let escaped: String =
        text.chars().map(|c| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() }).collect();
    let inner = escaped.trim_matches(' ');
    if inner.is_empty() {
        return "␣".repeat(escaped.len());
    }
    let (before, after) =
        (escaped.len() - escaped.trim_start_matches(' ').len(), escaped.len() - escaped.trim_end_matches(' ').len());
    format!("{}{inner}{}", "␣".repeat(before), "␣".repeat(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_and_line_breaks_of_tokens_are_seen() {
        for (text, expected) in [(" été", "␣été"), ("東京", "東京"), ("\n", "\\n"), ("  ", "␣␣"), ("a b ", "a b␣")]
        {
            assert_eq!(printable(text), expected);
        }
    }
}
