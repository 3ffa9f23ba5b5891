//! Random choices from one stream per purpose.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

/// A stream of choices that depends on its seed and purpose alone.
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    /// The stream of a purpose under a seed.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(purpose);
        Self(ChaCha8Rng::from_seed(hash.finalize().into()))
    }

    /// Uniform in 0..n, up to a bias below n / 2^32.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// Uniform in `from..=to`.
    pub fn between(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to - from + 1)
    }

    /// One of the characters of an ASCII text.
    pub fn char(&mut self, alphabet: &str) -> char {
        alphabet.as_bytes()[self.below(alphabet.len())] as char
    }

    /// A text over an alphabet.
    pub fn text(&mut self, alphabet: &str, from: usize, to: usize) -> String {
        (0..self.between(from, to)).map(|_| self.char(alphabet)).collect()
    }

    /// A text of different characters.
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

    /// One of several.
    pub fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}
