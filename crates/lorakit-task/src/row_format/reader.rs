//! How a task reads its rows: by a known row format, or by the templates of a task TOML.

use serde_json::{Map, Value};

use crate::column_names::ColumnNames;
use crate::error::{At, Result, TaskError};
use crate::json_value;
use crate::loading::task_config::{OneOrMany, TaskConfig};
use crate::row::{Answer, Row, RowKind};
use crate::row_format::columns::Columns;
use crate::row_format::format::KtoLabel;
use crate::row_format::known_formats::{expected_columns, format_of};
use crate::row_format::multiple_choice::{choice_texts, choices_answer};
use crate::row_format::template::{Template, TemplateSet, require_braces};
use crate::source::document::SourceRow;

/// LLaMA-Factory's column of labels of KTO, in rows of any format.
const KTO_TAG: &str = "kto_tag";

/// Reads the rows of one task.
pub(crate) struct RowReader {
    columns: ColumnNames,
    templates: TemplateSet,
    /// None: the prompt of the row's format.
    prompt: Option<Template>,
    answer: AnswerSource,
    delimiter: Option<String>,
}

/// Where the answer comes from.
enum AnswerSource {
    /// The row's format.
    Format,
    /// Templates that each give accepted answers.
    Text(Vec<Template>),
    /// Templates for the choices and the right one; None: the columns `choices` and `answer`.
    Choices { texts: Option<ChoiceTemplates>, gold: Option<Template> },
}

/// The templates of choices.
enum ChoiceTemplates {
    /// One that gives a list.
    List(Template),
    /// One for each choice.
    Each(Vec<Template>),
}

impl RowReader {
    /// Compiles a task's templates.
    pub fn new(config: &TaskConfig) -> Result<RowReader> {
        let mut templates = TemplateSet::new();
        let prompt = match &config.prompt {
            None => None,
            Some(source) => {
                require_braces("prompt", source)?;
                Some(templates.text("prompt", source)?)
            }
        };
        let answer = AnswerSource::new(config, &mut templates)?;
        let (columns, delimiter) = (config.columns.clone(), config.target_delimiter.clone());
        Ok(RowReader { columns, templates, prompt, answer, delimiter })
    }

    /// Which rows of a file are not to be learned: those whose label says so, unless other labels of the file say something
    /// else, such as a class. Templates read labels as they say.
    pub fn undesired(&self, rows: &[SourceRow<'_>]) -> Vec<bool> {
        let is_named = self.columns.as_map().contains_key("label");
        let label = |row: &SourceRow<'_>| {
            if self.has_templates()
                || !(is_named || ["label", KTO_TAG].iter().any(|name| row.fields.contains_key(*name)))
            {
                return None;
            }
            let columns = Columns::new(*row, &self.columns, None).ok()?;
            let named = || columns.get("label").filter(|_| is_named).and_then(KtoLabel::of);
            let tagged = columns.get(KTO_TAG).and_then(KtoLabel::of);
            tagged.or_else(named).or_else(|| format_of(&columns).kto_label(&columns))
        };
        let labels: Vec<Option<KtoLabel>> = rows.iter().map(label).collect();
        let is_known = !labels.contains(&Some(KtoLabel::Other));
        labels.into_iter().map(|label| is_known && label == Some(KtoLabel::Undesirable)).collect()
    }

    /// Reads one row. `number` counts from 1; `instruction` is the task's, not the row's.
    pub fn read(&self, number: usize, row: SourceRow<'_>, instruction: Option<&str>) -> Result<Row> {
        let columns = Columns::new(row, &self.columns, instruction)?;
        let (prompt, answer, kind) = self.parts(&columns).map_err(|error| match error {
            TaskError::MissingColumn { column, present, formats } => {
                TaskError::MissingColumn { column, present, formats: formats + &expected_columns() }
            }
            other => other,
        })?;
        let own = format_of(&columns).delimiter().filter(|_| !self.has_templates()).map(str::to_owned);
        let delimiter = self.delimiter.clone().or(own);
        Ok(Row { number, fields: row.fields.clone(), kind, prompt, delimiter, answer })
    }

    /// What of such rows is not used, as sentences.
    pub fn warnings(&self, fields: &Map<String, Value>) -> Vec<String> {
        let row = SourceRow { fields, written: None, null_padded: false, unreadable: None };
        match Columns::new(row, &self.columns, None) {
            Ok(columns) if !self.has_templates() => format_of(&columns).warnings(&columns),
            _ => Vec::new(),
        }
    }

