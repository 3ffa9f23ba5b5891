//! Python's methods of strings, lists and dicts, which templates written for Jinja in Python call.
//!
//! minijinja-contrib has most of them. Here are those that it lacks, and those whose results need a size limit.

use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use crate::jinja::text_limit::{bounded, refuse_wide, replace};

/// Calls a method that minijinja itself does not know.
pub(crate) fn call(state: &mut State, value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let arguments = positional(method, arguments)?;
    let own = match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), method, &arguments)?,
        ValueKind::Seq | ValueKind::Iterable => list_method(value, method, &arguments)?,
        _ => None,
    };
    own.map_or_else(|| pycompat::unknown_method_callback(state, value, method, &arguments), Ok)
}

/// The arguments by position; Python allows some by name.
fn positional(method: &str, arguments: &[Value]) -> Result<Vec<Value>, Error> {
    let Some((Ok(named), rest)) = arguments.split_last().map(|(last, rest)| (Kwargs::try_from(last.clone()), rest))
    else {
        return Ok(arguments.to_vec());
    };
    let names: &[&str] = match method {
        "split" | "rsplit" => &["sep", "maxsplit"],
        "splitlines" => &["keepends"],
        "replace" => &["old", "new", "count"],
        // Python's own error for the others: a dict's `get` takes no keyword arguments.
        _ => &[],
    };
    let mut all = rest.to_vec();
    for name in names.iter().skip(rest.len()) {
        all.push(named.get::<Option<Value>>(name)?.unwrap_or_default());
    }
    named.assert_all_used()?;
    Ok(all)
}

/// `labels | index("B")` and `labels.index("B")`: the position of a value in a list.
pub(crate) fn position(list: &Value, value: &Value) -> Result<usize, Error> {
    let found = list.try_iter()?.position(|item| item == *value);
    found.ok_or_else(|| invalid(format!("{value} is not in the list")))
}

fn list_method(list: &Value, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "index" => {
            let (value,): (&Value,) = from_args(arguments)?;
            position(list, value)?.into()
        }
        "copy" => {
            let () = from_args(arguments)?;
            list.clone()
        }
        _ => return Ok(None),
    }))
}

fn string_method(text: &str, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "replace" => {
            let (from, to, count): (String, String, Option<i64>) = from_args(arguments)?;
            replace(text.to_string(), from, to, count)?.into()
        }
        "join" => {
            let (list,): (&Value,) = from_args(arguments)?;
            join(text, list)?.into()
        }
        "format" => {
            refuse_wide(text)?;
            return Ok(None);
        }
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(arguments)?;
            let found = if method == "index" { text.find(part) } else { text.rfind(part) };
            let at = found.ok_or_else(|| invalid(format!("`{part}` is not in the text")))?;
            text[..at].chars().count().into()
        }
        "removeprefix" | "removesuffix" => {
            let (part,): (&str,) = from_args(arguments)?;
            let rest = if method == "removeprefix" { text.strip_prefix(part) } else { text.strip_suffix(part) };
            rest.unwrap_or(text).into()
        }
        "partition" | "rpartition" => partition(text, method, arguments)?,
        "split" | "rsplit" => return split(text, method, arguments),
        "center" | "ljust" | "rjust" | "zfill" => padded(text, method, arguments)?.into(),
        "title" => {
            let () = from_args(arguments)?;
            title(text).into()
        }
        "swapcase" => {
            let () = from_args(arguments)?;
            text.chars().flat_map(swapped).collect::<String>().into()
        }
        _ => return Ok(None),
    }))
}

fn join(between: &str, list: &Value) -> Result<String, Error> {
    let mut text = String::new();
    for (i, item) in list.try_iter()?.enumerate() {
        let item = item.to_string();
        bounded(text.len().checked_add(between.len()).and_then(|length| length.checked_add(item.len())))?;
        if i > 0 {
            text.push_str(between);
        }
        text.push_str(&item);
    }
    Ok(text)
}

