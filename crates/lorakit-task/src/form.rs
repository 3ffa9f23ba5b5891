//! How a row of a file becomes a prompt and its answer.

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value};

use crate::definition::{Definition, OneOrMany};
use crate::field;
use crate::row::{Answer, Row};
use crate::source::keys;
use crate::template::{Template, Templates, require_braces};

/// The form of a task's rows: plain, where the definition says nothing, else by templates.
pub(crate) struct Form {
    templates: Templates,
    prompt: Option<Template>,
    answer: AnswerForm,
    delimiter: Option<String>,
}

/// Where the answer comes from.
enum AnswerForm {
    /// `choices` and `answer` where the row has choices, else `output`.
    Plain,
    /// Templates that each give accepted answers.
    Text(Vec<Template>),
    /// Templates for the choices and the right one; None: the columns `choices` and `answer`.
    Choices { texts: Option<Choices>, gold: Option<Template> },
}

enum Choices {
    List(Template),
    Each(Vec<Template>),
}

impl Form {
    /// Compiles a definition's templates.
    pub fn new(definition: &Definition) -> Result<Form> {
        let mut templates = Templates::new();
        let prompt = match &definition.prompt {
            None => None,
            Some(source) => {
                require_braces("prompt", source)?;
                Some(templates.text("prompt", source)?)
            }
        };
        let answer = AnswerForm::new(definition, &mut templates)?;
        Ok(Form { templates, prompt, answer, delimiter: definition.target_delimiter.clone() })
    }

    /// One row. `number` counts from 1; `instruction` is the task's, not the row's.
    pub fn row(&self, number: usize, fields: &Map<String, Value>, instruction: Option<&str>) -> Result<Row> {
        let columns = columns(fields, instruction)?;
        let prompt = match &self.prompt {
            None => plain_prompt(&columns)?,
            Some(template) => self.text(template, &columns)?,
        };
        let answer = self.answer(&columns)?;
        let delimiter = self.delimiter.clone().unwrap_or_else(|| default_delimiter(&prompt));
        Ok(Row { number, fields: fields.clone(), prompt, delimiter, answer })
    }

    fn answer(&self, columns: &Map<String, Value>) -> Result<Answer> {
        match &self.answer {
            AnswerForm::Plain if columns.contains_key("choices") => self.choices(None, None, columns),
            AnswerForm::Plain => Ok(Answer::Text(plain_output(columns)?)),
            AnswerForm::Text(templates) => self.accepted(templates, columns),
            AnswerForm::Choices { texts, gold } => self.choices(texts.as_ref(), gold.as_ref(), columns),
        }
    }

    fn accepted(&self, templates: &[Template], columns: &Map<String, Value>) -> Result<Answer> {
        let mut accepted: Vec<String> = Vec::new();
        for template in templates {
            let value = self.templates.render(template, columns)?;
            for text in field::texts(&value).context("`target`")? {
                if !accepted.contains(&text) {
                    accepted.push(text);
                }
            }
        }
        if accepted.is_empty() {
            bail!("`target` gives no answer");
        }
        Ok(Answer::Text(accepted))
    }

    fn choices(
        &self,
        texts: Option<&Choices>,
        gold: Option<&Template>,
        columns: &Map<String, Value>,
    ) -> Result<Answer> {
        let texts = match texts {
            None => choice_texts(column(columns, "choices")?)?,
            Some(Choices::List(template)) => choice_texts(&self.templates.render(template, columns)?)?,
            Some(Choices::Each(templates)) => {
                templates.iter().map(|template| self.text(template, columns)).collect::<Result<_>>()?
            }
        };
        if let Some(empty) = texts.iter().position(String::is_empty) {
            bail!("`choices`: choice {empty} is empty (the first choice is 0)");
        }
        let answer = match gold {
            None => column(columns, "answer")?.clone(),
            Some(template) => self.templates.render(template, columns)?,
        };
        let gold = field::gold(&answer, &texts).context("`answer`")?;
        Ok(Answer::Choices { texts, gold })
    }

    fn text(&self, template: &Template, columns: &Map<String, Value>) -> Result<String> {
        field::text(&self.templates.render(template, columns)?)
    }
}

