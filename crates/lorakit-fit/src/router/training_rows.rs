//! The rows that a router is fitted to: those that the user gives, of each expert's own tasks, or of the current task.

use crate::error::{ChangedTask, FitError, Result, WithContext as _};
use crate::fit_context::FitContext;
use crate::pluralize::pluralize;
use crate::task_record::{chat_template_of, task_record};
use lorakit_adapter::{Library, TaskRecord};
use lorakit_format::hash_sketch::HashSketch;
use lorakit_model::{Base, TokenBatch};
use lorakit_route::{LibraryStack, TrainingData, expert_of_task};
use lorakit_task::{ColumnNames, Example, Row, RowEncoding, Split, Task, TaskLoader, Tokenizer, Truncation};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
    /// How rows become tokens, if not as by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// The maximum number of validation rows of each task beside these rows, if there are such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration_rows: Option<usize>,
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
}

/// The rows, with everything else that decides what is fitted: a fit reads nothing that is not here, since the key of
/// the cache covers nothing else.
pub struct TrainingRows<'a> {
    context: &'a FitContext<'a, 'a>,
    data: TrainingData,
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
}

impl<'a> TrainingRows<'a> {
    /// The rows that a router asks for. None is read yet, since the fitted state may be in the cache.
    ///
    /// # Errors
    /// Where there are no rows for an expert, or no current task.
    pub(super) fn find(context: &'a FitContext<'a, 'a>, data: TrainingData, task: Option<&'a Task>) -> Result<Self> {
        let experts = &context.library.experts;
        let given = |task: &'a Task, expert| TaskSource { expert, record: task_record(task), task: Some(task) };
        let mut sources = match data {
            _ if data.is_of_experts() && context.tasks.is_empty() => own_tasks(context)?,
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
        Ok(Self { context, data, sources })
    }

    /// The base.
    pub fn base(&self) -> &'a Base {
        self.context.base
    }

