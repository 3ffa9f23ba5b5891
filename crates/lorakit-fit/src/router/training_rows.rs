//! The rows that a router is fitted to: those that the user gives, of each expert's own tasks, or of the current task.

use super::task_finder::TaskFinder;
use crate::error::{FitError, Result, WithContext as _};
use crate::fit_context::FitContext;
use crate::pluralize::pluralize;
use crate::task_record::task_record;
use crate::trained_encoding::trained_encoding;
use lorakit_adapter::{ExpertHash, Library, TaskRecord};
use lorakit_format::hash::sha256;
use lorakit_format::hash_sketch::HashSketch;
use lorakit_model::{Base, TokenBatch};
use lorakit_route::{LibraryStack, TrainingData, expert_of_task};
use lorakit_task::{Example, Row, RowEncoding, Split, Task, Tokenizer, Truncation};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A row that a router is fitted to.
#[derive(Clone, Debug)]
pub struct TrainingRow {
    /// The index of its task.
    pub task: usize,
    /// The index of its expert, where the router is fitted to the tasks of experts.
    pub expert: Option<usize>,
    /// Its tokens.
    pub example: Example,
}

/// What identifies the rows of a fit. Keys and their order are hashed into the cache's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowsIdentity {
    /// The split that they are from.
    pub split: Split,
    /// The maximum number of rows of each task.
    pub rows: usize,
    /// The tasks, in the order of the fit.
    pub tasks: Vec<TaskIdentity>,
    /// The maximum number of validation rows of each task beside these rows, if there are such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration_rows: Option<usize>,
    /// The current task, where the rows are its own and the fit reads it, as that of `poly` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_task: Option<String>,
    /// The SHA-256 of the rows that the experts' records say they were trained on, where such rows are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_rows: Option<String>,
}

/// What identifies a task of [`RowsIdentity`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskIdentity {
    /// The expert that its rows belong to, if any.
    pub expert: Option<String>,
    /// Its name.
    pub task: String,
    /// The SHA-256 of its rows.
    pub sha256: String,
    /// The seed of its split.
    pub split_seed: u64,
    /// The SHA-256 of the chat template that its rows go through, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// How else its rows become tokens, if not as by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
}

/// The rows, with everything else that decides what is fitted: a fit reads nothing that is not here, since the key of
/// the cache covers nothing else.
pub struct TrainingRows<'a> {
    context: &'a FitContext<'a, 'a>,
    data: TrainingData,
    tokenizer: Tokenizer,
    sources: Vec<TaskSource<'a>>,
}

/// A task whose rows are used.
struct TaskSource<'a> {
    /// The index of the expert that its rows belong to, if any.
    expert: Option<usize>,
    /// What identifies the task.
    record: TaskRecord,
    /// The task, where it is loaded already; else it is found by its record when its rows are needed.
    task: Option<&'a Task>,
    /// How its rows become tokens.
    encoding: RowEncoding,
}

