//! `eval`: evaluates routers over a library on tasks.

use crate::args::adapter_args;
use crate::args::part_arg::PartArg;
use crate::args::router_arg::RouterArg;
use crate::args::row_encoding_args::RowEncodingArgs;
use crate::args::task_args::{self, TaskArgs, TaskDocument};
use crate::args::usage::{self, count};
use crate::base::base_source::BaseSource;
use crate::base::resolved_base::ResolvedBase;
use crate::command_context::CommandContext;
use crate::encoding_check::EncodingCheck;
use crate::generation::cache_memory::cache_bytes;
use crate::output::console::make_parent;
use crate::output::gain_table::{self, gains};
use crate::output::score_tables::tables;
use crate::pages::scores_page::{self, ScoredRouters};
use crate::scoring::eval_config::{EvalConfig, EvaluatedBase, EvaluatedTask, SCORING_RULES};
use crate::scoring::eval_run::EvalRun;
use crate::scoring::evaluated_pairs::EvaluatedPairs;
use crate::scoring::failures::Failures;
use crate::scoring::prepared_routers::prepare;
use crate::scoring::results_store::{ResultsFolder, ResultsStore};
use crate::scoring::routing_shares::RoutingShares;
use crate::scoring::row_counts::RowCounts;
use crate::scoring::unseen_rows::{self, ScoredRows};
use anyhow::{Result, ensure};
use clap::Args;
use lorakit_adapter::Library;
use lorakit_eval::EvalOptions;
use lorakit_fit::{FitContext, OpenLibrary, RESPONSE_RATIO, recorded_tasks};
use lorakit_format::atomic::write_file;
use lorakit_model::{Base, BaseOptions, TokenPrecision};
use lorakit_task::{Metric, RowEncoding, Split, Task, Tokenizer};
use serde_json::json;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// The arguments of `eval`.
#[derive(Args, Debug)]
#[command(after_help = adapter_args::routers())]
pub struct EvalArgs {
    /// Base model: a model folder, a GGUF file, hub:ORG/NAME[@REV][/FILE.gguf], or pico
    #[arg(long, value_name = "B")]
    base: BaseSource,
    /// Library of experts; required by every router except base, and by --response-ratio
    #[arg(long, value_name = "L")]
    library: Option<PathBuf>,
    #[command(flatten)]
    tasks: TaskArgs,
    /// Routers with settings, such as base arrow:top_k=2; all are listed below
    #[arg(long, required = true, num_args = 1.., value_name = "R")]
    router: Vec<RouterArg>,
    /// Tasks to fit routers to [default: each expert's own tasks, or the evaluated task]
    #[arg(long, num_args = 1.., value_name = "[NAME=]T")]
    fit: Vec<String>,
    #[command(flatten)]
    encoding: RowEncodingArgs,
    /// Folder for results.json; existing results of the same routers and tasks are replaced
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Evaluate only the first N rows of the split
    #[arg(long, value_name = "N", value_parser = count)]
    limit: Option<NonZeroUsize>,
    /// Put N train rows with their answers before each prompt, as lm-evaluation-harness does (its first_n)
    #[arg(long, value_name = "N", default_value_t = 0)]
    num_fewshot: usize,
    /// Score with activations rounded to 8 bits, as generate decodes over quantized weights and llama.cpp computes them:
    /// every token of a scored row, its prompt too. What routers are fitted to, and prompts by which they choose, stay
    /// exact. An error over a base without such weights
    #[arg(long, conflicts_with = "exact")]
    quantize_activations: bool,
    /// Split to evaluate
    #[arg(long, value_name = "train|validation|test|all", default_value_t = Split::Test)]
    split: Split,
    /// Compute only these of the tasks' metrics; loss is always included, and exact_match_normalized with exact_match
    #[arg(long, num_args = 1.., value_name = "loss|acc|exact_match|...")]
    metrics: Vec<Metric>,
    /// Write a report as an HTML page: means, heat maps of tasks by routers, bars for each task, and which experts
    /// each router chose
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Also score chance, as the router `chance`: a random choice, or the most frequent answer of the train rows
    #[arg(long)]
    chance: bool,
    /// Also measure Arrow's premise, as the router `response_ratio`: how strongly each task's own expert responds to its
    /// rows, divided by the mean of the other experts (above 1: more strongly). Not shown by --report
    #[arg(long, requires = "library")]
    response_ratio: bool,
    /// Evaluate a part of all pairs of router and task: the I-th of N, from 0, or the one of a Slurm, HyperQueue or
    /// Kubernetes array (auto). Parts may run at once, and share --out. Not with --report, which shows the scores of one
    /// process
    #[arg(long, value_name = "I/N|auto/N", conflicts_with = "report")]
    part: Option<PartArg>,
    /// Write the scores of each row to samples_ROUTER_TASK.jsonl
    #[arg(long, requires = "out")]
    log_samples: bool,
}

