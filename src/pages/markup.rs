//! Renders an HTML or SVG template.

use crate::output::text_table::number;
use anyhow::{Context as _, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};
use serde::Serialize;

/// Renders a template. Values are escaped; markup that this function returned goes in as it is.
///
/// Templates have one filter beside the built-in ones: `fixed(digits)` prints a number with that many decimals, and an
/// absent one as a dash.
///
/// # Errors
/// If the template has a syntax error or reads what `values` lacks.
pub fn render(source: &str, values: &impl Serialize) -> Result<Value> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build()?;
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(syntax);
    environment.add_filter("fixed", number);
    let text =
        environment.render_str(source, Value::from(Serde(values))).context("an HTML template cannot be rendered")?;
    Ok(Value::from_safe_string(text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn values_are_escaped_once() {
        let values = BTreeMap::from([("name", Value::from("<b>&\"'"))]);
        let inner = render("<i title=\"{{ name }}\">{{ name }}</i>", &values).unwrap();
        let escaped = "&lt;b&gt;&amp;&quot;&#x27;";
        assert_eq!(inner.to_string(), format!("<i title=\"{escaped}\">{escaped}</i>"));
        let outer = render("{{ inner }}", &BTreeMap::from([("inner", inner.clone())])).unwrap();
        assert_eq!(outer, inner);
    }

    #[test]
    fn absent_numbers_are_dashes() {
        let values = BTreeMap::from([("x", Some(0.12345)), ("y", None)]);
        assert_eq!(render("{{ x|fixed(3) }} {{ y|fixed(3) }}", &values).unwrap().to_string(), "0.123 –");
        assert!(render("{{ z }}", &values).is_err());
    }
}
