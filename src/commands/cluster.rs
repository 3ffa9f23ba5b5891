//! `cluster`: which experts, and so which tasks, belong together.

use crate::context::Context;
use crate::output::{number, table};
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use lorakit_adapter::{Adapter, ExpertRecord, Library, Matrix};
use lorakit_cluster::{
    ClusterReport, Clusters, CurvePoint, Embedded, Experts, MbcOptions, Method, Partition, Report, Space, Spaces,
    curve, page, random, suggestion,
};
use lorakit_train::lora::initial_a;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

/// The largest number of clusters that is tried for `-k auto` and for the report's curve.
const MOST_CLUSTERS: usize = 24;

/// The arguments of `cluster`.
#[derive(Args, Debug)]
pub struct ClusterArgs {
    /// The library whose experts are clustered
    #[arg(long, value_name = "L")]
    library: PathBuf,
    /// How
    #[arg(long, value_enum, default_value_t = By::Mbc)]
    method: By,
    /// The number of clusters, or auto: the one with the best silhouette
    #[arg(short, value_name = "K")]
    k: K,
    /// clusters.json, as train-experts reads it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// What of the adapters is compared
    #[arg(long, value_enum, default_value_t = In::Delta)]
    space: In,
    /// The share of an expert's values, the smallest, that count as zero; not used in the space delta
    #[arg(long, value_name = "S", default_value_t = MbcOptions::default().sparsity)]
    sparsity: f64,
    /// The number of singular directions that are kept
    #[arg(long, value_name = "N", default_value_t = MbcOptions::default().components)]
    components: usize,
    /// Only these experts
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    experts: Vec<String>,
    /// A report as one HTML page
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// `--method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    /// By the similarity of the experts' parameters (arXiv 2405.11157)
    Mbc,
    /// By chance: the baseline
    Random,
    /// By the base's embeddings of the experts' rows
    #[value(hide = true)]
    Embedding,
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
enum K {
    Auto,
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
    let library = Library::open(&args.library)?;
    let names = names(&library, &args.experts)?;
    let records =
        names.iter().map(|name| Ok((name.clone(), library.record(name)?))).collect::<Result<BTreeMap<_, _>>>()?;
    let experts = experts(&library, names, &records)?;
    let (partition, curve) = partition(&args, &experts, context)?;
    let tasks =
        |expert: &str| records[expert].iter().flat_map(|record| &record.tasks).map(|task| task.name.clone()).collect();
    let clusters = Clusters::new(method(args.method), &partition, tasks, settings(&args, partition.k(), context.seed));
    let spaces = Spaces::of(&experts)?;
    let report = Report::new(&clusters, &spaces, curve)?;
    if let Some(path) = &args.report {
        let similarity = spaces.get(Space::Delta).context("experts can always be compared by their deltas")?;
        lorakit_adapter::persist::write_file(path, page(&report, similarity).as_bytes())?;
    }
    clusters.write(&args.out)?;
    context.output.result(&json!({ "out": args.out, "k": partition.k(), "report": report }), || summary(&report))
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

/// The clusters, with the worth of other numbers of them.
fn partition(args: &ClusterArgs, experts: &Experts, context: &Context) -> Result<(Partition, Vec<CurvePoint>)> {
    match (args.method, args.k) {
        (By::Embedding, _) => {
            bail!("--method embedding: this build of lorakit cannot embed rows yet; use mbc or random")
        }
        (By::Random, K::Auto) => bail!("-k auto: random clusters have no best number; give -k a number"),
        (By::Random, K::Is(k)) => Ok((random(experts.names().to_vec(), k.get(), context.seed)?, Vec::new())),
        (By::Mbc, k) => {
            if let K::Is(k) = k {
                ensure!(
                    k.get() <= experts.len(),
                    "-k {k}: the library has {} experts; expected k of at most that",
                    experts.len()
                );
            }
            let options = MbcOptions {
                space: args.space.into(),
                sparsity: args.sparsity,
                components: args.components,
                seed: context.seed,
                ..MbcOptions::default()
            };
            let embedded = Embedded::of(experts, &options)?;
            let curve = curve(&embedded, MOST_CLUSTERS)?;
            let k = match k {
                K::Is(k) => k.get(),
                K::Auto => {
                    let best = suggestion(&curve).context(
                        "-k auto: too few experts that differ to choose a number of clusters; give -k a number",
                    )?;
                    context.output.status(format!("k = {}: {}", best.k, best.reason));
                    best.k
                }
            };
            Ok((embedded.partition(k)?, curve))
        }
    }
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
    text.push_str("\n\nMean cosine of two experts of one cluster, and of two clusters:\n");
    text.push_str(&table(["space", "within", "between", "silhouette"], spaces));
    for missing in &report.unavailable {
        text.push_str(&format!("\n{}: {}", missing.space, missing.reason));
    }
    if let Some(suggestion) = &report.suggestion {
        text.push_str(&format!("\n\nSuggested: k = {}; {}.", suggestion.k, suggestion.reason));
    }
    text
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
    fn names_are_wrapped_between_and_never_within() {
        let long = "x".repeat(79);
        assert_eq!(wrapped(["a", "b", &long, "c"]), format!("a, b,\n{long},\nc"));
        assert_eq!(wrapped([]), "");
    }
}
