//! `cluster`: which experts, and so which tasks, belong together.

use crate::base_source::BaseSource;
use crate::context::Context;
use crate::embedding;
use crate::output::{counted, make_parent, number, table};
use crate::tasks::DataArgs;
use crate::usage::{self, share, size};
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use lorakit_adapter::{Adapter, ExpertRecord, Library, Matrix};
use lorakit_cluster::{
    Cluster, ClusterReport, Clusters, CurvePoint, Embedded, Experts, MbcOptions, Method, Partition, Report, Space,
    Spaces, curve, embedding as by_embedding, page, random, suggestion,
};
use lorakit_task::Task;
use lorakit_train::lora::initial_a;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

/// The largest number of clusters that is tried for `-k auto` and for the report's curve.
const MOST_CLUSTERS: usize = 24;

/// Numbers of clusters that the table names, the best.
const NUMBERS_TOLD: usize = 5;

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
    k: K,
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
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
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
    #[arg(long, value_name = "N", default_value_t = embedding::ROWS, value_parser = size)]
    rows: usize,
}

impl ClusterArgs {
    /// Refuses what cannot be meant, before anything is opened.
    fn ensure_usage(&self) -> Result<()> {
        let by_itself = self.method == By::Mbc;
        usage::ensure(by_itself || self.k != K::Auto, || {
            "-k auto: only mbc chooses a number of clusters; give -k a number".to_owned()
        })?;
        usage::ensure(!by_itself || self.library.is_some(), || {
            "--method mbc clusters experts by their parameters; give --library".to_owned()
        })
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

/// `-k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum K {
    /// The number with the best silhouette.
    Auto,
    /// This number.
    Is(NonZeroUsize),
}

impl FromStr for K {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            number => number.parse().map(Self::Is).map_err(|_| "expected a whole number of at least 1, or auto"),
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
        counted(names.len(), "expert")
    );
    let records = records(&library, &names)?;
    let experts = experts(&library, names, &records)?;
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
        lorakit_adapter::persist::write_file(path, page(&report, similarity).as_bytes())?;
    }
    make_parent(&args.out)?;
    match args.format {
        Format::Lorakit => clusters.write(&args.out)?,
        Format::Mttl => clusters.write_mttl(&args.out)?,
    }
    context.output.result(&json!({ "out": args.out, "k": partition.k(), "report": report }), || summary(&report))
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
    make_parent(&args.out)?;
    clusters.write(&args.out)?;
    let members: Vec<Value> =
        clusters.clusters().iter().map(|cluster| json!({ "name": cluster.name, "tasks": cluster.tasks })).collect();
    context
        .output
        .result(&json!({ "out": args.out, "k": partition.k(), "clusters": members }), || of_tasks_table(&clusters))
}

/// The clusters with their tasks.
pub fn of_tasks_table(clusters: &Clusters) -> String {
    let line = |cluster: &Cluster| {
        let tasks = wrapped(cluster.tasks.iter().map(String::as_str));
        vec![cluster.name.clone(), cluster.tasks.len().to_string(), tasks]
    };
    table(["cluster", "size", "tasks"], clusters.clusters().iter().map(line))
}

/// MBC in the space of deltas with its other settings as they are by default: these experts of a library, each trained
/// on the tasks that its record names.
pub fn by_deltas(library: &Library, names: Vec<String>, k: K, context: &Context) -> Result<Clusters> {
    let records = records(library, &names)?;
    let experts = experts(library, names, &records)?;
    let options = MbcOptions { space: Space::Delta, seed: context.seed, ..MbcOptions::default() };
    let (partition, _) = by_parameters(&experts, &options, (k, "--mbc"), context)?;
    let tasks = |expert: &str| -> Vec<String> {
        records[expert].iter().flat_map(|record| &record.tasks).map(|task| task.name.clone()).collect()
    };
    let settings = [("k", json!(partition.k())), ("seed", json!(context.seed)), ("space", json!(options.space))];
    let settings = settings.map(|(name, value)| (name.to_owned(), value));
    Ok(Clusters::new(Method::Mbc, &partition, tasks, settings.into_iter().collect()))
}

fn records(library: &Library, names: &[String]) -> Result<BTreeMap<String, Option<ExpertRecord>>> {
    names.iter().map(|name| Ok((name.clone(), library.record(name)?))).collect()
}

