//! `library check`: checks all files of a library, or one adapter_config.json.

use crate::base::base_source::BaseSource;
use crate::base::shared_embedding::shared_embedding_warning;
use crate::command_context::CommandContext;
use crate::output::text_table::{help_entry, table};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use lorakit_adapter::{
    AdapterError, Library, MODEL_WEIGHTS_FILE, PeftConfig, UnsupportedKey, Warning, refused_features,
};
use lorakit_fit::pluralize;
use lorakit_format::hash::sha256_of_file;
use lorakit_format::read_text;
use lorakit_model::Base;
use lorakit_train::routing_store;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The arguments of `library check`.
#[derive(Args, Debug)]
#[command(after_help = refusals(), group = clap::ArgGroup::new("checked").required(true).args(["library", "config"]))]
pub struct CheckArgs {
    /// Library
    #[arg(long, value_name = "L")]
    library: Option<PathBuf>,
    /// Also check every expert against this base, or list the modules of it that --config adapts
    #[arg(long, value_name = "B")]
    base: Option<BaseSource>,
    /// Check a single adapter_config.json
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A path without an option, for a message that says which one it needs
    #[arg(hide = true, value_name = "DIR", value_parser = refuse_unnamed)]
    #[allow(dead_code, reason = "its parser refuses every value")]
    unnamed: Option<PathBuf>,
}

fn refuse_unnamed(path: &str) -> Result<PathBuf, String> {
    Err(format!("give a library as --library {path}, or an adapter_config.json as --config {path}"))
}

/// The list of refused features for `--help`.
fn refusals() -> String {
    let lines = refused_features().iter().map(|(name, reason)| help_entry(name, reason)).collect::<Vec<_>>();
    format!(
        "An adapter is refused only for one of these, and the message names it; everything else that PEFT 0.21 loads is \
         accepted, with a warning where a key has no effect:\n{}",
        lines.join("\n")
    )
}

/// The findings about experts, routers or models.
struct CheckFindings {
    /// `expert`, `router` or `model`.
    noun: &'static str,
    found: Vec<Finding>,
}

/// The finding about one of them.
struct Finding {
    name: String,
    error: Option<String>,
    warnings: Vec<Warning>,
}

impl CheckFindings {
    fn of(noun: &'static str, names: Vec<String>, check: impl Fn(&str) -> Result<Vec<Warning>>) -> Self {
        let finding = |name: String| match check(&name) {
            Ok(warnings) => Finding { name, error: None, warnings },
            Err(error) => Finding { name, error: Some(format!("{error:#}")), warnings: Vec::new() },
        };
        Self { noun, found: names.into_iter().map(finding).collect() }
    }

    /// The number with an error, or under `--strict` a warning.
    fn broken(&self, strict: bool) -> usize {
        let broken = |finding: &&Finding| finding.error.is_some() || (strict && !finding.warnings.is_empty());
        self.found.iter().filter(broken).count()
    }

    fn document(&self) -> Value {
        let one = |Finding { name, error, warnings }: &Finding| {
            let mut one = json!({ "error": error, "notices": warnings });
            one[self.noun] = name.as_str().into();
            one
        };
        self.found.iter().map(one).collect()
    }

    fn table(&self) -> String {
        let text = |finding: &Finding| match &finding.error {
            Some(error) => error.clone(),
            None if finding.warnings.is_empty() => "ok".to_owned(),
            None => finding.warnings.iter().map(Warning::to_string).collect::<Vec<_>>().join("\n"),
        };
        table([self.noun, "finding"], self.found.iter().map(|finding| vec![finding.name.clone(), text(finding)]))
    }
}

/// Checks, prints the findings, and fails if something is wrong.
pub fn run(args: &CheckArgs, context: &CommandContext) -> Result<()> {
    match (&args.config, &args.library) {
        (Some(config), _) => check_config(config, args.base.as_ref(), context),
        (None, Some(root)) => check(root, args, context),
        (None, None) => bail!("give --library L or --config FILE"),
    }
}