impl AnswerForm {
    fn new(definition: &Definition, templates: &mut Templates) -> Result<AnswerForm> {
        if let Some(target) = &definition.target {
            let compiled = match target {
                OneOrMany::One(source) => vec![templates.value("target", source)?],
                OneOrMany::Many(sources) => {
                    each(sources, |(key, source)| templates.value(&format!("target[{key}]"), source))?
                }
            };
            return Ok(AnswerForm::Text(compiled));
        }
        if definition.choices.is_none() && definition.answer.is_none() {
            return Ok(AnswerForm::Plain);
        }
        let texts = match &definition.choices {
            None => None,
            Some(OneOrMany::One(source)) => Some(Choices::List(templates.value("choices", source)?)),
            // Fixed choices such as ["no", "yes"] are texts, not the names of columns.
            Some(OneOrMany::Many(sources)) => {
                Some(Choices::Each(each(sources, |(key, source)| templates.text(&format!("choices[{key}]"), source))?))
            }
        };
        let gold = match &definition.answer {
            None => None,
            Some(source) => Some(templates.value("answer", source)?),
        };
        Ok(AnswerForm::Choices { texts, gold })
    }
}

fn each(sources: &[String], compile: impl FnMut((usize, &String)) -> Result<Template>) -> Result<Vec<Template>> {
    sources.iter().enumerate().map(compile).collect()
}

/// What templates see: the row's keys, and `instruction`, which is empty where there is none.
fn columns(fields: &Map<String, Value>, instruction: Option<&str>) -> Result<Map<String, Value>> {
    let mut columns = fields.clone();
    match instruction {
        Some(_) if fields.contains_key("instruction") => {
            bail!("the row has an `instruction` of its own, and the task file gives one too")
        }
        Some(text) => {
            columns.insert("instruction".into(), text.into());
        }
        None => {
            columns.entry("instruction").or_insert_with(|| "".into());
        }
    }
    Ok(columns)
}

/// Each non-empty field of instruction and input, followed by one newline.
fn plain_prompt(columns: &Map<String, Value>) -> Result<String> {
    let instruction = field::text(column(columns, "instruction")?).context("`instruction`")?;
    let input = match columns.get("input") {
        Some(input) => field::text(input).context("`input`")?,
        // Rows of instruction and output alone are complete.
        None if !instruction.is_empty() => String::new(),
        None => return Err(missing(columns, "input")),
    };
    let fields = [instruction, input];
    let lines = fields.iter().filter(|text| !text.is_empty());
    Ok(lines.map(|text| format!("{text}\n")).collect())
}

fn plain_output(columns: &Map<String, Value>) -> Result<Vec<String>> {
    field::texts(column(columns, "output")?).context("`output`")
}

fn choice_texts(value: &Value) -> Result<Vec<String>> {
    match value {
        Value::Array(_) => field::texts(value).context("`choices`"),
        other => bail!("`choices`: expected a list of texts, found {}", field::kind(other)),
    }
}

fn column<'v>(columns: &'v Map<String, Value>, key: &str) -> Result<&'v Value> {
    columns.get(key).ok_or_else(|| missing(columns, key))
}

fn missing(columns: &Map<String, Value>, key: &str) -> anyhow::Error {
    let mut own = columns.clone();
    if own.get("instruction").is_some_and(|text| text == "") {
        own.shift_remove("instruction");
    }
    anyhow!(
        "no `{key}`; the row has {}. A plain row has input and output, input, choices and answer, \
         or instruction, input and output; other keys need a task TOML with `prompt` and `target`",
        keys(&own)
    )
}

