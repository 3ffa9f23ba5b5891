//! `merge`: merges experts of a library into one adapter, or into their base.

use crate::args::row_encoding_args::PromptEncodingArgs;
use crate::args::task_args::DataArgs;
use crate::args::usage;
use crate::base::base_source::BaseSource;
use crate::base::merged_base;
use crate::base::resolved_base::ResolvedBase;
use crate::command_context::CommandContext;
use crate::encoding_check::EncodingCheck;
use crate::hub::snapshot::is_cached;
use crate::output::console::make_parent;
use crate::output::merge_tables::MergeReport;
use crate::output::text_table::help_entry;
use crate::selected_experts::selected_experts;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use lorakit_adapter::{Adapter, Library, write_expert};
use lorakit_fit::fitted_merge::{self, WeightFitContext, fit_weights};
use lorakit_fit::pluralize;
use lorakit_fit::{
    FitRecord, MERGE_RECORD_FILE, MergeRecord, MergedBaseRecord, encoded_task_record, read_merge_record,
    warn_of_separate_mixing,
};
use lorakit_format::atomic::{create_folder, replace_folder, write_file};
use lorakit_model::{Base, Rounding};
use lorakit_route::merge::{
    CALIBRATIONS, Coefficients, MERGES, MergeMethod, Merged, PicoCalibration, parse_calibration, parse_merge,
};
use lorakit_route::{Expert, FITTED_MERGES, FittedMerge, LibraryStack, RouteError, parse_fitted_merge};
use lorakit_task::{RowEncoding, Task, Tokenizer};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// The arguments of `merge`.
#[derive(Args, Debug)]
#[command(after_help = methods())]
pub struct MergeArgs {
    /// Library of experts
    #[arg(long, value_name = "L")]
    library: PathBuf,
    /// Method with settings, such as cat, svd:rank=8 or ties:density=0.2; all are listed below
    #[arg(long, value_name = "M")]
    method: Method,
    /// Calibrate the experts before the merge and the result after it, by the method pico (not the base pico)
    #[arg(long, value_name = "C", value_parser = calibration)]
    calibrate: Option<Arc<PicoCalibration>>,
    /// Merge only these experts, in this order [default: all, by name]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    experts: Vec<String>,
    /// Weight of each expert, such as --weights=-0.5,1 [default: 1/n, or 1 if the method averages itself]
    #[arg(long, value_name = "W,...", value_delimiter = ',', allow_hyphen_values = true, value_parser = usage::finite)]
    weights: Vec<f64>,
    /// Tasks to fit the weights to, for lorahub and cat_learned
    #[arg(long, num_args = 1.., value_name = "[NAME=]T")]
    fit: Vec<String>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    encoding: PromptEncodingArgs,
    /// Base model of the library; the merged adapter is checked against it [default where one is needed: the base that the
    /// library records, if its name tells where it is on this machine]
    #[arg(long, value_name = "B")]
    base: Option<BaseSource>,
    /// Write the base with the adapter merged into its weights, as a Hugging Face model folder
    #[arg(long)]
    into_base: bool,
    /// Output folder: a PEFT adapter, or with --into-base a model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace --out if merge wrote it
    #[arg(long)]
    overwrite: bool,
}

/// `--method` as typed.
#[derive(Clone, Debug)]
enum Method {
    /// In weight space, with given weights.
    Given(Arc<dyn MergeMethod>),
    /// With weights fitted to rows.
    Fitted(Arc<dyn FittedMerge>),
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.split(':').next().unwrap_or_default();
        if FITTED_MERGES.iter().any(|method| method.name == name) {
            return parse_fitted_merge(text).map(Self::Fitted).map_err(|error| error.to_string());
        }
        let fitted: Vec<&str> = FITTED_MERGES.iter().map(|method| method.name).collect();
        parse_merge(text).map(Self::Given).map_err(|error| match error {
            RouteError::UnknownMethod { .. } => format!("{error}, {}", fitted.join(", ")),
            other => other.to_string(),
        })
    }
}

/// `--calibrate` as typed.
fn calibration(text: &str) -> Result<Arc<PicoCalibration>, String> {
    parse_calibration(text).map_err(|error| error.to_string())
}

/// The input of a merge.
struct MergeSource<'a> {
    library: &'a Library,
    experts: Vec<Expert>,
    base: Option<(&'a ResolvedBase, &'a Base)>,
}

