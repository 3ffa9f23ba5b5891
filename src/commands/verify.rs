//! `verify`: checks merged weights against unmerged adapters by the largest difference of their logits; or states the
//! difference of two forms of one base.
//!
//! Merging an adapter into 16-bit weights rounds them, which changes logits by more than the order of operations does.
//! So the adapter is merged twice, once without rounding: the difference of *that* from the unmerged adapter is compared
//! with the noise of float32 on this base, and the effect of rounding is reported separately.

use crate::args::usage::{self, bounded_count, non_negative};
use crate::base::base_source::BaseSource;
use crate::base::merged_base::{self, MergePrecision};
use crate::base::resolved_base::ResolvedBase;
use crate::command_context::CommandContext;
use crate::output::progress_bar;
use crate::output::text_table::{ABSENT, table};
use crate::selected_experts::selected_experts;
use crate::verification::base_forms::{self, FormDifference};
use crate::verification::logit_difference::{LogitDifference, NOISE_FACTOR};
use crate::verification::merge_recipe::{MergeRecipe, TypedWeights, alone};
use crate::verification::random_rows::RandomRows;
use anyhow::{Context as _, Result, bail, ensure};
use candle_core::Tensor;
use clap::Args;
use lorakit_adapter::{Adapter, Library};
use lorakit_fit::{pluralize, read_merged_base_record};
use lorakit_lora::{Patch, Patches, RoundingNoise};
use lorakit_model::{Base, BaseOptions, StorageDtype};
use lorakit_route::Expert;
use serde::Serialize;
use serde_json::json;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The arguments of `verify`.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("compared").required(true).multiple(true).args(["library", "other_base"]))]
pub struct VerifyArgs {
    /// Base model: a model folder, a GGUF file, hub:ORG/NAME[@REV][/FILE.gguf], or pico
    #[arg(long, value_name = "B")]
    base: BaseSource,
    /// Library of experts
    #[arg(long, value_name = "L")]
    library: Option<PathBuf>,
    /// Another form of the base, such as its GGUF file: states the difference of logits, bare and with each expert
    #[arg(long, value_name = "B", conflicts_with = "merged")]
    other_base: Option<BaseSource>,
    /// Output of merge, an adapter or a model; without it, each expert is merged into the base in memory
    #[arg(long, value_name = "DIR")]
    merged: Option<PathBuf>,
    /// Check only these experts [default: all, or those recorded in --merged]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    experts: Vec<String>,
    /// Treat --merged as the sum of --experts with these weights, instead of using its record
    #[arg(long, value_name = "W,...", value_delimiter = ',', allow_hyphen_values = true, requires_all = ["merged", "experts"])]
    weights: Vec<f64>,
    /// Number of random tokens to compare on
    #[arg(long, value_name = "N", default_value = "128", value_parser = bounded_count)]
    tokens: NonZeroUsize,
    /// Maximum difference of logits, not counting rounding to 16 bits [default: 16 times the noise of float32, measured; none
    /// for --other-base]
    #[arg(long, value_name = "X", value_parser = non_negative)]
    tolerance: Option<f64>,
}

/// The comparison of one merge, as largest differences of logits.
#[derive(Serialize)]
struct Comparison {
    /// The expert, or the merge.
    name: String,
    /// Merged and unmerged.
    difference: f64,
    /// The effect of rounding merged weights; none where nothing is rounded.
    rounding: Option<f64>,
    /// The difference without rounding, compared with the tolerance.
    beyond_rounding: f64,
    /// What float32 alone changes: the effect of flipping the last bit of every site's outputs.
    noise: f64,
    /// The largest `beyond_rounding` that passes.
    tolerance: f64,
    /// The effect of the adapter on the base's logits, for scale.
    effect: f64,
    ok: bool,
}

/// What is compared, and on which tokens.
struct Verifier<'a> {
    resolved: &'a ResolvedBase,
    base: &'a Base,
    /// How the base was opened, and merged bases are.
    options: BaseOptions,
    rows: RandomRows,
    /// The tolerance as typed; none: by the noise.
    tolerance: Option<f64>,
    context: &'a CommandContext,
}

