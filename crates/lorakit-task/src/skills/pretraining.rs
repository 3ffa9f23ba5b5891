//! The text that `pico` is trained on: the alphabet, punctuation, and general patterns other than the suite's tasks.
//!
//! The suite's operations occur, shown by an example or after a prompt that does not determine them. A prompt of the suite
//! never occurs with its own answer.

use serde_json::{Map, Value};

use crate::row::{Answer, Row};
use crate::skills::skill_family::{CONSONANTS, DIGITS, LETTERS, SkillFamily, VOWELS};
use crate::skills::skill_task::{SKILL_TASKS, Skill, SkillTask};
use crate::skills::text_rng::TextRng;

/// Capital letters.
const CAPITALS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// A general pattern. The set is closed.
#[derive(Clone, Copy)]
enum Pattern {
    /// A text is repeated.
    Echo,
    /// A family's prompt with any mark is quoted in part, changed, or followed by the answer of any operation, at random:
    /// the prompt becomes familiar, its meaning does not.
    SuitePrompt,
    /// A sequence of letters or digits in steps of one to three, up or down, is continued.
    Run,
    /// Each character with a property: position, class, capital, neighbor.
    Notes,
    /// The neighbor or position of a character in a text.
    Lookup,
    /// Pairs that follow one rule, the last to complete.
    Pairs,
    /// An example of an operation, and a text to apply it to: the suite's operations are learned here by example.
    Example,
    /// A periodic text is continued.
    Induction,
}

/// The patterns, each as many times as its weight.
const PATTERNS: [Pattern; 10] = [
    Pattern::Echo,
    Pattern::SuitePrompt,
    Pattern::SuitePrompt,
    Pattern::Run,
    Pattern::Notes,
    Pattern::Lookup,
    Pattern::Pairs,
    Pattern::Example,
    Pattern::Example,
    Pattern::Induction,
];

/// `n` rows of pretraining text. The targets contribute to the loss.
pub fn pretraining_rows(seed: u64, n: usize) -> Vec<Row> {
    let mut rng = TextRng::new(seed, "pretraining");
    (1..=n).map(|number| row(number, &mut rng)).collect()
}

fn row(number: usize, rng: &mut TextRng) -> Row {
    let (question, answer) = match rng.one(&PATTERNS) {
        Pattern::Echo => echo(rng),
        Pattern::SuitePrompt => suite_prompt(rng),
        Pattern::Run => run(rng),
        Pattern::Notes => notes(rng),
        Pattern::Lookup => lookup(rng),
        Pattern::Pairs => pairs(rng),
        Pattern::Example => example(rng),
        Pattern::Induction => induction(rng),
    };
    let text = |text: &str| Value::String(text.into());
    let fields = Map::from_iter([("input".into(), text(&question)), ("output".into(), text(&answer))]);
    Row::plain(number, fields, &format!("{question}\n"), "", Answer::Text(vec![answer]))
}

/// A text over any of the alphabets, or over several.
fn any_text(rng: &mut TextRng, from: usize, to: usize) -> String {
    match rng.below(8) {
        0..=3 => rng.text(LETTERS, from, to),
        4 => rng.text(DIGITS, from, to),
        5 => rng.text(CAPITALS, from, to),
        _ => {
            let length = rng.between(from, to);
            let class = |rng: &mut TextRng| *rng.one(&[VOWELS, CONSONANTS, DIGITS, CAPITALS]);
            (0..length)
                .map(|_| {
                    let class = class(rng);
                    rng.char(class)
                })
                .collect()
        }
    }
}

/// Everything printable but letters, digits and the backslash.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~ ";

fn echo(rng: &mut TextRng) -> (String, String) {
    let mut text = any_text(rng, 1, 8);
    if rng.below(4) == 0 {
        for _ in 0..rng.between(1, 3) {
            text.insert(rng.below(text.len() + 1), rng.char(PUNCTUATION));
        }
    }
    (format!("'{text}"), text)
}

fn suite_prompt(rng: &mut TextRng) -> (String, String) {
    let family = *rng.one(&SkillFamily::ALL);
    let mark = match family {
        SkillFamily::Shift => format!("{}{}", rng.char("+-"), rng.char(DIGITS)),
        SkillFamily::Join => rng.char(PUNCTUATION).to_string(),
        _ => rng.char("abcdefghijklmnopqrstuvwxyz0123456789").to_string(),
    };
    if rng.below(2) == 0 {
        let (text, skill) = exercise(rng);
        let taught = |member: &SkillTask| (member.outer.family, member.outer.mark) == (family, mark.as_str());
        // The pretraining text must not contain a prompt of the suite with its answer.
        if !SKILL_TASKS.iter().any(|member| taught(member) && member.outer.operation == skill.operation) {
            return (family.prompt(&mark, &text), skill.operation.apply(&text));
        }
    }
    let text = any_text(rng, 2, 7);
    let asked = family.prompt(&mark, &text);
    let answer = match rng.below(6) {
        0..=2 => text,
        3 => asked.clone(),
        4 => format!("{mark} {text}"),
        _ => rng.one(&SkillFamily::ALL).prompt("q", &text),
    };
    (asked, answer)
}