/// The result of a merge.
struct MadeMerge {
    experts: Vec<Expert>,
    merged: Merged,
    record: MergeRecord,
}

impl MergeArgs {
    /// Checks what needs no file to be opened.
    fn ensure_usage(&self, context: &CommandContext) -> Result<()> {
        usage::ensure(!self.into_base || context.base_options()?.dtype.is_none(), || {
            "--into-base keeps the data types of the base; omit --dtype".to_owned()
        })?;
        let (weights, named) = (self.weights.len(), self.experts.len());
        usage::ensure(weights == 0 || named == 0 || weights == named, || {
            format!("--weights: {} for {}", pluralize(weights, "weight"), pluralize(named, "expert"))
        })?;
        match &self.method {
            Method::Given(merge) => {
                let name = merge.info().name;
                usage::ensure(self.fit.is_empty(), || format!("--fit: {name} does not fit weights"))?;
                let is_default = self.encoding.encoding() == RowEncoding::default();
                usage::ensure(is_default, || {
                    format!("--chat, --bos: {name} reads no rows, since it does not fit weights")
                })
            }
            Method::Fitted(merge) => {
                let name = merge.info().name;
                let weights = || format!("--weights: {name} fits its weights");
                usage::ensure(self.weights.is_empty(), weights)?;
                let calibrate = || format!("--calibrate: {name} fits its weights to the experts as they are");
                usage::ensure(self.calibrate.is_none(), calibrate)?;
                let fit = || format!("--method {name} fits weights to tasks; it needs --fit");
                usage::ensure(!self.fit.is_empty(), fit)
            }
        }
    }

    /// The given base, or where one is needed that of the library.
    fn base_of(&self, library: &Library, context: &CommandContext) -> Result<Option<BaseSource>> {
        let need = match &self.method {
            _ if self.base.is_some() => return Ok(self.base.clone()),
            Method::Fitted(merge) => {
                format!("--method {} fits weights with a base model", merge.info().name)
            }
            Method::Given(_) if self.into_base => "--into-base writes a base model".to_owned(),
            Method::Given(_) => return Ok(None),
        };
        let recorded = library.base();
        let Some(base) = recorded.and_then(|base| BaseSource::of_recorded(base, is_cached)) else {
            let found = match recorded {
                Some(own) => {
                    format!("records the base `{}`, which that name alone does not locate on this machine", own.name)
                }
                None => "records none".to_owned(),
            };
            return Err(usage::usage_error(format!(
                "{need}; it needs --base: the library {} {found}",
                self.library.display()
            )));
        };
        context.output.status(format!("--base {base}, which the library records"));
        Ok(Some(base))
    }

    fn merge(
        &self,
        library: &Library,
        base: Option<(&ResolvedBase, &Base)>,
        context: &CommandContext,
    ) -> Result<MadeMerge> {
        let experts = selected_experts(library, &self.experts)?;
        let names: Vec<String> = experts.iter().map(|expert| expert.name.clone()).collect();
        context.warn_of_differing_bases(library, &names)?;
        let source = MergeSource { library, experts, base };
        match &self.method {
            Method::Given(merge) => self.merge_given(&**merge, source, context),
            Method::Fitted(method) => self.merge_fitted(&**method, source, context),
        }
    }

    /// The library, which errors of a method do not name: they know experts only.
    fn place(&self) -> String {
        self.library.display().to_string()
    }

    /// Merges with `--weights`, or the method's default weights.
    fn merge_given(&self, merge: &dyn MergeMethod, source: MergeSource, context: &CommandContext) -> Result<MadeMerge> {
        let MergeSource { library, experts, .. } = source;
        let warnings = [merge.warning(experts.len()), self.calibrate.as_ref().and_then(|by| by.warning(merge))];
        warnings.into_iter().flatten().try_for_each(|warning| context.warn(warning))?;
        if merge.mixes_separately() {
            warn_of_seeds(&merge.to_string(), library, &experts, context)?;
        }
        let names: Vec<String> = experts.iter().map(|expert| expert.name.clone()).collect();
        let weights = match self.weights.as_slice() {
            [] => merge.default_coefficients(experts.len()).weights().to_vec(),
            given => given.to_vec(),
        };
        warn_of_weights_zero(merge, &names, &weights, context)?;
        let coefficients = Coefficients::new(weights.clone());
        let merged = match &self.calibrate {
            Some(calibration) => calibration.merge(merge, &experts, &coefficients),
            None => merge.merge(&experts, &coefficients),
        };
        let merged = merged.with_context(|| self.place())?;
        let calibration = self.calibrate.as_ref().map(ToString::to_string);
        let record = MergeRecord::new(merge.to_string(), library, &experts, &weights)?.calibrated_by(calibration);
        Ok(MadeMerge { experts, merged, record })
    }

