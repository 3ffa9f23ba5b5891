//! What skills do to a text.

/// An operation on texts, which are ASCII and not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Shifts every letter along the alphabet, cyclically.
    Shift(i8),
    /// Reorders the characters.
    Order(Reordering),
    /// Capitalizes the letters at some positions.
    Capitals(Positions),
    /// Picks one character by its position from 0, or from the end if negative.
    Pick(i8),
    /// Repeats the characters at some positions, or the whole text.
    Repeat {
        /// What is repeated.
        positions: Positions,
        /// How many times it occurs in the answer.
        times: usize,
    },
    /// Puts a separator between characters.
    Join(char),
    /// Adds a number to every digit, modulo 10.
    Add(u8),
    /// Keeps only some classes of characters.
    Keep {
        /// Keep vowels.
        vowels: bool,
        /// Keep consonants.
        consonants: bool,
        /// Keep digits.
        digits: bool,
    },
}

/// A permutation of characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reordering {
    /// Last to first.
    Reverse,
    /// Rotated by one to the left.
    Left,
    /// Rotated by one to the right.
    Right,
    /// First and last swapped.
    SwapEnds,
    /// First two swapped.
    SwapFirst,
    /// Last two swapped.
    SwapLast,
}

/// Some of the positions in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// All.
    All,
    /// The first.
    First,
    /// The last.
    Last,
    /// The first, the third and so on.
    Odd,
    /// The second, the fourth and so on.
    Even,
    /// The first and the last.
    Ends,
    /// All but the first.
    Tail,
    /// The text as a whole.
    Whole,
}

impl Positions {
    fn has(self, at: usize, length: usize) -> bool {
        match self {
            Positions::All => true,
            Positions::First => at == 0,
            Positions::Last => at + 1 == length,
            Positions::Odd => at.is_multiple_of(2),
            Positions::Even => !at.is_multiple_of(2),
            Positions::Ends => at == 0 || at + 1 == length,
            Positions::Tail => at > 0,
            Positions::Whole => false,
        }
    }
}

impl Operation {
    /// The result for a text.
    pub fn apply(self, text: &str) -> String {
        let length = text.len();
        let chars = || text.chars().enumerate();
        match self {
            Operation::Shift(by) => text.chars().map(|c| shifted(c, by)).collect(),
            Operation::Order(order) => order.apply(text),
            Operation::Capitals(positions) => {
                chars().map(|(at, c)| if positions.has(at, length) { c.to_ascii_uppercase() } else { c }).collect()
            }
            Operation::Pick(at) => {
                let at = if at < 0 { length.saturating_sub(usize::from(at.unsigned_abs())) } else { at as usize };
                text.chars().nth(at).into_iter().collect()
            }
            Operation::Repeat { positions: Positions::Whole, times } => text.repeat(times),
            Operation::Repeat { positions, times } => {
                let copies = |at| if positions.has(at, length) { times } else { 1 };
                chars().flat_map(|(at, c)| std::iter::repeat_n(c, copies(at))).collect()
            }
            Operation::Join(mark) => {
                chars().flat_map(|(at, c)| (at > 0).then_some(mark).into_iter().chain([c])).collect()
            }
            Operation::Add(by) => text.chars().map(|c| added(c, by)).collect(),
            Operation::Keep { vowels, consonants, digits } => {
                let kept = |c: &char| match c {
                    '0'..='9' => digits,
                    'a' | 'e' | 'i' | 'o' | 'u' => vowels,
                    _ => consonants,
                };
                text.chars().filter(kept).collect()
            }
        }
    }
}

impl Reordering {
    fn apply(self, text: &str) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        let last = chars.len().saturating_sub(1);
        match self {
            Reordering::Reverse => chars.reverse(),
            Reordering::Left => chars.rotate_left(1),
            Reordering::Right => chars.rotate_right(1),
            Reordering::SwapEnds => chars.swap(0, last),
            Reordering::SwapFirst => chars.swap(0, 1),
            Reordering::SwapLast => chars.swap(last - 1, last),
        }
        chars.into_iter().collect()
    }
}

fn shifted(c: char, by: i8) -> char {
    match c {
        'a'..='z' => (b'a' + (c as i16 - 'a' as i16 + i16::from(by)).rem_euclid(26) as u8) as char,
        other => other,
    }
}

fn added(c: char, by: u8) -> char {
    match c {
        '0'..='9' => (b'0' + (c as u8 - b'0' + by) % 10) as char,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_give_the_expected_answers() {
        let keep = |vowels, consonants, digits| Operation::Keep { vowels, consonants, digits };
        for (operation, text, answer) in [
            (Operation::Shift(2), "axyz", "czab"),
            (Operation::Shift(-1), "abz", "zay"),
            (Operation::Order(Reordering::Reverse), "abcd", "dcba"),
            (Operation::Order(Reordering::Left), "abcd", "bcda"),
            (Operation::Order(Reordering::Right), "abcd", "dabc"),
            (Operation::Order(Reordering::SwapEnds), "abcd", "dbca"),
            (Operation::Order(Reordering::SwapFirst), "abcd", "bacd"),
            (Operation::Order(Reordering::SwapLast), "abcd", "abdc"),
            (Operation::Capitals(Positions::Odd), "abcd", "AbCd"),
            (Operation::Capitals(Positions::Tail), "abcd", "aBCD"),
            (Operation::Pick(1), "abcd", "b"),
            (Operation::Pick(-2), "abcd", "c"),
            (Operation::Repeat { positions: Positions::All, times: 2 }, "abc", "aabbcc"),
            (Operation::Repeat { positions: Positions::Ends, times: 2 }, "abc", "aabcc"),
            (Operation::Repeat { positions: Positions::Whole, times: 2 }, "abc", "abcabc"),
            (Operation::Join('-'), "abc", "a-b-c"),
            (Operation::Add(7), "038", "705"),
            (keep(true, false, true), "a3kd9e", "a39e"),
            (keep(false, true, false), "a3kd9e", "kd"),
        ] {
            assert_eq!(operation.apply(text), answer, "{operation:?}");
        }
    }
}
