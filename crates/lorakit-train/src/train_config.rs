//! The settings of training, under the names that PEFT and transformers give them.

use crate::error::{Result, TrainError};
use crate::given_settings::{GivenSettings, invalid_file, readable};
use crate::optim::lr_schedule::{LrSchedule, LrSchedulerType};
use crate::setting_names::suggested_name;
use crate::setting_values::{count, optional_count, text_or_list, whole_if_possible};
use crate::step_interval::StepInterval;
use lorakit_adapter::Targets;
use lorakit_lora::{Site, SiteRole};
use lorakit_model::Base;
use lorakit_task::{BosTokens, LossTokens, RowEncoding};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// How the losses of target tokens are averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossReduction {
    /// The mean over the target tokens of a step.
    Tokens,
    /// The mean over rows of each row's mean, as in the paper's code.
    Rows,
}

impl LossReduction {
    /// The weight of each of a row's `targets` target tokens in a loss over all rows and their target tokens, whose numbers
    /// are `totals`: over all of them, weights sum to one.
    pub(crate) fn token_weight(self, targets: usize, (rows, tokens): (usize, usize)) -> f32 {
        match self {
            Self::Tokens => 1.0 / tokens as f32,
            Self::Rows => 1.0 / (rows * targets) as f32,
        }
    }
}

/// Everything that determines a trained expert except its data and the seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// The LoRA rank.
    #[serde(alias = "r")]
    #[serde(deserialize_with = "count")]
    pub rank: usize,
    /// LoRA's alpha; the scale is alpha / rank.
    #[serde(alias = "lora_alpha")]
    pub alpha: f64,
    /// Whether the scale is alpha / sqrt(rank) instead (rsLoRA, <https://arxiv.org/abs/2312.03732>).
    pub use_rslora: bool,
    /// DoRA is not trained: only false is accepted.
    pub use_dora: bool,
    /// Dropout probability on the LoRA's input.
    #[serde(alias = "lora_dropout")]
    pub dropout: f64,
    /// `attention`, `all-linear`, comma-separated names or a list of them, or one regular expression.
    #[serde(deserialize_with = "text_or_list")]
    pub target_modules: String,
    /// Whether q, k and v share one A.
    pub tie_qkv: bool,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The peak learning rate of Poly's and MHR's routing.
    pub routing_learning_rate: f64,
    /// Blocks in which MHR mixes its skills.
    #[serde(deserialize_with = "count")]
    pub splits: usize,
    /// Rows of an expert per micro-batch.
    #[serde(alias = "per_device_train_batch_size")]
    #[serde(deserialize_with = "count")]
    pub batch_size: usize,
    /// Micro-batches per step.
    #[serde(deserialize_with = "count")]
    pub gradient_accumulation_steps: usize,
    /// Steps of an expert per task; replaces epochs. Text may give -1 for none, transformers' default.
    #[serde(deserialize_with = "optional_count")]
    pub max_steps: Option<usize>,
    /// Epochs over an expert's rows, if max_steps is not given; the last may be a part of one.
    #[serde(alias = "num_train_epochs")]
    #[serde(serialize_with = "whole_if_possible")]
    pub num_epochs: f64,
    /// Fraction of the steps in which the learning rate warms up, at most all but the last. transformers' default is none.
    pub warmup_ratio: f64,
    /// Steps in which it warms up; replaces the fraction. Text may give the fraction here too, below 1, as in transformers 5.
    #[serde(deserialize_with = "optional_count")]
    pub warmup_steps: Option<usize>,
    /// How the learning rate decays.
    #[serde(alias = "lr_scheduler_type")]
    pub lr_scheduler: LrSchedulerType,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// The norm above which an expert's gradient is clipped; 0 disables clipping.
    pub max_grad_norm: f64,
    /// Maximum length of a row in tokens, prompt and target together.
    #[serde(deserialize_with = "count")]
    pub max_length: usize,
    /// How token losses are averaged.
    pub loss_reduction: LossReduction,
    /// Which tokens of a row contribute to the loss.
    pub loss: LossTokens,
    /// Whether rows of prompt and answer go through the base's chat template too.
    pub chat: bool,
    /// Whether texts begin with BOS.
    pub bos: BosTokens,
    /// Steps between validations; once per epoch if not given; 0 disables validation, and the last weights are kept.
    pub eval_steps: Option<StepInterval>,
    /// Steps between checkpoints of a pass; 0 disables them.
    pub save_steps: StepInterval,
    /// An expert is stopped when its loss exceeds both the loss of guessing and this multiple of the loss that its initial
    /// weights have on the same rows. 0 disables the check.
    pub max_loss_jump: f64,
    /// Experts that train together; chosen by the machine's memory if not given.
    #[serde(deserialize_with = "optional_count")]
    pub experts_per_pass: Option<usize>,
    /// Whether activations inside a layer are recomputed in the backward, to save memory.
    pub gradient_checkpointing: bool,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            rank: 4,
            alpha: 16.0,
            use_rslora: false,
            use_dora: false,
            dropout: 0.05,
            target_modules: "attention".into(),
            tie_qkv: false,
            learning_rate: 1e-4,
            routing_learning_rate: 0.1,
            splits: 8,
            batch_size: 16,
            gradient_accumulation_steps: 1,
            max_steps: None,
            num_epochs: 5.0,
            warmup_ratio: 0.06,
            warmup_steps: None,
            lr_scheduler: LrSchedulerType::Linear,
            weight_decay: 0.0,
            max_grad_norm: 0.1,
            max_length: 2048,
            loss_reduction: LossReduction::Tokens,
            loss: LossTokens::Assistant,
            chat: false,
            bos: BosTokens::Auto,
            eval_steps: None,
            save_steps: StepInterval::Steps(100),
            max_loss_jump: 2.0,
            experts_per_pass: None,
            gradient_checkpointing: false,
        }
    }
}