    /// Fits weights to the tasks of `--fit`, and merges with them.
    fn merge_fitted(
        &self,
        method: &dyn FittedMerge,
        source: MergeSource,
        context: &CommandContext,
    ) -> Result<MadeMerge> {
        let name = method.info().name;
        let MergeSource { library, experts, base } = source;
        let (resolved, base) =
            base.with_context(|| format!("--method {name} fits weights with a base model; it needs --base"))?;
        let tasks = self.data.load_fit(&self.fit, context)?;
        let tokenizer = resolved.tokenizer()?.with_encoding(self.encoding.encoding());
        warn_of_encodings(library, &experts, &tasks, &tokenizer, context)?;
        let stacked =
            LibraryStack::new(experts, &base.adaptable_sites(), base.device()).with_context(|| self.place())?;
        let rows = fitted_merge::rows(method, &tasks, base, &tokenizer)?;
        let fit_context = WeightFitContext { base, experts: &stacked, seed: context.seed };
        let fitted = fit_weights(method, fit_context, &rows)?;
        context.output.status(format!("{name}: {}", fitted.summary(&stacked)));
        let (merge, coefficients) = method.merge(&stacked, &fitted.weights).with_context(|| self.place())?;
        if merge.mixes_separately() {
            warn_of_seeds(&method.to_string(), library, stacked.experts(), context)?;
        }
        let merged = merge.merge(stacked.experts(), &coefficients).with_context(|| self.place())?;
        let record = MergeRecord::fitted(
            &*merge,
            library,
            &stacked,
            &coefficients,
            FitRecord {
                merge: method.to_string(),
                tasks: tasks.iter().map(|task| encoded_task_record(task, &tokenizer)).collect(),
                seed: context.seed,
                found: fitted.document(&stacked),
            },
        )?;
        Ok(MadeMerge { experts: stacked.experts().to_vec(), merged, record })
    }
}

/// Warns of experts of weight zero that have a part in the result nevertheless.
fn warn_of_weights_zero(
    merge: &dyn MergeMethod,
    names: &[String],
    weights: &[f64],
    context: &CommandContext,
) -> Result<()> {
    let zero = names.iter().zip(weights).filter(|(_, weight)| **weight == 0.0);
    let zero: Vec<String> = zero.map(|(name, _)| format!("`{name}`")).collect();
    if zero.is_empty() || names.len() == 1 || !merge.counts_weight_zero() {
        return Ok(());
    }
    context.warn(format!(
        "{merge}: experts of weight 0 change the result, since signs are elected and directions chosen without weights: {}; \
         leave them out with --experts",
        zero.join(", ")
    ))
}

/// Warns of experts whose A's, which the merge `what` adds up, started from different random values.
fn warn_of_seeds(what: &str, library: &Library, experts: &[Expert], context: &CommandContext) -> Result<()> {
    let records = experts.iter().map(|expert| library.record(&expert.name)).collect::<Result<Vec<_>, _>>()?;
    let named = experts.iter().zip(&records).map(|(expert, record)| (expert.name.as_str(), record.as_ref()));
    warn_of_separate_mixing(what, named, context);
    Ok(())
}

/// Warns of tasks whose rows are tokenized differently from the experts' training rows.
fn warn_of_encodings(
    library: &Library,
    experts: &[Expert],
    tasks: &[Task],
    tokenizer: &Tokenizer,
    context: &CommandContext,
) -> Result<()> {
    let records: Vec<_> = experts.iter().map(|expert| library.record(&expert.name)).collect::<Result<_, _>>()?;
    let named =
        experts.iter().zip(&records).filter_map(|(expert, record)| Some((expert.name.as_str(), record.as_ref()?)));
    EncodingCheck::of_records(named).warn_of_tasks(tasks, "fitted to", tokenizer, context);
    Ok(())
}

