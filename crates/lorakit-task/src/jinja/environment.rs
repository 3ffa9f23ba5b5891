//! The Jinja environment that task templates and chat templates share.

use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value, filters};

use crate::jinja::python_json::tojson;
use crate::jinja::python_methods;
use crate::jinja::text_limit;
use crate::python_regex::PythonRegex;

/// How many steps one rendering may take. Templates are untrusted input; the longest ordinary prompt takes a few thousand
/// steps.
const FUEL: u64 = 1_000_000;

/// An environment without templates: Jinja's filters with size limits, `index`, `regex_replace` and `tojson`; its tests of
/// kinds; the functions `raise_exception` and `strftime_now` of transformers; Python's methods of strings, lists and dicts.
/// Nothing is escaped.
///
/// White space, and what an undefined name means, differ between lm-evaluation-harness and transformers: the caller sets
/// them.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(python_methods::call);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("index", python_methods::position);
    environment.add_filter("regex_replace", regex_replace);
    environment.add_filter("tojson", tojson);
    // minijinja has these too, but iterates over none, and gives undefined no length.
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    // These replace minijinja's own filters, whose results have no size limit.
    environment.remove_filter("indent");
    environment.add_filter("format", text_limit::format);
    environment.add_filter("indent", text_limit::indent);
    environment.add_filter("join", text_limit::join);
    environment.add_filter("replace", text_limit::replace);
    environment
}

/// `value is iterable`: none is not.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// `value is sequence`: texts and mappings are too, as what has a length and items.
fn is_sequence(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Undefined | ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Bytes => true,
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    }
}

/// `value | length`: of what is undefined 0, unless that is an error everywhere.
fn length(state: &State, value: &Value) -> Result<usize, Error> {
    let is_strict = state.undefined_behavior() == UndefinedBehavior::Strict;
    if value.is_undefined() && !is_strict { Ok(0) } else { filters::length(value) }
}

/// `raise_exception("...")`: how a chat template refuses a conversation. The error's detail is the message.
fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `strftime_now("%d %b %Y")`: the local date and time.
fn strftime_now(format: &str) -> Result<String, Error> {
    use chrono::format::{Item, StrftimeItems};
    // Formatting an unknown directive panics, so it is refused first.
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    if items.contains(&Item::Error) {
        let message = format!("`{format}` is not a date format");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(chrono::Local::now().format_with_items(items.into_iter()).to_string())
}

/// `text | regex_replace("\\[.*?\\]", "")`, the one filter that lm-evaluation-harness adds.
fn regex_replace(text: String, pattern: String, replacement: String) -> Result<String, Error> {
    let replaced = PythonRegex::new(&pattern).and_then(|regex| regex.replace_all(&text, &replacement));
    replaced.map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use minijinja::context;

    fn render(source: &str) -> Result<String, Error> {
        environment().render_str(source, context! { text => "a b", list => ["x", "y"] })
    }

    #[test]
    fn a_template_can_refuse_its_input() {
        let error = render("{{ raise_exception('Roles must alternate!') }}").unwrap_err();
        assert_eq!(error.detail(), Some("Roles must alternate!"));
        assert_eq!(render("{% if false %}{{ raise_exception('no') }}{% endif %}yes").unwrap(), "yes");
    }

    #[test]
    fn the_date_is_formatted_and_an_unknown_directive_is_refused() {
        let year = render("{{ strftime_now('%d %b %Y') }}").unwrap();
        assert!(year.len() == 11 && year[7..].parse::<u32>().is_ok_and(|year| year > 2020), "{year}");
        assert!(render("{{ strftime_now('%!') }}").is_err());
    }

    #[test]
    fn kinds_and_lengths_are_those_of_jinja() {
        // Each value printed by jinja2 3.1 in Python; `x` is undefined.
        let values = ["none", "x", "1", "1.5", "true", "'ab'", "''", "[1]", "(1,)", "{'a': 1}", "range(3)"];
        for (test, expected) in [
            ("iterable", [false, true, false, false, false, true, true, true, true, true, true]),
            ("sequence", [false, true, false, false, false, true, true, true, true, true, true]),
            ("mapping", [false, false, false, false, false, false, false, false, false, true, false]),
            ("string", [false, false, false, false, false, true, true, false, false, false, false]),
            ("number", [false, false, true, true, true, false, false, false, false, false, false]),
            ("integer", [false, false, true, false, false, false, false, false, false, false, false]),
            ("boolean", [false, false, false, false, true, false, false, false, false, false, false]),
        ] {
            let found = values.map(|value| render(&format!("{{{{ {value} is {test} }}}}")).unwrap() == "True");
            assert_eq!(found, expected, "{test}");
        }
        assert_eq!(
            render("{{ x | length }} {{ x | count }} {{ text | length }} {{ {} | length }}").unwrap(),
            "0 0 3 0"
        );
        assert!(render("{{ none | length }}").is_err() && render("{{ 1 | length }}").is_err());
        let mut strict = environment();
        strict.set_undefined_behavior(UndefinedBehavior::Strict);
        assert!(strict.render_str("{{ x | length }}", ()).is_err());
    }

    #[test]
    fn a_pattern_is_replaced() {
        assert_eq!(render("{{ '[one] two' | regex_replace('\\\\[.*?\\\\] ?', '') }}").unwrap(), "two");
        assert!(render("{{ text | regex_replace('(', '') }}").is_err());
    }
}
