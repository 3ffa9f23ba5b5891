//! `{% generation %}` blocks, by which a chat template says what a model writes.

use std::ops::Range;

use fancy_regex::Regex;

/// Stands in rendered text where a block begins: a noncharacter, which no text contains.
const BEGIN: char = '\u{fdd0}';
/// Stands where it ends.
const END: char = '\u{fdd1}';

/// A template whose `{% generation %}` blocks are marks in its output; None if it has no blocks.
///
/// Each tag becomes two `if` tags with the mark in between. The first keeps what the tag does to the white space before
/// it, the second what it does to that after it.
pub(crate) fn with_marks(template: &str) -> Option<String> {
    let tag = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok()?;
    let replaced = tag.replace_all(template, |tag: &fancy_regex::Captures| {
        let part = |i: usize| tag.get(i).map_or("", |part| part.as_str());
        let mark = if part(2).is_empty() { BEGIN } else { END };
        format!("{{%{} if true %}}{mark}{{% endif {}%}}", part(1), part(3))
    });
    (replaced != template).then(|| replaced.into_owned())
}

/// Takes the marks out of a rendered text: what is left, and the range of each block in it.
pub(crate) fn take_marks(marked: &str) -> (String, Vec<Range<usize>>) {
    let (mut text, mut blocks, mut open) = (String::with_capacity(marked.len()), Vec::new(), None);
    for letter in marked.chars() {
        match letter {
            BEGIN => open = Some(text.len()),
            END => blocks.extend(open.take().map(|start| start..text.len())),
            other => text.push(other),
        }
    }
    (text, blocks)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_template_without_blocks_has_no_marks() {
        assert_eq!(with_marks("{{ generation }} {% if generation %}{% endif %}"), None);
    }

    #[test]
    fn tags_keep_what_they_do_to_white_space() {
        let marked = with_marks("a {%- generation %} b{% endgeneration -%} c").unwrap();
        let expected = "a {%- if true %}\u{fdd0}{% endif %} b{% if true %}\u{fdd1}{% endif -%} c";
        assert_eq!(marked, expected);
        assert_eq!(take_marks("a\u{fdd0}b é\u{fdd1} c\u{fdd0}d\u{fdd1}"), ("ab é cd".into(), vec![1..5, 7..8]));
    }
}
