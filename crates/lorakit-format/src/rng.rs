//! Random numbers from counter-based streams: what is drawn depends on its key alone, never on what was drawn before.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

/// A stream of random numbers that belongs to one key.
pub struct CounterRng(ChaCha8Rng);

/// Names a stream: the seed, what the numbers are for, and of which expert, step, row or module.
#[derive(Clone)]
pub struct Key(Sha256);

impl Key {
    /// The key of a purpose under a seed.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        Self(hash).text(purpose)
    }

    /// Adds a text, as an expert's name.
    pub fn text(mut self, text: &str) -> Self {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text);
        self
    }

    /// Adds a number, as a step.
    pub fn number(mut self, number: u64) -> Self {
        self.0.update(number.to_le_bytes());
        self
    }

    /// The key's 256 bits.
    pub fn bits(self) -> [u8; 32] {
        self.0.finalize().into()
    }

    /// The stream.
    pub fn stream(self) -> CounterRng {
        CounterRng(ChaCha8Rng::from_seed(self.bits()))
    }
}

impl CounterRng {
    /// The stream `part` of the key whose bits these are, which costs no hash.
    pub fn part(bits: [u8; 32], part: u64) -> Self {
        let mut random = ChaCha8Rng::from_seed(bits);
        random.set_stream(part);
        Self(random)
    }

    /// Uniform in [0, 1), from 24 bits.
    pub fn uniform(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// Uniform in 0..n; its bias, below n / 2^64, is nothing that a data order shows.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// Fills with random bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }

    /// A random order of 0..n (Fisher and Yates).
    pub fn order(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}