/// Settings that affect how training runs, not its result.
const RUNTIME_SETTINGS: [&str; 4] = ["experts_per_pass", "save_steps", "gradient_checkpointing", "max_loss_jump"];

/// Settings that records of earlier versions lack, and that are recorded only if they are not the default.
const LATER_SETTINGS: [&str; 6] = ["loss", "chat", "bos", "use_rslora", "use_dora", "warmup_steps"];

/// Upper limit of counts, so that products of two of them do not overflow.
const MAX_COUNT: usize = 1 << 20;

impl TrainConfig {
    /// Reads TOML text over the defaults; errors name `file`.
    pub fn from_toml(text: &str, file: &str) -> Result<Self> {
        Self::default().over_toml(text, file)
    }

    /// Reads TOML text over this config. `num_epochs` and `warmup_ratio` also clear what replaces them here.
    pub fn over_toml(&self, text: &str, file: &str) -> Result<Self> {
        let given = GivenSettings::of_toml(text, file)?;
        self.ensure_known(&given).map_err(|source| in_file(file, source))?;
        // Parsed on its own too, so that errors name the line.
        let key = |line: &str| line.split('=').next().unwrap_or_default().trim().trim_matches(['"', '\'']).to_owned();
        let lines = text.lines().map(|line| if given.is_foreign(&key(line)) { "" } else { line });
        let alone: Self =
            toml::from_str(&lines.collect::<Vec<_>>().join("\n")).map_err(|error| invalid_file(file, &error))?;
        let checked = alone.validated().and_then(|_| self.with(&given)?.validated());
        checked.map_err(|source| in_file(file, source))
    }

