//! Filters whose result can be much longer than what they are given, with a limit: templates are untrusted input.

use minijinja::filters;
use minijinja::formatting::{FormatStyle, format as format_text};
use minijinja::value::{Kwargs, Rest, StringInput, Value, ValueOrKwargs};
use minijinja::{Error, ErrorKind, State};

/// The longest text that a filter or method returns, in bytes.
const TEXT_LIMIT: usize = 1 << 26;

/// The most digits of a width in a format, as in `%5d`.
const WIDTH_DIGITS: usize = 4;

/// An error for a text of `length` bytes, if it is too long; None is a length beyond all numbers.
pub(crate) fn bounded(length: Option<usize>) -> Result<(), Error> {
    let message = || format!("the text would be longer than {TEXT_LIMIT} bytes");
    let fits = length.is_some_and(|length| length <= TEXT_LIMIT);
    fits.then_some(()).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, message()))
}

/// `list | join(", ")`, as in Jinja.
pub(crate) fn join(list: Vec<Value>, between: Option<String>) -> Result<String, Error> {
    let (between, texts) = (between.unwrap_or_default(), list.iter().map(ToString::to_string).collect::<Vec<_>>());
    let length = texts.iter().try_fold(0usize, |sum, text| sum.checked_add(text.len()));
    bounded(between.len().checked_mul(texts.len()).zip(length).and_then(|(all, sum)| all.checked_add(sum)))?;
    Ok(texts.join(&between))
}

/// `text | replace("a", "b")`, or the first `count` of them.
pub(crate) fn replace(text: String, from: String, to: String, count: Option<i64>) -> Result<String, Error> {
    let count = count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
    let times = text.matches(&from).take(count).count();
    bounded(to.len().checked_mul(times).and_then(|added| added.checked_add(text.len())))?;
    Ok(text.replacen(&from, &to, count))
}

/// `text | indent(4)`, as in Jinja.
pub(crate) fn indent(
    state: &State,
    text: Value,
    width: Option<usize>,
    first: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let width = match width {
        None => kwargs.get::<Option<usize>>("width")?.unwrap_or(4),
        Some(width) => width,
    };
    let input = StringInput::new(state, &text)?;
    let lines = input.as_str().split('\n').count() + 1;
    bounded(width.checked_mul(lines).and_then(|added| added.checked_add(input.as_str().len())))?;
    filters::indent(input, Some(width), first, None, kwargs)
}

/// `"%s of %d" | format(a, b)`, as in Jinja.
pub(crate) fn format(text: String, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    refuse_wide(&text)?;
    format_text(FormatStyle::Printf, &text, &arguments.into_values())
}

/// Refuses a format that pads to a width of many digits, such as `%100000000d` and `{:100000000}`.
pub(crate) fn refuse_wide(format: &str) -> Result<(), Error> {
    if format.split('%').skip(1).any(is_wide_printf) || format.split('{').skip(1).any(is_wide_braces) {
        let message = format!("a width or precision has more than {WIDTH_DIGITS} digits: {format}");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(())
}

/// Whether what follows a `%` begins with a wide field: flags, width, a dot and the precision.
fn is_wide_printf(field: &str) -> bool {
    let spec = field.strip_prefix('(').and_then(|named| named.split_once(')')).map_or(field, |(_, spec)| spec);
    let end = spec.find(|c: char| !"#0- +.123456789".contains(c)).unwrap_or(spec.len());
    has_many_digits(&spec[..end])
}

/// Whether what follows a `{` begins with a wide field.
fn is_wide_braces(field: &str) -> bool {
    let field = field.split('}').next().unwrap_or_default();
    field.split_once(':').is_some_and(|(_, spec)| has_many_digits(spec))
}

fn has_many_digits(spec: &str) -> bool {
    spec.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.trim_start_matches('0').len() > WIDTH_DIGITS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::jinja::environment::environment;

    #[test]
    fn the_size_of_a_text_is_limited() {
        for source in [
            "{{ ('a' * 1000000) | replace('a', 'a' * 100000) | length }}",
            "{{ ('a' * 1000000).replace('a', 'a' * 100000) | length }}",
            "{{ range(100000) | join('a' * 1000000) | length }}",
            "{{ ('a' * 1000000).join(range(100000)) | length }}",
            "{{ 'a' * 3000000000 }}",
            "{{ 'a' | indent(3000000000) }}",
            "{{ 'a' | indent(width=3000000000) }}",
            "{{ '%3000000000d' | format(1) }}",
            "{{ '% -3000000000d' | format(1) }}",
            "{{ '%.3000000000f' | format(1.0) }}",
            "{{ '{:3000000000}'.format(1) }}",
            "{{ '{:>3000000000}'.format(1) }}",
            "{{ '{0:03000000000.3f}'.format(1) }}",
            "{{ 'a'.center(3000000000) }}",
            "{{ 'a'.zfill(3000000000) }}",
        ] {
            assert!(environment().render_str(source, ()).is_err(), "{source}");
        }
    }

    #[test]
    fn texts_of_ordinary_size_are_as_in_jinja() {
        // Each computed with Python's jinja2.
        for (source, expected) in [
            ("{{ [1, 'b'] | join(', ') | replace('b', 'c') }}", "1, c"),
            ("{{ 'aaa' | replace('a', 'b', 2) }}", "bba"),
            ("{{ 'a\nb' | indent }}", "a\n    b"),
            ("{{ 'a\nb' | indent(2, true) }}", "  a\n  b"),
            ("{{ '%s of %03d, 123456: %.2f' | format('a', 7, 1.5) }}", "a of 007, 123456: 1.50"),
            ("{{ '{} of {:>4}, {:.1f}'.format('a', 7, 2.26) }}", "a of    7, 2.3"),
        ] {
            assert_eq!(environment().render_str(source, ()).unwrap(), expected, "{source}");
        }
    }
}
