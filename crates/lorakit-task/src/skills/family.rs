//! The families: a latent skill each, with the form of its prompts.

use super::draw::Draw;

/// Lower-case letters.
pub(crate) const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz";
/// Digits.
pub(crate) const DIGITS: &str = "0123456789";
/// Vowels.
pub(crate) const VOWELS: &str = "aeiou";
/// Letters that are no vowels.
pub(crate) const CONSONANTS: &str = "bcdfghjklmnpqrstvwxyz";

/// Tasks that share a latent skill, and the form of their prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Letters move along the alphabet: `+1:dkwm;`.
    Shift,
    /// Characters change places: `<r|dkwm>`.
    Order,
    /// Letters become capitals: `"u dkwm"`.
    Capitals,
    /// One character is picked: `#2[dkwm]`.
    Pick,
    /// Characters are repeated: `*e(dkwm)`.
    Repeat,
    /// A mark comes between characters: `=-{dkwm}`.
    Join,
    /// Digits grow modulo ten: `%3_4071%`.
    Digits,
    /// Characters of a class are left out: `~v/d3ak/`.
    Filter,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 8] = [
        Family::Shift,
        Family::Order,
        Family::Capitals,
        Family::Pick,
        Family::Repeat,
        Family::Join,
        Family::Digits,
        Family::Filter,
    ];

    /// The name with which the names of its tasks begin.
    pub fn name(self) -> &'static str {
        match self {
            Family::Shift => "shift",
            Family::Order => "order",
            Family::Capitals => "capitals",
            Family::Pick => "pick",
            Family::Repeat => "repeat",
            Family::Join => "join",
            Family::Digits => "digits",
            Family::Filter => "filter",
        }
    }

    /// A text in the family's form, with the mark that says which of its tasks is meant.
    pub fn frame(self, mark: &str, text: &str) -> String {
        match self {
            Family::Shift => format!("{mark}:{text};"),
            Family::Order => format!("<{mark}|{text}>"),
            Family::Capitals => format!("\"{mark} {text}\""),
            Family::Pick => format!("#{mark}[{text}]"),
            Family::Repeat => format!("*{mark}({text})"),
            Family::Join => format!("={mark}{{{text}}}"),
            Family::Digits => format!("%{mark}_{text}%"),
            Family::Filter => format!("~{mark}/{text}/"),
        }
    }

    /// A text as the family's tasks have them.
    pub(crate) fn text(self, draw: &mut Draw) -> String {
        match self {
            Family::Shift | Family::Capitals | Family::Join => draw.text(LETTERS, 3, 5),
            Family::Order => draw.distinct(LETTERS, 4, 5),
            Family::Pick => draw.distinct(LETTERS, 4, 6),
            Family::Repeat => draw.text(LETTERS, 3, 4),
            Family::Digits => draw.text(DIGITS, 3, 5),
            Family::Filter => mixed(draw),
        }
    }
}

/// Four to six characters, with at least one vowel, one consonant and one digit among them.
fn mixed(draw: &mut Draw) -> String {
    let length = draw.between(4, 6);
    loop {
        let class = |draw: &mut Draw| *draw.one(&[VOWELS, CONSONANTS, DIGITS]);
        let text: String = (0..length)
            .map(|_| {
                let class = class(draw);
                draw.char(class)
            })
            .collect();
        if [VOWELS, CONSONANTS, DIGITS].iter().all(|class| text.contains(|c| class.contains(c))) {
            return text;
        }
    }
}
