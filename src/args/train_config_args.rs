//! Options that set the training configuration.

use crate::args::usage;
use anyhow::{Error, Result, ensure};
use clap::Args;
use lorakit_model::Base;
use lorakit_train::TrainConfig;
use std::collections::BTreeSet;
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
}

/// Applies the assignments of `--set`.
pub fn assign(settings: &mut TrainConfig, assignments: &[String]) -> Result<()> {
    assignments
        .iter()
        .try_for_each(|assignment| settings.set(assignment))
        .map_err(|error| usage::usage_error(format!("--set: {:#}", Error::from(error))))
}

/// Refuses target modules that the base lacks: an expert would be trained without them.
pub fn ensure_targets(settings: &TrainConfig, base: &Base) -> Result<()> {
    let modules = base.modules();
    let paths: Vec<&str> = modules.iter().map(|module| module.path.as_str()).collect();
    let targets = settings.targets(base)?;
    let idle = targets.unmatched(&paths)?;
    let kinds: BTreeSet<&str> = paths.iter().filter_map(|path| path.rsplit('.').next()).collect();
    let kinds = || kinds.into_iter().collect::<Vec<_>>().join(", ");
    ensure!(
        idle.is_empty(),
        "{}: base `{}` has no such module; it has {}",
        idle.join(", "),
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
