//! Choosing the next token from logits.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// How a token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SamplingStrategy {
    /// The most probable token; of equals the first.
    Greedy,
    /// At random by `softmax(logits / temperature)`, among the most probable tokens that together reach probability
    /// `top_p` (nucleus sampling, <https://arxiv.org/abs/1904.09751>).
    Random {
        /// Above zero.
        temperature: f64,
        /// In (0, 1].
        top_p: f64,
    },
}

/// Chooses tokens; the same seed and logits give the same tokens.
pub struct Sampler {
    strategy: SamplingStrategy,
    random: ChaCha8Rng,
}

/// The most probable token; of equals the first.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

impl Sampler {
    /// A sampler whose random stream starts at `seed`.
    pub fn new(strategy: SamplingStrategy, seed: u64) -> Self {
        Self { strategy, random: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The next token after `logits`, `[vocabulary]`.
    pub fn next(&mut self, logits: &[f32]) -> u32 {
        match self.strategy {
            SamplingStrategy::Greedy => greedy(logits),
            SamplingStrategy::Random { temperature, top_p } => self.draw(logits, temperature, top_p),
        }
    }

    fn draw(&mut self, logits: &[f32], temperature: f64, top_p: f64) -> u32 {
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let mut weights: Vec<(u32, f64)> =
            logits.iter().enumerate().map(|(i, &l)| (i as u32, ((f64::from(l) - max) / temperature).exp())).collect();
        weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let total: f64 = weights.iter().map(|w| w.1).sum();
        let mut kept = 0.0;
        let enough = weights
            .iter()
            .position(|w| {
                kept += w.1;
                kept >= top_p * total
            })
            .map_or(weights.len(), |i| i + 1);
        weights.truncate(enough);
        let kept: f64 = weights.iter().map(|w| w.1).sum();
        // 53 random bits make a uniform number in [0, 1).
        let mut point = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * kept;
        for (token, weight) in &weights {
            point -= weight;
            if point < 0.0 {
                return *token;
            }
        }
        weights.last().map_or(0, |w| w.0)
    }
}
