//! The rows that a router learns from: those of `--fit`, of each expert's own tasks, or of the task at hand.

use super::Routing;
use crate::tasks;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use lorakit_adapter::{Library, TaskRecord};
use lorakit_model::{Base, Packed};
use lorakit_route::{Experts, Lesson, oracle};
use lorakit_task::{Example, Split, Task, Tokenizer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The options that say what routers learn from.
#[derive(Args, Debug)]
pub struct FitArgs {
    /// Tasks whose train rows routers learn from [default: each expert's own tasks, or the task that is evaluated]
    #[arg(long, num_args = 1.., value_name = "[NAME=]T")]
    pub fit: Vec<String>,
}

impl FitArgs {
    /// Loads the tasks; `data` is what {data} stands for in task TOMLs.
    pub fn load(&self, data: Option<&Path>) -> Result<Vec<Task>> {
        Task::load_all(&self.fit, data).context("--fit")
    }
}

/// A row to learn from.
pub struct LessonRow {
    /// The task that it is of, counted from the first.
    pub task: usize,
    /// The expert that it belongs to, where the lesson is of experts.
    pub expert: Option<usize>,
    /// Its tokens.
    pub example: Example,
}

/// Rows to learn from, and all else that what is learned comes from.
pub struct Rows<'a> {
    routing: &'a Routing<'a, 'a>,
    lesson: Lesson,
    sources: Vec<Source<'a>>,
}

/// A task to learn from.
struct Source<'a> {
    /// The expert that its rows belong to, where they belong to one.
    expert: Option<usize>,
    /// What tells the task from others.
    record: TaskRecord,
    /// The task, where it was loaded before; else it is found by its record when its rows are asked for.
    task: Option<&'a Task>,
}

impl<'a> Rows<'a> {
    /// The rows of a lesson. No row is read yet: what was learned from them before may be kept.
    pub(super) fn find(routing: &'a Routing<'a, 'a>, lesson: Lesson, task: Option<&'a Task>) -> Result<Self> {
        let experts = &routing.opened.experts;
        let given = |task: &'a Task, expert| Source { expert, record: tasks::record(task), task: Some(task) };
        let mut sources = match lesson {
            Lesson::Experts { .. } if routing.fit.is_empty() => own_tasks(routing)?,
            Lesson::Experts { .. } => {
                let source = |task: &'a Task| Ok(given(task, Some(oracle::expert_of(&task.name, experts)?)));
                let sources: Vec<Source> = routing.fit.iter().map(source).collect::<Result<_>>().context("--fit")?;
                let without = (0..experts.len()).find(|e| sources.iter().all(|source| source.expert != Some(*e)));
                if let Some(expert) = without {
                    bail!(
                        "--fit gives no task of the expert `{}`, and rows of every expert are needed",
                        experts.names()[expert]
                    );
                }
                sources
            }
            Lesson::Task { .. } => match (routing.fit, task) {
                ([], Some(task)) => vec![given(task, None)],
                ([], None) => bail!("no task is at hand to learn from: give rows with --fit"),
                (fit, _) => fit.iter().map(|task| given(task, None)).collect(),
            },
        };
        // The order in which tasks were typed is no part of what is learned.
        sources.sort_by(|a, b| (a.expert, &a.record.name).cmp(&(b.expert, &b.record.name)));
        Ok(Self { routing, lesson, sources })
    }

