//! `task`: inspects tasks and their rows.

use crate::args::row_encoding_args::RowEncodingArgs;
use crate::args::task_args::{self, DataArgs, TaskDocument};
use crate::args::usage::count;
use crate::base::base_source::BaseSource;
use crate::command_context::CommandContext;
use crate::commands::task_split::{self, TaskSplitArgs};
use crate::output::text_table::table;
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use lorakit_fit::pluralize;
use lorakit_task::{Answer, Example, Metric, Row, Split, Task, Tokenizer, Truncation};
use serde::Serialize;
use serde_json::{Value, json};
use std::num::NonZeroUsize;

/// The subcommands of `task`.
#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// List tasks and the sizes of their splits
    Ls(TaskLsArgs),
    /// Show a row: prompt and answer, and with --base its tokens and which of them carry loss
    Show(TaskShowArgs),
    /// Split data files into one file for each value of a column, such as Flan's task_name
    Split(TaskSplitArgs),
}

/// The arguments of `task ls`.
#[derive(Args, Debug)]
pub struct TaskLsArgs {
    /// Tasks: TOML files, data files (JSON, JSONL, CSV, TSV, Parquet), folders of them or saved by
    /// `datasets`, hub:datasets/ORG/NAME[@REV][:CONFIG], or suite:NAME; NAME= sets the name
    #[arg(required = true, value_name = "[NAME=]T")]
    tasks: Vec<String>,
    #[command(flatten)]
    data: DataArgs,
}

/// The arguments of `task show`.
#[derive(Args, Debug)]
pub struct TaskShowArgs {
    /// Task
    #[arg(required = true, value_name = "[NAME=]T")]
    task: String,
    #[command(flatten)]
    data: DataArgs,
    /// Base model whose tokenizer and chat template are used
    #[arg(long, value_name = "B")]
    base: Option<BaseSource>,
    #[command(flatten)]
    encoding: RowEncodingArgs,
    /// Split of the row
    #[arg(long, value_name = "train|validation|test|all", default_value_t = Split::Train)]
    split: Split,
    /// Number of the row in the split, from 1
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    row: NonZeroUsize,
    /// Maximum length of a row in tokens
    #[arg(long, value_name = "N", default_value = "2048", value_parser = count)]
    max_length: NonZeroUsize,
}

/// The JSON document of `task ls`.
#[derive(Serialize)]
struct TaskList<'a> {
    tasks: Vec<TaskEntry<'a>>,
}

#[derive(Serialize)]
struct TaskEntry<'a> {
    #[serde(flatten)]
    task: TaskDocument<'a>,
    description: Option<&'a str>,
    rows: SplitSizes,
    /// Of prompts and answers, which say how much there is to read without a tokenizer.
    characters: SplitSizes,
    choices: bool,
    metrics: Vec<&'static str>,
}

/// A number for each split.
#[derive(Serialize)]
struct SplitSizes {
    train: usize,
    validation: usize,
    test: usize,
}

impl SplitSizes {
    fn of(size: impl Fn(Split) -> usize) -> Self {
        Self { train: size(Split::Train), validation: size(Split::Validation), test: size(Split::Test) }
    }
}

/// Runs a subcommand of `task`.
pub fn run(command: TaskCommand, context: &CommandContext) -> Result<()> {
    match command {
        TaskCommand::Ls(args) => ls(&args, context),
        TaskCommand::Show(args) => show(&args, context),
        TaskCommand::Split(args) => task_split::run(&args, context),
    }
}

fn ls(args: &TaskLsArgs, context: &CommandContext) -> Result<()> {
    let tasks = args.data.load(&args.tasks, context)?;
    let metrics = |task: &Task| task.reported_metrics().into_iter().map(Metric::name).collect::<Vec<_>>();
    let length = |row: &Row| {
        let texts = [row.prompt.as_str(), row.delimiter_before(row.target()), row.target()];
        texts.map(|text| text.chars().count()).iter().sum::<usize>()
    };
    let entry = |task| TaskEntry {
        task: TaskDocument::of(task),
        description: task.description.as_deref(),
        rows: SplitSizes::of(|split| task.count(split)),
        characters: SplitSizes::of(|split| task.rows_of(split).map(length).sum()),
        choices: task.has_choices(),
        metrics: metrics(task),
    };
    let document = TaskList { tasks: tasks.iter().map(entry).collect() };
    context.output.result(&document, || {
        let line = |task: &Task| {
            let count = |split| task.count(split).to_string();
            vec![
                task.name.clone(),
                count(Split::Train),
                count(Split::Validation),
                count(Split::Test),
                metrics(task).join(", "),
                task.description.clone().unwrap_or_default(),
            ]
        };
        table(["task", "train", "validation", "test", "metrics", ""], tasks.iter().map(line))
    })
}