    fn has_templates(&self) -> bool {
        self.prompt.is_some() || !matches!(self.answer, AnswerSource::Format)
    }

    fn parts(&self, columns: &Columns) -> Result<(String, Answer, RowKind)> {
        let format = format_of(columns);
        let prompt = match &self.prompt {
            None => format.prompt(columns)?,
            Some(template) => self.text(template, columns)?,
        };
        let answer = match &self.answer {
            AnswerSource::Format => format.answer(columns)?,
            AnswerSource::Text(templates) => self.accepted(templates, columns)?,
            AnswerSource::Choices { texts, gold } => self.choices(texts.as_ref(), gold.as_ref(), columns)?,
        };
        let kind = match &self.prompt {
            Some(_) => RowKind::Plain { instruction: String::new(), input: prompt.clone() },
            None => format.kind(columns)?,
        };
        if self.has_templates() && !matches!(kind, RowKind::Plain { .. }) {
            return Err(TaskError::Row(format!(
                "{} are read as they are: give a `prompt` in the task TOML too, or neither",
                format.columns()
            )));
        }
        Ok((prompt, answer, kind))
    }

    fn accepted(&self, templates: &[Template], columns: &Columns) -> Result<Answer> {
        let mut accepted: Vec<String> = Vec::new();
        for template in templates {
            let value = self.templates.render(template, columns)?;
            for text in json_value::texts(&value).at(|| "`target`")? {
                if !accepted.contains(&text) {
                    accepted.push(text);
                }
            }
        }
        Ok(Answer::Text(accepted))
    }

    fn choices(&self, texts: Option<&ChoiceTemplates>, gold: Option<&Template>, columns: &Columns) -> Result<Answer> {
        let texts = match texts {
            None => choice_texts(columns.require("choices")?)?,
            Some(ChoiceTemplates::List(template)) => choice_texts(&self.templates.render(template, columns)?)?,
            Some(ChoiceTemplates::Each(templates)) => {
                templates.iter().map(|template| self.text(template, columns)).collect::<Result<_>>()?
            }
        };
        match gold {
            None => choices_answer(texts, columns.require("answer")?),
            Some(template) => choices_answer(texts, &self.templates.render(template, columns)?),
        }
    }

    fn text(&self, template: &Template, columns: &Columns) -> Result<String> {
        json_value::text(&self.templates.render(template, columns)?)
    }
}

impl AnswerSource {
    fn new(config: &TaskConfig, templates: &mut TemplateSet) -> Result<AnswerSource> {
        if let Some(target) = &config.target {
            let compiled = match target {
                OneOrMany::One(source) => vec![templates.value("target", source)?],
                OneOrMany::Many(sources) => {
                    compile_each(sources, |(i, source)| templates.value(&format!("target[{i}]"), source))?
                }
            };
            if compiled.is_empty() {
                return Err(TaskError::Config("`target` is an empty list; expected at least one answer".to_string()));
            }
            return Ok(AnswerSource::Text(compiled));
        }
        if config.choices.is_none() && config.answer.is_none() {
            return Ok(AnswerSource::Format);
        }
        let texts = match &config.choices {
            None => None,
            Some(OneOrMany::One(source)) => Some(ChoiceTemplates::List(templates.value("choices", source)?)),
            // Fixed choices such as ["no", "yes"] are texts, not the names of columns.
            Some(OneOrMany::Many(sources)) => Some(ChoiceTemplates::Each(compile_each(sources, |(i, source)| {
                templates.text(&format!("choices[{i}]"), source)
            })?)),
        };
        let gold = match &config.answer {
            None => None,
            Some(source) => Some(templates.value("answer", source)?),
        };
        Ok(AnswerSource::Choices { texts, gold })
    }
}