/// The experts to be clustered.
fn names(library: &Library, wanted: &[String]) -> Result<Vec<String>> {
    if wanted.is_empty() {
        return library.expert_names();
    }
    // Asking for the folder of an expert that is not there says which there are.
    wanted.iter().try_for_each(|name| library.expert_folder(name).map(|_| ()))?;
    Ok(wanted.to_vec())
}

/// The experts, opened as they are needed, with the A that they all started from where it is known.
fn experts<'a>(
    library: &'a Library,
    names: Vec<String>,
    records: &BTreeMap<String, Option<ExpertRecord>>,
) -> Result<Experts<'a>> {
    let start = Start::of(library, records)?;
    let experts = Experts::new(names, |name| library.adapter(name).map_err(anyhow::Error::into_boxed_dyn_error))?;
    Ok(match start {
        Some(start) => experts.with_start(move |module| start.a(module).map_err(anyhow::Error::into_boxed_dyn_error)),
        None => experts,
    })
}

/// What the common starting A is drawn from.
struct Start {
    seed: u64,
    tied: bool,
    /// Any of the experts; the space `change` refuses those of other ranks.
    like: Adapter,
}

impl Start {
    /// The start of experts that all record the same; None where one records another or none.
    fn of(library: &Library, records: &BTreeMap<String, Option<ExpertRecord>>) -> Result<Option<Self>> {
        let drawn_from = |record: &Option<ExpertRecord>| {
            let record = record.as_ref()?;
            Some((record.initial_seed?, record.settings["settings"]["tie_qkv"].as_bool().unwrap_or(false)))
        };
        let Some((first, record)) = records.first_key_value() else { return Ok(None) };
        match drawn_from(record) {
            Some((seed, tied)) if records.values().all(|other| drawn_from(other) == Some((seed, tied))) => {
                Ok(Some(Self { seed, tied, like: library.adapter(first)? }))
            }
            _ => Ok(None),
        }
    }

    /// The A of a module.
    fn a(&self, module: &str) -> Result<Matrix> {
        let update = self.like.modules().get(module).with_context(|| format!("no expert has the module `{module}`"))?;
        let drawn = self.drawn_as(module);
        Matrix::new(update.rank(), update.input(), initial_a(self.seed, &drawn, update.rank(), update.input()))
    }

    /// The module that a module's A was drawn for: where A is tied, the first adapted of q, k and v.
    fn drawn_as(&self, module: &str) -> String {
        let tied = ["q_proj", "k_proj", "v_proj"];
        match module.rsplit_once('.') {
            Some((parent, name)) if self.tied && tied.contains(&name) => {
                let siblings = tied.iter().map(|sibling| format!("{parent}.{sibling}"));
                siblings
                    .into_iter()
                    .find(|sibling| self.like.modules().contains_key(sibling))
                    .unwrap_or_else(|| module.to_owned())
            }
            _ => module.to_owned(),
        }
    }
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
            by_parameters(experts, &options, (args.k, "-k"), context)
        }
    }
}

/// The number of clusters, where the method does not choose one.
fn number_of_clusters(args: &ClusterArgs) -> Result<usize> {
    match args.k {
        K::Is(k) => Ok(k.get()),
        K::Auto => bail!("-k auto: only mbc chooses a number of clusters; give -k a number"),
    }
}

/// MBC. The number of clusters comes with the option that gave it.
fn by_parameters(
    experts: &Experts,
    options: &MbcOptions,
    (k, option): (K, &str),
    context: &Context,
) -> Result<(Partition, Vec<CurvePoint>)> {
    if let K::Is(k) = k {
        let known = experts.len();
        ensure!(k.get() <= known, "{option} {k}: there are {known} experts; expected at most that");
    }
    let embedded = Embedded::of(experts, options)?;
    let curve = curve(&embedded, MOST_CLUSTERS)?;
    let k = match k {
        K::Is(k) => k.get(),
        K::Auto => {
            let best = suggestion(&curve).with_context(|| {
                format!(
                    "{option} auto: too few experts that differ to choose a number of clusters; give {option} a number"
                )
            })?;
            context.output.status(format!("k = {}: {}", best.k, best.reason));
            best.k
        }
    };
    Ok((embedded.partition(k)?, curve))
}

