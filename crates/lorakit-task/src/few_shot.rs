//! Few-shot prompts: train rows with their answers before each row's own prompt.

use crate::chat::conversation::Conversation;
use crate::error::{Result, TaskError};
use crate::row::{Row, RowKind};
use crate::split::Split;
use crate::task::Task;

impl Task {
    /// The task with `shots` examples before every prompt of a split, as lm-evaluation-harness builds a context: the
    /// description, then of each example its prompt, the target delimiter, its first accepted answer and the few-shot
    /// delimiter. The examples are the first train rows, for all rows the same (its sampler `first_n`); a row is no example
    /// of itself. Where the task names no text to stop at, generation stops at the few-shot delimiter, before a further
    /// example, unless that is empty.
    ///
    /// A conversation has those of its examples as turns before its own, without delimiters. The description is its
    /// system message, or comes before that which it has; for a chat template without that role, before the user's first
    /// message.
    ///
    /// # Errors
    /// If there are not enough train rows, or the rows are texts.
    pub fn with_few_shot(&self, shots: usize, scored: Split) -> Result<Task> {
        if shots == 0 {
            return Ok(self.clone());
        }
        let train: Vec<&Row> =
            self.rows.iter().filter(|(split, _)| *split == Split::Train).map(|(_, row)| row).collect();
        let rows = self.rows.iter().map(|(split, row)| {
            if scored != Split::All && *split != scored {
                return Ok((*split, row.clone()));
            }
            let others = train.iter().filter(|other| other.fields != row.fields);
            let examples: Vec<&&Row> = others.take(shots).collect();
            if examples.len() < shots {
                return Err(TaskError::FewShot { task: self.name.clone(), shots, rows: train.len() });
            }
            let mut prompt = self.few_shot.description.clone();
            for example in &examples {
                let target = example.target();
                let parts = [&example.prompt, example.delimiter_before(target), target, &self.few_shot.delimiter];
                for part in parts {
                    prompt.push_str(part);
                }
            }
            prompt.push_str(&row.prompt);
            let kind = match &row.kind {
                RowKind::Plain { .. } => RowKind::Plain { instruction: String::new(), input: prompt.clone() },
                RowKind::Conversation(own) => {
                    let shown = examples.iter().filter_map(|example| match &example.kind {
                        RowKind::Conversation(shown) => Some(shown),
                        RowKind::Plain { .. } | RowKind::Text => None,
                    });
                    let description = self.few_shot.description.trim();
                    let description = Some(description.to_owned()).filter(|text| !text.is_empty());
                    RowKind::Conversation(Conversation { description, ..own.after(shown) })
                }
                RowKind::Text => {
                    let error = TaskError::Row("rows of `text` have no answers to show as examples".to_owned());
                    return Err(error.at(format!("task `{}` ({})", self.name, self.path.display())));
                }
            };
            Ok((*split, Row { prompt, kind, ..row.clone() }))
        });
        let mut task = Task { rows: rows.collect::<Result<_>>()?, ..self.clone() };
        let is_delimited = !self.few_shot.delimiter.is_empty() && !self.has_conversations();
        if task.generation.stop.is_empty() && is_delimited {
            task.generation.stop.push(self.few_shot.delimiter.clone());
        }
        Ok(task)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::chat::conversation::Message;
    use crate::row::Answer;
    use std::fs;

    fn task(toml: &str, rows: &str) -> Task {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("rows.jsonl"), rows).unwrap();
        fs::write(folder.path().join("train.jsonl"), TRAIN).unwrap();
        let file = folder.path().join("t.toml");
        fs::write(&file, format!("train = \"train.jsonl\"\ntest = \"rows.jsonl\"\n{toml}")).unwrap();
        Task::load(&file.display().to_string(), None).unwrap().remove(0)
    }

    const TRAIN: &str = r#"{"input": "cat", "output": ["cats", "felines"]}
{"input": "dog", "output": "dogs"}
{"input": "fox", "output": "foxes"}
"#;

    fn prompts(task: &Task, split: Split) -> Vec<String> {
        task.rows(split, None).unwrap().iter().map(|row| row.prompt.clone()).collect()
    }

