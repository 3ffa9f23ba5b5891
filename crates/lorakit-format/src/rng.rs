//! Counter-based random streams: what is drawn depends on the stream's key alone, never on what was drawn before.
//!
//! Every stream is ChaCha with eight rounds, keyed by 256 bits. Data orders, initial weights, dropout masks and merges on
//! disk were drawn from these streams: neither a key's derivation nor a draw's width may ever change.

use rand_chacha::ChaCha8Rng;
pub use rand_chacha::rand_core::RngCore;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest, Sha256};

/// A random stream that belongs to one key.
#[derive(Clone, Debug)]
pub struct CounterRng(ChaCha8Rng);

/// The name of a stream: the seed, what the numbers are for, and which expert, step, row or module they belong to.
///
/// The stream's key is the SHA-256 of what was added.
#[derive(Clone)]
pub struct Key(Sha256);

impl Key {
    /// The key of a purpose under a seed: the seed's eight bytes, then the purpose as by [`text`](Self::text).
    pub fn new(seed: u64, purpose: &str) -> Self {
        Self(Sha256::new()).number(seed).text(purpose)
    }

    /// A key of `bytes` alone, as their plain SHA-256.
    pub fn of_bytes(bytes: impl AsRef<[u8]>) -> Self {
        Self(Sha256::new_with_prefix(bytes))
    }

    /// The key of a purpose under a seed, without the purpose's length: the seed's eight bytes, then the purpose.
    pub fn unframed(seed: u64, purpose: &str) -> Self {
        let mut hash = Sha256::new_with_prefix(seed.to_le_bytes());
        hash.update(purpose);
        Self(hash)
    }

    /// Adds a text, such as an expert's name: its length in eight bytes, then its UTF-8.
    pub fn text(mut self, text: &str) -> Self {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text);
        self
    }

    /// Adds a number, such as a step, in eight bytes.
    pub fn number(mut self, number: u64) -> Self {
        self.0.update(number.to_le_bytes());
        self
    }

    /// The key's 256 bits.
    pub fn bits(self) -> [u8; 32] {
        self.0.finalize().into()
    }

    /// The stream of this key.
    pub fn stream(self) -> CounterRng {
        CounterRng(ChaCha8Rng::from_seed(self.bits()))
    }
}

impl CounterRng {
    /// The stream `index` of the key with these `bits`: many streams at the cost of one hash.
    pub fn substream(bits: [u8; 32], index: u64) -> Self {
        let mut random = ChaCha8Rng::from_seed(bits);
        random.set_stream(index);
        Self(random)
    }

    /// The stream `index` of a seed without a purpose, expanded to a key as by rand's `seed_from_u64`.
    pub fn seeded(seed: u64, index: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(index);
        Self(random)
    }

    /// Moves to the stream's 32-bit word at `position`, the first being 0.
    pub fn seek(&mut self, position: u64) {
        self.0.set_word_pos(position.into());
    }

    /// Uniform in [0, 1), from 24 bits of one 32-bit word.
    pub fn uniform(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// Uniform in [0, 1), from 53 bits of two 32-bit words.
    pub fn uniform_f64(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..n, from two 32-bit words, up to a bias below n / 2^64.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// Uniform in 0..n, from one 32-bit word, up to a bias below n / 2^32.
    pub fn below_u32(&mut self, n: u32) -> u32 {
        ((u64::from(self.0.next_u32()) * u64::from(n)) >> 32) as u32
    }

    /// As rand 0.9 draws it, for clusters of earlier versions: uniform in 0..n by Canon's method, from one 32-bit word, and
    /// from a second where the first alone would favor some values, up to a bias below n / 2^64.
    pub fn random_range_of_rand(&mut self, n: u32) -> u32 {
        let first = u64::from(self.0.next_u32()) * u64::from(n);
        let (draw, rest) = ((first >> 32) as u32, first as u32);
        if rest <= n.wrapping_neg() {
            return draw;
        }
        let second = u64::from(self.0.next_u32()) * u64::from(n);
        draw + u32::from(rest.checked_add((second >> 32) as u32).is_none())
    }

    /// As rand 0.9 draws it, for clusters of earlier versions: a random permutation of 0..n, in which one draw by
    /// [`random_range_of_rand`](Self::random_range_of_rand) serves as many positions as its range has room for.
    pub fn shuffle_of_rand(&mut self, n: u32) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n as usize).collect();
        let mut at = 1;
        while at < n {
            // The positions at..end have (at + 1) (at + 2) ... end choices.
            let (mut choices, mut end) = (at + 1, at + 1);
            while let Some(more) = choices.checked_mul(end + 1) {
                (choices, end) = (more, end + 1);
            }
            let mut draw = self.random_range_of_rand(choices);
            for position in at..end.min(n) {
                order.swap(position as usize, (draw % (position + 1)) as usize);
                draw /= position + 1;
            }
            at = end;
        }
        order
    }

