//! Labels: texts that fit into a margin or a line, of characters that every format allows. Their widths are counted in
//! columns, of which a character of East Asian scripts takes two.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns of the longest label.
const LONGEST: usize = 32;

/// Columns that are kept of a longer label's end, where names of a series differ.
const END: usize = 11;

/// The columns of the widest text.
pub fn widest<'t>(texts: impl IntoIterator<Item = &'t String>) -> usize {
    texts.into_iter().map(|text| text.width()).max().unwrap_or(0)
}

/// A name cut in the middle to a width that fits a margin.
pub fn shortened(name: &str) -> String {
    if name.width() <= LONGEST {
        return name.to_owned();
    }
    let start: String = fitting(name.chars(), LONGEST - END - 1).collect();
    let end: Vec<char> = fitting(name.chars().rev(), END).collect();
    format!("{start}…{}", end.into_iter().rev().collect::<String>())
}

/// The first characters, as many as `columns` take.
fn fitting(characters: impl Iterator<Item = char>, columns: usize) -> impl Iterator<Item = char> {
    characters
        .scan(0, |used, char| {
            *used += columns_of(char);
            Some((*used, char))
        })
        .take_while(move |(used, _)| *used <= columns)
        .map(|(_, char)| char)
}

fn columns_of(char: char) -> usize {
    char.width().unwrap_or(1)
}

/// A text without the control characters that XML forbids.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() || ('\u{fffe}'..='\u{ffff}').contains(&char) { '\u{fffd}' } else { char })
        .collect()
}

/// A text in lines of at most `longest` columns, broken at spaces; a longer word is cut.
pub fn wrapped(text: &str, longest: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        for part in cut(&printable(word), longest) {
            match lines.last_mut() {
                Some(line) if line.width() + 1 + part.width() <= longest => {
                    line.push(' ');
                    line.push_str(&part);
                }
                _ => lines.push(part),
            }
        }
    }
    lines
}

/// A word in parts of at most `longest` columns, but at least a character.
fn cut(word: &str, longest: usize) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for char in word.chars() {
        match parts.last_mut() {
            Some(part) if part.width() + columns_of(char) <= longest => part.push(char),
            _ => parts.push(char.into()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_cut_at_characters() {
        assert_eq!(shortened(&"é".repeat(40)).chars().count(), LONGEST);
        assert_eq!(shortened("boolq"), "boolq");
        let cut = shortened("mean of the task's random cluster, 2");
        assert_eq!((cut.as_str(), cut.chars().count()), ("mean of the task's r… cluster, 2", LONGEST));
    }

    #[test]
    fn texts_break_at_spaces_and_long_words_anywhere() {
        assert_eq!(wrapped("a bc  def\n g", 4), ["a bc", "def", "g"]);
        assert_eq!(wrapped("ééééé é", 4), ["éééé", "é é"].map(str::to_owned));
        assert!(wrapped(" ", 4).is_empty());
    }

    #[test]
    fn east_asian_characters_take_two_columns() {
        let cut = shortened(&"翻訳".repeat(20));
        assert_eq!(cut, format!("{}…{}", "翻訳".repeat(5), "訳翻訳翻訳"));
        assert!(cut.width() <= LONGEST);
        assert_eq!(shortened("翻訳"), "翻訳");
        assert_eq!(wrapped("翻訳の課題 a", 5), ["翻訳", "の課", "題 a"]);
        assert_eq!(wrapped("翻訳", 1), ["翻", "訳"]);
        assert_eq!(widest(&["翻訳の".to_owned(), "arrow".to_owned()]), 6);
    }

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(printable("a\u{1}\u{b}b"), "a\u{fffd}\u{fffd}b");
    }
}
