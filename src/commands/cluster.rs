//! `cluster`: clusters the experts of a library, or tasks.

use crate::args::row_encoding_args::PromptEncodingArgs;
use crate::args::task_args::{DataArgs, warn_of_unused};
use crate::args::usage::{self, fraction, size};
use crate::base::base_source::BaseSource;
use crate::command_context::CommandContext;
use crate::encoding_check::EncodingCheck;
use crate::output::cluster_tables;
use crate::output::console::make_parent;
use crate::output::shared_a_warning::warn_of_shared_a;
use crate::pages::cluster_page;
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use lorakit_adapter::{Adapter, ExpertRecord, Library};
use lorakit_cluster::{
    ClusterMethod, ClusteringReport, Clusters, ComparisonSpace, ExpertSet, MbcOptions, SpaceSimilarities,
    embedding_clusters, random_clusters,
};
use lorakit_fit::cluster::{
    ClusterCount, ClusteredExperts, ROWS, SilhouetteCurve, cluster_experts, embed_tasks, mean, open_experts, records,
};
use lorakit_fit::{differing_initial_seeds, pluralize};
use lorakit_task::BosTokens;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Up to this number of experts, the report that is printed compares them in every space and with other numbers of clusters.
const MAX_REPORTED_EXPERTS: usize = 1000;

/// The arguments of `cluster`.
#[derive(Args, Debug)]
pub struct ClusterArgs {
    /// Library of experts to cluster; without it, random and embedding cluster --tasks
    #[arg(long, value_name = "L", required_unless_present = "tasks")]
    library: Option<PathBuf>,
    /// Clustering method
    #[arg(long, value_enum, default_value_t = MethodArg::Mbc)]
    method: MethodArg,
    /// Number of clusters, or auto for the best silhouette
    #[arg(short, value_name = "K")]
    k: ClusterCount,
    /// Output file, clusters.json; input of train-experts --clusters
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Format of clusters.json; both can be read
    #[arg(long, value_enum, default_value_t = FormatArg::Lorakit)]
    format: FormatArg,
    /// Space in which --method mbc compares adapters [default: delta]
    #[arg(long, value_enum)]
    space: Option<SpaceArg>,
    /// Fraction of an expert's smallest values to zero, with --space parameters or change [default: 0.5]
    #[arg(long, value_name = "S", value_parser = fraction)]
    sparsity: Option<f64>,
    /// Number of singular directions to keep, with --method mbc [default: 64]
    #[arg(long, value_name = "N", value_parser = size)]
    components: Option<usize>,
    /// Cluster only these experts [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', requires = "library")]
    experts: Vec<String>,
    /// Write a report as an HTML page. With more than 1,000 experts, other spaces and other numbers of clusters are
    /// compared only if this is given
    #[arg(long, value_name = "FILE.html", requires = "library")]
    report: Option<PathBuf>,
    /// Base model that embeds the tasks: a model folder, a GGUF file, hub:ORG/NAME[@REV][/FILE.gguf], or pico
    #[arg(long, value_name = "B", required_if_eq("method", "embedding"))]
    base: Option<BaseSource>,
    /// Tasks to embed, including those of all experts; or the tasks to cluster, without --library
    #[arg(long, num_args = 1.., value_name = "[NAME=]T", required_if_eq("method", "embedding"))]
    tasks: Vec<String>,
    #[command(flatten)]
    data: DataArgs,
    /// Maximum number of training rows to embed per task, with --method embedding [default: 64]
    #[arg(long, value_name = "N", value_parser = size)]
    rows: Option<usize>,
    #[command(flatten)]
    encoding: PromptEncodingArgs,
}

impl ClusterArgs {
    /// Checks what needs no file to be opened.
    fn ensure_usage(&self) -> Result<()> {
        let by_itself = self.method == MethodArg::Mbc;
        usage::ensure(by_itself || self.k != ClusterCount::Auto, || {
            "-k auto: only --method mbc can choose the number of clusters; give a number".to_owned()
        })?;
        let of_names = self.method == MethodArg::Random && self.library.is_some();
        usage::ensure(!of_names || self.tasks.is_empty(), || {
            "--method random clusters the experts of --library by chance and does not use --tasks; give one of the two"
                .to_owned()
        })?;
        usage::ensure(!self.report.as_ref().is_some_and(|report| usage::is_same_file(report, &self.out)), || {
            format!("--report and --out are the same file, {}", self.out.display())
        })?;
        let rows = !self.tasks.is_empty() || self.base.is_some();
        usage::ensure(!by_itself || !rows, || {
            "--method mbc clusters experts by their parameters and does not use --tasks or --base".to_owned()
        })?;
        usage::ensure(!by_itself || self.library.is_some(), || {
            "--method mbc clusters experts by their parameters; it needs --library".to_owned()
        })?;
        self.ensure_settings_apply()
    }

