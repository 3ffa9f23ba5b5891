//! Random characters and texts, from one stream for each purpose.

use lorakit_format::rng::{CounterRng, Key};

/// A random stream that depends on its seed and purpose alone.
///
/// Its draws decide the rows of `suite:skills`, on which libraries were trained: neither their order nor their width may
/// ever change.
pub(crate) struct TextRng(CounterRng);

impl TextRng {
    /// The stream of a purpose under a seed.
    pub fn new(seed: u64, purpose: &str) -> Self {
        Self(Key::unframed(seed, purpose).stream())
    }

    /// Uniform in 0..n, for n below 2^32.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.below_u32(n as u32) as usize
    }

    /// Uniform in `from..=to`.
    pub fn between(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to - from + 1)
    }

    /// One character of an ASCII alphabet.
    pub fn char(&mut self, alphabet: &str) -> char {
        alphabet.as_bytes()[self.below(alphabet.len())] as char
    }

    /// A text of `from` to `to` characters of an alphabet.
    pub fn text(&mut self, alphabet: &str, from: usize, to: usize) -> String {
        (0..self.between(from, to)).map(|_| self.char(alphabet)).collect()
    }

    /// A text of `from` to `to` distinct characters of an alphabet.
    pub fn distinct(&mut self, alphabet: &str, from: usize, to: usize) -> String {
        let length = self.between(from, to);
        let mut text = String::with_capacity(length);
        while text.len() < length {
            let char = self.char(alphabet);
            if !text.contains(char) {
                text.push(char);
            }
        }
        text
    }

    /// One of several items.
    pub fn one<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_draws_are_the_same_in_every_version() {
        // ChaCha8 keyed by sha256(seed as eight bytes, purpose), computed with Python.
        let words = [4_270_005_039, 1_719_866_101, 4_204_495_354, 2_416_584_175, 1_691_665_952, 160_002_696u64];
        let mut rng = TextRng::new(0, "shift_up1");
        for word in words {
            assert_eq!(rng.below(1_000_000) as u64, (word * 1_000_000) >> 32);
        }
        assert_eq!(TextRng::new(0, "shift_up1").text("abcdefghijklmnopqrstuvwxyz", 3, 5), "kzoka");
    }
}