    /// A random permutation of 0..n (Fisher and Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// The raw words.
impl RngCore for CounterRng {
    fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}

/// The literals come from an independent implementation of SHA-256 and ChaCha8 (Python's hashlib and RFC 8439's rounds).
#[cfg(test)]
mod tests {
    use super::*;

    fn words(mut stream: CounterRng) -> [u32; 4] {
        [(); 4].map(|()| stream.next_u32())
    }

    #[test]
    fn a_jobs_data_order() {
        let key = || Key::new(7, "order").text("boolq").number(1);
        assert_eq!(words(key().stream()), [0xc742_1528, 0xfdab_de2c, 0xf4cf_1c49, 0x7fbc_0f2a]);
        assert_eq!(key().stream().permutation(10), [3, 1, 7, 8, 0, 5, 2, 6, 4, 9]);
        let mut stream = key().stream();
        assert_eq!([(); 4].map(|()| stream.below(1000)), [990, 498, 768, 380]);
    }

    #[test]
    fn a_modules_initial_a_and_a_sites_skill_routing() {
        let mut a = Key::new(0, "initial A").text("model.layers.0.self_attn.q_proj").number(8).stream();
        assert_eq!([(); 4].map(|()| a.uniform()), [0.547_139_7, 0.519_893_3, 0.710_761_8, 0.228_652_9]);
        let routing = Key::new(0, "routing").text("0.qkv").text("boolq").stream();
        assert_eq!(words(routing), [0x6fe7_9743, 0x1c68_9710, 0x7326_3b13, 0xa9e2_44fd]);
    }

    #[test]
    fn a_rows_dropout_mask_at_a_site() {
        let bits = Key::new(3, "dropout").text("boolq").number(5).number(2).bits();
        assert_eq!(bits[..8], [0x32, 0xab, 0xb3, 0xa7, 0xbf, 0x86, 0x73, 0xca]);
        let mut bytes = [0; 8];
        CounterRng::substream(bits, 4).fill_bytes(&mut bytes);
        assert_eq!(bytes, [0x0b, 0xbc, 0x5f, 0xc0, 0xab, 0x00, 0x89, 0x71]);
    }

    #[test]
    fn a_skills_rows() {
        let mut stream = Key::unframed(5, "copy").stream();
        assert_eq!([(); 6].map(|()| stream.below_u32(1000)), [246, 128, 100, 87, 976, 238]);
    }

    #[test]
    fn a_merges_random_sparsification() {
        let key = || Key::of_bytes("3\nmodule\nexpert\ndelta").stream();
        let mut stream = key();
        assert_eq!([stream.next_u64(), stream.next_u64()], [0xa291_04ba_fbe9_f5df, 0x2d79_4aba_526a_b0a6]);
        stream.seek(2);
        assert_eq!(stream.next_u64(), 0x2d79_4aba_526a_b0a6);
    }

    /// As rand 0.9.5 draws them.
    #[test]
    fn draws_of_clusters_are_those_of_rand() {
        let mut stream = CounterRng::seeded(9, 2);
        assert_eq!([(); 4].map(|()| stream.random_range_of_rand(1000)), [713, 502, 828, 316]);
        // Most of these take a second word.
        let mut stream = CounterRng::seeded(9, 2);
        let drawn = [2_141_148_324, 2_486_653_111, 2_903_142_558, 1_900_165_932, 2_199_570_083, 745_283_922];
        assert_eq!(drawn.map(|_| stream.random_range_of_rand(3_000_000_001)), drawn);
        assert_eq!(stream.next_u32(), 948_193_509);

        let shuffled = |n: u32| {
            let mut stream = CounterRng::seeded(9, 2);
            (stream.shuffle_of_rand(n), stream.next_u32())
        };
        assert_eq!(shuffled(10), (vec![8, 4, 9, 0, 6, 2, 1, 7, 5, 3], 0x80a8_37a9));
        let twenty = vec![8, 4, 9, 0, 6, 12, 10, 7, 13, 18, 1, 14, 2, 11, 16, 5, 15, 3, 17, 19];
        assert_eq!(shuffled(20), (twenty, 0x5125_44ef));
        assert_eq!((shuffled(0).0, shuffled(1).0), (vec![], vec![0]));
    }

    #[test]
    fn seeds_without_a_purpose_are_those_of_rand() {
        let mut expected = ChaCha8Rng::seed_from_u64(9);
        expected.set_stream(2);
        let mut stream = CounterRng::seeded(9, 2);
        assert_eq!(stream.next_u64(), expected.next_u64());
        assert_eq!(stream.uniform_f64(), (expected.next_u64() >> 11) as f64 / (1u64 << 53) as f64);
    }
}