/// The logits of the base with an unmerged adapter, which the merged ones are compared with.
struct Unmerged {
    logits: Tensor,
    /// The difference from the base without an adapter.
    effect: LogitDifference,
    /// What rounding alone changes.
    noise: LogitDifference,
}

/// Compares, prints, and fails beyond the tolerance.
pub fn run(args: VerifyArgs, context: &CommandContext) -> Result<()> {
    let library = args.library.as_deref().map(Library::open).transpose()?;
    match (library, &args.other_base) {
        (library, Some(other)) => compare_forms(other, library.as_ref(), &args, context),
        (Some(library), None) => verify_merges(&library, &args, context),
        (None, None) => bail!("--library is missing"),
    }
}

/// States how far another form of the base is from it; fails beyond a typed tolerance, and where logits are not finite.
fn compare_forms(
    other: &BaseSource,
    library: Option<&Library>,
    args: &VerifyArgs,
    context: &CommandContext,
) -> Result<()> {
    usage::ensure(library.is_some() || args.experts.is_empty(), || "--experts needs --library".to_owned())?;
    let open = |source: &BaseSource| source.resolve(context)?.base_as(&context.exact_options()?, context);
    let (base, other) = (open(&args.base)?, open(other)?);
    base_forms::ensure_one_form(&base, &other)?;
    let experts = match library {
        Some(library) => {
            ensure_base(library, &base).or_else(|error| ensure_base(library, &other).map_err(|_| error))?;
            selected_experts(library, &args.experts)?
        }
        None => Vec::new(),
    };
    let rows = RandomRows::new(&base, args.tokens.get(), context.seed);
    let compared = base_forms::compare(&base, &other, &experts, &rows, &context.output)?;
    // A NaN or infinite difference exceeds any tolerance, and is no comparison without one.
    let is_ok = |comparison: &FormDifference| comparison.difference <= args.tolerance.unwrap_or(f64::MAX);
    let failed: Vec<&str> =
        compared.iter().filter(|comparison| !is_ok(comparison)).map(|comparison| comparison.name.as_str()).collect();
    let [name, other_name] = [&base, &other].map(|base| &base.identity().name);
    let document = json!({
        "ok": failed.is_empty(),
        "base": name,
        "other_base": other_name,
        "tolerance": args.tolerance,
        "tokens": rows.tokens(),
        "compared": compared,
    });
    context.output.result(&document, || {
        let table = base_forms::differences_table(&compared);
        format!(
            "{table}\n\nDifferences of the logits of {other_name} from those of {name} over {} random tokens",
            rows.tokens()
        )
    })?;
    let judged = match args.tolerance {
        Some(tolerance) => format!("beyond the tolerance on logits, {tolerance:e}"),
        None => "logits that are not finite".to_owned(),
    };
    ensure!(failed.is_empty(), "{judged}: {}", failed.join(", "));
    Ok(())
}

/// Refuses a library of another base.
fn ensure_base(library: &Library, base: &Base) -> Result<()> {
    let place = || format!("the library {}", library.root().display());
    library.base().map_or(Ok(()), |own| own.ensure_same(base.identity())).with_context(place)
}

/// Compares merges with unmerged adapters.
fn verify_merges(library: &Library, args: &VerifyArgs, context: &CommandContext) -> Result<()> {
    if let Some(folder) = &args.merged {
        ensure!(folder.is_dir(), "{}: no such folder; --merged is the output of `lorakit merge`", folder.display());
    }
    let resolved = args.base.resolve(context)?;
    let base = resolved.base_as(&context.exact_options()?, context)?;
    ensure_base(library, &base)?;
    context.note_other_form(library, &base);
    let verifier = Verifier::new(&resolved, &base, args, context)?;
    let (compared, dtype) = match &args.merged {
        None => verifier.experts(&selected_experts(library, &args.experts)?)?,
        Some(folder) => verifier.folder(folder, library, args).with_context(|| folder.display().to_string())?,
    };
    let failed: Vec<&str> =
        compared.iter().filter(|comparison| !comparison.ok).map(|comparison| comparison.name.as_str()).collect();
    let dtype = dtype.to_candle().as_str();
    let document = json!({
        "ok": failed.is_empty(),
        "dtype": dtype,
        "tolerance": args.tolerance,
        "tokens": verifier.rows.tokens(),
        "compared": compared,
    });
    context.output.result(&document, || text(&compared, dtype, args, verifier.rows.tokens()))?;
    let judged_by = match args.tolerance {
        Some(tolerance) => format!("{tolerance:e}"),
        None => format!("{NOISE_FACTOR} times the noise of float32"),
    };
    let many = pluralize(failed.len(), "merge");
    ensure!(failed.is_empty(), "{many} beyond the tolerance on logits, {judged_by}: {}", failed.join(", "));
    Ok(())
}

