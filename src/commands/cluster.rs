//! `cluster`: which experts, and so which tasks, belong together.

use crate::args::task_args::DataArgs;
use crate::args::usage::{self, share, size};
use crate::base::base_source::BaseSource;
use crate::context::Context;
use crate::output::cluster_tables;
use crate::output::console::make_parent;
use crate::pages::cluster_page;
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use lorakit_adapter::Library;
use lorakit_cluster::{
    Clusters, CurvePoint, Experts, MbcOptions, Method, Partition, Report, Space, Spaces, embedding as by_embedding,
    random,
};
use lorakit_fit::cluster::{ClusterCount, ROWS, cluster_experts, embed_tasks, mean, open_experts, records};
use lorakit_fit::pluralize;
use lorakit_task::Task;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The arguments of `cluster`.
#[derive(Args, Debug)]
pub struct ClusterArgs {
    /// The library whose experts are clustered; without one, random and embedding cluster the tasks themselves
    #[arg(long, value_name = "L", required_unless_present = "tasks")]
    library: Option<PathBuf>,
    /// How
    #[arg(long, value_enum, default_value_t = By::Mbc)]
    method: By,
    /// The number of clusters, or auto: the one with the best silhouette
    #[arg(short, value_name = "K")]
    k: ClusterCount,
    /// clusters.json, as train-experts reads it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Whose form of clusters.json is written; both are read
    #[arg(long, value_enum, default_value_t = Format::Lorakit)]
    format: Format,
    /// What of the adapters is compared
    #[arg(long, value_enum, default_value_t = In::Delta)]
    space: In,
    /// The share of an expert's values, the smallest, that count as zero; not used in the space delta
    #[arg(long, value_name = "S", default_value_t = MbcOptions::default().sparsity, value_parser = share)]
    sparsity: f64,
    /// The number of singular directions that are kept
    #[arg(long, value_name = "N", default_value_t = MbcOptions::default().components, value_parser = size)]
    components: usize,
    /// Only these experts
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', requires = "library")]
    experts: Vec<String>,
    /// A report as one HTML page
    #[arg(long, value_name = "FILE.html", requires = "library")]
    report: Option<PathBuf>,
    /// The base that embeds, for embedding: a model folder, hub:ORG/NAME[@REV], or pico
    #[arg(long, value_name = "B", required_if_eq("method", "embedding"))]
    base: Option<BaseSource>,
    /// The tasks to be embedded, those of all experts among them, or to be clustered where there is no library
    #[arg(long, num_args = 1.., value_name = "[NAME=]T", required_if_eq("method", "embedding"))]
    tasks: Vec<String>,
    #[command(flatten)]
    data: DataArgs,
    /// Training rows of a task that are embedded, at most
    #[arg(long, value_name = "N", default_value_t = ROWS, value_parser = size)]
    rows: usize,
}

impl ClusterArgs {
    /// Refuses what cannot be meant, before anything is opened.
    fn ensure_usage(&self) -> Result<()> {
        let by_itself = self.method == By::Mbc;
        usage::ensure(by_itself || self.k != ClusterCount::Auto, || {
            "-k auto: only mbc chooses a number of clusters; give -k a number".to_owned()
        })?;
        usage::ensure(self.report.as_ref() != Some(&self.out), || {
            format!("--report and --out are both {}; give each a file of its own", self.out.display())
        })?;
        let rows = !self.tasks.is_empty() || self.base.is_some();
        usage::ensure(!by_itself || !rows, || {
            "--method mbc clusters experts by their parameters, and reads neither --tasks nor --base".to_owned()
        })?;
        usage::ensure(!by_itself || self.library.is_some(), || {
            "--method mbc clusters experts by their parameters; give --library".to_owned()
        })
    }

    /// Writes the clusters in the form that is asked for.
    fn write(&self, clusters: &Clusters) -> Result<()> {
        make_parent(&self.out)?;
        match self.format {
            Format::Lorakit => Ok(clusters.write(&self.out)?),
            Format::Mttl => Ok(clusters.write_mttl(&self.out)?),
        }
    }

    /// The space whose silhouettes are told: the one that is clustered, and that which always exists where none is.
    fn judged_in(&self) -> Space {
        if self.method == By::Mbc { self.space.into() } else { Space::Delta }
    }
}

/// `--method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    /// By the similarity of the experts' parameters (arXiv 2405.11157)
    Mbc,
    /// By chance: the baseline
    Random,
    /// By the base's own embeddings of the rows of the experts' tasks; needs --base and --tasks
    Embedding,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// With method, tasks and settings
    Lorakit,
    /// The lists of experts alone, as mttl reads them
    Mttl,
}

/// `--space`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum In {
    /// A and B, flattened: the published form
    Parameters,
    /// A since the common start, and B, flattened
    Change,
    /// The deltas s B A, whatever their ranks
    Delta,
}

impl From<In> for Space {
    fn from(space: In) -> Self {
        match space {
            In::Parameters => Self::Parameters,
            In::Change => Self::Change,
            In::Delta => Self::Delta,
        }
    }
}

