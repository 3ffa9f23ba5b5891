//! Options that set the training configuration.

use crate::args::usage;
use crate::command_context::CommandContext;
use anyhow::{Error, Result, ensure};
use clap::Args;
use lorakit_model::Base;
use lorakit_train::{GivenSettings, TrainConfig};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The training configuration, by `--config` and `--set`.
#[derive(Args, Debug)]
pub struct TrainConfigArgs {
    /// Training settings as a TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Training settings that override --config, such as learning_rate=1e-3 max_steps=100
    #[arg(long, num_args = 1.., value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl TrainConfigArgs {
    /// Whether any setting was given.
    pub fn are_given(&self) -> bool {
        self.config.is_some() || !self.set.is_empty()
    }

    /// The settings: `--set` overrides the file, which overrides `defaults`.
    pub fn over(&self, defaults: TrainConfig) -> Result<TrainConfig> {
        let mut settings = match &self.config {
            None => defaults,
            Some(path) => {
                let text = lorakit_format::read_text(path)?;
                defaults.over_toml(&text, &path.display().to_string())?
            }
        };
        assign(&mut settings, &self.set)?;
        Ok(settings)
    }

    /// The names of given settings that another setting of the same source replaces, in the settings that came of them.
    pub fn unused(&self, settings: &TrainConfig) -> Result<Vec<&'static str>> {
        let file = match &self.config {
            None => None,
            Some(path) => Some(GivenSettings::of_toml(&lorakit_format::read_text(path)?, &path.display().to_string())?),
        };
        let mut replaced = BTreeMap::new();
        file.iter()
            .chain([&GivenSettings::of_assignments(&self.set)?])
            .for_each(|given| replaced.extend(given.replaced()));
        // A later source may have unset what replaced it.
        let counts = |name: &str| name == "num_epochs" && settings.max_steps.is_none();
        Ok(replaced
            .into_iter()
            .filter(|(name, is_replaced)| *is_replaced && !counts(name))
            .map(|(name, _)| name)
            .collect())
    }
}

/// Applies the assignments of `--set`.
pub fn assign(settings: &mut TrainConfig, assignments: &[String]) -> Result<()> {
    settings.set_all(assignments).map_err(|error| usage::usage_error(format!("--set: {:#}", Error::from(error))))
}

/// Refuses target modules that the base lacks: an expert would be trained without them.
pub fn ensure_targets(settings: &TrainConfig, base: &Base) -> Result<()> {
    let modules = base.modules();
    let paths: Vec<&str> = modules.iter().map(|module| module.path.as_str()).collect();
    let targets = settings.targets(base)?;
    let unmatched = targets.unmatched(&paths)?;
    let kinds: BTreeSet<&str> = paths.iter().filter_map(|path| path.rsplit('.').next()).collect();
    let kinds = || kinds.into_iter().collect::<Vec<_>>().join(", ");
    ensure!(
        unmatched.is_empty(),
        "{}: base `{}` has no such module; it has {}",
        unmatched.join(", "),
        base.identity().name,
        kinds()
    );
    let mut matched = false;
    for path in &paths {
        matched |= targets.matches(path)?;
    }
    ensure!(
        matched,
        "target_modules `{}` matches no module of base `{}`; its modules are {}",
        settings.target_modules,
        base.identity().name,
        kinds()
    );
    Ok(())
}

/// Refuses a rank that no target module can use: a change of a weight has no higher rank than the weight's smaller side.
/// Where it suits some modules alone, it is a warning, since PEFT takes one rank for modules of all sizes too.
pub fn ensure_rank(settings: &TrainConfig, base: &Base, context: &CommandContext) -> Result<()> {
    let targets = settings.targets(base)?;
    let mut sides = Vec::new();
    for module in base.modules() {
        if targets.matches(&module.path)? {
            sides.push((module.input.min(module.output), module.path));
        }
    }
    let (Some((least, smallest)), Some((most, _))) = (sides.iter().min(), sides.iter().max()) else { return Ok(()) };
    let rank = settings.rank;
    ensure!(
        rank <= *most,
        "setting `rank` is {rank}; expected at most {most}, the highest rank of a change of any target module of base `{}`",
        base.identity().name
    );
    let full = sides.iter().filter(|(side, _)| rank > *side).count();
    if full > 0 {
        context.output.warn(format!(
            "rank {rank} exceeds the maximum rank ({least}) of {full} of {} target modules, such as `{smallest}`; the excess \
             only costs memory and time",
            sides.len()
        ));
    }
    Ok(())
}