/// Evaluates every router on every task, or a part of these pairs.
pub fn run(args: EvalArgs, context: &CommandContext) -> Result<()> {
    args.ensure_usage()?;
    let fit = args.tasks.data.load_fit(&args.fit, context)?;
    let mut failures = Failures::default();
    let limit = args.limit.map(NonZeroUsize::get);
    let mut options = EvalOptions { split: args.split, limit, ..EvalOptions::default() };
    // Tasks that cannot be evaluated are found before anything slow starts.
    let tasks = args.load_tasks(&fit, &options, &mut failures, context)?;
    let (tasks, prompted) = failures.with_examples(tasks, args.num_fewshot, args.split, context)?;
    context.output.status(RowCounts::new(&tasks, &options));
    let routers = distinct(&args.router);
    warn_of_fits(&routers, &fit, args.split, context);
    let resolved = args.base.resolve(context)?;
    let encoding = args.encoding.encoding();
    let (base, tokenizer) = (args.open_base(&resolved, context)?, resolved.tokenizer()?.with_encoding(encoding));
    options.cache_bytes = cache_bytes(&base);
    args.check_base_record(&resolved, &tasks, &tokenizer, context)?;
    let opened = args.open_library(&routers, &tasks, &base, context)?;
    if let Some(opened) = &opened {
        unseen_rows::ensure_unseen(&tasks, args.split, &unseen_rows::experts(opened), context)?;
        let is_used = |name: &str| args.response_ratio || routers.iter().any(|typed| typed.uses(name));
        EncodingCheck::of(opened, is_used).warn_of_tasks(&tasks, "scored", &tokenizer, context);
    }
    let (read_tokenizer, load_tasks) = (|| Ok(tokenizer.clone()), args.tasks.data.load_recorded(context));
    let routing = opened.as_ref().map(|library| FitContext {
        base: &base,
        library,
        tokenizer: &read_tokenizer,
        tasks: &fit,
        load_tasks: &load_tasks,
        seed: context.seed,
        reporter: context,
    });
    let pairs = EvaluatedPairs::new(&routers, &tasks, args.part)?;
    if pairs.count() == 1 && !args.chance && !args.response_ratio && failures.all().is_empty() {
        failures.report_once();
    }
    let shares = RoutingShares::new(routers.len(), args.report.is_some());
    let inputs = EvalInputs { routers: &routers, tasks: &tasks, fit: &fit, library: opened.as_ref(), base: &base };
    let config = serde_json::to_value(args.config(&inputs, context.seed)?)?;
    let kept = ResultsFolder { folder: args.out.as_deref(), log_samples: args.log_samples };
    let mut run = EvalRun {
        base: &base,
        tokenizer: &tokenizer,
        tasks: &prompted,
        options: &options,
        precision: args.precision(),
        context,
        shares,
        store: ResultsStore::open(kept, &routers, &tasks, config, context)?,
        failures,
    };
    let references = args.score_references(&mut run, &pairs, opened.as_ref())?;
    let prepared = prepare(&pairs, routing.as_ref(), &run.shares, &mut run.failures, context)?;
    run.score(&pairs, &prepared)?;
    // A part may have no pairs, and then nothing failed.
    if run.store.now.routers().next().is_none() && !run.failures.all().is_empty() {
        return run.failures.outcome(false);
    }
    let names: Vec<&str> = routers.iter().map(|typed| typed.text.as_str()).chain(references).collect();
    args.output(&run, &names, opened.as_ref().map_or(&[], |opened| opened.experts.names()))?;
    run.failures.outcome(true)
}

/// What is evaluated on what.
struct EvalInputs<'a> {
    routers: &'a [RouterArg],
    tasks: &'a [Task],
    /// The tasks of `--fit`.
    fit: &'a [Task],
    library: Option<&'a OpenLibrary>,
    base: &'a Base,
}

/// Warns of rows to fit to that no router uses, and of routers that are scored on the rows they are fitted to.
fn warn_of_fits(routers: &[RouterArg], fit: &[Task], split: Split, context: &CommandContext) {
    let fitted = || routers.iter().filter_map(|typed| Some((typed, typed.router.training_data()?)));
    if !fit.is_empty() && fitted().next().is_none() {
        context.output.warn("--fit is not used: none of these routers is fitted");
    }
    if let Some((typed, _)) = fitted().find(|(_, data)| split == Split::Validation && data.reads_validation()) {
        context.output.warn(format!(
            "--router {typed} is fitted to validation rows of the experts' tasks: its scores on them are not those of \
             unseen rows"
        ));
    }
}