fn compile_each(
    sources: &[String],
    compile: impl FnMut((usize, &String)) -> Result<Template>,
) -> Result<Vec<Template>> {
    sources.iter().enumerate().map(compile).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn row(toml: &str, fields: Value, instruction: Option<&str>) -> Result<Row> {
        let config = TaskConfig::parse(toml).unwrap().remove(0);
        let row =
            SourceRow { fields: fields.as_object().unwrap(), written: None, null_padded: false, unreadable: None };
        RowReader::new(&config)?.read(1, row, instruction)
    }

    fn delimiter(row: &Row) -> &str {
        row.delimiter_before(row.target())
    }

    fn without_config(fields: Value) -> Row {
        row("", fields, None).unwrap()
    }

    #[test]
    fn rows_of_known_formats_need_no_templates() {
        let text = without_config(json!({"input": "hot", "output": ["cold", "cool"]}));
        assert_eq!((text.prompt.as_str(), delimiter(&text), text.target()), ("hot\n", "", "cold"));
        assert_eq!(text.accepted(), ["cold", "cool"]);
        let choices = without_config(json!({"input": "?", "choices": ["yes", "no"], "answer": "no"}));
        assert_eq!((choices.choices().unwrap().1, choices.target(), choices.accepted().len()), (1, "no", 1));
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
        assert_eq!((delimiter(&row), row.target()), (" ", "y"));
    }

    #[test]
    fn fixed_choices_are_texts() {
        let toml = "prompt = \"{{ q }}\\n\"\nchoices = [\"no\", \"yes\"]\nanswer = \"label\"";
        let row = row(toml, json!({"q": "?", "label": 1}), None).unwrap();
        assert_eq!((delimiter(&row), row.target()), ("", "yes"));
    }

    #[test]
    fn a_boolean_is_an_index_where_the_task_says_so() {
        let toml = "prompt = \"{{ q }}\"\nchoices = [\"no\", \"yes\"]\nanswer = \"label | int\"";
        for (label, expected) in [(false, "no"), (true, "yes")] {
            assert_eq!(row(toml, json!({"q": "?", "label": label}), None).unwrap().target(), expected);
        }
    }

    #[test]
    fn white_space_of_either_side_is_the_delimiter() {
        let before = |toml: &str, prompt: &str, target: &str| {
            let toml = format!("prompt = \"{{{{ p }}}}\"\ntarget = \"t\"\n{toml}");
            delimiter(&row(&toml, json!({"p": prompt, "t": target}), None).unwrap()).to_owned()
        };
        for (prompt, target, expected) in [
            ("a:", "b", " "),
            ("a:", " b", ""),
            ("a:", "\n\tb", ""),
            ("a:", "\u{3000}b", ""),
            ("a: ", "b", ""),
            ("a:\n", " b", ""),
            ("", "b", ""),
            ("a:", "", " "),
        ] {
            assert_eq!(before("", prompt, target), expected, "{prompt:?} {target:?}");
            assert_eq!(before("target_delimiter = \" \"", prompt, target), " ", "{prompt:?} {target:?}");
        }
        let toml = "prompt = \"{{ p }}\"\nchoices = \"c\"\nanswer = \"0\"";
        let choices = row(toml, json!({"p": "a:", "c": ["b", " b"]}), None).unwrap();
        assert_eq!(["b", " b"].map(|choice| choices.delimiter_before(choice)), [" ", ""]);
    }

    #[test]
    fn repeated_targets_are_accepted_once() {
        let toml = "target = [\"output\", \"others\"]";
        let row = row(toml, json!({"input": 1, "output": "b", "others": ["a", "b"]}), None);
        assert_eq!(row.unwrap().accepted(), ["b", "a"]);
    }

    #[test]
    fn the_instruction_precedes_the_input_and_is_given_once() {
        let fields = json!({"input": "hot", "output": "cold"});
        assert_eq!(row("", fields, Some("Invert.")).unwrap().prompt, "Invert.\nhot\n");
        let own = json!({"instruction": "i", "input": "hot", "output": "cold"});
        assert!(row("", own, Some("Invert.")).unwrap_err().to_string().contains("its own `instruction`"));
    }

    #[test]
    fn errors_name_the_column() {
        let message = |fields| format!("{:#}", anyhow::Error::from(row("", fields, None).unwrap_err()));
        assert!(
            message(json!({"input": "a", "target": "b"}))
                .starts_with("the row has no `output`; it has `input`, `target`.")
        );
        assert!(message(json!({"output": "b"})).starts_with("the row has no `input`; it has `output`."));
        let null = message(json!({"input": "a", "output": null}));
        assert_eq!(null, "`output`: expected a text or a number, found null");
        let choice = json!({"input": "a", "choices": ["x", ""], "answer": 0});
        assert!(message(choice).contains("choice 1 is empty"));
        let choice = json!({"input": "a", "choices": ["x", "y"], "answer": "z"});
        assert!(message(choice).starts_with("`answer`: \"z\" is neither"));
        let error = row("prompt = \"fixed\"", json!({}), None).unwrap_err();
        assert!(error.to_string().contains("names no column"));
        assert!(row("target = []", json!({}), None).unwrap_err().to_string().contains("empty list"));
    }
}