fn text(compared: &[Comparison], dtype: &str, args: &VerifyArgs, tokens: usize) -> String {
    let number = |value: f64| format!("{value:.1e}");
    let line = |comparison: &Comparison| {
        vec![
            comparison.name.clone(),
            number(comparison.difference),
            comparison.rounding.map_or_else(|| ABSENT.to_owned(), number),
            number(comparison.beyond_rounding),
            number(comparison.noise),
            number(comparison.effect),
            if comparison.ok { "ok" } else { "too far" }.to_owned(),
        ]
    };
    let header = ["merged", "difference", "by rounding", "without rounding", "float32 noise", "adapter's effect", ""];
    let judged_by = match args.tolerance {
        Some(tolerance) => format!("a difference up to {tolerance:e}, rounding excluded, passes"),
        None => format!(
            "a difference up to {NOISE_FACTOR} times the float32 noise, rounding excluded, passes: the noise is the effect of \
             flipping the last bit of every projection's outputs, in the largest difference and in the mean square"
        ),
    };
    format!(
        "{}\n\nLargest differences of logits over {tokens} random tokens; merged weights are {dtype}; {judged_by}",
        table(header, compared.iter().map(line)),
    )
}

impl<'a> Verifier<'a> {
    fn new(resolved: &'a ResolvedBase, base: &'a Base, args: &VerifyArgs, context: &'a CommandContext) -> Result<Self> {
        let rows = RandomRows::new(base, args.tokens.get(), context.seed);
        let options = context.exact_options()?;
        Ok(Self { resolved, base, options, rows, tolerance: args.tolerance, context })
    }

    fn logits(&self, base: &Base, patches: &Patches) -> Result<Tensor> {
        self.rows.logits(base, patches)
    }

    /// The logits of the unmerged adapter with these patches; `plain` are the base's.
    fn unmerged(&self, patches: Patches, plain: &Tensor) -> Result<Unmerged> {
        let logits = self.logits(self.base, &patches)?;
        let noise: Arc<dyn Patch> = Arc::new(RoundingNoise);
        let noise = Patches::new(vec![Some(noise); self.base.sites().len()]);
        let noise = LogitDifference::of(&self.logits(self.base, &patches.with(noise))?, &logits)?;
        Ok(Unmerged { effect: LogitDifference::of(&logits, plain)?, noise, logits })
    }

