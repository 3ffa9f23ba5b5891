//! The settings of a training run, by the names that users of PEFT and transformers know.

use crate::optim::lr_schedule::LrSchedulerType;
use anyhow::{Context, Result, bail, ensure};
use lorakit_adapter::Targets;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How the losses of target tokens become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossReduction {
    /// The mean over the target tokens of an update.
    Tokens,
    /// The mean over rows of each row's mean, as in the paper's code.
    Rows,
}

/// Everything that decides what a trained expert becomes, but its data and the seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Rank of A and B.
    #[serde(alias = "r")]
    pub rank: usize,
    /// The scale is alpha / rank.
    #[serde(alias = "lora_alpha")]
    pub alpha: f64,
    /// Share of the LoRA's input features that are dropped in training.
    #[serde(alias = "lora_dropout")]
    pub dropout: f64,
    /// `attention`, `all-linear`, names separated by commas, or one regular expression.
    pub target_modules: String,
    /// Whether q, k and v share one A.
    pub tie_qkv: bool,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// The highest learning rate of Poly's and MHR's routing.
    pub routing_learning_rate: f64,
    /// Blocks in which MHR mixes its skills.
    pub splits: usize,
    /// Rows of an expert in one micro-batch.
    #[serde(alias = "per_device_train_batch_size")]
    pub batch_size: usize,
    /// Micro-batches of an update.
    pub gradient_accumulation_steps: usize,
    /// Updates of an expert, per task; in place of epochs.
    pub max_steps: Option<usize>,
    /// Passes over an expert's rows, where max_steps is not given.
    #[serde(alias = "num_train_epochs")]
    pub num_epochs: usize,
    /// Share of the steps in which the rate rises.
    pub warmup_ratio: f64,
    /// How it falls.
    #[serde(alias = "lr_scheduler_type")]
    pub lr_scheduler: LrSchedulerType,
    /// AdamW's decay.
    pub weight_decay: f64,
    /// The norm above which an expert's gradient is scaled down; 0: never.
    pub max_grad_norm: f64,
    /// The longest row in tokens, prompt and target together.
    pub max_length: usize,
    /// How token losses become one number.
    pub loss_reduction: LossReduction,
    /// Updates between validations; once an epoch where not given; 0: never, and the last weights are kept.
    pub eval_steps: Option<usize>,
    /// Updates between checkpoints of a pass; 0: none.
    pub save_steps: usize,
    /// How many times the highest of the latest losses, or of the first ones, the next ones may be, or what guessing
    /// costs where that is more; an expert with higher ones, on the way or at its end, is given up. 0: never.
    pub max_loss_jump: f64,
    /// Experts that train together; decided from the machine's memory where not given.
    pub experts_per_pass: Option<usize>,
    /// Whether activations within a layer are made again on the way back, to save memory.
    pub gradient_checkpointing: bool,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            rank: 4,
            alpha: 16.0,
            dropout: 0.05,
            target_modules: "attention".into(),
            tie_qkv: false,
            learning_rate: 1e-4,
            routing_learning_rate: 0.1,
            splits: 8,
            batch_size: 16,
            gradient_accumulation_steps: 1,
            max_steps: None,
            num_epochs: 5,
            warmup_ratio: 0.06,
            lr_scheduler: LrSchedulerType::Linear,
            weight_decay: 0.0,
            max_grad_norm: 0.1,
            max_length: 2048,
            loss_reduction: LossReduction::Tokens,
            eval_steps: None,
            save_steps: 100,
            max_loss_jump: 2.0,
            experts_per_pass: None,
            gradient_checkpointing: false,
        }
    }
}

/// Settings that change how a run is carried out and not what it makes.
const RUNTIME_SETTINGS: [&str; 4] = ["experts_per_pass", "save_steps", "gradient_checkpointing", "max_loss_jump"];

/// More of anything that is counted than makes sense: products of two such numbers are numbers still.
const MOST: usize = 1 << 20;

impl TrainConfig {
    /// Reads a TOML file's text over the defaults; `file` is named in errors.
    pub fn from_toml(text: &str, file: &str) -> Result<Self> {
        let settings: Self =
            toml::from_str(text).with_context(|| format!("{file}: settings; known are {}", Self::names()))?;
        settings.validated().with_context(|| file.to_string())
    }

    /// Reads a TOML file's text over these settings in place of the defaults.
    pub fn over_toml(&self, text: &str, file: &str) -> Result<Self> {
        // The whole file on its own first: what is wrong in it is then named with its line.
        Self::from_toml(text, file)?;
        let given: toml::Table = toml::from_str(text).with_context(|| file.to_string())?;
        let mut all = serde_json::to_value(self)?;
        for (key, value) in given {
            all[canonical_name(&key)] = serde_json::to_value(value)?;
        }
        serde_json::from_value::<Self>(all)?.validated().with_context(|| file.to_string())
    }

