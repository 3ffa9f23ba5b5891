//! The options that give settings of training.

use anyhow::{Context as _, Result};
use clap::Args;
use lorakit_train::Settings;
use std::path::PathBuf;

/// Settings, by `--config` and `--set`.
#[derive(Args, Debug)]
pub struct SettingArgs {
    /// Settings of training, as TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Settings over those of --config, such as learning_rate=1e-3 max_steps=100
    #[arg(long, num_args = 1.., value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl SettingArgs {
    /// Whether any was given.
    pub fn are_given(&self) -> bool {
        self.config.is_some() || !self.set.is_empty()
    }

    /// `--set` over the file over `defaults`.
    pub fn over(&self, defaults: Settings) -> Result<Settings> {
        let mut settings = match &self.config {
            None => defaults,
            Some(path) => {
                let text = lorakit_adapter::read_text(path)?;
                defaults.over_toml(&text, &path.display().to_string())?
            }
        };
        for assignment in &self.set {
            settings.set(assignment).with_context(|| format!("--set {assignment}"))?;
        }
        Ok(settings)
    }
}