    /// Refuses settings that the method, or the space, does not use.
    fn ensure_settings_apply(&self) -> Result<()> {
        let mbc = self.method == MethodArg::Mbc;
        usage::ensure(self.sparsity.is_none() || mbc && self.space() != SpaceArg::Delta, || {
            "--sparsity applies to --method mbc with --space parameters or --space change".to_owned()
        })?;
        usage::ensure(self.space.is_none() || mbc, || "--space applies to --method mbc".to_owned())?;
        usage::ensure(self.components.is_none() || mbc, || "--components applies to --method mbc".to_owned())?;
        let embedding = self.method == MethodArg::Embedding;
        usage::ensure(self.rows.is_none() || embedding, || "--rows applies to --method embedding".to_owned())?;
        let PromptEncodingArgs { chat, bos } = self.encoding;
        usage::ensure(!chat || embedding, || "--chat applies to --method embedding".to_owned())?;
        usage::ensure(bos.is_none() || embedding, || "--bos applies to --method embedding".to_owned())?;
        usage::ensure(self.base.is_none() || embedding, || "--base applies to --method embedding".to_owned())
    }

    /// The space of the clusters and of the reported silhouettes; of methods that use none, the deltas, which always exist.
    fn space(&self) -> SpaceArg {
        self.space.unwrap_or(SpaceArg::Delta)
    }

    fn mbc_options(&self) -> MbcOptions {
        let default = MbcOptions::default();
        MbcOptions {
            space: self.space().into(),
            sparsity: self.sparsity.unwrap_or(default.sparsity),
            components: self.components.unwrap_or(default.components),
            ..default
        }
    }

    /// Writes the clusters in the requested format.
    fn write(&self, clusters: &Clusters) -> Result<()> {
        make_parent(&self.out)?;
        match self.format {
            FormatArg::Lorakit => Ok(clusters.write(&self.out)?),
            FormatArg::Mttl => Ok(clusters.write_mttl(&self.out)?),
        }
    }

    /// Whether to compare experts in every space and to try other numbers of clusters: this takes several times as long as
    /// clustering.
    fn is_reported(&self, experts: usize) -> bool {
        self.report.is_some() || experts <= MAX_REPORTED_EXPERTS
    }
}

/// `--method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MethodArg {
    /// Similarity of the experts' parameters (arXiv 2405.11157)
    Mbc,
    /// Random clusters, a baseline
    Random,
    /// The base model's embeddings of the experts' tasks; needs --base and --tasks
    Embedding,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    /// Experts, tasks, method and settings
    Lorakit,
    /// Only the lists of experts, as mttl reads them
    Mttl,
}

/// `--space`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SpaceArg {
    /// Flattened A and B, as published
    Parameters,
    /// Flattened A minus the common initial A, and B
    Change,
    /// The deltas s B A, of any ranks
    Delta,
}

impl From<SpaceArg> for ComparisonSpace {
    fn from(space: SpaceArg) -> Self {
        match space {
            SpaceArg::Parameters => Self::Parameters,
            SpaceArg::Change => Self::Change,
            SpaceArg::Delta => Self::Delta,
        }
    }
}

/// The record of each expert, where there is one.
type Records = BTreeMap<String, Option<ExpertRecord>>;