    /// The experts of the library.
    pub fn experts(&self) -> &'a LibraryStack {
        &self.context.library.experts
    }

    /// The library.
    pub fn library(&self) -> &'a Library {
        &self.context.library.library
    }

    /// The seed of everything random.
    pub fn seed(&self) -> u64 {
        self.context.seed
    }

    /// The current task, where the rows are its own and not those that the user gave.
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

    /// The tokenizer.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Ok((self.context.tokenizer)()?)
    }

    /// What identifies the rows: each task's record with its expert, and the number of rows of each.
    ///
    /// # Errors
    /// Where the tokenizer, with its chat template, cannot be opened.
    pub fn identity(&self) -> Result<RowsIdentity> {
        let tokenizer = self.tokenizer()?;
        let encoding = tokenizer.encoding();
        let template = |source: &TaskSource| match source.task {
            Some(task) => chat_template_of(task, &tokenizer),
            // A task that is not loaded yet had conversations if it went through a template before.
            None if source.record.chat_template.is_some() || encoding.chat => {
                tokenizer.chat_template().ok().map(|template| template.sha256().to_owned())
            }
            None => None,
        };
        let task = |source: &TaskSource| TaskIdentity {
            expert: source.expert.map(|expert| self.experts().names()[expert].clone()),
            task: source.record.name.clone(),
            sha256: source.record.sha256.clone(),
            split_seed: source.record.split_seed,
            chat_template: template(source),
        };
        Ok(RowsIdentity {
            split: self.split(),
            rows: self.data.rows(),
            tasks: self.sources.iter().map(task).collect(),
            encoding: (encoding != RowEncoding::default())
                .then(|| format!("chat={},loss={},bos={}", encoding.chat, encoding.loss, encoding.bos)),
            calibration_rows: self.data.calibration_rows(),
        })
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
        let records = || self.context.library.records.iter().flatten();
        let tasks = records().flat_map(|record| record.tasks.iter().chain(&record.seen));
        let trained: Vec<HashSketch> = tasks.filter_map(|task| HashSketch::of_text(&task.train_rows)).collect();
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
        let tokenizer = self.tokenizer()?;
        let length = self.base().config().max_positions;
        let mut loaded = Loaded::default();
        let mut examples = Vec::new();
        for (number, source) in self.sources.iter().enumerate() {
            let task = match source.task {
                Some(task) => task,
                None => loaded.find(source, self)?,
            };
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

    /// The prompts of the same rows, packed for forward passes of bounded size. Each row names its expert.
    ///
    /// # Errors
    /// As [`TrainingRows::examples`].
    pub fn prompts(&self) -> Result<Vec<TokenBatch>> {
        let mut batches = vec![TokenBatch::default()];
        for TrainingRow { expert, example, .. } in self.examples()? {
            if batches
                .last()
                .is_some_and(|last| !last.is_empty() && last.ids().len() + example.prompt_len > BATCH_TOKENS)
            {
                batches.push(TokenBatch::default());
            }
            if let Some(last) = batches.last_mut() {
                last.push(example.prompt(), &[], expert);
            }
        }
        Ok(batches)
    }
}

/// Tokens of a forward pass at most, unless a single row has more.
const BATCH_TOKENS: usize = 2048;

/// The tasks that the records of the experts name.
fn own_tasks<'a>(context: &FitContext) -> Result<Vec<TaskSource<'a>>> {
    let mut sources = Vec::new();
    for (expert, record) in context.library.records.iter().enumerate() {
        let tasks = record.as_ref().map_or(&[][..], |record| &record.tasks);
        if tasks.is_empty() {
            return Err(FitError::NoRecordedTasks(context.library.experts.names()[expert].clone()));
        }
        sources.extend(tasks.iter().map(|task| TaskSource { expert: Some(expert), record: task.clone(), task: None }));
    }
    Ok(sources)
}

/// The tasks of each file that was loaded: one file may hold many tasks.
#[derive(Default)]
struct Loaded(BTreeMap<(PathBuf, BTreeMap<String, String>), Vec<Task>>);

impl Loaded {
    /// The task of a record: from the recorded file, with the recorded rows and split.
    fn find(&mut self, source: &TaskSource, rows: &TrainingRows) -> Result<&Task> {
        let record = &source.record;
        let whose = source.expert.map_or(String::new(), |e| format!(" of the expert `{}`", rows.experts().names()[e]));
        let advice = "give the rows to fit to with --fit, or the folder that task files refer to with --data";
        let place = (PathBuf::from(&record.path), record.columns.clone());
        if !self.0.contains_key(&place) {
            let specs = std::slice::from_ref(&record.path);
            let columns = ColumnNames::from(record.columns.clone());
            let data = rows.context.data.map(Path::to_owned);
            let loader = TaskLoader { data, columns, ..TaskLoader::default() };
            let tasks = loader.load(specs).with_context(|| {
                format!("the task `{}`{whose} was read from {}; {advice}", record.name, record.path)
            })?;
            self.0.insert(place.clone(), tasks);
        }
        let tasks = self.0.get(&place).map_or(&[][..], Vec::as_slice);
        let same = |task: &&Task| task.sha256() == record.sha256 && task.split_seed == record.split_seed;
        let found = tasks.iter().find(|task| same(task) && task.name == record.name);
        found.or_else(|| tasks.iter().find(same)).ok_or_else(|| {
            let named = tasks.iter().find(|task| task.name == record.name);
            let found = named.map_or("no such task".to_owned(), |task| {
                format!("sha256 {}, split_seed {}", task.sha256(), task.split_seed)
            });
            FitError::ChangedTask(Box::new(ChangedTask {
                path: record.path.clone(),
                task: record.name.clone(),
                whose,
                sha256: record.sha256.clone(),
                split_seed: record.split_seed,
                found,
                advice,
            }))
        })
    }
}