/// One space where prompt and answer would else run together.
fn default_delimiter(prompt: &str) -> String {
    match prompt.chars().next_back() {
        Some(last) if !last.is_whitespace() => " ".into(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn row(toml: &str, fields: Value, instruction: Option<&str>) -> Result<Row> {
        let definition = Definition::parse(toml).unwrap().remove(0);
        Form::new(&definition)?.row(1, fields.as_object().unwrap(), instruction)
    }

    fn plain(fields: Value) -> Row {
        row("", fields, None).unwrap()
    }

    #[test]
    fn plain_rows_put_each_field_on_its_own_line() {
        let only_input = plain(json!({"input": "hot", "output": "cold"}));
        assert_eq!((only_input.prompt.as_str(), only_input.target()), ("hot\n", "cold"));
        assert_eq!(only_input.delimiter, "");
        let both = plain(json!({"instruction": "Invert.", "input": "hot", "output": "cold"}));
        assert_eq!(both.prompt, "Invert.\nhot\n");
        // The rows of llm_adapters have an empty input, and `answer` beside `output`.
        let empty = json!({"instruction": "Q?", "input": "", "output": "true", "answer": "t"});
        assert_eq!(plain(empty).prompt, "Q?\n");
    }

    #[test]
    fn an_output_may_be_a_list_of_accepted_answers() {
        let row = plain(json!({"input": "2", "output": ["two", 2]}));
        assert_eq!((row.target(), row.accepted()), ("two", &["two".into(), "2".into()][..]));
    }

    #[test]
    fn a_choice_is_right_by_index_or_by_text() {
        for answer in [json!(1), json!("no")] {
            let row = plain(json!({"input": "?", "choices": ["yes", "no"], "answer": answer}));
            assert_eq!(row.choices().unwrap().1, 1);
            assert_eq!((row.target(), row.accepted().len()), ("no", 1));
        }
    }

    #[test]
    fn templates_make_prompt_and_choices_as_lm_eval_does() {
        let toml = r#"
            prompt = "Question: {{ question }}\nAnswer:"
            choices = "choices.text"
            answer = "choices.label | index(answerKey)"
        "#;
        let arc = json!({"question": "Why?", "answerKey": "B",
            "choices": {"text": ["x", "y"], "label": ["A", "B"]}});
        let row = row(toml, arc, None).unwrap();
        assert_eq!(row.prompt, "Question: Why?\nAnswer:");
        assert_eq!((row.delimiter.as_str(), row.target()), (" ", "y"));
    }

    #[test]
    fn fixed_choices_are_texts() {
        let toml = "prompt = \"{{ q }}\\n\"\nchoices = [\"no\", \"yes\"]\nanswer = \"label\"";
        let row = row(toml, json!({"q": "?", "label": 1}), None).unwrap();
        assert_eq!((row.delimiter.as_str(), row.target()), ("", "yes"));
    }

    #[test]
    fn several_targets_are_accepted_once_each() {
        let toml = "target = [\"output\", \"others\"]";
        let row = row(toml, json!({"input": 1, "output": "b", "others": ["a", "b"]}), None);
        assert_eq!(row.unwrap().accepted(), ["b", "a"]);
    }

    #[test]
    fn an_instruction_stands_before_the_input_once() {
        let fields = json!({"input": "hot", "output": "cold"});
        assert_eq!(row("", fields, Some("Invert.")).unwrap().prompt, "Invert.\nhot\n");
        let own = json!({"instruction": "i", "input": "hot", "output": "cold"});
        assert!(row("", own, Some("Invert.")).unwrap_err().to_string().contains("of its own"));
    }

    #[test]
    fn slips_in_rows_are_named() {
        let message = |fields| format!("{:#}", row("", fields, None).unwrap_err());
        assert!(
            message(json!({"input": "a", "target": "b"})).starts_with("no `output`; the row has `input`, `target`.")
        );
        assert!(message(json!({"output": "b"})).starts_with("no `input`; the row has `output`."));
        let null = message(json!({"input": "a", "output": null}));
        assert_eq!(null, "`output`: expected a text or a number, found null");
        let choice = json!({"input": "a", "choices": ["x", ""], "answer": 0});
        assert!(message(choice).contains("choice 1 is empty"));
        let choice = json!({"input": "a", "choices": ["x", "y"], "answer": "z"});
        assert!(message(choice).starts_with("`answer`: \"z\" is neither"));
        let error = row("prompt = \"fixed\"", json!({}), None).unwrap_err();
        assert!(error.to_string().contains("names no column"));
    }
}
