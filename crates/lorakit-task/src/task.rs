//! A task: its rows, their splits, and how answers are scored.

use std::path::PathBuf;

use lorakit_format::hash::sha256;
use serde_json::{Map, Value};

use crate::answer_comparison::AnswerComparison;
use crate::answer_pattern::AnswerPattern;
use crate::column_names::ColumnNames;
use crate::error::{Result, TaskError};
use crate::json_value::canonical_object;
use crate::metric::Metric;
use crate::row::{Answer, Row, RowKind};
use crate::split::Split;

/// Rows of text with answers, split into train, validation and test.
#[derive(Clone, Debug)]
pub struct Task {
    /// The name, which experts and results bear.
    pub name: String,
    /// One sentence for listings, if the task file has one.
    pub description: Option<String>,
    /// The task file, data file or `suite:` spec, as the user gave it.
    pub path: PathBuf,
    /// The seed of the split by hash.
    pub split_seed: u64,
    /// The columns that stood for the standard ones as the task was loaded, besides those that its TOML names.
    pub columns: ColumnNames,
    /// The metrics to compute; [`Metric::Loss`] is always the first.
    pub metrics: Vec<Metric>,
    /// How answers are generated.
    pub generation: GenerationConfig,
    /// The texts around the examples of [`Task::with_few_shot`].
    pub few_shot: FewShotTexts,
    /// What of its rows is not used, as sentences for the user.
    pub warnings: Vec<String>,
    pub(crate) sha256: String,
    pub(crate) rows: Vec<(Split, Row)>,
}

/// How the answers of a task are generated and read.
#[derive(Clone, Debug)]
pub struct GenerationConfig {
    /// Texts at which generation stops, besides EOS.
    pub stop: Vec<String>,
    /// The largest number of generated tokens.
    pub max_new_tokens: usize,
    /// Finds the answer in the generated text and in the accepted answers (an accepted answer that does not match is
    /// used as it is); None: the whole text is the answer.
    pub extract: Option<AnswerPattern>,
    /// When an answer is exactly that of the task.
    pub comparison: AnswerComparison,
}

/// The texts around the examples of a few-shot prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FewShotTexts {
    /// Before the first example: the `description` of lm-evaluation-harness.
    pub description: String,
    /// After each example.
    pub delimiter: String,
}

impl Default for FewShotTexts {
    fn default() -> Self {
        Self { description: String::new(), delimiter: "\n\n".to_owned() }
    }
}

impl Task {
    /// The first `limit` rows of a split, in file order.
    ///
    /// # Errors
    /// If the split is empty: training on no rows, or averaging over none, is a mistake.
    pub fn rows(&self, split: Split, limit: Option<usize>) -> Result<Vec<&Row>> {
        let rows: Vec<&Row> = self.rows_of(split).take(limit.unwrap_or(usize::MAX)).collect();
        if rows.is_empty() && limit != Some(0) {
            return Err(TaskError::EmptySplit {
                task: self.name.clone(),
                path: self.path.clone(),
                split: split.name(),
                rows: self.rows.len(),
                counts: self.counts(),
                split_seed: self.split_seed,
            });
        }
        Ok(rows)
    }

    /// The rows of a split, of which there may be none, in file order.
    pub fn rows_of(&self, split: Split) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |(own, _)| split == Split::All || *own == split).map(|(_, row)| row)
    }

    /// The number of rows in a split.
    pub fn count(&self, split: Split) -> usize {
        self.rows_of(split).count()
    }

    /// The metrics that its results have: [`Task::metrics`], and with [`Metric::ExactMatch`] the normalized one.
    pub fn reported_metrics(&self) -> Vec<Metric> {
        let (exact, normalized) = (Metric::ExactMatch, Metric::ExactMatchNormalized);
        let own = self.metrics.iter().copied().filter(|metric| *metric != normalized || !self.metrics.contains(&exact));
        own.flat_map(|metric| [Some(metric), (metric == exact).then_some(normalized)]).flatten().collect()
    }

    /// Whether the base's chat template renders some of its rows, whatever the options.
    pub fn has_conversations(&self) -> bool {
        self.rows.iter().any(|(_, row)| matches!(row.kind, RowKind::Conversation(_)))
    }

    /// Whether the rows have choices: all of a task or none.
    pub fn has_choices(&self) -> bool {
        self.rows.first().is_some_and(|(_, row)| row.choices().is_some())
    }

    /// The SHA-256 of what decides prompts and answers, in hexadecimal: for a data file what `sha256sum` prints, for a
    /// task of a TOML the hash of its templates and its data files' contents. Names, paths, metrics and `split_seed` are
    /// not part of it.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    fn counts(&self) -> String {
        let [train, validation, test] = [Split::Train, Split::Validation, Split::Test].map(|split| self.count(split));
        format!("{train} train, {validation} validation, {test} test")
    }

    /// A task of generated `(input, output)` rows. `path` is the spec that generates it again; the hash is that of the
    /// rows as a file of canonical JSON lines.
    pub(crate) fn generated(name: &str, description: &str, path: PathBuf, rows: &[(String, String)]) -> Task {
        let mut lines = String::new();
        let mut of = |(at, (input, output)): (usize, &(String, String))| {
            let text = |text: &String| Value::String(text.clone());
            let fields = Map::from_iter([("input".into(), text(input)), ("output".into(), text(output))]);
            lines.push_str(&canonical_object(&fields));
            lines.push('\n');
            let kind = RowKind::Plain { instruction: String::new(), input: input.clone() };
            let answer = Answer::Text(vec![output.clone()]);
            let row = Row { kind, ..Row::plain(at + 1, fields, &format!("{input}\n"), "", answer) };
            (Split::of(&row.fields, 0), row)
        };
        let rows = rows.iter().enumerate().map(&mut of).collect();
        Task {
            name: name.into(),
            description: Some(description.into()),
            path,
            split_seed: 0,
            columns: ColumnNames::default(),
            metrics: vec![Metric::Loss, Metric::ExactMatch],
            generation: GenerationConfig {
                stop: Vec::new(),
                max_new_tokens: 24,
                extract: None,
                comparison: AnswerComparison::default(),
            },
            few_shot: FewShotTexts::default(),
            warnings: Vec::new(),
            sha256: sha256(lines.as_bytes()),
            rows,
        }
    }
}