fn partition(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(arguments)?;
    let parts = match method {
        "partition" => text.split_once(separator).map_or([text, "", ""], |(a, b)| [a, separator, b]),
        _ => text.rsplit_once(separator).map_or(["", "", text], |(a, b)| [a, separator, b]),
    };
    Ok(Tuple::from(parts.map(Value::from)).into())
}

/// None: the `split` of minijinja-contrib does it.
fn split(text: &str, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    let (separator, most): (Option<&str>, Option<i64>) = from_args(arguments)?;
    if separator.is_some_and(str::is_empty) {
        return Err(invalid("empty separator".to_string()));
    }
    let most = most.and_then(|most| usize::try_from(most).ok());
    let (Some(most), "rsplit") = (most, method) else {
        // Without a limit both directions give the same parts.
        let parts: Option<Vec<&str>> = match (separator, most) {
            (Some(separator), None) => Some(text.split(separator).collect()),
            (None, None) => Some(text.split_whitespace().collect()),
            _ => None,
        };
        return Ok(parts.map(Value::from_iter));
    };
    let mut parts: Vec<&str> = Vec::new();
    let mut rest = text;
    while parts.len() < most {
        let split = match separator {
            Some(separator) => rest.rsplit_once(separator),
            None => rest.trim_end().rsplit_once(char::is_whitespace),
        };
        let Some((before, last)) = split else { break };
        parts.push(last);
        rest = before;
    }
    let rest = if separator.is_none() { rest.trim_end() } else { rest };
    if separator.is_some() || !rest.trim().is_empty() {
        parts.push(rest);
    }
    parts.reverse();
    Ok(Some(Value::from_iter(parts)))
}

fn padded(text: &str, method: &str, arguments: &[Value]) -> Result<String, Error> {
    let (width, fill): (usize, Option<char>) = from_args(arguments)?;
    bounded(width.checked_mul(4))?;
    let missing = width.saturating_sub(text.chars().count());
    let fill = |count: usize| String::from(fill.unwrap_or(' ')).repeat(count);
    Ok(match method {
        "ljust" => format!("{text}{}", fill(missing)),
        "rjust" => format!("{}{text}", fill(missing)),
        "zfill" => {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            format!("{sign}{}{digits}", "0".repeat(missing))
        }
        _ => {
            // Where the padding is odd, Python puts the larger part on the left if the width is odd too.
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", fill(left), fill(missing - left))
        }
    })
}

/// Python's `title`: a letter after anything but a letter is a capital.
fn title(text: &str) -> String {
    let mut titled = String::new();
    let mut inside = false;
    for letter in text.chars() {
        if inside {
            titled.extend(letter.to_lowercase());
        } else {
            titled.extend(letter.to_uppercase());
        }
        inside = letter.is_alphabetic();
    }
    titled
}

