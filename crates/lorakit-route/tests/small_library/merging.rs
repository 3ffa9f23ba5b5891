//! Merges of small libraries, and the deltas that they are compared with.

use super::{expert, low_rank, random};
use lorakit_adapter::LowRank;
use lorakit_route::Expert;
use lorakit_route::merge::{Coefficients, Merged, parse_merge};

pub fn merge(text: &str, experts: &[Expert], weights: &[f64]) -> Merged {
    parse_merge(text).unwrap().merge(experts, &Coefficients::new(weights.to_vec())).unwrap()
}

/// Experts of different ranks and scales; the second lacks a module, as the third lacks another.
pub fn mixed() -> Vec<Expert> {
    vec![
        expert("one", [("q", random(1, 3, 9, 7, 2.0)), ("v", random(2, 3, 9, 4, 2.0))]),
        expert("two", [("q", random(3, 2, 9, 7, 0.5))]),
        expert("three", [("q", random(5, 1, 9, 7, -1.0)), ("o", random(6, 2, 7, 9, 1.5))]),
    ]
}

/// `sum w D`, dense, of a module that the first has.
pub fn dense_sum(experts: &[Expert], weights: &[f64], module: &str) -> Vec<f64> {
    let mut sum = Vec::new();
    for (expert, weight) in experts.iter().zip(weights) {
        let Some(update) = expert.adapter.modules().get(module) else { continue };
        sum.resize(update.input() * update.output(), 0.0);
        sum.iter_mut().zip(update.delta()).for_each(|(sum, value)| *sum += weight * f64::from(value));
    }
    sum
}

#[track_caller]
pub fn assert_delta(found: &LowRank, expected: &[f64], tolerance: f64, what: &str) {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let size = norm(&mut expected.iter().copied());
    assert!(size > 0.0, "a comparison with zeros proves nothing");
    let apart = norm(&mut found.delta().iter().zip(expected).map(|(a, b)| f64::from(*a) - b)) / size;
    assert!(apart < tolerance, "{what}: {apart}");
}

/// The same deltas with other factors: `(B R^-1, R A)` with `R = [[2, 1, 0], [0, 1, 0], [1, 0, -4]]`.
pub fn gauged(own: &Expert) -> Expert {
    let update = |update: &LowRank| {
        let rank = update.rank();
        // Elementary row operations on A and their inverses on B multiply by R and its inverse.
        let (mut a, mut b) = (update.a().values().into_owned(), update.b().values().into_owned());
        let input = update.input();
        for (from, to, by) in [(0, 1, 0.75f32), (1, 2, -1.5), (2, 0, 0.5)] {
            if from >= rank || to >= rank {
                continue;
            }
            for column in 0..input {
                a[to * input + column] += by * a[from * input + column];
            }
            for row in b.chunks_exact_mut(rank) {
                row[from] -= by * row[to];
            }
        }
        a.iter_mut().for_each(|value| *value *= 4.0);
        b.iter_mut().for_each(|value| *value /= 4.0);
        low_rank(rank, a, b, update.scale())
    };
    let modules = own.adapter.modules().iter().map(|(module, of)| (module.as_str(), update(of)));
    expert(&own.name, modules)
}

/// Decreasing singular values of a matrix of `columns` columns, by Jacobi's one-sided rotations of its rows.
pub fn singular_values(matrix: &[f32], columns: usize) -> Vec<f64> {
    let mut rows: Vec<Vec<f64>> =
        matrix.chunks_exact(columns).map(|row| row.iter().map(|value| f64::from(*value)).collect()).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for _ in 0..60 {
        for one in 0..rows.len() {
            for other in 0..one {
                let (a, b, c) =
                    (dot(&rows[one], &rows[one]), dot(&rows[other], &rows[other]), dot(&rows[one], &rows[other]));
                if c.abs() <= 1e-15 * (a * b).sqrt() {
                    continue;
                }
                let angle = 0.5 * (2.0 * c).atan2(a - b);
                let (sin, cos) = angle.sin_cos();
                let (before, after) = rows.split_at_mut(one);
                for (x, y) in after[0].iter_mut().zip(&mut before[other]) {
                    (*x, *y) = (cos * *x + sin * *y, cos * *y - sin * *x);
                }
            }
        }
    }
    let mut values: Vec<f64> = rows.iter().map(|row| dot(row, row).sqrt()).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}