/// Clusters, writes the file and says what the clusters are worth.
pub fn run(args: ClusterArgs, context: &Context) -> Result<()> {
    args.ensure_usage()?;
    let Some(root) = &args.library else { return of_tasks(&args, context) };
    let library = Library::open(root)?;
    let names = names(&library, &args.experts)?;
    ensure!(
        names.len() > 1,
        "{}: {} to cluster; expected at least two. `lorakit train-experts` and `lorakit library add` make more",
        root.display(),
        pluralize(names.len(), "expert")
    );
    let records = records(&library, &names)?;
    let experts = open_experts(&library, names, &records)?;
    let tasks = |expert: &str| -> Vec<String> {
        records[expert].iter().flat_map(|record| &record.tasks).map(|task| task.name.clone()).collect()
    };
    let (partition, curve) = partition(&args, &experts, &tasks, context)?;
    let clusters = Clusters::new(method(args.method), &partition, tasks, settings(&args, partition.k(), context.seed));
    let spaces = Spaces::of(&experts)?;
    let report = Report::new(&clusters, &spaces, args.judged_in(), curve)?;
    if let Some(path) = &args.report {
        let similarity = spaces.get(report.space).context("the report was made in a space of these")?;
        make_parent(path)?;
        lorakit_format::atomic::write_file(path, cluster_page::html(&report, similarity)?.as_bytes())?;
    }
    args.write(&clusters)?;
    context
        .output
        .result(&json!({ "out": args.out, "k": partition.k(), "report": report }), || cluster_tables::summary(&report))
}

/// Clusters of tasks for which there are no experts yet.
fn of_tasks(args: &ClusterArgs, context: &Context) -> Result<()> {
    let k = number_of_clusters(args)?;
    let partition = match args.method {
        By::Mbc => bail!("--method mbc clusters experts by their parameters; give --library"),
        By::Random => {
            let tasks = Task::load_all(&args.tasks, args.data.data.as_deref())?;
            random(tasks.into_iter().map(|task| task.name), k, context.seed)?
        }
        By::Embedding => by_embedding(embeddings(args, context)?, k, context.seed)?,
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

/// The experts to be clustered.
fn names(library: &Library, wanted: &[String]) -> Result<Vec<String>> {
    if wanted.is_empty() {
        return Ok(library.expert_names()?);
    }
    // Asking for the folder of an expert that is not there says which there are.
    wanted.iter().try_for_each(|name| library.expert_folder(name).map(|_| ()))?;
    Ok(wanted.to_vec())
}

/// The clusters, with the worth of other numbers of them. `tasks` gives an expert's.
fn partition(
    args: &ClusterArgs,
    experts: &Experts,
    tasks: &impl Fn(&str) -> Vec<String>,
    context: &Context,
) -> Result<(Partition, Vec<CurvePoint>)> {
    match args.method {
        By::Random => Ok((random(experts.names().to_vec(), number_of_clusters(args)?, context.seed)?, Vec::new())),
        By::Embedding => {
            let k = number_of_clusters(args)?;
            let embedded = embeddings(args, context)?;
            let vectors =
                experts.names().iter().map(|expert| Ok((expert.clone(), vector(expert, &tasks(expert), &embedded)?)));
            Ok((by_embedding(vectors.collect::<Result<Vec<_>>>()?, k, context.seed)?, Vec::new()))
        }
        By::Mbc => {
            let options = MbcOptions {
                space: args.space.into(),
                sparsity: args.sparsity,
                components: args.components,
                seed: context.seed,
                ..MbcOptions::default()
            };
            cluster_experts(experts, &options, (args.k, "-k"), context)
        }
    }
}

/// The number of clusters, where the method does not choose one.
fn number_of_clusters(args: &ClusterArgs) -> Result<usize> {
    match args.k {
        ClusterCount::Fixed(k) => Ok(k.get()),
        ClusterCount::Auto => bail!("-k auto: only mbc chooses a number of clusters; give -k a number"),
    }
}

/// The embeddings of the tasks that were given.
fn embeddings(args: &ClusterArgs, context: &Context) -> Result<BTreeMap<String, Vec<f32>>> {
    let tasks = Task::load_all(&args.tasks, args.data.data.as_deref())?;
    let place = args.base.as_ref().context("--method embedding needs --base")?.resolve(context)?;
    embed_tasks(&place.base(context)?, &place.tokenizer()?, &tasks, args.rows)
}

/// The embedding of an expert: the mean over its tasks, or over the task of its name where nothing is recorded.
fn vector(expert: &str, tasks: &[String], embedded: &BTreeMap<String, Vec<f32>>) -> Result<Vec<f32>> {
    let own = [expert.to_owned()];
    let tasks = if tasks.is_empty() { &own[..] } else { tasks };
    let find = |task: &String| {
        embedded.get(task).with_context(|| format!("expert `{expert}`: its task `{task}` is not among --tasks; add it"))
    };
    Ok(mean(&tasks.iter().map(find).collect::<Result<Vec<_>>>()?))
}

fn method(by: By) -> Method {
    match by {
        By::Mbc => Method::Mbc,
        By::Random => Method::Random,
        By::Embedding => Method::Embedding,
    }
}

/// What the method was told, for the record.
fn settings(args: &ClusterArgs, k: usize, seed: u64) -> Map<String, Value> {
    let mut settings = Map::from_iter([("k".to_owned(), json!(k)), ("seed".to_owned(), json!(seed))]);
    if args.method == By::Mbc {
        let space = Space::from(args.space);
        settings.insert("space".to_owned(), json!(space));
        settings.insert("components".to_owned(), json!(args.components));
        if space != Space::Delta {
            settings.insert("sparsity".to_owned(), json!(args.sparsity));
        }
    }
    if let (By::Embedding, Some(base)) = (args.method, &args.base) {
        settings.insert("base".to_owned(), json!(base.to_string()));
        settings.insert("rows".to_owned(), json!(args.rows));
    }
    settings
}