impl<'a> TrainingRows<'a> {
    /// The rows that a router asks for. None is read yet, since the fitted state may be in the cache.
    ///
    /// Rows of an expert's tasks become tokens as they did when it was trained: a router learns to know the prompts that the
    /// expert knows.
    ///
    /// # Errors
    /// Where there are no rows for an expert, no current task, or the tokenizer cannot be opened.
    pub(super) fn find(context: &'a FitContext<'a, 'a>, data: TrainingData, task: Option<&'a Task>) -> Result<Self> {
        let experts = &context.library.experts;
        let tokenizer = (context.tokenizer)()?;
        let encoding = |expert: Option<usize>, task: &str| encoding_of(context, expert, task, tokenizer.encoding());
        let given = |task: &'a Task, expert| TaskSource {
            expert,
            record: task_record(task),
            task: Some(task),
            encoding: encoding(expert, &task.name),
        };
        let mut sources = match data {
            _ if data.is_of_experts() && context.tasks.is_empty() => own_tasks(context, &encoding)?,
            TrainingData::ExpertTasks { .. }
            | TrainingData::CalibratedExpertTasks { .. }
            | TrainingData::ExpertValidation { .. } => {
                let source = |task: &'a Task| Ok(given(task, Some(expert_of_task(&task.name, experts)?)));
                let sources: Vec<TaskSource> =
                    context.tasks.iter().map(source).collect::<Result<_>>().with_context(|| "--fit".to_owned())?;
                let without = (0..experts.len()).find(|e| sources.iter().all(|source| source.expert != Some(*e)));
                if let Some(expert) = without {
                    return Err(FitError::ExpertWithoutTask(experts.names()[expert].clone()));
                }
                sources
            }
            TrainingData::TargetTask { .. } => match (context.tasks, task) {
                ([], Some(task)) => vec![given(task, None)],
                ([], None) => return Err(FitError::NoCurrentTask),
                (fit, _) => fit.iter().map(|task| given(task, None)).collect(),
            },
        };
        // The order in which the user gave the tasks does not matter.
        sources.sort_by(|a, b| (a.expert, &a.record.name).cmp(&(b.expert, &b.record.name)));
        Ok(Self { context, data, tokenizer, sources })
    }

    /// The base.
    pub fn base(&self) -> &'a Base {
        self.context.base
    }

    /// The experts of the library.
    pub fn experts(&self) -> &'a LibraryStack {
        &self.context.library.experts
    }

    /// The hashes of the experts' weights as they were read.
    ///
    /// # Errors
    /// As [`OpenLibrary::expert_hashes`](crate::OpenLibrary::expert_hashes).
    pub fn expert_hashes(&self) -> Result<Vec<ExpertHash>> {
        self.context.library.expert_hashes()
    }

    /// The library.
    pub fn library(&self) -> &'a Library {
        &self.context.library.library
    }

    /// The seed of everything random.
    pub fn seed(&self) -> u64 {
        self.context.seed
    }

    /// The current task, where the rows are its own and not those that the user gave. A fit that reads it says so:
    /// [`RouterFit::reads_current_task`](super::RouterFit::reads_current_task).
    pub fn current_task(&self) -> Option<&str> {
        match (self.context.tasks, self.sources.as_slice()) {
            ([], [TaskSource { expert: None, record, .. }]) => Some(&record.name),
            _ => None,
        }
    }

    /// Reports how the fit went.
    pub fn status(&self, text: &str) {
        self.context.reporter.status(text);
    }

    /// Tells the user something beside the result.
    pub fn warn(&self, text: &str) {
        self.context.reporter.warn(text);
    }

    /// The base's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What identifies the rows for a fit: each task's record with its expert, the number of rows of each, and the current
    /// task for a fit that reads it.
    pub fn identity(&self, reads_current_task: bool) -> RowsIdentity {
        // A task that is not loaded yet had conversations if it went through a template before.
        let has_conversations =
            |source: &TaskSource| source.task.map_or(source.record.chat_template.is_some(), Task::has_conversations);
        let template = |source: &TaskSource| {
            let is_rendered = source.encoding.chat || has_conversations(source);
            let template = is_rendered.then(|| self.tokenizer.chat_template().ok()).flatten();
            template.map(|template| template.sha256().to_owned())
        };
        let encoding = |source: &TaskSource| {
            let RowEncoding { loss, bos, chat } = source.encoding;
            // Beside conversations, the template does not say whether other rows went through it too.
            let chat = chat && has_conversations(source);
            let by_default = RowEncoding { loss, bos, chat } == RowEncoding::default();
            (!by_default).then(|| format!("loss={loss},bos={bos}{}", if chat { ",chat" } else { "" }))
        };
        let task = |source: &TaskSource| TaskIdentity {
            expert: source.expert.map(|expert| self.experts().names()[expert].clone()),
            task: source.record.name.clone(),
            sha256: source.record.sha256.clone(),
            split_seed: source.record.split_seed,
            chat_template: template(source),
            encoding: encoding(source),
        };
        RowsIdentity {
            split: self.split(),
            rows: self.data.rows(),
            tasks: self.sources.iter().map(task).collect(),
            calibration_rows: self.data.calibration_rows(),
            current_task: self.current_task().filter(|_| reads_current_task).map(str::to_owned),
            trained_rows: self.data.reads_validation().then(|| self.trained_sha256()),
        }
    }

    /// The sketches of the rows that any expert was trained on, as the records have them.
    fn trained(&self) -> impl Iterator<Item = &str> {
        let records = self.context.library.records.iter().flatten();
        records.flat_map(|record| record.tasks.iter().chain(&record.seen)).map(|task| task.train_rows.as_str())
    }

    /// The hash of [`TrainingRows::trained`]. The order of the records does not matter.
    fn trained_sha256(&self) -> String {
        let sketches: BTreeSet<&str> = self.trained().collect();
        sha256(sketches.into_iter().collect::<Vec<_>>().join("\n").as_bytes())
    }

    /// The split that the rows are from.
    fn split(&self) -> Split {
        match self.data {
            TrainingData::ExpertTasks { .. }
            | TrainingData::CalibratedExpertTasks { .. }
            | TrainingData::TargetTask { .. } => Split::Train,
            TrainingData::ExpertValidation { .. } => Split::Validation,
        }
    }

    /// For a status line.
    pub(super) fn description(&self) -> String {
        match self.sources.as_slice() {
            [only] => format!("`{}`", only.record.name),
            several => format!("{} tasks", several.len()),
        }
    }

    /// The rows as tokens, task by task in a fixed order: the first rows of each task's split. Of validation rows those
    /// that no expert was trained on, as [`TrainingRows::calibration`].
    ///
    /// # Errors
    /// Where a task that an expert's record names is no longer there, or has changed; where no task has validation rows
    /// that are asked for.
    pub fn examples(&self) -> Result<Vec<TrainingRow>> {
        if self.split() == Split::Train {
            return self.encoded(|task| Ok(task.rows(Split::Train, Some(self.data.rows()))?));
        }
        let examples = self.unseen(self.data.rows())?;
        if examples.is_empty() { Err(FitError::NoValidationRows) } else { Ok(examples) }
    }

    /// The validation rows by whose answers settings are chosen, as tokens, task by task in a fixed order: the first rows of
    /// each task's validation split, without those that equal a row which some expert was trained on.
    ///
    /// # Errors
    /// As [`TrainingRows::examples`].
    pub fn calibration(&self) -> Result<Vec<TrainingRow>> {
        self.data.calibration_rows().map_or(Ok(Vec::new()), |rows| self.unseen(rows))
    }

    /// At most `count` validation rows of each task that no expert was trained on, with a warning of tasks that have none.
    fn unseen(&self, count: usize) -> Result<Vec<TrainingRow>> {
        let trained: Vec<HashSketch> = self.trained().filter_map(HashSketch::of_text).collect();
        let is_new = |hash: u64| trained.iter().all(|rows| rows.shared([hash]).0 == 0);
        let examples = self.encoded(|task| {
            let hashed = task.rows_of(Split::Validation).zip(task.row_hashes(Split::Validation));
            Ok(hashed.filter(|(_, hash)| is_new(*hash)).map(|(row, _)| row).take(count).collect())
        })?;
        let without = |task: &usize| examples.iter().all(|row| row.task != *task);
        let without: Vec<usize> = (0..self.sources.len()).filter(without).collect();
        if let (Some(first), false) = (without.first(), examples.is_empty()) {
            self.context.reporter.warn(&format!(
                "{} of {} to fit to, such as `{}`, have no validation rows that no expert was trained on: their answers have \
                 no part in the choice of settings",
                without.len(),
                pluralize(self.sources.len(), "task"),
                self.sources[*first].record.name
            ));
        }
        Ok(examples)
    }

    /// The `chosen` rows of each task as tokens, task by task in a fixed order.
    fn encoded(&self, chosen: impl Fn(&Task) -> Result<Vec<&Row>>) -> Result<Vec<TrainingRow>> {
        let length = self.base().config().max_positions;
        let mut recorded = TaskFinder::new(self.context.load_tasks);
        let mut examples = Vec::new();
        for (number, source) in self.sources.iter().enumerate() {
            let expert = source.expert.map(|expert| self.experts().names()[expert].as_str());
            let task = match source.task {
                Some(task) => task,
                None => recorded.find(&source.record, expert)?,
            };
            let tokenizer = self.tokenizer.clone().with_encoding(source.encoding);
            for row in chosen(task)? {
                let example = Example::encode(row, &tokenizer, length)
                    .with_context(|| format!("task `{}` ({})", task.name, task.path.display()))?;
                examples.push(TrainingRow { task: number, expert: source.expert, example });
            }
        }
        let cut = examples.iter().filter(|row| row.example.truncation != Truncation::default()).count();
        if cut > 0 {
            self.context.reporter.warn(&format!(
                "of {} to fit to, {cut} are longer than the base's {length} tokens and lost the beginning of the prompt or \
                 the end of the answer",
                pluralize(examples.len(), "row")
            ));
        }
        Ok(examples)
    }
}