/// Experts: configuration, tensors, values, recorded hash, base. Routers and models: recorded hashes.
fn check(root: &Path, args: &CheckArgs, context: &CommandContext) -> Result<()> {
    let library = Library::open(root)?;
    let base = args.base.as_ref().map(|base| base.open(context)).transpose()?;
    if let (Some(base), Some(own)) = (&base, library.base()) {
        own.ensure_same(base.identity()).with_context(|| format!("the library {}", root.display()))?;
        context.note_other_form(&library, base);
    }
    let all = [
        CheckFindings::of("expert", library.expert_names()?, |name| expert_warnings(&library, name, base.as_ref())),
        CheckFindings::of("router", library.router_names()?, |name| router_warnings(&library, name)),
        CheckFindings::of("model", library.model_names()?, |name| model_warnings(&library, name)),
    ];
    let broken = |findings: &&CheckFindings| findings.broken(context.strict) > 0;
    let [experts, routers, models] = &all;
    let document = json!({
        "ok": !all.iter().any(|findings| broken(&findings)),
        "experts": experts.document(),
        "routers": routers.document(),
        "models": models.document(),
    });
    context.output.result(&document, || {
        // Routers and models are optional.
        let shown = all.iter().filter(|findings| findings.noun == "expert" || !findings.found.is_empty());
        shown.map(CheckFindings::table).collect::<Vec<_>>().join("\n\n")
    })?;
    let count = |findings: &CheckFindings| {
        format!("{} of {}", pluralize(findings.broken(context.strict), findings.noun), findings.found.len())
    };
    let counts: Vec<String> = all.iter().filter(broken).map(count).collect();
    ensure!(counts.is_empty(), "{}: {} failed the check", root.display(), counts.join(", "));
    Ok(())
}

/// A routing of skills must match the skills of the library. Other router caches are found by the hash of their inputs:
/// one of earlier experts is never used and only takes space.
fn router_warnings(library: &Library, name: &str) -> Result<Vec<Warning>> {
    if matches!(name, "poly" | "mhr") {
        routing_store::read(library, name)?;
        return Ok(Vec::new());
    }
    let Some(record) = library.router_record::<Value>(name)? else { bail!("router.json is missing") };
    library.router_state(name, &record)?;
    let stale = |change| Warning {
        subject: "stale".to_owned(),
        text: format!("{change}; it is not used any more, and its folder can be removed"),
    };
    Ok(library.changed_expert(&record.experts)?.map(stale).into_iter().collect())
}

fn model_warnings(library: &Library, name: &str) -> Result<Vec<Warning>> {
    let found = sha256_of_file(&library.model_folder(name)?.join(MODEL_WEIGHTS_FILE))?;
    let recorded = library.model_record(name)?.map(|record| record.sha256);
    if let Some(recorded) = recorded.filter(|recorded| *recorded != found) {
        bail!(
            "{MODEL_WEIGHTS_FILE} has sha256 {found}, but its record has {recorded}: the file was changed; retrain the \
             model"
        );
    }
    Ok(Vec::new())
}

fn expert_warnings(library: &Library, name: &str, base: Option<&Base>) -> Result<Vec<Warning>> {
    let adapter = library.adapter(name)?;
    if let Some(base) = base {
        adapter.check_against(&base.adaptable_modules())?;
    }
    if let Some(record) = library.record(name)? {
        let sha256 = library.weights_sha256(name)?;
        ensure!(
            record.sha256 == sha256,
            "adapter_model.safetensors has sha256 {sha256}, but expert.json records {}: the file was changed; \
             retrain or re-add the expert",
            record.sha256
        );
        if let Some(own) = library.base() {
            ensure!(
                own.is_base_of(&record),
                "expert.json records a base with fingerprint {}, but the library's base `{}` has {}",
                record.base_fingerprint.as_deref().unwrap_or("none"),
                own.name,
                own.fingerprint
            );
        }
    }
    let mut warnings = adapter.warnings().to_vec();
    let adapts = |module: &str| adapter.modules().contains_key(module);
    warnings.extend(base.and_then(|base| shared_embedding_warning(base, adapts)));
    let zero: Vec<&str> =
        adapter.modules().iter().filter(|(_, update)| update.norm() == 0.0).map(|(path, _)| path.as_str()).collect();
    if let Some(first) = zero.first() {
        let text = format!("its update is zero (so are {} of {} modules)", zero.len(), adapter.modules().len());
        warnings.push(Warning { subject: (*first).to_owned(), text });
    }
    Ok(warnings)
}

