//! Jinja templates and expressions over the columns of a row.

use std::collections::BTreeSet;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde_json::Value;

use crate::error::{At, Result, TaskError};
use crate::jinja::environment::environment;
use crate::row_format::columns::Columns;

/// The templates of one task.
pub(crate) struct TemplateSet {
    environment: Environment<'static>,
}

/// One compiled template, named after its key in the task file.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    key: String,
    /// An expression, which gives a value; None for a template with braces, which gives text.
    expression: Option<String>,
}

impl TemplateSet {
    /// An empty set. A column that a row lacks is an error, and trailing newlines are kept, both as in
    /// lm-evaluation-harness.
    pub fn new() -> TemplateSet {
        let mut environment = environment();
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        environment.set_syntax(syntax.unwrap_or_default());
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        TemplateSet { environment }
    }

    /// Compiles a text that contains `{{ column }}`.
    pub fn text(&mut self, key: &str, source: &str) -> Result<Template> {
        let added = self.environment.add_template_owned(key.to_string(), source.to_string());
        added.map_err(|error| not_compiled(key, "a Jinja template", error))?;
        Ok(Template { key: key.into(), expression: None })
    }

    /// Compiles a text with braces, or else a Jinja expression: usually the name of a column, whose value keeps its kind
    /// (a list of answers stays a list).
    pub fn value(&mut self, key: &str, source: &str) -> Result<Template> {
        if source.contains("{{") || source.contains("{%") {
            return self.text(key, source);
        }
        if source.trim().is_empty() {
            return Err(TaskError::Config(format!("`{key}` is empty; expected a column or an expression")));
        }
        let compiled = self.environment.compile_expression(source);
        let expected = || format!("a column or a Jinja expression: {source}");
        compiled.map_err(|error| not_compiled(key, expected(), error))?;
        Ok(Template { key: key.into(), expression: Some(source.into()) })
    }

    /// Renders a template over the columns of a row.
    pub fn render(&self, template: &Template, columns: &Columns) -> Result<Value> {
        let result = match &template.expression {
            None => self.render_text(template, columns),
            Some(source) => self.evaluate(source, columns),
        };
        result.at(|| format!("`{}`", template.key))
    }

    fn render_text(&self, template: &Template, columns: &Columns) -> Result<Value> {
        let compiled =
            self.environment.get_template(&template.key).map_err(|error| TaskError::Render(error.to_string()))?;
        let rendered = compiled.render(minijinja::Value::from(Serde(columns.as_map())));
        rendered.map(Value::String).map_err(|error| self.explain(error, compiled.undeclared_variables(false), columns))
    }

    fn evaluate(&self, source: &str, columns: &Columns) -> Result<Value> {
        // Jinja's numbers are Python's: 2.50 is 2.5. A value that is only looked up is as it is written in the file.
        if let Some(value) = columns.written_at(source) {
            return Ok(value.clone());
        }
        let compiled =
            self.environment.compile_expression(source).map_err(|error| TaskError::Render(error.to_string()))?;
        let names = || compiled.undeclared_variables(false);
        let value = compiled
            .eval(minijinja::Value::from(Serde(columns.as_map())))
            .map_err(|error| self.explain(error, names(), columns))?;
        if value.is_undefined() {
            let error = minijinja::Error::from(minijinja::ErrorKind::UndefinedError);
            return Err(self.explain(error, names(), columns));
        }
        serde_json::to_value(&value).map_err(|error| TaskError::Render(error.to_string()))
    }

    /// Adds which column is missing, which minijinja's message does not say.
    fn explain(
        &self,
        error: minijinja::Error,
        names: impl IntoIterator<Item = String>,
        columns: &Columns,
    ) -> TaskError {
        let globals: BTreeSet<&str> = self.environment.globals().map(|(name, _)| name).collect();
        let absent = |name: &String| columns.get(name).is_none() && !globals.contains(name.as_str());
        let missing: BTreeSet<String> = names.into_iter().filter(absent).collect();
        if error.kind() != minijinja::ErrorKind::UndefinedError {
            return TaskError::Render(error.to_string());
        }
        if missing.is_empty() {
            return TaskError::Render(format!("{error}; the row has the columns {}", columns.present()));
        }
        let missing: Vec<String> = missing.iter().map(|name| format!("`{name}`")).collect();
        TaskError::Render(format!("no column {}; the row has the columns {}", missing.join(", "), columns.present()))
    }
}

fn not_compiled(key: &str, expected: impl Into<String>, error: minijinja::Error) -> TaskError {
    TaskError::Template { key: key.to_string(), expected: expected.into(), source: Box::new(error) }
}

/// Refuses a text that uses no column: every row would have the same prompt.
pub(crate) fn require_braces(key: &str, source: &str) -> Result<()> {
    if source.contains("{{") || source.contains("{%") {
        return Ok(());
    }
    Err(TaskError::Config(format!(
        "`{key}` names no column; write for instance \"{{{{ input }}}}\" where the column belongs"
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn render(source: &str, columns: Value) -> Result<Value> {
        let mut templates = TemplateSet::new();
        let template = templates.value("prompt", source)?;
        templates.render(&template, &Columns::of(&columns))
    }

    fn chain(error: TaskError) -> String {
        format!("{:#}", anyhow::Error::from(error))
    }

    #[test]
    fn trailing_newlines_are_kept_and_nothing_is_escaped() {
        let text = render("{{ q }}?\n", json!({"q": "<a & b>"})).unwrap();
        assert_eq!(text, "<a & b>?\n");
    }

    #[test]
    fn an_expression_keeps_the_kind_of_its_value() {
        let row = json!({"a": ["x", "y"], "key": "y", "n": {"deep": 3}});
        assert_eq!(render("a", row.clone()).unwrap(), json!(["x", "y"]));
        assert_eq!(render("n.deep", row.clone()).unwrap(), json!(3));
        assert_eq!(render("a | index(key)", row.clone()).unwrap(), json!(1));
        assert_eq!(render("a | reject('eq', key) | list", row).unwrap(), json!(["x"]));
        let cut = "t | regex_replace('\\\\[.*?\\\\] ?', '')";
        assert_eq!(render(cut, json!({"t": "[one] two"})).unwrap(), json!("two"));
    }

    #[test]
    fn errors_name_the_missing_column_and_the_columns_of_the_row() {
        for source in ["{{ qustion }}", "qustion", "{% if qustion %}x{% endif %}"] {
            let error = render(source, json!({"question": 1, "answer": 2})).unwrap_err();
            let message = chain(error);
            let expected = "`prompt`: no column `qustion`; the row has the columns `question`, `answer`";
            assert_eq!(message, expected, "{source}");
        }
        let nested = render("a.b", json!({"a": {}})).unwrap_err();
        assert!(chain(nested).contains("the columns `a`"));
    }

    #[test]
    fn the_steps_of_a_template_are_limited() {
        let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        let error = render(loops, json!({})).unwrap_err();
        let message = chain(error);
        assert!(message.contains("fuel"), "{message}");
    }

    #[test]
    fn a_template_that_does_not_parse_is_refused() {
        let error = TemplateSet::new().value("target", "{{ a").unwrap_err();
        assert!(chain(error).starts_with("`target` is not a Jinja template"));
        let error = TemplateSet::new().value("target", " ").unwrap_err();
        assert_eq!(chain(error), "`target` is empty; expected a column or an expression");
    }
}