fn show(args: &TaskShowArgs, context: &CommandContext) -> Result<()> {
    let tasks = args.data.load(std::slice::from_ref(&args.task), context)?;
    task_args::warn_of_unused(&tasks, context);
    let tokenizer = |base: &BaseSource| base.resolve(context)?.tokenizer();
    let tokenizer = args.base.as_ref().map(tokenizer).transpose()?;
    let tokenizer = tokenizer.map(|tokenizer| tokenizer.with_encoding(args.encoding.encoding()));
    let shown = tasks.iter().map(|task| Shown::of(task, args, tokenizer.as_ref())).collect::<Result<Vec<_>>>()?;
    for cut in shown.iter().filter_map(|shown| shown.cut(args.max_length)) {
        context.output.warn(cut);
    }
    let document = json!({ "tasks": shown.iter().map(Shown::document).collect::<Vec<_>>() });
    context.output.result(&document, || shown.iter().map(Shown::text).collect::<Vec<_>>().join("\n\n"))
}

/// A row to show.
struct Shown<'a> {
    task: &'a Task,
    row: &'a Row,
    tokens: Option<(Example, &'a Tokenizer)>,
}

impl<'a> Shown<'a> {
    fn of(task: &'a Task, args: &TaskShowArgs, tokenizer: Option<&'a Tokenizer>) -> Result<Self> {
        let rows = task.rows(args.split, None)?;
        let row = rows.get(args.row.get() - 1).copied();
        let row = row.with_context(|| {
            format!("--row {}: task `{}` has {} {} rows", args.row, task.name, rows.len(), args.split)
        })?;
        let encode = |tokenizer| {
            let example = Example::encode(row, tokenizer, args.max_length.get());
            let example = example.with_context(|| format!("task `{}` ({})", task.name, task.path.display()))?;
            Ok::<_, anyhow::Error>((example, tokenizer))
        };
        Ok(Self { task, row, tokens: tokenizer.map(encode).transpose()? })
    }

    /// What was cut to keep to the maximum length, if anything.
    fn cut(&self, max_length: NonZeroUsize) -> Option<String> {
        let Truncation { messages, prompt, target } = self.tokens.as_ref()?.0.truncation;
        let parts =
            [(messages, "message", ""), (prompt, "token", " of the prompt"), (target, "token", " of the target")];
        let cut = parts.into_iter().filter(|(count, ..)| *count > 0);
        let cut: Vec<String> = cut.map(|(count, noun, part)| format!("{}{part}", pluralize(count, noun))).collect();
        (!cut.is_empty()).then(|| {
            format!(
                "task `{}`, row {}: --max-length {max_length} cuts off {}",
                self.task.name,
                self.row.number,
                cut.join(", ")
            )
        })
    }

    fn document(&self) -> Value {
        let piece =
            |piece: lorakit_task::TokenView| json!({ "id": piece.id, "token": piece.token, "loss": piece.loss });
        let tokens = self
            .tokens
            .as_ref()
            .map(|(example, tokenizer)| example.token_views(tokenizer).into_iter().map(piece).collect::<Vec<_>>());
        let mut document = json!(TaskDocument::of(self.task));
        document["row"] = json!(self.row.number);
        document["fields"] = json!(self.row.fields);
        document["prompt"] = json!(self.row.prompt);
        document["delimiter"] = json!(self.row.delimiter_before(self.row.target()));
        document["target"] = json!(self.row.target());
        match &self.row.answer {
            Answer::Text(accepted) => document["accepted"] = json!(accepted),
            Answer::Choices { texts, gold } => (document["choices"], document["gold"]) = (json!(texts), json!(gold)),
        }
        document["tokens"] = json!(tokens);
        document
    }

    fn text(&self) -> String {
        let mut text = format!(
            "task {}, row {}\n\nprompt:\n{}\n",
            self.task.name,
            self.row.number,
            self.row.prompt.trim_end_matches('\n')
        );
        match &self.row.answer {
            Answer::Text(accepted) => text.push_str(&format!("\ntarget:\n{}\n", accepted.join("\n"))),
            Answer::Choices { texts, gold } => {
                text.push_str("\nchoices:\n");
                texts.iter().enumerate().for_each(|(i, choice)| {
                    text.push_str(&format!("{} {choice}\n", if i == *gold { '>' } else { ' ' }))
                });
            }
        }
        if let Some((example, tokenizer)) = &self.tokens {
            let line = |(i, piece): (usize, lorakit_task::TokenView)| {
                vec![
                    i.to_string(),
                    piece.id.to_string(),
                    format!("{:?}", piece.token),
                    if piece.loss { "loss" } else { "" }.to_owned(),
                ]
            };
            text.push_str(&format!(
                "\n{}",
                table(["", "id", "token", ""], example.token_views(tokenizer).into_iter().enumerate().map(line))
            ));
        }
        text
    }
}
