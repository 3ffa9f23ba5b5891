//! The chance level of a task: the scores of a random choice, or of the most frequent answer.

use crate::error::{EvalError, Result};
use crate::evaluate::{EvalOptions, gold, score_answer};
use crate::metrics::score::TaskScores;
use crate::sample::Sample;
use lorakit_task::{ReplyOpening, Row, Split, Task};
use std::collections::BTreeMap;

/// Scores answers that do not depend on the prompt: a choice drawn at random, whose expected accuracy is one over the
/// number of choices, and in place of generated text the most frequent answer of the train rows, the first in order of
/// equals. There is no loss. Text metrics are left out where the task has no train rows.
///
/// A router that does not beat these scores has shown nothing, however far it is above a base that answers in another
/// form.
///
/// # Errors
/// If the split has no rows, or ROUGE-L cannot be computed.
pub fn score_chance(task: &Task, options: &EvalOptions) -> Result<TaskScores> {
    let rows = task.rows(options.split, options.limit)?;
    if rows.is_empty() {
        return Err(EvalError::NoRows { name: task.name.clone() });
    }
    let most_frequent = most_frequent_answer(task)?;
    let score = |row: &&Row| {
        let mut sample = Sample::new(row, String::new());
        if let Some((choices, _)) = row.choices() {
            let chance = 1.0 / choices.len() as f64;
            let choosing = task.metrics.iter().filter(|metric| metric.needs_choices());
            sample.metrics.extend(choosing.map(|metric| (metric.name().to_owned(), chance)));
        }
        if let Some(answer) = most_frequent {
            score_answer(Some(answer), &ReplyOpening::reasoning(row), task, &mut sample)?;
        }
        Ok::<_, EvalError>(sample)
    };
    Ok(TaskScores::of(rows.iter().map(score).collect::<Result<_>>()?, Default::default()))
}

/// The most frequent answer of the train rows, if there are any: the part of it that is compared.
fn most_frequent_answer(task: &Task) -> Result<Option<&str>> {
    if task.count(Split::Train) == 0 {
        return Ok(None);
    }
    let rows = task.rows(Split::Train, None)?;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows {
        *counts.entry(gold(row.target(), &ReplyOpening::reasoning(row), task)).or_default() += 1;
    }
    let most = counts.values().copied().max();
    Ok(counts.into_iter().find(|(_, count)| Some(*count) == most).map(|(answer, _)| answer))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn task(file: &str, rows: &str) -> Task {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file);
        std::fs::write(&path, rows).unwrap();
        Task::load(&path.display().to_string(), None).unwrap().remove(0)
    }

    #[test]
    fn the_most_frequent_answer_is_right_as_often_as_it_occurs() {
        let rows: String = (0..200)
            .map(|i| format!("{{\"input\": \"q{i}\", \"output\": \"{}\"}}\n", if i % 4 == 0 { "no" } else { "yes" }))
            .collect();
        let mut task = task("polar.jsonl", &rows);
        task.metrics.push(lorakit_task::Metric::ExactMatch);
        let options = EvalOptions { split: Split::All, ..EvalOptions::default() };
        let scores = score_chance(&task, &options).unwrap();
        assert_eq!((scores.n, scores.metrics["exact_match"].value), (200, 0.75));
        assert!(!scores.metrics.contains_key("loss"));
    }

    #[test]
    fn reasoning_in_accepted_answers_is_not_compared() {
        let user = |i: usize| format!(r#"{{"role": "user", "content": "q{i}"}}"#);
        let reply = |i: usize| format!(r#"{{"role": "assistant", "content": "<think>{i}</think>yes"}}"#);
        let rows: String = (0..200).map(|i| format!("{{\"messages\": [{}, {}]}}\n", user(i), reply(i))).collect();
        let mut task = task("chat.jsonl", &rows);
        task.metrics.push(lorakit_task::Metric::ExactMatch);
        let options = EvalOptions { split: Split::All, ..EvalOptions::default() };
        assert_eq!(score_chance(&task, &options).unwrap().metrics["exact_match"].value, 1.0);
    }

    fn polar(i: usize) -> &'static str {
        if i.is_multiple_of(4) { "no" } else { "yes" }
    }

    /// `extract` finds the answer in what a model writes; the rows have it alone.
    #[test]
    fn answers_are_counted_as_they_are_compared() {
        let rows = |answer: fn(usize) -> String| -> String {
            (0..200).map(|i| format!("{{\"input\": \"q{i}\", \"output\": \"{}\"}}\n", answer(i))).collect()
        };
        let chance = |answer: fn(usize) -> String| {
            let mut task = task("polar.jsonl", &rows(answer));
            task.metrics.push(lorakit_task::Metric::ExactMatch);
            task.generation.extract = Some(lorakit_task::AnswerPattern::new("answer is (yes|no)").unwrap());
            let options = EvalOptions { split: Split::All, ..EvalOptions::default() };
            score_chance(&task, &options).unwrap().metrics["exact_match"].value
        };
        assert_eq!(chance(|i| polar(i).to_owned()), 0.75);
        assert_eq!(chance(|i| format!("{i}: the answer is {}", polar(i))), 0.75, "answers that differ elsewhere");
    }

    #[test]
    fn answers_are_compared_as_the_task_file_says() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("train.jsonl", r#"{"input": "a", "output": "Yes, 64,335,696."}"#);
        write("test.jsonl", r#"{"input": "b", "output": "yes 64335696.0"}"#);
        for (keys, expected) in [
            ("", 0.0),
            ("ignore_case = true\nregexes_to_ignore = [',', '[.].*']\n", 1.0),
            ("extract = '([0-9][0-9.,]*)'\n", 0.0),
            ("extract = '([0-9][0-9.,]*)'\ntolerance = 1e-3\n", 1.0),
        ] {
            let files = "train = \"train.jsonl\"\ntest = \"test.jsonl\"\nmetrics = [\"exact_match\"]\n";
            write("tasks.toml", &format!("{files}{keys}[[task]]\nname = \"one\"\n"));
            let path = folder.path().join("tasks.toml").display().to_string();
            let task = Task::load(&path, None).unwrap().remove(0);
            let scores = score_chance(&task, &EvalOptions::default()).unwrap();
            assert_eq!(scores.metrics["exact_match"].value, expected, "{keys}");
        }
    }

    #[test]
    fn a_random_choice_is_right_once_in_the_number_of_choices() {
        let rows = "{\"input\": \"q\", \"choices\": [\"a\", \"b\"], \"answer\": 0}\n\
                    {\"input\": \"r\", \"choices\": [\"a\", \"b\", \"c\", \"d\"], \"answer\": 1}\n";
        let task = task("choice.jsonl", rows);
        let options = EvalOptions { split: Split::All, ..EvalOptions::default() };
        assert_eq!(score_chance(&task, &options).unwrap().metrics["acc"].value, 0.375);
        let none = EvalOptions { limit: Some(0), ..options };
        assert!(matches!(score_chance(&task, &none), Err(EvalError::NoRows { name }) if name == "choice"));
    }
}