/// Clusters, writes the file and prints the report.
pub fn run(args: ClusterArgs, context: &CommandContext) -> Result<()> {
    args.ensure_usage()?;
    let Some(root) = &args.library else { return of_tasks(&args, context) };
    let library = Library::open(root)?;
    let names = names(&library, &args.experts)?;
    ensure!(
        names.len() > 1,
        "{}: {} to cluster; expected at least two. `lorakit train-experts` and `lorakit library add` add experts",
        root.display(),
        pluralize(names.len(), "expert")
    );
    let records = records(&library, &names)?;
    let experts = open_experts(&library, names, &records)?;
    let tasks = |expert: &str| -> Vec<String> {
        records[expert].iter().flat_map(|record| &record.tasks).map(|task| task.name.clone()).collect()
    };
    if args.method == MethodArg::Mbc
        && let Some(differing) =
            differing_initial_seeds(records.iter().map(|(name, own)| (name.as_str(), own.as_ref())))
    {
        context.output.warn(format!(
            "{differing}: experts with different initial A's look unrelated, so that clusters follow the seeds, not the tasks; \
             train the experts with one --seed"
        ));
    }
    if args.method == MethodArg::Mbc && args.space() != SpaceArg::Delta {
        warn_of_compared_a(&library, experts.names(), context)?;
    }
    let ClusteredExperts { partition, curve, delta } = partition(&args, &experts, &tasks, (&records, context))?;
    let clusters = Clusters::new(method(args.method), &partition, tasks, settings(&args, partition.k(), context.seed));
    let wanted = if args.is_reported(experts.len()) { &ComparisonSpace::ALL[..] } else { &[args.space().into()] };
    let spaces = SpaceSimilarities::of_spaces(&experts, wanted, delta)?;
    let report = ClusteringReport::new(&clusters, &spaces, args.space().into(), curve)?;
    if let Some(path) = &args.report {
        let similarity = spaces.get(report.space).context("the space of the report was compared")?;
        make_parent(path)?;
        lorakit_format::atomic::write_file(path, cluster_page::html(&report, similarity)?.as_bytes())?;
    }
    args.write(&clusters)?;
    context
        .output
        .result(&json!({ "out": args.out, "k": partition.k(), "report": report }), || cluster_tables::summary(&report))
}

/// Warns where experts have the same A, which their parameters then have in common whatever their tasks.
fn warn_of_compared_a(library: &Library, names: &[String], context: &CommandContext) -> Result<()> {
    let open = |name: &String| {
        let adapter = library.adapter(name)?;
        // All of a file was read to check its values; a library may be larger than memory.
        adapter.release_pages();
        Ok(adapter)
    };
    let adapters = names.iter().map(open).collect::<Result<Vec<_>>>()?;
    let named: Vec<(&str, &Adapter)> = names.iter().map(String::as_str).zip(&adapters).collect();
    let advice =
        ", which this space compares though it says nothing of their tasks; --space delta compares what they learned";
    warn_of_shared_a(&named, |_| true, advice, context);
    Ok(())
}

/// Clusters tasks that have no experts yet.
fn of_tasks(args: &ClusterArgs, context: &CommandContext) -> Result<()> {
    let k = number_of_clusters(args)?;
    let partition = match args.method {
        MethodArg::Mbc => bail!("--method mbc clusters experts by their parameters; it needs --library"),
        MethodArg::Random => {
            let tasks = args.data.load(&args.tasks, context)?;
            random_clusters(tasks.into_iter().map(|task| task.name), k, context.seed)?
        }
        MethodArg::Embedding => embedding_clusters(embeddings(args, &Records::new(), context)?, k, context.seed)?,
    };
    let settings = settings(args, partition.k(), context.seed);
    let clusters = Clusters::new(method(args.method), &partition, |task| vec![task.to_owned()], settings);
    args.write(&clusters)?;
    let members: Vec<Value> =
        clusters.clusters().iter().map(|cluster| json!({ "name": cluster.name, "tasks": cluster.tasks })).collect();
    context.output.result(&json!({ "out": args.out, "k": partition.k(), "clusters": members }), || {
        cluster_tables::of_tasks(&clusters)
    })
}

/// The experts to cluster.
fn names(library: &Library, wanted: &[String]) -> Result<Vec<String>> {
    if wanted.is_empty() {
        return Ok(library.expert_names()?);
    }
    // The error of a missing expert lists the existing ones.
    wanted.iter().try_for_each(|name| library.expert_folder(name).map(|_| ()))?;
    Ok(wanted.to_vec())
}

