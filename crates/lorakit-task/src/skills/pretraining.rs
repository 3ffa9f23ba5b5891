//! The text that `pico` is made from: the alphabet, the punctuation, and forms that are none of the suite's tasks.
//!
//! The suite's operations occur, shown by an example or after a frame that does not tell which is meant. What is never
//! seen is a cue of the suite with its own answer.

use serde_json::{Map, Value};

use super::draw::Draw;
use super::family::{CONSONANTS, DIGITS, Family, LETTERS, VOWELS};
use super::member::{MEMBERS, Member, Skill};
use crate::row::{Answer, Row};

/// Capital letters.
const CAPITALS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// A general form. The set is closed.
#[derive(Clone, Copy)]
enum Form {
    /// A text comes again.
    Echo,
    /// A family's frame, with any mark, is quoted in part, changed, or followed by any operation's answer. Nothing
    /// tells which: the frame is known, its meaning is not.
    Frame,
    /// A run along the alphabet or the digits, by one to three, up or down, goes on.
    Run,
    /// Each character with what is said of it: place, class, capital, neighbour.
    Notes,
    /// What stands beside a character, and where it stands.
    Lookup,
    /// Pairs that follow one rule, the last to be completed.
    Pairs,
    /// An example of an operation, and a text that it is to be applied to: what the suite asks for by cues is known
    /// here by example.
    Example,
    /// A text that repeats itself goes on.
    Induction,
}

/// The forms, each as often as it is drawn.
const FORMS: [Form; 10] = [
    Form::Echo,
    Form::Frame,
    Form::Frame,
    Form::Run,
    Form::Notes,
    Form::Lookup,
    Form::Pairs,
    Form::Example,
    Form::Example,
    Form::Induction,
];

/// `n` rows of pretraining text. The target of each carries loss.
pub fn pretraining_rows(seed: u64, n: usize) -> Vec<Row> {
    let mut draw = Draw::new(seed, "pretraining");
    (1..=n).map(|number| row(number, &mut draw)).collect()
}

fn row(number: usize, draw: &mut Draw) -> Row {
    let (question, answer) = match draw.one(&FORMS) {
        Form::Echo => echo(draw),
        Form::Frame => frame(draw),
        Form::Run => run(draw),
        Form::Notes => notes(draw),
        Form::Lookup => lookup(draw),
        Form::Pairs => pairs(draw),
        Form::Example => example(draw),
        Form::Induction => induction(draw),
    };
    let text = |text: &str| Value::String(text.into());
    let fields = Map::from_iter([("input".into(), text(&question)), ("output".into(), text(&answer))]);
    Row {
        number,
        fields,
        prompt: format!("{question}\n"),
        delimiter: String::new(),
        answer: Answer::Text(vec![answer]),
    }
}

/// A text over any of the alphabets, or over several.
fn any_text(draw: &mut Draw, from: usize, to: usize) -> String {
    match draw.below(8) {
        0..=3 => draw.text(LETTERS, from, to),
        4 => draw.text(DIGITS, from, to),
        5 => draw.text(CAPITALS, from, to),
        _ => {
            let length = draw.between(from, to);
            let class = |draw: &mut Draw| *draw.one(&[VOWELS, CONSONANTS, DIGITS, CAPITALS]);
            (0..length)
                .map(|_| {
                    let class = class(draw);
                    draw.char(class)
                })
                .collect()
        }
    }
}

/// Punctuation that is part of no letter or digit.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~ ";

fn echo(draw: &mut Draw) -> (String, String) {
    let mut text = any_text(draw, 1, 8);
    if draw.below(4) == 0 {
        for _ in 0..draw.between(1, 3) {
            text.insert(draw.below(text.len() + 1), draw.char(PUNCTUATION));
        }
    }
    (format!("'{text}"), text)
}

fn frame(draw: &mut Draw) -> (String, String) {
    let family = *draw.one(&Family::ALL);
    let mark = match family {
        Family::Shift => format!("{}{}", draw.char("+-"), draw.char(DIGITS)),
        Family::Join => draw.char(PUNCTUATION).to_string(),
        _ => draw.char("abcdefghijklmnopqrstuvwxyz0123456789").to_string(),
    };
    if draw.below(2) == 0 {
        let (text, skill) = exercise(draw);
        let taught = |member: &Member| (member.outer.family, member.outer.mark) == (family, mark.as_str());
        // What a cue of the suite asks for must not be seen here.
        if !MEMBERS.iter().any(|member| taught(member) && member.outer.operation == skill.operation) {
            return (family.frame(&mark, &text), skill.operation.apply(&text));
        }
    }
    let text = any_text(draw, 2, 7);
    let asked = family.frame(&mark, &text);
    let answer = match draw.below(6) {
        0..=2 => text,
        3 => asked.clone(),
        4 => format!("{mark} {text}"),
        _ => draw.one(&Family::ALL).frame("q", &text),
    };
    (asked, answer)
}

/// One of the suite's operations, without its cue, with a text that it does something to.
fn exercise(draw: &mut Draw) -> (String, Skill) {
    loop {
        let skill = draw.one(MEMBERS).outer;
        let text = skill.family.text(draw);
        if skill.operation.apply(&text) != text {
            return (text, skill);
        }
    }
}

