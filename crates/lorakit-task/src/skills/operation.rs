//! What the skills do to a text.

/// One skill. Texts are ASCII and not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Every letter moves along the alphabet, `z` being followed by `a`.
    Shift(i8),
    /// The characters change places.
    Order(Order),
    /// The letters at some places become capitals.
    Capitals(Places),
    /// One character is the answer: counted from 0, or from the end for negative numbers.
    Pick(i8),
    /// The characters at some places stand `times` times; the whole text does where `whole`.
    Repeat {
        /// Which.
        places: Places,
        /// How often.
        times: usize,
    },
    /// A mark comes between characters.
    Join(char),
    /// Every digit grows by a number, modulo 10.
    Add(u8),
    /// Only characters of some classes stay.
    Keep {
        /// Whether vowels do.
        vowels: bool,
        /// Whether consonants do.
        consonants: bool,
        /// Whether digits do.
        digits: bool,
    },
}

/// A change of places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The last comes first.
    Reverse,
    /// The first goes to the end.
    Left,
    /// The last goes to the front.
    Right,
    /// The first and the last change places.
    SwapEnds,
    /// The first two change places.
    SwapFirst,
    /// The last two change places.
    SwapLast,
}

/// Places in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Places {
    /// Every one.
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
    /// The text as a whole, once more after its end.
    Whole,
}

impl Places {
    fn has(self, at: usize, length: usize) -> bool {
        match self {
            Places::All => true,
            Places::First => at == 0,
            Places::Last => at + 1 == length,
            Places::Odd => at.is_multiple_of(2),
            Places::Even => !at.is_multiple_of(2),
            Places::Ends => at == 0 || at + 1 == length,
            Places::Tail => at > 0,
            Places::Whole => false,
        }
    }
}

impl Operation {
    /// The answer to a text.
    pub fn apply(self, text: &str) -> String {
        let length = text.len();
        let chars = || text.chars().enumerate();
        match self {
            Operation::Shift(by) => text.chars().map(|c| shifted(c, by)).collect(),
            Operation::Order(order) => order.apply(text),
            Operation::Capitals(places) => {
                chars().map(|(at, c)| if places.has(at, length) { c.to_ascii_uppercase() } else { c }).collect()
            }
            Operation::Pick(at) => {
                let at = if at < 0 { length.saturating_sub(usize::from(at.unsigned_abs())) } else { at as usize };
                text.chars().nth(at).into_iter().collect()
            }
            Operation::Repeat { places: Places::Whole, times } => text.repeat(times),
            Operation::Repeat { places, times } => {
                let copies = |at| if places.has(at, length) { times } else { 1 };
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

impl Order {
    fn apply(self, text: &str) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        let last = chars.len().saturating_sub(1);
        match self {
            Order::Reverse => chars.reverse(),
            Order::Left => chars.rotate_left(1),
            Order::Right => chars.rotate_right(1),
            Order::SwapEnds => chars.swap(0, last),
            Order::SwapFirst => chars.swap(0, 1),
            Order::SwapLast => chars.swap(last - 1, last),
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
    fn every_operation_does_what_it_says() {
        let keep = |vowels, consonants, digits| Operation::Keep { vowels, consonants, digits };
        for (operation, text, answer) in [
            (Operation::Shift(2), "axyz", "czab"),
            (Operation::Shift(-1), "abz", "zay"),
            (Operation::Order(Order::Reverse), "abcd", "dcba"),
            (Operation::Order(Order::Left), "abcd", "bcda"),
            (Operation::Order(Order::Right), "abcd", "dabc"),
            (Operation::Order(Order::SwapEnds), "abcd", "dbca"),
            (Operation::Order(Order::SwapFirst), "abcd", "bacd"),
            (Operation::Order(Order::SwapLast), "abcd", "abdc"),
            (Operation::Capitals(Places::Odd), "abcd", "AbCd"),
            (Operation::Capitals(Places::Tail), "abcd", "aBCD"),
            (Operation::Pick(1), "abcd", "b"),
            (Operation::Pick(-2), "abcd", "c"),
            (Operation::Repeat { places: Places::All, times: 2 }, "abc", "aabbcc"),
            (Operation::Repeat { places: Places::Ends, times: 2 }, "abc", "aabcc"),
            (Operation::Repeat { places: Places::Whole, times: 2 }, "abc", "abcabc"),
            (Operation::Join('-'), "abc", "a-b-c"),
            (Operation::Add(7), "038", "705"),
            (keep(true, false, true), "a3kd9e", "a39e"),
            (keep(false, true, false), "a3kd9e", "kd"),
        ] {
            assert_eq!(operation.apply(text), answer, "{operation:?}");
        }
    }
}
