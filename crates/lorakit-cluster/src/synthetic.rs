//! Synthetic experts for the tests of this crate: families whose members share a direction, with one initial A.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use lorakit_adapter::{Adapter, LowRank, Matrix};
use lorakit_format::rng::CounterRng;

use crate::expert_set::ExpertSet;

const MODULES: [(&str, usize, usize); 4] = [
    ("layers.0.attn.k_proj", 24, 10),
    ("layers.0.attn.o_proj", 24, 24),
    ("layers.0.attn.q_proj", 24, 20),
    ("layers.0.attn.v_proj", 24, 10),
];

/// Standard normal values, the same for the same seed.
pub(crate) fn normal(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = CounterRng::seeded(seed, 0);
    (0..len)
        .map(|_| {
            let (u, v) = (1.0 - rng.uniform_f64(), rng.uniform_f64());
            ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
        })
        .collect()
}

fn matrix(seed: u64, rows: usize, cols: usize) -> Matrix {
    Matrix::new(rows, cols, normal(seed, rows * cols)).unwrap()
}

fn mixed(parts: &[(f32, &Matrix)]) -> Matrix {
    let (rows, cols) = (parts[0].1.rows(), parts[0].1.cols());
    let mut sum = vec![0f32; rows * cols];
    for (weight, part) in parts {
        sum.iter_mut().zip(part.values().iter()).for_each(|(sum, value)| *sum += weight * value);
    }
    Matrix::new(rows, cols, sum).unwrap()
}

/// One random adapter of the given rank and scale, with or without its last module.
pub(crate) fn adapter(seed: u64, rank: usize, scale: f64, whole: bool) -> Adapter {
    let modules = MODULES[..if whole { 4 } else { 3 }].iter().zip(0u64..).map(|((name, input, output), at)| {
        let (a, b) = (matrix(seed * 97 + at, rank, *input), matrix(seed * 89 + at + 50, *output, rank));
        ((*name).to_owned(), LowRank::new(a, b, scale).unwrap())
    });
    Adapter::new(modules.collect())
}

/// The same adapter with B = 0.
pub(crate) fn zeroed(adapter: &Adapter) -> Adapter {
    map(adapter, |update| {
        let b = Matrix::new(update.output(), update.rank(), vec![0.0; update.output() * update.rank()]).unwrap();
        LowRank::new(update.a().clone(), b, update.scale()).unwrap()
    })
}

/// The same adapter with A and B multiplied by a factor.
pub(crate) fn scaled_values(adapter: &Adapter, factor: f32) -> Adapter {
    map(adapter, |update| {
        let (a, b) = (mixed(&[(factor, update.a())]), mixed(&[(factor, update.b())]));
        LowRank::new(a, b, update.scale()).unwrap()
    })
}

fn map(adapter: &Adapter, change: impl Fn(&LowRank) -> LowRank) -> Adapter {
    let modules: BTreeMap<String, LowRank> =
        adapter.modules().iter().map(|(name, update)| (name.clone(), change(update))).collect();
    Adapter::new(modules)
}

/// Experts e00, e01, ..., expert i in family i mod `families`: a common initial A, plus `step` times the family's direction
/// and half as much noise of the expert's own.
#[derive(Clone, Debug)]
pub(crate) struct Synthetic {
    pub experts: usize,
    pub families: usize,
    pub rank: usize,
    pub step: f32,
    pub tied: bool,
}

impl Default for Synthetic {
    fn default() -> Self {
        Self { experts: 12, families: 3, rank: 2, step: 0.5, tied: false }
    }
}

impl Synthetic {
    fn initial_a(&self, module: usize) -> Matrix {
        matrix(1000 + self.site(module), self.rank, MODULES[module].1)
    }

    /// With tied A, q, k and v draw it from one stream.
    fn site(&self, module: usize) -> u64 {
        if self.tied && module != 1 { 0 } else { module as u64 }
    }

    fn adapter(&self, expert: usize) -> Adapter {
        let family = 10_000 * (1 + expert as u64 % self.families as u64);
        let own = 1_000_000 * (1 + expert as u64);
        let modules = (0..MODULES.len()).map(|at| {
            let (name, input, output) = MODULES[at];
            let (site, b) = (self.site(at), 100 + at as u64);
            let side = |seed: u64, rows, cols| {
                mixed(&[(1.0, &matrix(family + seed, rows, cols)), (0.5, &matrix(own + seed, rows, cols))])
            };
            let a = mixed(&[(1.0, &self.initial_a(at)), (self.step, &side(site, self.rank, input))]);
            let b = mixed(&[(self.step, &side(b, output, self.rank))]);
            (name.to_owned(), LowRank::new(a, b, 2.0).unwrap())
        });
        Adapter::new(modules.collect())
    }

    /// The experts as adapters in memory.
    pub fn adapters(&self) -> Vec<(String, Adapter)> {
        (0..self.experts).map(|expert| (format!("e{expert:02}"), self.adapter(expert))).collect()
    }

    /// The experts, with their common initial A.
    pub fn experts(&self) -> ExpertSet<'static> {
        let synthetic = self.clone();
        let at = |module: &str| MODULES.iter().position(|(name, ..)| *name == module).ok_or("no such module");
        ExpertSet::in_memory(self.adapters())
            .unwrap()
            .with_initial_a(move |module| at(module).map(|at| synthetic.initial_a(at)))
    }

    /// The family of each expert.
    pub fn labels(&self) -> Vec<usize> {
        (0..self.experts).map(|expert| expert % self.families).collect()
    }
}