/// A character so many steps along its alphabet, which goes round.
fn along(alphabet: &str, c: char, by: isize) -> char {
    let at = alphabet.find(c).unwrap_or(0) as isize;
    alphabet.as_bytes()[(at + by).rem_euclid(alphabet.len() as isize) as usize] as char
}

fn step(draw: &mut Draw) -> isize {
    *draw.one(&[1, 2, 3, -1, -2, -3])
}

fn run(draw: &mut Draw) -> (String, String) {
    let alphabet = *draw.one(&[LETTERS, LETTERS, DIGITS, CAPITALS]);
    let (by, mut c) = (step(draw), draw.char(alphabet));
    let length = draw.between(6, 10);
    let shown = draw.between(2, 4);
    let mut text = String::new();
    for _ in 0..length {
        text.push(c);
        c = along(alphabet, c, by);
    }
    (format!("{}..", &text[..shown]), text[shown..].into())
}

fn class(c: char) -> char {
    match c {
        '0'..='9' => 'n',
        'A'..='Z' => 'u',
        _ if VOWELS.contains(c) => 'v',
        _ => 'c',
    }
}

fn notes(draw: &mut Draw) -> (String, String) {
    let kind = *draw.one(&['P', 'E', 'B', 'C', 'U', 'N', 'D']);
    let text = match kind {
        'C' => any_text(draw, 3, 6),
        'N' | 'D' if draw.below(3) == 0 => draw.text(DIGITS, 3, 6),
        _ => draw.text(LETTERS, 3, 6),
    };
    let length = text.len();
    let alphabet = if text.starts_with(|c: char| c.is_ascii_digit()) { DIGITS } else { LETTERS };
    let note = |(at, c): (usize, char)| match kind {
        'P' => format!("{}{c}", at + 1),
        'E' | 'B' => format!("{}{c}", length - at),
        'C' => format!("{c}{}", class(c)),
        'U' => format!("{c}{}", c.to_ascii_uppercase()),
        'N' => format!("{c}{}", along(alphabet, c, 1)),
        _ => format!("{c}{}", along(alphabet, c, -1)),
    };
    let mut notes: Vec<String> = text.chars().enumerate().map(note).collect();
    if kind == 'B' {
        notes.reverse();
    }
    (format!("{kind} {text}"), notes.concat())
}

fn lookup(draw: &mut Draw) -> (String, String) {
    let text = draw.distinct(LETTERS, 4, 8);
    let at = draw.below(text.len() - 1);
    let (c, next) = (&text[at..=at], &text[at + 1..at + 2]);
    match draw.below(3) {
        0 => (format!("{text}?{c}."), next.into()),
        1 => (format!("{text}?.{next}"), c.into()),
        _ => (format!("{text}?{c}"), (at + 1).to_string()),
    }
}

fn pairs(draw: &mut Draw) -> (String, String) {
    let alphabet = *draw.one(&[LETTERS, LETTERS, DIGITS]);
    let (kind, by) = (draw.below(4), step(draw));
    let mark = draw.char(PUNCTUATION);
    let rule = |c: char| match kind {
        0 | 1 => along(alphabet, c, by).to_string(),
        2 => c.to_ascii_uppercase().to_string(),
        _ => format!("{c}{mark}"),
    };
    let text = draw.distinct(alphabet, 3, 5);
    let mut asked: String = text.chars().map(|c| format!("{c}>{}\n", rule(c))).collect();
    let c = draw.char(alphabet);
    asked.push(c);
    asked.push('>');
    (asked, rule(c))
}

fn example(draw: &mut Draw) -> (String, String) {
    let (shown, skill) = exercise(draw);
    let text = skill.family.text(draw);
    (format!("{shown}>{}\n{text}>", skill.operation.apply(&shown)), skill.operation.apply(&text))
}

fn induction(draw: &mut Draw) -> (String, String) {
    let period = any_text(draw, 2, 5);
    let text = period.repeat(4);
    let shown = period.len() + draw.between(1, period.len());
    let end = shown + draw.between(3, 2 * period.len());
    (format!("{}..", &text[..shown]), text[shown..end.min(text.len())].into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_cue_of_the_suite_is_seen_with_its_answer() {
        let mut cues = 0;
        for row in pretraining_rows(0, 20_000) {
            let asked = row.prompt.trim_end();
            for member in MEMBERS {
                let Skill { family, mark, operation } = member.outer;
                let whole = family.frame(mark, "\0");
                let (begin, end) = whole.split_once('\0').unwrap();
                let Some(text) = asked.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end)) else { continue };
                cues += 1;
                // What an operation leaves alone, or another one makes too, gives nothing away.
                let answer = operation.apply(text);
                let others = MEMBERS.iter().filter(|other| other.outer.operation != operation);
                let made_otherwise = others.clone().any(|other| other.outer.operation.apply(text) == answer);
                assert!(row.target() != answer || answer == text || made_otherwise, "{row:?}");
            }
        }
        assert!(cues > 500, "{cues}");
    }

    #[test]
    fn one_seed_gives_one_text_and_every_character_is_seen() {
        let text = |seed| -> String {
            pretraining_rows(seed, 5_000).iter().map(|row| format!("{}{}", row.prompt, row.target())).collect()
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
        let seen = text(1);
        let missing: String = (' '..='~').filter(|c| !seen.contains(*c) && *c != '\\').collect();
        assert_eq!(missing, "");
    }
}