/// The routers in order, without duplicates.
fn distinct(typed: &[RouterArg]) -> Vec<RouterArg> {
    let mut seen = BTreeSet::new();
    typed.iter().filter(|router| seen.insert(router.text.clone())).cloned().collect()
}

impl EvalArgs {
    /// Refuses rows that a trained base has seen, and warns of rows in another form than those.
    fn check_base_record(
        &self,
        resolved: &ResolvedBase,
        tasks: &[Task],
        tokenizer: &Tokenizer,
        context: &CommandContext,
    ) -> Result<()> {
        let Some(record) = resolved.record()? else { return Ok(()) };
        let name = self.base.to_string();
        unseen_rows::ensure_unseen(tasks, self.split, &[(name.as_str(), &record)], context)?;
        // Experts were trained over it as it is.
        if self.library.is_none() {
            EncodingCheck::one(&name, &record).warn_of_tasks(tasks, "scored", tokenizer, context);
        }
        Ok(())
    }

    /// Loads the tasks that have rows to evaluate, with the metrics of `--metrics`.
    fn load_tasks(
        &self,
        fit: &[Task],
        options: &EvalOptions,
        failures: &mut Failures,
        context: &CommandContext,
    ) -> Result<Vec<Task>> {
        let tasks = self.tasks.load(context)?;
        task_args::warn_of_unused(&tasks, context);
        if self.split != Split::All {
            for task in &tasks {
                let rows = ScoredRows::new(task, self.split);
                fit.iter().try_for_each(|fit| rows.ensure_apart(fit))?;
            }
        }
        // A metric of a task that cannot be evaluated is no mistake.
        if !self.metrics.is_empty() {
            self.ensure_metrics(&tasks)?;
        }
        let mut tasks = failures.with_rows(tasks, options, context)?;
        if !self.metrics.is_empty() {
            for task in &mut tasks {
                task.metrics = task.reported_metrics();
                task.metrics.retain(|metric| self.metrics.contains(metric));
            }
        }
        Ok(tasks)
    }

    /// Refuses metrics that no task has.
    fn ensure_metrics(&self, tasks: &[Task]) -> Result<()> {
        let known: BTreeSet<Metric> = tasks.iter().flat_map(Task::reported_metrics).collect();
        let unknown = self.metrics.iter().find(|metric| !known.contains(metric));
        let names = || known.iter().map(|metric| metric.name()).collect::<Vec<_>>().join(", ");
        ensure!(
            unknown.is_none(),
            "--metrics {}: no task has it; they have {}",
            unknown.map_or("", |metric| metric.name()),
            names()
        );
        Ok(())
    }

    /// Opens the library if it is needed, with the experts that the routers serve; with all of them for their responses. A
    /// missing library is an error even if it is not needed.
    fn open_library(
        &self,
        routers: &[RouterArg],
        tasks: &[Task],
        base: &Base,
        context: &CommandContext,
    ) -> Result<Option<OpenLibrary>> {
        let Some(root) = &self.library else { return Ok(None) };
        let library = Library::open(root)?;
        let served = match self.response_ratio {
            true => Vec::new(),
            false if routers.iter().all(|typed| !typed.router.uses_experts()) => return Ok(None),
            false => served(&library, routers, tasks)?,
        };
        Ok(Some(context.open_library(root, base, &served)?))
    }