    /// The base.
    pub fn base(&self) -> &'a Base {
        self.routing.base
    }

    /// The experts of the library.
    pub fn experts(&self) -> &'a Experts {
        &self.routing.opened.experts
    }

    /// The library.
    pub fn library(&self) -> &'a Library {
        &self.routing.opened.library
    }

    /// The seed of everything random.
    pub fn seed(&self) -> u64 {
        self.routing.context.seed
    }

    /// The task at hand, where the rows are its own and not those of `--fit`.
    pub fn task_at_hand(&self) -> Option<&str> {
        match (self.routing.fit, self.sources.as_slice()) {
            ([], [Source { expert: None, record, .. }]) => Some(&record.name),
            _ => None,
        }
    }

    /// Tells the user how learning went.
    pub fn tell(&self, text: String) {
        self.routing.context.output.status(text);
    }

    /// The tokenizer.
    pub fn vocabulary(&self) -> Result<Tokenizer> {
        self.routing.place.vocabulary()
    }

    /// What tells the rows from others: each task's record with its expert, and how many rows of each.
    pub fn identity(&self) -> serde_json::Value {
        let source = |source: &Source| {
            serde_json::json!({
                "expert": source.expert.map(|expert| &self.experts().names()[expert]),
                "task": source.record.name,
                "sha256": source.record.sha256,
                "split_seed": source.record.split_seed,
            })
        };
        serde_json::json!({
            "split": Split::Train,
            "rows": self.lesson.rows(),
            "tasks": self.sources.iter().map(source).collect::<Vec<_>>(),
        })
    }

    /// For a status line.
    pub(super) fn described(&self) -> String {
        match self.sources.as_slice() {
            [only] => format!("`{}`", only.record.name),
            several => format!("{} tasks", several.len()),
        }
    }

    /// The rows as tokens, task by task in a fixed order: the first of each task's train split.
    ///
    /// # Errors
    /// Where a task that an expert records is no longer where it was, or is another.
    pub fn examples(&self) -> Result<Vec<LessonRow>> {
        let vocabulary = self.vocabulary()?;
        let length = self.base().config().max_positions;
        let mut loaded = Loaded::default();
        let mut examples = Vec::new();
        for (number, source) in self.sources.iter().enumerate() {
            let task = match source.task {
                Some(task) => task,
                None => loaded.find(source, self)?,
            };
            for row in task.rows(Split::Train, Some(self.lesson.rows()))? {
                let example = Example::encode(row, &vocabulary, length)
                    .with_context(|| format!("task `{}` ({})", task.name, task.path.display()))?;
                examples.push(LessonRow { task: number, expert: source.expert, example });
            }
        }
        Ok(examples)
    }

    /// The prompts of the same rows, packed for forwards of a bounded size; each row names its expert.
    ///
    /// # Errors
    /// As [`Rows::examples`].
    pub fn prompts(&self) -> Result<Vec<Packed>> {
        let mut batches = vec![Packed::default()];
        for LessonRow { expert, example, .. } in self.examples()? {
            if batches
                .last()
                .is_some_and(|last| !last.is_empty() && last.ids().len() + example.prompt.len() > BATCH_TOKENS)
            {
                batches.push(Packed::default());
            }
            if let Some(last) = batches.last_mut() {
                last.push(&example.prompt, &[], expert);
            }
        }
        Ok(batches)
    }
}

/// Tokens that one forward over prompts holds at most, unless a row alone has more.
const BATCH_TOKENS: usize = 2048;

/// The tasks that the records of the experts name.
fn own_tasks<'a>(routing: &Routing) -> Result<Vec<Source<'a>>> {
    let mut sources = Vec::new();
    for (expert, record) in routing.opened.records.iter().enumerate() {
        let tasks = record.as_ref().map_or(&[][..], |record| &record.tasks);
        ensure!(
            !tasks.is_empty(),
            "no tasks are recorded for the expert `{}`: give rows of every expert's tasks with --fit",
            routing.opened.experts.names()[expert]
        );
        sources.extend(tasks.iter().map(|task| Source { expert: Some(expert), record: task.clone(), task: None }));
    }
    Ok(sources)
}

/// What was loaded from each recorded place: many tasks may stand in one file.
#[derive(Default)]
struct Loaded(BTreeMap<PathBuf, Vec<Task>>);

impl Loaded {
    /// The task of a record: at the recorded place, with the recorded rows and split.
    fn find(&mut self, source: &Source, rows: &Rows) -> Result<&Task> {
        let record = &source.record;
        let whose = source.expert.map_or(String::new(), |e| format!(" of the expert `{}`", rows.experts().names()[e]));
        let advice = "give the rows to learn from with --fit, or the folder that task files refer to with --data";
        let place = PathBuf::from(&record.path);
        if !self.0.contains_key(&place) {
            let tasks = Task::load(&record.path, rows.routing.data).with_context(|| {
                format!("the task `{}`{whose} was read from {}; {advice}", record.name, record.path)
            })?;
            self.0.insert(place.clone(), tasks);
        }
        let tasks = self.0.get(&place).map_or(&[][..], Vec::as_slice);
        let same = |task: &&Task| task.sha256() == record.sha256 && task.split_seed == record.split_seed;
        let found = tasks.iter().find(|task| same(task) && task.name == record.name);
        found.or_else(|| tasks.iter().find(same)).with_context(|| {
            let named = tasks.iter().find(|task| task.name == record.name);
            let now = named.map_or("no such task".to_owned(), |task| {
                format!("sha256 {}, split_seed {}", task.sha256(), task.split_seed)
            });
            format!(
                "{}: the task `{}`{whose} is not what was trained on: recorded sha256 {}, \
                 split_seed {}; found {now}; {advice}",
                record.path, record.name, record.sha256, record.split_seed
            )
        })
    }
}