    /// Sets one setting from text, as `--set key=value` gives it.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        self.set_all(&[assignment])
    }

    /// Sets settings from texts, as `--set` gives them. `num_epochs` and `warmup_ratio` also clear what replaces them here.
    pub fn set_all<S: AsRef<str>>(&mut self, assignments: &[S]) -> Result<()> {
        for assignment in assignments {
            let given = GivenSettings::of_assignments(std::slice::from_ref(assignment))?;
            self.ensure_known(&given)?;
            let alone = self.with(&given).map_err(|error| TrainError::SettingValue {
                assignment: assignment.as_ref().to_owned(),
                reason: readable(&error.to_string()),
            })?;
            alone.validate()?;
        }
        *self = self.with(&GivenSettings::of_assignments(assignments)?)?.validated()?;
        Ok(())
    }

    /// This config with the settings of a source. JSON accepts an integer for a float.
    fn with(&self, given: &GivenSettings) -> Result<Self> {
        let mut all = self.to_map()?;
        given.apply_to(&mut all);
        Ok(serde_json::from_value(Value::Object(all))?)
    }

    /// Refuses unknown settings.
    fn ensure_known(&self, given: &GivenSettings) -> Result<()> {
        let all = self.to_map()?;
        let unknown = given.names().find(|name| !all.contains_key(*name));
        unknown.map_or(Ok(()), |name| Err(Self::unknown(name)))
    }

    /// The error of an unknown setting.
    fn unknown(name: &str) -> TrainError {
        let all = Self::default().to_map().unwrap_or_default();
        let suggested = suggested_name(name, all.keys().map(String::as_str));
        TrainError::UnknownSetting { name: name.to_owned(), suggested, known: Self::names() }
    }

    /// The names of all settings, separated by commas.
    pub fn names() -> String {
        let all = Self::default().to_map().unwrap_or_default();
        all.keys().cloned().collect::<Vec<_>>().join(", ")
    }

    /// The learning-rate schedule over a number of steps.
    pub fn schedule(&self, steps: usize) -> LrSchedule {
        let by_ratio = LrSchedule::new(self.lr_scheduler, self.warmup_ratio, steps);
        self.warmup_steps.map_or(by_ratio, |warmup| by_ratio.with_warmup(warmup))
    }

    /// The settings by name, in the order of the struct.
    pub(crate) fn to_map(&self) -> Result<Map<String, Value>> {
        match serde_json::to_value(self)? {
            Value::Object(map) => Ok(map),
            _ => Ok(Map::new()),
        }
    }

    fn validated(self) -> Result<Self> {
        self.validate()?;
        Ok(self)
    }

    /// Checks the settings. Those that are read from text have been; training checks those that a program has set.
    ///
    /// # Errors
    /// If one is outside its range.
    pub fn validate(&self) -> Result<()> {
        let counts = [
            ("rank", self.rank),
            ("batch_size", self.batch_size),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps),
            ("splits", self.splits),
            ("max_steps", self.max_steps.unwrap_or(1)),
            ("experts_per_pass", self.experts_per_pass.unwrap_or(1)),
        ];
        for (name, value) in counts {
            check(value > 0, name, value, "a whole number above zero")?;
        }
        for (name, value) in counts.into_iter().chain([("max_length", self.max_length)]) {
            check(value <= MAX_COUNT, name, value, &format!("at most {MAX_COUNT}"))?;
        }
        check(self.num_epochs > 0.0, "num_epochs", self.num_epochs, "a number above zero")?;
        let most = MAX_COUNT as f64;
        check(self.num_epochs <= most, "num_epochs", self.num_epochs, &format!("at most {most}"))?;
        check(
            !self.use_dora,
            "use_dora",
            true,
            "false: DoRA is not trained here; train a LoRA, or convert a DoRA of PEFT by library add --convert svd:rank=R",
        )?;
        check(self.max_length > 1, "max_length", self.max_length, "at least 2")?;
        check((0.0..1.0).contains(&self.dropout), "dropout", self.dropout, "0 or more and less than 1")?;
        check((0.0..=1.0).contains(&self.warmup_ratio), "warmup_ratio", self.warmup_ratio, "0 to 1")?;
        let rates = [("learning_rate", self.learning_rate), ("routing_learning_rate", self.routing_learning_rate)];
        for (name, value) in rates.into_iter().chain([("alpha", self.alpha)]) {
            check(value.is_finite() && value > 0.0, name, value, "a number above zero")?;
        }
        for (name, value) in [
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
            ("max_loss_jump", self.max_loss_jump),
        ] {
            check(value.is_finite() && value >= 0.0, name, value, "a number not below zero")?;
        }
        Ok(())
    }

    /// The steps of all epochs, of which each has `steps_per_epoch`; of the last there may be a part.
    pub fn steps_of_epochs(&self, steps_per_epoch: usize) -> usize {
        (self.num_epochs * steps_per_epoch as f64).ceil() as usize
    }

    /// The most rows of an expert per step.
    pub fn rows_per_step(&self) -> usize {
        self.batch_size * self.gradient_accumulation_steps
    }

    /// How rows become tokens.
    pub fn row_encoding(&self) -> RowEncoding {
        RowEncoding { chat: self.chat, loss: self.loss, bos: self.bos }
    }

    /// LoRA's scale, alpha / rank, or rsLoRA's, alpha / sqrt(rank).
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// The modules of a base that are adapted. `attention` stands for the projections around its attention.
    pub fn targets(&self, base: &Base) -> Result<Targets> {
        Ok(match self.target_modules.as_str() {
            "attention" => Targets::list(attention_modules(base)),
            text if text.contains(['*', '(', '[', '\\', '+', '?', '|', '^', '$']) || text == "all-linear" => {
                Targets::string(text)?
            }
            list => Targets::list(list.split(',').map(|name| name.trim().to_string())),
        })
    }

    /// The settings that determine the weights, sorted by name: an expert's record holds them, and training compares them.
    pub fn fingerprint_fields(&self) -> Map<String, Value> {
        let mut fields = self.to_map().unwrap_or_default();
        RUNTIME_SETTINGS.iter().for_each(|name| {
            fields.shift_remove(*name);
        });
        let default = Self::default().to_map().unwrap_or_default();
        fields.retain(|name, value| !LATER_SETTINGS.contains(&name.as_str()) || default.get(name) != Some(&*value));
        fields.sort_keys();
        fields
    }
}

