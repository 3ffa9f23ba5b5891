//! Labels: texts that fit into a margin or a line, of characters that every format allows.

/// Characters of the longest label.
const LONGEST: usize = 32;

/// Characters that are kept of a longer label's end, where names of a series differ.
const END: usize = 11;

/// A name cut in the middle to a length that fits a margin.
pub fn shortened(name: &str) -> String {
    let length = name.chars().count();
    if length <= LONGEST {
        return name.to_owned();
    }
    let start: String = name.chars().take(LONGEST - END - 1).collect();
    let end: String = name.chars().skip(length - END).collect();
    format!("{start}…{end}")
}

/// A text without the control characters that XML forbids.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() || ('\u{fffe}'..='\u{ffff}').contains(&char) { '\u{fffd}' } else { char })
        .collect()
}

/// A text in lines of at most `longest` characters, broken at spaces; a longer word is cut.
pub fn wrapped(text: &str, longest: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let characters: Vec<char> = printable(word).chars().collect();
        for part in characters.chunks(longest.max(1)) {
            match lines.last_mut() {
                Some(line) if line.chars().count() + 1 + part.len() <= longest => {
                    line.push(' ');
                    line.extend(part);
                }
                _ => lines.push(part.iter().collect()),
            }
        }
    }
    lines
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
    fn control_characters_are_replaced() {
        assert_eq!(printable("a\u{1}\u{b}b"), "a\u{fffd}\u{fffd}b");
    }
}