    /// Scores what stands beside the routers in the tables, and returns its names.
    fn score_references(
        &self,
        run: &mut EvalRun,
        pairs: &EvaluatedPairs,
        library: Option<&OpenLibrary>,
    ) -> Result<Vec<&'static str>> {
        let mut names = Vec::new();
        if self.chance {
            names.push(run.score_chance(pairs.tasks)?);
        }
        if let Some(opened) = library.filter(|_| self.response_ratio) {
            names.extend(run.score_response_ratio(pairs, &opened.experts)?);
        }
        Ok(names)
    }

    /// The precision of scored tokens over quantized weights.
    fn precision(&self) -> TokenPrecision {
        if self.quantize_activations { TokenPrecision::EightBit } else { TokenPrecision::Exact }
    }

    /// Opens the base. Its texts are generated in the precision of scored tokens.
    fn open_base(&self, resolved: &ResolvedBase, context: &CommandContext) -> Result<Base> {
        let options = BaseOptions { decoding: self.precision(), ..context.base_options()? };
        let base = resolved.base_as(&options, context)?;
        ensure!(
            !self.quantize_activations || base.has_integer_products(),
            "--quantize-activations: {} has no weights that are multiplied with activations of 8 bits; those are the \
             quantized ones of a GGUF file, except Q2_K and Q3_K, on a CPU and without --dtype. Give such a file, or omit \
             the flag",
            self.base
        );
        Ok(base)
    }

    /// The configuration that results.json records.
    fn config<'a>(&'a self, inputs: &EvalInputs<'a>, seed: u64) -> Result<EvalConfig<'a>> {
        let EvalInputs { routers, tasks, fit, library, base } = *inputs;
        Ok(EvalConfig {
            base: EvaluatedBase::of(base),
            dtype: base.dtype_override().map(|dtype| dtype.as_str()),
            experts: library.map(|opened| opened.library.expert_names()).transpose()?,
            // Without a library no router is fitted.
            fit: if library.is_some() { fit.iter().map(TaskDocument::of).collect() } else { Vec::new() },
            library: self.library.as_deref(),
            limit: self.limit,
            num_fewshot: self.num_fewshot,
            quantize_activations: self.quantize_activations,
            routers: routers.iter().map(|typed| (typed.text.as_str(), typed.router.to_string())).collect(),
            scoring_rules: SCORING_RULES,
            seed,
            split: self.split,
            tasks: tasks.iter().map(|task| EvaluatedTask::of(task, self.num_fewshot)).collect(),
            encoding: Some(self.encoding.encoding()).filter(|encoding| *encoding != RowEncoding::default()),
        })
    }

    /// Prints the results of the routers, and writes the report.
    fn output(&self, run: &EvalRun, routers: &[&str], experts: &[String]) -> Result<()> {
        let results = &run.store.now;
        let mut document = serde_json::to_value(results)?;
        if !run.failures.all().is_empty() {
            document["errors"] = json!(run.failures.all());
        }
        let gains = gains(results, routers, run.tasks);
        if !gains.is_empty() {
            document["gains"] = json!(gains);
        }
        if let Some(path) = &self.report {
            // The page compares routers, and this is none.
            let routers: Vec<&str> = routers.iter().copied().filter(|router| *router != RESPONSE_RATIO).collect();
            let routers = routers.as_slice();
            let tasks: Vec<&str> = run.tasks.iter().map(|task| task.name.as_str()).collect();
            let (routing, lead) = (run.routed_tasks(routers, experts), self.lead(run.base));
            let page = ScoredRouters { results, routers, tasks: &tasks, gains: &gains, routing: &routing, lead };
            make_parent(path)?;
            write_file(path, scores_page::html(&page)?.as_bytes())?;
        }
        if results.routers().next().is_none() {
            return run.context.output.result(&document, || "This part has no pair of a router and a task.".to_owned());
        }
        let text = || [tables(results, routers, run.tasks)].into_iter().chain(gain_table::text(&gains, routers));
        run.context.output.result(&document, || text().collect::<Vec<_>>().join("\n\n"))
    }

    /// What is evaluated, for the report.
    fn lead(&self, base: &Base) -> String {
        let library = self.library.as_ref().map_or(String::new(), |path| format!(", experts of {}", path.display()));
        let limit = self.limit.map_or(String::new(), |limit| format!(", the first {limit} of each task"));
        let shots =
            if self.num_fewshot == 0 { String::new() } else { format!(", {} examples in context", self.num_fewshot) };
        let millions = base.parameters() as f64 / 1e6;
        let rounded = if self.quantize_activations { ", activations of 8 bits" } else { "" };
        format!(
            "Base {}, {millions:.1} million parameters{rounded}{library}; {} rows{limit}{shots}.",
            self.base, self.split
        )
    }

    /// Checks what needs no file to be opened.
    fn ensure_usage(&self) -> Result<()> {
        let needy = self.router.iter().find(|typed| typed.router.uses_experts() && self.library.is_none());
        needy.map_or(Ok(()), |typed| Err(usage::usage_error(format!("--router {typed} needs --library"))))?;
        let results = self.out.as_ref().map(|folder| folder.join("results.json"));
        let is_results = |report: &PathBuf| results.is_some_and(|results| usage::is_same_file(&results, report));
        usage::ensure(!self.report.as_ref().is_some_and(is_results), || {
            "--report is the file of results in --out, which it would replace".to_owned()
        })
    }
}

/// The names of the experts that these routers serve; none where it may be any.
fn served(library: &Library, routers: &[RouterArg], tasks: &[Task]) -> Result<Vec<String>> {
    let tasks: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
    let experts = recorded_tasks(library)?;
    let of_each: Option<Vec<Vec<String>>> = routers.iter().map(|typed| typed.router.served(&tasks, &experts)).collect();
    Ok(of_each.into_iter().flatten().flatten().collect())
}