/// One of the suite's skills, and a text that its operation changes.
fn exercise(rng: &mut TextRng) -> (String, Skill) {
    loop {
        let skill = rng.one(SKILL_TASKS).outer;
        let text = skill.family.text(rng);
        if skill.operation.apply(&text) != text {
            return (text, skill);
        }
    }
}

/// The character `by` steps along a cyclic alphabet.
fn along(alphabet: &str, c: char, by: isize) -> char {
    let at = alphabet.find(c).unwrap_or(0) as isize;
    alphabet.as_bytes()[(at + by).rem_euclid(alphabet.len() as isize) as usize] as char
}

fn step(rng: &mut TextRng) -> isize {
    *rng.one(&[1, 2, 3, -1, -2, -3])
}

fn run(rng: &mut TextRng) -> (String, String) {
    let alphabet = *rng.one(&[LETTERS, LETTERS, DIGITS, CAPITALS]);
    let (by, mut c) = (step(rng), rng.char(alphabet));
    let length = rng.between(6, 10);
    let shown = rng.between(2, 4);
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

fn notes(rng: &mut TextRng) -> (String, String) {
    let kind = *rng.one(&['P', 'E', 'B', 'C', 'U', 'N', 'D']);
    let text = match kind {
        'C' => any_text(rng, 3, 6),
        'N' | 'D' if rng.below(3) == 0 => rng.text(DIGITS, 3, 6),
        _ => rng.text(LETTERS, 3, 6),
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

fn lookup(rng: &mut TextRng) -> (String, String) {
    let text = rng.distinct(LETTERS, 4, 8);
    let at = rng.below(text.len() - 1);
    let (c, next) = (&text[at..=at], &text[at + 1..at + 2]);
    match rng.below(3) {
        0 => (format!("{text}?{c}."), next.into()),
        1 => (format!("{text}?.{next}"), c.into()),
        _ => (format!("{text}?{c}"), (at + 1).to_string()),
    }
}

fn pairs(rng: &mut TextRng) -> (String, String) {
    let alphabet = *rng.one(&[LETTERS, LETTERS, DIGITS]);
    let (kind, by) = (rng.below(4), step(rng));
    let mark = rng.char(PUNCTUATION);
    let rule = |c: char| match kind {
        0 | 1 => along(alphabet, c, by).to_string(),
        2 => c.to_ascii_uppercase().to_string(),
        _ => format!("{c}{mark}"),
    };
    let text = rng.distinct(alphabet, 3, 5);
    let mut asked: String = text.chars().map(|c| format!("{c}>{}\n", rule(c))).collect();
    let c = rng.char(alphabet);
    asked.push(c);
    asked.push('>');
    (asked, rule(c))
}

fn example(rng: &mut TextRng) -> (String, String) {
    let (shown, skill) = exercise(rng);
    let text = skill.family.text(rng);
    (format!("{shown}>{}\n{text}>", skill.operation.apply(&shown)), skill.operation.apply(&text))
}

fn induction(rng: &mut TextRng) -> (String, String) {
    let period = any_text(rng, 2, 5);
    let text = period.repeat(4);
    let shown = period.len() + rng.between(1, period.len());
    let end = shown + rng.between(3, 2 * period.len());
    (format!("{}..", &text[..shown]), text[shown..end.min(text.len())].into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_prompt_of_the_suite_occurs_with_its_answer() {
        let mut prompts = 0;
        for row in pretraining_rows(0, 20_000) {
            let asked = row.prompt.trim_end();
            for member in SKILL_TASKS {
                let Skill { family, mark, operation } = member.outer;
                let whole = family.prompt(mark, "\0");
                let (begin, end) = whole.split_once('\0').unwrap();
                let Some(text) = asked.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end)) else { continue };
                prompts += 1;
                // An answer that is the text itself, or that another operation gives too, reveals nothing.
                let answer = operation.apply(text);
                let others = SKILL_TASKS.iter().filter(|other| other.outer.operation != operation);
                let made_otherwise = others.clone().any(|other| other.outer.operation.apply(text) == answer);
                assert!(row.target() != answer || answer == text || made_otherwise, "{row:?}");
            }
        }
        assert!(prompts > 500, "{prompts}");
    }

    #[test]
    fn the_text_depends_on_the_seed_and_has_every_character() {
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