/// The prompts of rows, packed for forward passes of bounded size. Each names its row's expert.
pub(super) fn prompt_batches(rows: &[TrainingRow]) -> Vec<TokenBatch> {
    let mut batches = vec![TokenBatch::default()];
    for TrainingRow { expert, example, .. } in rows {
        if batches.last().is_some_and(|last| !last.is_empty() && last.ids().len() + example.prompt_len > BATCH_TOKENS) {
            batches.push(TokenBatch::default());
        }
        if let Some(last) = batches.last_mut() {
            last.push(example.prompt(), &[], *expert);
        }
    }
    batches
}

/// The task of each row, and the expert of each task.
///
/// # Errors
/// If a row has no expert.
pub(super) fn tasks_and_experts(rows: &[TrainingRow]) -> Result<(Vec<usize>, Vec<usize>)> {
    let (mut tasks, mut experts) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        experts.resize(row.task + 1, row.expert.ok_or(FitError::RowWithoutExpert)?);
        tasks.push(row.task);
    }
    Ok((tasks, experts))
}

/// Tokens of a forward pass at most, unless a single row has more.
pub(crate) const BATCH_TOKENS: usize = 2048;

/// How rows of `task` become tokens: as its expert was trained, if it is one's and the record says so, else as `given`.
/// Which tokens count for the loss is as given.
fn encoding_of(context: &FitContext, expert: Option<usize>, task: &str, given: RowEncoding) -> RowEncoding {
    let record = expert.and_then(|expert| context.library.records[expert].as_ref());
    let trained = record.and_then(|record| trained_encoding(record, task));
    trained.map_or(given, |trained| RowEncoding { loss: given.loss, ..trained })
}

/// The tasks that the records of the experts name.
fn own_tasks<'a>(
    context: &FitContext,
    encoding: &dyn Fn(Option<usize>, &str) -> RowEncoding,
) -> Result<Vec<TaskSource<'a>>> {
    let mut sources = Vec::new();
    for (expert, record) in context.library.records.iter().enumerate() {
        let tasks = record.as_ref().map_or(&[][..], |record| &record.tasks);
        if tasks.is_empty() {
            return Err(FitError::NoRecordedTasks(context.library.experts.names()[expert].clone()));
        }
        sources.extend(tasks.iter().map(|task| TaskSource {
            expert: Some(expert),
            record: task.clone(),
            task: None,
            encoding: encoding(Some(expert), &task.name),
        }));
    }
    Ok(sources)
}