/// A module that a configuration adapts.
#[derive(Serialize)]
struct AdaptedModule {
    module: String,
    rank: usize,
    scale: f64,
}

/// The modules of a base that a configuration adapts, each with its rank and scale.
fn adapted_modules(config: &PeftConfig, base: &Base) -> Result<Vec<AdaptedModule>> {
    let mut adapted = Vec::new();
    for module in base.adaptable_modules() {
        if config.targets.is_specified() && config.targets.select(&module)? {
            let (rank, scale) = (config.rank_of(&module.path)?, config.scale_of(&module.path)?);
            adapted.push(AdaptedModule { module: module.path, rank, scale });
        }
    }
    Ok(adapted)
}

fn module_table(modules: &[AdaptedModule]) -> String {
    let line =
        |adapted: &AdaptedModule| vec![adapted.module.clone(), adapted.rank.to_string(), format!("{}", adapted.scale)];
    table(["module", "rank", "scale"], modules.iter().map(line))
}

/// Checks one adapter_config.json, key by key.
fn check_config(path: &Path, base: Option<&BaseSource>, context: &CommandContext) -> Result<()> {
    let text = read_text(path)?;
    let (config, refusals) = match PeftConfig::parse(&text) {
        Ok(config) => (Some(config), Vec::new()),
        Err(AdapterError::Config(unsupported)) => (None, unsupported.keys),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let mut warnings: Vec<Warning> = config.as_ref().map_or(Vec::new(), |config| config.warnings.clone());
    let modules = match (&config, base) {
        (Some(config), Some(base)) => {
            let base = base.open(context)?;
            let modules = adapted_modules(config, &base)?;
            let adapts = |path: &str| modules.iter().any(|adapted| adapted.module == path);
            warnings.extend(shared_embedding_warning(&base, adapts));
            Some(modules)
        }
        _ => None,
    };
    let accepted = refusals.is_empty() && (warnings.is_empty() || !context.strict);
    let facts =
        config.as_ref().map(|config| json!({ "rank": config.rank, "alpha": config.alpha, "rslora": config.rslora }));
    let document = json!({ "file": path, "accepted": accepted, "config": facts, "modules": modules, "refusals": refusals, "notices": warnings });
    context.output.result(&document, || {
        let refused = refusals
            .iter()
            .map(|UnsupportedKey { key, reason }| vec!["refused".to_owned(), key.clone(), reason.clone()]);
        let warned =
            warnings.iter().map(|warning| vec!["warning".to_owned(), warning.subject.clone(), warning.text.clone()]);
        let lines: Vec<Vec<String>> = refused.chain(warned).collect();
        match &config {
            Some(config) => {
                let verdict = format!(
                    "accepted: rank {}, alpha {}{}",
                    config.rank,
                    config.alpha,
                    if config.rslora { ", rsLoRA" } else { "" }
                );
                let summary =
                    if lines.is_empty() { verdict } else { format!("{verdict}\n{}", table(["", "key", ""], lines)) };
                modules.as_ref().map_or(summary.clone(), |modules| format!("{summary}\n\n{}", module_table(modules)))
            }
            None => table(["", "key", "reason"], lines),
        }
    })?;
    let keys: Vec<&str> = refusals.iter().map(|refusal| refusal.key.as_str()).collect();
    ensure!(refusals.is_empty(), "{}: unsupported keys: {}", path.display(), keys.join(", "));
    ensure!(accepted, "{}: {} under --strict", path.display(), pluralize(warnings.len(), "warning"));
    Ok(())
}