/// The clusters, and the silhouettes of other numbers of clusters. `tasks` returns the tasks of an expert.
fn partition(
    args: &ClusterArgs,
    experts: &ExpertSet,
    tasks: &impl Fn(&str) -> Vec<String>,
    (records, context): (&Records, &CommandContext),
) -> Result<ClusteredExperts> {
    let without_curve = |partition| ClusteredExperts { partition, curve: Vec::new(), delta: None };
    match args.method {
        MethodArg::Random => {
            let names = experts.names().to_vec();
            Ok(without_curve(random_clusters(names, number_of_clusters(args)?, context.seed)?))
        }
        MethodArg::Embedding => {
            let k = number_of_clusters(args)?;
            let embedded = embeddings(args, records, context)?;
            let vectors =
                experts.names().iter().map(|expert| Ok((expert.clone(), vector(expert, &tasks(expert), &embedded)?)));
            Ok(without_curve(embedding_clusters(vectors.collect::<Result<Vec<_>>>()?, k, context.seed)?))
        }
        MethodArg::Mbc => {
            let options = MbcOptions { seed: context.seed, ..args.mbc_options() };
            let curve =
                if args.is_reported(experts.len()) { SilhouetteCurve::Always } else { SilhouetteCurve::ToChoose };
            Ok(cluster_experts(experts, &options, (args.k, "-k"), curve, context)?)
        }
    }
}

/// The number of clusters of a method that cannot choose it.
fn number_of_clusters(args: &ClusterArgs) -> Result<usize> {
    match args.k {
        ClusterCount::Fixed(k) => Ok(k.get()),
        ClusterCount::Auto => bail!("-k auto: only --method mbc can choose the number of clusters; give a number"),
    }
}

/// The embeddings of `--tasks`, with a warning of those whose experts read their rows otherwise.
fn embeddings(args: &ClusterArgs, records: &Records, context: &CommandContext) -> Result<BTreeMap<String, Vec<f32>>> {
    let tasks = args.data.load(&args.tasks, context)?;
    warn_of_unused(&tasks, context);
    let resolved = args.base.as_ref().context("--method embedding needs --base")?.resolve(context)?;
    let tokenizer = resolved.tokenizer()?.with_encoding(args.encoding.encoding());
    for task in &tasks {
        let known = records.iter().filter_map(|(name, record)| Some((name.as_str(), record.as_ref()?)));
        let own = known.filter(|(_, record)| record.tasks.iter().any(|own| own.name == task.name));
        EncodingCheck::of_records(own).warn_of_tasks(std::slice::from_ref(task), "embedded", &tokenizer, context);
    }
    Ok(embed_tasks(&resolved.base(context)?, &tokenizer, &tasks, args.rows.unwrap_or(ROWS))?)
}

/// The embedding of an expert: the mean over its tasks, or that of the task with its name if none is recorded.
fn vector(expert: &str, tasks: &[String], embedded: &BTreeMap<String, Vec<f32>>) -> Result<Vec<f32>> {
    let own = [expert.to_owned()];
    let tasks = if tasks.is_empty() { &own[..] } else { tasks };
    let find = |task: &String| {
        embedded.get(task).with_context(|| format!("expert `{expert}`: its task `{task}` is missing from --tasks"))
    };
    Ok(mean(&tasks.iter().map(find).collect::<Result<Vec<_>>>()?))
}

fn method(by: MethodArg) -> ClusterMethod {
    match by {
        MethodArg::Mbc => ClusterMethod::Mbc,
        MethodArg::Random => ClusterMethod::Random,
        MethodArg::Embedding => ClusterMethod::Embedding,
    }
}

/// The settings of the method, recorded in clusters.json.
fn settings(args: &ClusterArgs, k: usize, seed: u64) -> Map<String, Value> {
    let mut settings = Map::from_iter([("k".to_owned(), json!(k)), ("seed".to_owned(), json!(seed))]);
    if args.method == MethodArg::Mbc {
        let space = ComparisonSpace::from(args.space());
        settings.insert("space".to_owned(), json!(space));
        settings.insert("components".to_owned(), json!(args.mbc_options().components));
        if space != ComparisonSpace::Delta {
            settings.insert("sparsity".to_owned(), json!(args.mbc_options().sparsity));
        }
    }
    if let (MethodArg::Embedding, Some(base)) = (args.method, &args.base) {
        settings.insert("base".to_owned(), json!(base.to_string()));
        settings.insert("rows".to_owned(), json!(args.rows.unwrap_or(ROWS)));
        let PromptEncodingArgs { chat, bos } = args.encoding;
        settings.extend(chat.then(|| ("chat".to_owned(), json!(true))));
        settings.extend(bos.filter(|&bos| bos != BosTokens::default()).map(|bos| ("bos".to_owned(), json!(bos))));
    }
    settings
}
