//! The options that give settings of training.

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use lorakit_model::Base;
use lorakit_train::TrainConfig;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Settings, by `--config` and `--set`.
#[derive(Args, Debug)]
pub struct TrainConfigArgs {
    /// Settings of training, as TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Settings over those of --config, such as learning_rate=1e-3 max_steps=100
    #[arg(long, num_args = 1.., value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl TrainConfigArgs {
    /// Whether any was given.
    pub fn are_given(&self) -> bool {
        self.config.is_some() || !self.set.is_empty()
    }

    /// `--set` over the file over `defaults`.
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

/// What `--set` gives, over these settings. A wrong one fails as it does in a file.
pub fn assign(settings: &mut TrainConfig, assignments: &[String]) -> Result<()> {
    assignments
        .iter()
        .try_for_each(|assignment| settings.set(assignment).with_context(|| format!("--set {assignment}")))
}

/// Refuses target modules that the base does not have, by their names: an expert would be trained without them.
pub fn ensure_targets(settings: &TrainConfig, base: &Base) -> Result<()> {
    let modules = base.modules();
    let paths: Vec<&str> = modules.iter().map(|module| module.path.as_str()).collect();
    let targets = settings.targets()?;
    // The default names the projections of every architecture.
    let idle = if settings.target_modules == ATTENTION { Vec::new() } else { targets.unmatched(&paths)? };
    let kinds: BTreeSet<&str> = paths.iter().filter_map(|path| path.rsplit('.').next()).collect();
    let kinds = || kinds.into_iter().collect::<Vec<_>>().join(", ");
    ensure!(
        idle.is_empty(),
        "{}: the base `{}` has no such module; it has {}",
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
        "target_modules `{}` selects no module of the base `{}`; its modules are named {}",
        settings.target_modules,
        base.identity().name,
        kinds()
    );
    Ok(())
}

/// The default of target_modules.
const ATTENTION: &str = "attention";