fn swapped(letter: char) -> Vec<char> {
    if letter.is_uppercase() { letter.to_lowercase().collect() } else { letter.to_uppercase().collect() }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::jinja::environment::environment;

    fn render(expression: &str) -> Result<String, minijinja::Error> {
        let columns = serde_json::json!({"s": " a b ", "l": ["A", "B", "B"], "k": "B", "d": {"x": 1, "y": None::<u8>}});
        environment()
            .render_str(&format!("{{{{ {expression} }}}}"), minijinja::Value::from(minijinja::value::Serde(columns)))
    }

    #[test]
    fn methods_give_what_python_gives() {
        // Each value printed by jinja2 3.1 in Python.
        for (expression, expected) in METHODS {
            assert_eq!(render(expression).unwrap(), expected, "{expression}");
        }
    }

    #[test]
    fn errors_name_what_is_missing() {
        let message = |expression| render(expression).unwrap_err().to_string();
        assert!(message("l.index('C')").contains("C is not in the list"));
        assert!(message("s.index('x')").contains("`x` is not in the text"));
        assert!(message("s.shout()").contains("no method named shout"));
        assert!(message("s.split('')").contains("empty separator"));
        assert!(message("s.split(by=',')").contains("by"));
    }

    const METHODS: [(&str, &str); 44] = [
        ("s.strip()", "a b"),
        ("s.split()[0]", "a"),
        ("s.replace('a','c')", " c b "),
        ("s.replace(' ','',1)", "a b "),
        ("l.index(k)", "1"),
        ("l.count(k)", "2"),
        ("s.lstrip() ~ '|'", "a b |"),
        ("s.rstrip() ~ '|'", " a b|"),
        ("'xxaxx'.strip('x')", "a"),
        ("'a,b,c'.split(',')[-1]", "c"),
        ("'a,b,c'.split(',', 1)", "['a', 'b,c']"),
        ("'a,b,c'.split(sep=',', maxsplit=1)", "['a', 'b,c']"),
        ("'a,b,c'.rsplit(',', 1)", "['a,b', 'c']"),
        ("' a  b  c '.rsplit(None, 1)", "[' a  b', 'c']"),
        ("' a  b  c '.split(maxsplit=1)", "['a', 'b  c ']"),
        ("', '.join(l)", "A, B, B"),
        ("'Ab'.upper() ~ 'Ab'.lower() ~ 'Ab'.swapcase()", "ABabaB"),
        (r#""they're big-time".title()"#, "They'Re Big-Time"),
        ("'hELLO wORLD'.capitalize()", "Hello world"),
        ("'abcabc'.find('c') ~ ' ' ~ 'abcabc'.rfind('c') ~ ' ' ~ 'abc'.find('x')", "2 5 -1"),
        ("'abcabc'.index('b') ~ ' ' ~ 'abcabc'.rindex('b')", "1 4"),
        ("'abcabc'.count('bc')", "2"),
        ("'abc'.startswith('ab') ~ 'abc'.endswith(('x', 'bc'))", "TrueTrue"),
        ("'abc'.removeprefix('ab') ~ 'abc'.removesuffix('bc')", "ca"),
        ("'a=b=c'.partition('=')", "('a', '=', 'b=c')"),
        ("'a=b=c'.rpartition('=')", "('a=b', '=', 'c')"),
        ("'a\\nb'.splitlines()", "['a', 'b']"),
        ("'{} is {}'.format('a', 2)", "a is 2"),
        ("'{0}{0}'.format('a')", "aa"),
        ("'ab'.center(5, '*') ~ 'abc'.center(6, '*') ~ 'ab'.ljust(3) ~ 'ab'.rjust(3)", "**ab**abc**ab  ab"),
        ("'-7'.zfill(4)", "-007"),
        ("'12'.isdigit() ~ 'ab'.isalpha() ~ 'a1'.isalnum() ~ ' '.isspace()", "TrueTrueTrueTrue"),
        ("d.items() | list", "[('x', 1), ('y', None)]"),
        ("d.keys() | list", "['x', 'y']"),
        ("d.get('x') ~ d.get('z', 'none') ~ d.get('z')", "1noneNone"),
        ("d.values() | list", "[1, None]"),
        ("[1, 2.5, none, true, 'a']", "[1, 2.5, None, True, 'a']"),
        ("(s.strip().split(' ') | map('upper') | list)[0]", "A"),
        ("s[1:] ~ s[::-1] ~ l[-2:]", "a b  b a ['B', 'B']"),
        ("l.copy() == l", "True"),
        ("7 // 2 ~ ' ' ~ 7 / 2 ~ ' ' ~ 2 ** 3 ~ ' ' ~ -7 // 2 ~ ' ' ~ -7 % 3", "3 3.5 8 -4 2"),
        ("'a' in s", "True"),
        ("l | length ~ (l | unique | list) ~ (l | first) ~ (l | last)", "3['A', 'B']AB"),
        (r#""it's" ~ ['it\'s']"#, "it's[\"it's\"]"),
    ];
}