/// The names of the projections before and after a base's attention.
fn attention_modules(base: &Base) -> BTreeSet<String> {
    let is_attention = |site: &&Site| matches!(site.role, SiteRole::AttentionInput | SiteRole::AttentionOutput);
    let projections = base.sites().iter().filter(is_attention).flat_map(|site| &site.projections);
    projections.map(|projection| projection.name().to_owned()).collect()
}

/// Fails unless a setting is `valid`.
fn check(valid: bool, name: &'static str, found: impl ToString, expected: &str) -> Result<()> {
    match valid {
        true => Ok(()),
        false => Err(TrainError::Setting { name, found: found.to_string(), expected: expected.to_owned() }),
    }
}

fn in_file(file: &str, source: TrainError) -> TrainError {
    TrainError::Context { what: file.to_owned(), source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn settings_are_set_from_text_by_any_of_their_names() {
        let mut config = TrainConfig::default();
        for assignment in ["r=8", "lora_alpha = 32", "lr_scheduler_type=cosine", "target_modules=['q_proj', 'dense']"] {
            config.set(assignment).unwrap();
        }
        let found = (config.rank, config.alpha, config.lr_scheduler, config.target_modules.as_str());
        assert_eq!(found, (8, 32.0, LrSchedulerType::Cosine, "q_proj,dense"));
        let error = |assignment| TrainConfig::default().set(assignment).unwrap_err().to_string();
        assert!(error("rnak=8").contains("unknown setting `rnak`; did you mean `rank`? Settings: rank, alpha"));
        assert!(error("lr=1e-3").contains("did you mean `learning_rate`?"));
        assert_eq!(error("rank=0"), "setting `rank` is 0; expected a whole number above zero");
        assert!(error("rank=-1").contains("a whole number that is not negative"));
        assert_eq!(error("rank"), "`rank`: expected key=value");
        assert!(error("target_modules=['q_proj', 3]").contains("expected a text or a list of texts"));
        assert!(error("max_steps=9223372036854775807").contains("expected at most"));
        assert!(error("max_steps=0").contains("above zero"));
        // Never.
        config.set("save_steps=1000000000").unwrap();
        let listed = TrainConfig::from_toml("target_modules = ['q_proj', 'dense']", "f").unwrap();
        assert_eq!(listed.target_modules, "q_proj,dense");
    }

    #[test]
    fn counts_may_be_whole_floats_and_errors_of_files_are_as_readable_as_those_of_flags() {
        let mut config = TrainConfig::from_toml("num_train_epochs = 3.0\nmax_steps = 2.0", "f").unwrap();
        assert_eq!((config.num_epochs, config.max_steps), (3.0, Some(2)));
        config.set("eval_steps=7.0").unwrap();
        let config = config.over_toml("rank = 8.0", "f").unwrap();
        let every = Some(StepInterval::Steps(7));
        assert_eq!((config.eval_steps, config.rank, config.max_steps), (every, 8, Some(2)));
        let expected = "expected a whole number that is not negative";
        for text in ["max_steps = 2.5", "rank = -1", "save_steps = 'x'", "rank = -2.0", "rank = 1e300"] {
            let error = TrainConfig::from_toml(text, "f.toml").unwrap_err().to_string();
            assert!(error.contains("f.toml: invalid") && error.contains(expected), "{error}");
            let error = TrainConfig::default().set(&text.replace(' ', "")).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = TrainConfig::from_toml("learning_rate = 'x'", "f").unwrap_err().to_string();
        assert!(error.contains("expected a finite number") && !error.contains("f64"), "{error}");
    }

    #[test]
    fn epochs_and_intervals_may_be_fractions() {
        let mut config = TrainConfig::default();
        assert_eq!((config.num_epochs, config.steps_of_epochs(7)), (5.0, 35));
        config.set_all(&["num_train_epochs=2.5", "eval_steps=0.5", "save_steps=0.25"]).unwrap();
        assert_eq!(config.steps_of_epochs(7), 18);
        assert_eq!(config.eval_steps.and_then(|every| every.steps(18)), Some(9));
        assert_eq!(config.save_steps, StepInterval::Ratio(0.25));
        let fields = config.fingerprint_fields();
        assert_eq!((fields["num_epochs"].to_string(), fields["eval_steps"].to_string()), ("2.5".into(), "0.5".into()));
        config.set_all(&["num_epochs=3.0", "eval_steps=7.0"]).unwrap();
        let fields = config.fingerprint_fields();
        assert_eq!((fields["num_epochs"].to_string(), fields["eval_steps"].to_string()), ("3".into(), "7".into()));
        let file = TrainConfig::from_toml("num_epochs = 0.5\neval_steps = 0.1\nsave_steps = 50", "f").unwrap();
        assert_eq!((file.num_epochs, file.eval_steps), (0.5, Some(StepInterval::Ratio(0.1))));
        for refused in ["num_epochs=0", "num_epochs=-1", "num_epochs=nan", "num_epochs=inf", "eval_steps=1.5"] {
            assert!(TrainConfig::default().set(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn values_may_be_spelled_as_in_python() {
        let mut config = TrainConfig::default();
        config.set_all(&["use_rslora=True", "tie_qkv=False", "max_grad_norm=None", "eval_steps=None"]).unwrap();
        assert!(config.use_rslora && !config.tie_qkv && config.eval_steps.is_none());
        assert_eq!(config.max_grad_norm, 0.0);
        config.set_all(&["max_steps=3"]).unwrap();
        config.set_all(&["max_steps=None", "warmup_steps=None"]).unwrap();
        assert_eq!((config.max_steps, config.warmup_steps), (None, None));
        let error = |text: &str| TrainConfig::default().set(text).unwrap_err().to_string();
        assert_eq!(
            error("use_rslora=yes"),
            "setting `use_rslora=yes`: invalid type: string \"yes\", expected true or false"
        );
        assert!(error("rank=None").contains("invalid type: none, expected a whole number"), "{}", error("rank=None"));
    }

    #[test]
    fn the_seed_is_a_global_option() {
        let error = TrainConfig::default().set("seed=1").unwrap_err().to_string();
        assert_eq!(error, "unknown setting `seed`; use the global option --seed");
        let TrainError::Context { source, .. } = TrainConfig::from_toml("seed = 1", "f").unwrap_err() else { panic!() };
        assert!(source.to_string().ends_with("--seed"), "{source}");
    }

    #[test]
    fn warmup_steps_replace_the_ratio() {
        let mut config = TrainConfig::default();
        let recorded = config.fingerprint_fields();
        config.set("warmup_ratio=0.5").unwrap();
        assert_eq!(config.schedule(8).factor(2), 0.5);
        config.set("warmup_steps=8").unwrap();
        assert_eq!(config.schedule(8).factor(2), 0.25);
        config.set("warmup_steps=0").unwrap();
        assert_eq!(config.schedule(8).factor(0), 1.0);
        assert_eq!(config.fingerprint_fields()["warmup_steps"], 0);
        assert!(!recorded.contains_key("warmup_steps"), "records of earlier versions have none");
    }

    #[test]
    fn a_non_finite_number_names_its_file() {
        for line in ["learning_rate = nan", "warmup_ratio = inf"] {
            let error = TrainConfig::from_toml(line, "f.toml").unwrap_err();
            let TrainError::Context { what, source } = &error else { panic!("{error}") };
            assert!(what == "f.toml" && source.to_string().contains(&line[..8]), "{what}: {source}");
        }
    }

    #[test]
    fn a_later_source_wins_also_by_the_setting_that_another_replaces() {
        let file = TrainConfig::from_toml("max_steps = 3\nwarmup_steps = 2", "f").unwrap();
        let set = |assignments: &[&str]| {
            let mut config = file.clone();
            config.set_all(assignments).unwrap();
            (config.max_steps, config.num_epochs, config.warmup_steps, config.warmup_ratio)
        };
        assert_eq!(set(&["num_epochs=2", "warmup_ratio=0.5"]), (None, 2.0, None, 0.5));
        assert_eq!(set(&["num_train_epochs=2", "max_steps=7"]), (Some(7), 2.0, Some(2), 0.06), "steps win in a source");
        assert_eq!(set(&["max_steps=-1"]), (None, 5.0, Some(2), 0.06));
        assert_eq!(set(&["warmup_steps=0.1"]), (Some(3), 5.0, None, 0.1));
        assert_eq!(set(&["warmup_steps=0.1", "warmup_ratio=0.5"]), (Some(3), 5.0, None, 0.1));
        let over = file.over_toml("num_epochs = 2\nmax_steps = -1\nwarmup_steps = 0.25", "g").unwrap();
        assert_eq!((over.max_steps, over.num_epochs, over.warmup_steps, over.warmup_ratio), (None, 2.0, None, 0.25));
        let error = TrainConfig::from_toml("warmup_steps = 0.1\nrank = 'x'", "f").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("whole number"), "{error}");
        for refused in ["warmup_steps=1.5", "warmup_steps=-1", "max_steps=-2"] {
            assert!(file.clone().set(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn settings_that_others_of_a_source_replace_are_named() {
        let replaced = |assignments: &[&str]| {
            let given = GivenSettings::of_assignments(assignments).unwrap();
            given.replaced().collect::<Vec<_>>()
        };
        assert_eq!(replaced(&["max_steps=3", "num_epochs=2"]), [("num_epochs", true)]);
        assert_eq!(replaced(&["max_steps=-1", "num_epochs=2"]), [("num_epochs", false)]);
        assert_eq!(replaced(&["warmup_steps=0.1", "warmup_ratio=0.2"]), [("warmup_ratio", true)]);
        assert_eq!(replaced(&["max_steps=3"]), []);
    }

    #[test]
    fn constant_is_what_transformers_calls_constant_with_warmup() {
        let set = |name: &str| {
            let mut config = TrainConfig::default();
            config.set(&format!("lr_scheduler_type={name}")).unwrap();
            config
        };
        assert_eq!(set("constant_with_warmup"), set("constant"));
        assert_eq!(set("constant_with_warmup").fingerprint_fields()["lr_scheduler"], "constant");
    }

    #[test]
    fn rslora_scales_by_the_root_of_the_rank_and_dora_is_refused() {
        let mut config = TrainConfig::default();
        config.set("use_rslora=true").unwrap();
        assert_eq!((config.scale(), TrainConfig::default().scale()), (8.0, 4.0));
        assert!(config.fingerprint_fields().contains_key("use_rslora"));
        config.set("use_dora=false").unwrap();
        let error = config.set("use_dora=true").unwrap_err().to_string();
        assert!(error.contains("`use_dora` is true") && error.contains("--convert"), "{error}");
        assert!(TrainConfig::from_toml("use_dora = true", "f").is_err());
        assert!(TrainConfig::names().contains("alpha, use_rslora"));
    }

    #[test]
    fn the_fingerprint_leaves_out_how_training_runs() {
        let config =
            TrainConfig { save_steps: StepInterval::Steps(7), gradient_checkpointing: true, ..TrainConfig::default() };
        let expected = r#"{"alpha":16.0,"batch_size":16,"dropout":0.05,"eval_steps":null,"gradient_accumulation_steps":1,"learning_rate":0.0001,"loss_reduction":"tokens","lr_scheduler":"linear","max_grad_norm":0.1,"max_length":2048,"max_steps":null,"num_epochs":5,"rank":4,"routing_learning_rate":0.1,"splits":8,"target_modules":"attention","tie_qkv":false,"warmup_ratio":0.06,"weight_decay":0.0}"#;
        assert_eq!(serde_json::to_string(&config.fingerprint_fields()).unwrap(), expected);
        let chat = TrainConfig { chat: true, loss: LossTokens::All, ..config };
        let fields = chat.fingerprint_fields();
        assert_eq!((&fields["chat"], &fields["loss"], fields.get("bos")), (&true.into(), &"all".into(), None));
    }
}
