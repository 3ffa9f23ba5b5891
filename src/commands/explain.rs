//! `explain`: shows which experts a router chooses for each token.

use crate::args::router_arg::RouterArg;
use crate::args::task_args::{DataArgs, FitArgs};
use crate::base::base_source::BaseSource;
use crate::command_context::CommandContext;
use crate::output::console::make_parent;
use crate::output::text_table::table;
use crate::pages::routing_trace_page;
use crate::routing_trace::{ExpertWeight, RoutingTrace, TraceObserver, TracedToken, UNASSIGNED};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use lorakit_fit::FitContext;
use lorakit_fit::router::build_router;
use lorakit_lora::{Sequence, SequenceBatch};
use lorakit_task::Example;
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
    #[command(flatten)]
    fit: FitArgs,
    #[command(flatten)]
    data: DataArgs,
}

/// Runs the base over the prompt with the router, and shows its choices.
pub fn run(args: ExplainArgs, context: &CommandContext) -> Result<()> {
    let typed = &args.router;
    let resolved = args.base.resolve(context)?;
    let (base, tokenizer) = resolved.base_and_tokenizer(&context.base_options()?, context)?;
    let opened = context.open_library(&args.library, &base, &[])?;
    let data = args.data.data.as_deref();
    let fit = args.fit.load(&args.data, context)?;
    let read_tokenizer = || resolved.tokenizer().map_err(Into::into);
    let over = FitContext {
        base: &base,
        library: &opened,
        tokenizer: &read_tokenizer,
        tasks: &fit,
        data,
        seed: context.seed,
        reporter: context,
    };
    let observer = Arc::new(TraceObserver::default());
    let routed = build_router(&over, &*typed.router, None, Some(observer.clone()))
        .with_context(|| format!("--router {typed}"))?;

    let ids = Example::encode_prompt(&args.prompt, &tokenizer, base.config().max_positions)?;
    ensure!(!ids.is_empty(), "--prompt has no tokens");
    let whole = Example::encode_prompt(&args.prompt, &tokenizer, usize::MAX)?.len();
    if ids.len() < whole {
        context.output.warn(format!(
            "--prompt has {whole} tokens but the base takes at most {}; the start is cut off",
            base.config().max_positions
        ));
    }
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