    /// Sets one setting from text, as `--set key=value` gives it.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let (key, value) = assignment.split_once('=').with_context(|| format!("'{assignment}': expected key=value"))?;
        let (key, value) = (key.trim(), value.trim());
        let as_written: toml::Table = match toml::from_str(&format!("x = {value}")) {
            Ok(table) => table,
            // What is no TOML value is a text without its quotes.
            Err(_) => toml::Table::from_iter([("x".to_string(), toml::Value::String(value.to_string()))]),
        };
        let mut all = serde_json::to_value(&*self)?;
        let object = all.as_object_mut().context("settings are an object")?;
        let mut value = serde_json::to_value(&as_written["x"])?;
        if key == "target_modules"
            && let Some(list) = value.as_array()
        {
            value = Value::String(list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","));
        }
        let canonical = canonical_name(key);
        if !object.contains_key(canonical) {
            bail!("unknown setting '{key}'; known are {}", Self::names());
        }
        // Whole numbers serve where a number with a fraction is expected.
        object.insert(canonical.to_string(), value);
        *self = serde_json::from_value::<Self>(all)
            .map_err(|error| anyhow::anyhow!("setting '{assignment}': {}", readable(&error.to_string())))?
            .validated()?;
        Ok(())
    }

    /// The names of all settings, for messages.
    pub fn names() -> String {
        let all = serde_json::to_value(Self::default()).unwrap_or_default();
        all.as_object().map(|o| o.keys().cloned().collect::<Vec<_>>().join(", ")).unwrap_or_default()
    }

    fn validated(self) -> Result<Self> {
        let positive = [
            ("rank", self.rank),
            ("batch_size", self.batch_size),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps),
            ("num_epochs", self.num_epochs),
            ("splits", self.splits),
        ];
        for (name, value) in positive {
            ensure!(value > 0, "setting {name} is 0; expected a whole number above zero");
            ensure!(value <= MOST, "setting {name} is {value}; expected at most {MOST}");
        }
        ensure!(self.max_length > 1, "setting max_length is {}; expected at least 2", self.max_length);
        ensure!(self.max_steps != Some(0), "setting max_steps is 0; expected a whole number above zero");
        ensure!(self.experts_per_pass != Some(0), "setting experts_per_pass is 0; expected a whole number above zero");
        ensure!(
            (0.0..1.0).contains(&self.dropout),
            "setting dropout is {}; expected 0 or more and less than 1",
            self.dropout
        );
        ensure!(
            (0.0..=1.0).contains(&self.warmup_ratio),
            "setting warmup_ratio is {}; expected 0 to 1",
            self.warmup_ratio
        );
        let rates = [("learning_rate", self.learning_rate), ("routing_learning_rate", self.routing_learning_rate)];
        for (name, value) in rates.into_iter().chain([("alpha", self.alpha)]) {
            ensure!(value.is_finite() && value > 0.0, "setting {name} is {value}; expected a number above zero");
        }
        for (name, value) in [
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
            ("max_loss_jump", self.max_loss_jump),
        ] {
            ensure!(value.is_finite() && value >= 0.0, "setting {name} is {value}; expected a number not below zero");
        }
        Ok(self)
    }

    /// The scale of every delta, alpha / rank.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Which modules of a base are adapted.
    pub fn targets(&self) -> Result<Targets> {
        match self.target_modules.as_str() {
            "attention" => Ok(Targets::list(["q_proj", "k_proj", "v_proj", "o_proj", "dense"])),
            text if text.contains(['*', '(', '[', '\\', '+', '?', '|', '^', '$']) || text == "all-linear" => {
                Targets::string(text)
            }
            list => Ok(Targets::list(list.split(',').map(|name| name.trim().to_string()))),
        }
    }

    /// What decides the weights, as JSON with its keys in order: what an expert records and is compared by.
    pub fn fingerprint_fields(&self) -> Value {
        let mut all = serde_json::to_value(self).unwrap_or_else(|_| json!({}));
        if let Some(object) = all.as_object_mut() {
            RUNTIME_SETTINGS.iter().for_each(|name| {
                object.shift_remove(*name);
            });
            object.sort_keys();
        }
        all
    }
}

/// An error of the parser in words for users of settings.
fn readable(message: &str) -> String {
    let words = [("usize", "a whole number that is not negative"), ("f64", "a finite number"), ("type: null", "value")];
    words.iter().fold(message.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The name that a setting has here, from any that it goes by.
fn canonical_name(name: &str) -> &str {
    match name {
        "r" => "rank",
        "lora_alpha" => "alpha",
        "lora_dropout" => "dropout",
        "per_device_train_batch_size" => "batch_size",
        "num_train_epochs" => "num_epochs",
        "lr_scheduler_type" => "lr_scheduler",
        other => other,
    }
}