    #[test]
    fn prompts_begin_with_train_rows_and_their_answers() {
        let plain = task("", r#"{"input": "box", "output": "boxes"}"#);
        let shown = plain.with_few_shot(2, Split::Test).unwrap();
        assert_eq!(prompts(&shown, Split::Test), ["cat\ncats\n\ndog\ndogs\n\nbox\n"]);
        assert_eq!((shown.sha256(), &shown.generation.stop[..]), (plain.sha256(), &["\n\n".to_owned()][..]));
        assert_eq!(prompts(&plain.with_few_shot(0, Split::Test).unwrap(), Split::Test), ["box\n"]);
    }

    #[test]
    fn a_task_file_sets_the_texts_between() {
        let toml = r#"
            prompt = "Q: {{ input }}\nA:"
            fewshot_description = "Plurals.\n"
            fewshot_delimiter = "\n"
        "#;
        let shown = task(toml, r#"{"input": "box", "output": "boxes"}"#).with_few_shot(1, Split::Test).unwrap();
        assert_eq!(prompts(&shown, Split::Test), ["Plurals.\nQ: cat\nA: cats\nQ: box\nA:"]);
        assert_eq!(shown.generation.stop, ["\n"]);
        let joined = task("fewshot_delimiter = \"\"", r#"{"input": "box", "output": "boxes"}"#);
        assert_eq!(joined.with_few_shot(1, Split::Test).unwrap().generation.stop, [""; 0], "it would end every answer");
    }

    #[test]
    fn a_row_is_no_example_of_itself() {
        let shown = task("", TRAIN).with_few_shot(2, Split::All).unwrap();
        assert_eq!(prompts(&shown, Split::Test)[0], "dog\ndogs\n\nfox\nfoxes\n\ncat\n");
        assert_eq!(prompts(&shown, Split::Train)[2], "cat\ncats\n\ndog\ndogs\n\nfox\n");
        let error = task("", TRAIN).with_few_shot(3, Split::Test).unwrap_err().to_string();
        assert!(error.contains("3 train rows"), "{error}");
    }

    #[test]
    fn rows_that_are_not_scored_need_no_examples() {
        let three = task("", r#"{"input": "box", "output": "boxes"}"#);
        let shown = three.with_few_shot(3, Split::Test).unwrap();
        assert_eq!(prompts(&shown, Split::Test), ["cat\ncats\n\ndog\ndogs\n\nfox\nfoxes\n\nbox\n"]);
        assert_eq!(prompts(&shown, Split::Train), prompts(&three, Split::Train));
        assert!(three.with_few_shot(3, Split::All).is_err());
    }

    #[test]
    fn the_description_of_a_conversation_is_its_system_message() {
        let chat = |messages: &[(&str, &str)]| {
            let messages: Vec<_> = messages.iter().map(|(role, text)| Message::new(role, text)).collect();
            let (fields, answer) = (serde_json::Map::new(), Answer::Text(vec!["b".into()]));
            let kind = RowKind::Conversation(Conversation { given: messages.len() - 1, ..Conversation::new(messages) });
            Row { kind, ..Row::plain(1, fields, "", "", answer) }
        };
        let mut examples = task("fewshot_description = \"Be brief.\\n\"", TRAIN);
        let train = Row { fields: examples.rows[0].1.fields.clone(), ..chat(&[("user", "c"), ("assistant", "d")]) };
        let shown = |examples: &mut Task, row: Row| {
            examples.rows = vec![(Split::Train, train.clone()), (Split::Test, row)];
            examples.with_few_shot(1, Split::Test)
        };
        let mut texts = |messages: &[(&str, &str)], takes_system: bool| {
            let prompted = shown(&mut examples, chat(messages)).unwrap();
            assert_eq!(prompted.generation.stop, [""; 0], "no delimiter stands between turns");
            let RowKind::Conversation(read) = &prompted.rows[1].1.kind else { unreachable!() };
            let read = read.described(takes_system);
            let texts: Vec<String> = read.messages.iter().map(|message| message.content.clone()).collect();
            (read.messages[0].role.clone(), texts.join("|"), read.given)
        };
        let turn = [("user", "a"), ("assistant", "b")];
        assert_eq!(texts(&turn, true), ("system".to_owned(), "Be brief.|c|d|a|b".to_owned(), 4));
        assert_eq!(texts(&turn, false), ("user".to_owned(), "Be brief.\nc|d|a|b".to_owned(), 3));
        let with_system = [("system", "s"), turn[0], turn[1]];
        assert_eq!(texts(&with_system, true), ("system".to_owned(), "Be brief.\ns|c|d|a|b".to_owned(), 4));
    }
}