/// The embeddings of the tasks that were given.
fn embeddings(args: &ClusterArgs, context: &Context) -> Result<BTreeMap<String, Vec<f32>>> {
    let tasks = Task::load_all(&args.tasks, args.data.data.as_deref())?;
    let place = args.base.as_ref().context("--method embedding needs --base")?.locate(context)?;
    embedding::of_tasks(&place.base(context)?, &place.vocabulary()?, &tasks, args.rows)
}

/// The embedding of an expert: the mean over its tasks, or over the task of its name where nothing is recorded.
fn vector(expert: &str, tasks: &[String], embedded: &BTreeMap<String, Vec<f32>>) -> Result<Vec<f32>> {
    let own = [expert.to_owned()];
    let tasks = if tasks.is_empty() { &own[..] } else { tasks };
    let find = |task: &String| {
        embedded.get(task).with_context(|| format!("expert `{expert}`: its task `{task}` is not among --tasks; add it"))
    };
    Ok(embedding::mean(&tasks.iter().map(find).collect::<Result<Vec<_>>>()?))
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

fn summary(report: &Report) -> String {
    let members = |cluster: &ClusterReport| wrapped(cluster.members.iter().map(|member| member.expert.as_str()));
    let clusters = report.clusters.iter().map(|cluster| {
        vec![
            cluster.name.clone(),
            cluster.members.len().to_string(),
            number(Some(cluster.silhouette), 3),
            members(cluster),
        ]
    });
    let spaces = report.spaces.iter().map(|space| {
        vec![
            space.space.to_string(),
            number(space.within, 3),
            number(space.between, 3),
            number(Some(space.silhouette), 3),
        ]
    });
    let mut text = table(["cluster", "size", "silhouette", "experts"], clusters);
    text.push_str(&format!("\nSilhouettes are those of the space {}.", report.space));
    text.push_str("\n\nMean cosine of two experts of one cluster, and of two clusters:\n");
    text.push_str(&table(["space", "within", "between", "silhouette"], spaces));
    for missing in &report.unavailable {
        text.push_str(&format!("\n{}: {}", missing.space, missing.reason));
    }
    if let Some(suggestion) = &report.suggestion {
        text.push_str("\n\nMean silhouette of the embedding that is clustered, by the number of clusters:\n");
        text.push_str(&numbers_of_clusters(&report.curve, report.clusters.len()));
        text.push_str(&format!("\nSuggested: k = {}; {}.", suggestion.k, suggestion.reason));
    }
    text
}

/// The numbers of clusters that do best, and the one at hand.
fn numbers_of_clusters(curve: &[CurvePoint], used: usize) -> String {
    let mut best: Vec<&CurvePoint> = curve.iter().collect();
    best.sort_by(|a, b| b.silhouette.total_cmp(&a.silhouette).then(a.k.cmp(&b.k)));
    let (told, others) = best.split_at(best.len().min(NUMBERS_TOLD));
    let mut told: Vec<&CurvePoint> =
        told.iter().chain(others.iter().filter(|point| point.k == used)).copied().collect();
    told.sort_by_key(|point| point.k);
    let line = |point: &CurvePoint| {
        let here = if point.k == used { "here" } else { "" };
        vec![point.k.to_string(), number(Some(point.silhouette), 3), here.to_owned()]
    };
    table(["k", "silhouette", ""], told.into_iter().map(line))
}

/// Names with commas between, on lines of about 80 characters.
fn wrapped<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    let mut lines = vec![String::new()];
    for name in names {
        let mut line = lines.pop().unwrap_or_default();
        if !line.is_empty() {
            line.push(',');
            let full = line.len() + name.len() >= 80;
            if full {
                lines.push(std::mem::take(&mut line));
            } else {
                line.push(' ');
            }
        }
        line.push_str(name);
        lines.push(line);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_numbers_of_clusters_are_told_and_the_one_at_hand() {
        let curve: Vec<CurvePoint> = (2..12).map(|k| CurvePoint { k, silhouette: 1.0 / k as f64 }).collect();
        let told = numbers_of_clusters(&curve, 11);
        assert_eq!(told.lines().filter(|line| line.contains("0.")).count(), NUMBERS_TOLD + 1, "{told}");
        assert!(told.contains("0.500") && told.contains("0.091"), "{told}");
    }

    #[test]
    fn names_are_wrapped_between_and_never_within() {
        let long = "x".repeat(79);
        assert_eq!(wrapped(["a", "b", &long, "c"]), format!("a, b,\n{long},\nc"));
        assert_eq!(wrapped([]), "");
    }
}