/// The list of methods for `--help`.
fn methods() -> String {
    let lines = MERGES.iter().map(|method| help_entry(&method.usage(), &method.description())).collect::<Vec<_>>();
    let fitted =
        FITTED_MERGES.iter().map(|method| help_entry(&method.usage(), &method.description())).collect::<Vec<_>>();
    let calibrations = CALIBRATIONS.iter().map(|method| help_entry(&method.usage(), &method.description()));
    let calibrations = calibrations.collect::<Vec<_>>();
    format!(
        "Methods, with their settings and defaults:\n{}\n\nMethods that fit their weights to the tasks of --fit, with a \
         base model:\n{}\n\nCalibrations (--calibrate), before any method that fits no weights:\n{}\n\nConventions: peft, mergekit, paper. A rank is a number, \
         largest (the largest of the experts), or full (that of the exact result).",
        lines.join("\n"),
        fitted.join("\n"),
        calibrations.join("\n")
    )
}

/// Merges, writes and reports.
pub fn run(args: MergeArgs, context: &CommandContext) -> Result<()> {
    args.ensure_usage(context)?;
    ensure_replaceable(&args.out, args.overwrite)?;
    let library = Library::open(&args.library)?;
    let base = args.base_of(&library, context)?.map(|base| base.resolve(context)).transpose()?;
    let opened = base.as_ref().map(|resolved| resolved.base(context)).transpose()?;
    if let (Some(base), Some(own)) = (&opened, library.base()) {
        own.ensure_same(base.identity()).with_context(|| format!("the library {}", args.library.display()))?;
        context.note_other_form(&library, base);
    }
    let MadeMerge { experts, mut merged, record } =
        args.merge(&library, base.as_ref().zip(opened.as_ref()), context)?;
    if merged.adapter.norm() == 0.0 {
        context.warn(format!("{}: the merged adapter is zero", args.out.display()))?;
    }
    if let Some(base) = &opened {
        merged.adapter.check_against(&base.adaptable_modules())?;
        merged.adapter = merged.adapter.with_target_names(&base.adaptable_modules());
    }
    let rounding = match (&base, &opened) {
        (Some(resolved), Some(base)) if args.into_base => {
            let record = MergedBaseRecord::new(&record, &library, base.identity(), resolved.record()?)?;
            Some(write_base(&args, resolved, &merged.adapter, &record, context)?)
        }
        _ => {
            let identity = opened.as_ref().map(Base::identity);
            let expert = record.expert_record(&library, identity)?;
            merged.adapter = merged.adapter.with_one_rank()?.with_base_name(identity.or(library.base()));
            if let Some(name) = &context.base_name {
                merged.adapter = merged.adapter.renamed_base(name);
            }
            write_folder(&args, |folder| Ok(write_expert(folder, &merged.adapter, Some(&expert))?))?;
            None
        }
    };
    let report = MergeReport { out: &args.out, record: &record, experts: &experts, merged: &merged, rounding };
    let document = report.document()?;
    context.output.result(&document, || document.text(context.output.verbose))
}

/// Refuses an output folder that must not be replaced.
fn ensure_replaceable(out: &Path, overwrite: bool) -> Result<()> {
    let place = out.display();
    ensure!(!out.is_file(), "{place}: is a file; --out must be a folder");
    let filled = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if !filled {
        return Ok(());
    }
    ensure!(overwrite, "{place}: not empty; use another --out, or --overwrite to replace a previous merge");
    let ours = read_merge_record(out).ok().flatten().is_some();
    ensure!(ours, "{place}: not written by merge, so --overwrite does not replace it; use another --out");
    Ok(())
}

/// Writes the output folder atomically.
fn write_folder(args: &MergeArgs, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    make_parent(&args.out)?;
    if args.overwrite { replace_folder(&args.out, fill) } else { create_folder(&args.out, fill) }
}

/// Writes the base with an adapter merged into its weights.
fn write_base(
    args: &MergeArgs,
    resolved: &ResolvedBase,
    adapter: &Adapter,
    record: &MergedBaseRecord,
    context: &CommandContext,
) -> Result<Rounding> {
    let mut text = serde_json::to_string_pretty(record)?;
    text.push('\n');
    let mut rounding = Rounding::default();
    write_folder(args, |folder| {
        rounding = merged_base::write(resolved, adapter, folder, context)?;
        Ok(write_file(&folder.join(MERGE_RECORD_FILE), text.as_bytes())?)
    })?;
    Ok(rounding)
}