    /// Compares each expert with a base it is merged into.
    fn experts(&self, experts: &[Expert]) -> Result<(Vec<Comparison>, StorageDtype)> {
        let plain = self.logits(self.base, &Patches::none())?;
        let mut dtype = StorageDtype::F32;
        let mut compared = Vec::with_capacity(experts.len());
        let bar = progress_bar::bar(&self.context.output, experts.len() as u64, "verify");
        for expert in experts {
            let added = || -> Result<Comparison> {
                expert.adapter.check_against(&self.base.adaptable_modules())?;
                let unmerged = self.unmerged(alone(&expert.adapter, self.base)?, &plain)?;
                let added = self.merged_logits(&expert.adapter)?;
                dtype = coarser(dtype, added.dtype);
                let beyond = LogitDifference::of(&added.exact, &unmerged.logits)?;
                self.compare(&expert.name, &added.rounded, &unmerged, Explained { rounding: added.rounding, beyond })
            };
            let mut added = added;
            compared.push(added().with_context(|| format!("expert `{}`", expert.name))?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok((compared, dtype))
    }

    /// Compares a merged adapter or base with the unmerged experts.
    fn folder(&self, folder: &Path, library: &Library, args: &VerifyArgs) -> Result<(Vec<Comparison>, StorageDtype)> {
        let typed = TypedWeights { experts: &args.experts, weights: &args.weights };
        let recipe = MergeRecipe::of(folder, library, &typed, self.base, self.context)?;
        let plain = self.logits(self.base, &Patches::none())?;
        let unmerged = self.unmerged(recipe.patches(self.base)?, &plain)?;
        if folder.join(lorakit_adapter::CONFIG_FILE).is_file() {
            let adapter = Adapter::read(folder)?;
            adapter.check_against(&self.base.adaptable_modules())?;
            let merged = self.logits(self.base, &alone(&adapter, self.base)?)?;
            let beyond = LogitDifference::of(&merged, &unmerged.logits)?;
            return Ok((
                vec![self.compare(&recipe.name, &merged, &unmerged, Explained { rounding: None, beyond })?],
                StorageDtype::F32,
            ));
        }
        ensure!(folder.join("config.json").is_file(), "has neither adapter_config.json nor config.json");
        if let Some(record) = read_merged_base_record(folder)? {
            record.base.ensure_same(self.base.identity()).context("the merged base")?;
        }
        let opened = Base::open(folder, &self.options)?;
        ensure!(
            opened.modules() == self.base.modules() && opened.config().vocabulary == self.base.config().vocabulary,
            "the model's dimensions differ from those of base {}",
            self.base.identity().name
        );
        let merged = self.logits(&opened, &Patches::none())?;
        // The files must match the rounded merge, and the exact merge must match the unmerged experts.
        let added = self.merged_logits(&recipe.merged)?;
        let beyond =
            LogitDifference::of(&merged, &added.rounded)?.max(LogitDifference::of(&added.exact, &unmerged.logits)?);
        let compared =
            self.compare(&recipe.name, &merged, &unmerged, Explained { rounding: added.rounding, beyond })?;
        Ok((vec![compared], added.dtype))
    }

    /// Compares the logits of a merge with the unmerged ones.
    fn compare(&self, name: &str, merged: &Tensor, unmerged: &Unmerged, explained: Explained) -> Result<Comparison> {
        let Explained { rounding, beyond } = explained;
        Ok(Comparison {
            name: name.to_owned(),
            difference: LogitDifference::of(merged, &unmerged.logits)?.largest,
            rounding,
            beyond_rounding: beyond.largest,
            noise: unmerged.noise.largest,
            tolerance: self.tolerance.unwrap_or(unmerged.noise.tolerance()),
            effect: unmerged.effect.largest,
            // A NaN difference exceeds any tolerance.
            ok: match self.tolerance {
                Some(tolerance) => beyond.largest <= tolerance,
                None => beyond.is_explained_by(unmerged.noise),
            },
        })
    }

    /// The logits of the base with an adapter merged into its weights.
    fn merged_logits(&self, adapter: &Adapter) -> Result<MergedLogits> {
        let logits = |dtype| -> Result<Tensor> {
            let base = merged_base::in_memory(self.resolved, adapter, dtype, &self.options)?;
            self.logits(&base, &Patches::none())
        };
        let dtype = merged_base::narrowest_dtype(self.resolved, adapter, &self.options)?;
        let rounded = logits(MergePrecision::Rounded)?;
        if dtype == StorageDtype::F32 {
            return Ok(MergedLogits { exact: rounded.clone(), rounded, rounding: None, dtype });
        }
        let exact = logits(MergePrecision::Exact)?;
        Ok(MergedLogits { rounding: Some(LogitDifference::of(&rounded, &exact)?.largest), exact, rounded, dtype })
    }
}

/// What of a difference rounding the merged weights explains, and what is beyond.
struct Explained {
    /// None where nothing is rounded.
    rounding: Option<f64>,
    beyond: LogitDifference,
}

/// Logits of a base with an adapter merged in.
struct MergedLogits {
    /// With weights in their stored type.
    rounded: Tensor,
    /// With merged weights in f32.
    exact: Tensor,
    /// The largest difference of both, where they differ.
    rounding: Option<f64>,
    dtype: StorageDtype,
}

/// The type that rounds more.
fn coarser(one: StorageDtype, other: StorageDtype) -> StorageDtype {
    if one.unit_roundoff() >= other.unit_roundoff() { one } else { other }
}
