//! The families of the suite: one latent skill each, with its prompt pattern.

use crate::skills::text_rng::TextRng;

/// Lower-case letters.
pub(crate) const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz";
/// Digits.
pub(crate) const DIGITS: &str = "0123456789";
/// Vowels.
pub(crate) const VOWELS: &str = "aeiou";
/// Letters other than vowels.
pub(crate) const CONSONANTS: &str = "bcdfghjklmnpqrstvwxyz";

/// Tasks that share a latent skill and a prompt pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SkillFamily {
    /// Shifts letters along the alphabet: `+1:dkwm;`.
    Shift,
    /// Reorders characters: `<r|dkwm>`.
    Order,
    /// Capitalizes letters: `"u dkwm"`.
    Capitals,
    /// Picks one character: `#2[dkwm]`.
    Pick,
    /// Repeats characters: `*e(dkwm)`.
    Repeat,
    /// Puts a separator between characters: `=-{dkwm}`.
    Join,
    /// Adds to digits modulo ten: `%3_4071%`.
    Digits,
    /// Removes a class of characters: `~v/d3ak/`.
    Filter,
}

impl SkillFamily {
    /// Every family.
    pub const ALL: [SkillFamily; 8] = [
        SkillFamily::Shift,
        SkillFamily::Order,
        SkillFamily::Capitals,
        SkillFamily::Pick,
        SkillFamily::Repeat,
        SkillFamily::Join,
        SkillFamily::Digits,
        SkillFamily::Filter,
    ];

    /// The prefix of its tasks' names.
    pub fn name(self) -> &'static str {
        match self {
            SkillFamily::Shift => "shift",
            SkillFamily::Order => "order",
            SkillFamily::Capitals => "capitals",
            SkillFamily::Pick => "pick",
            SkillFamily::Repeat => "repeat",
            SkillFamily::Join => "join",
            SkillFamily::Digits => "digits",
            SkillFamily::Filter => "filter",
        }
    }

    /// The prompt for a text. `mark` says which of the family's tasks is asked for.
    pub fn prompt(self, mark: &str, text: &str) -> String {
        match self {
            SkillFamily::Shift => format!("{mark}:{text};"),
            SkillFamily::Order => format!("<{mark}|{text}>"),
            SkillFamily::Capitals => format!("\"{mark} {text}\""),
            SkillFamily::Pick => format!("#{mark}[{text}]"),
            SkillFamily::Repeat => format!("*{mark}({text})"),
            SkillFamily::Join => format!("={mark}{{{text}}}"),
            SkillFamily::Digits => format!("%{mark}_{text}%"),
            SkillFamily::Filter => format!("~{mark}/{text}/"),
        }
    }

    /// A random text for the family's tasks.
    pub(crate) fn text(self, rng: &mut TextRng) -> String {
        match self {
            SkillFamily::Shift | SkillFamily::Capitals | SkillFamily::Join => rng.text(LETTERS, 3, 5),
            SkillFamily::Order => rng.distinct(LETTERS, 4, 5),
            SkillFamily::Pick => rng.distinct(LETTERS, 4, 6),
            SkillFamily::Repeat => rng.text(LETTERS, 3, 4),
            SkillFamily::Digits => rng.text(DIGITS, 3, 5),
            SkillFamily::Filter => mixed(rng),
        }
    }
}

/// Four to six characters, at least one of them a vowel, one a consonant and one a digit.
fn mixed(rng: &mut TextRng) -> String {
    let length = rng.between(4, 6);
    loop {
        let class = |rng: &mut TextRng| *rng.one(&[VOWELS, CONSONANTS, DIGITS]);
        let text: String = (0..length)
            .map(|_| {
                let class = class(rng);
                rng.char(class)
            })
            .collect();
        if [VOWELS, CONSONANTS, DIGITS].iter().all(|class| text.contains(|c| class.contains(c))) {
            return text;
        }
    }
}
