//! LoraHub as in its authors' code (`lorahub/algorithm.py` of <https://github.com/sail-sg/lorahub>, commit df73afe).
//!
//! *Composition.* Every tensor of the state dict is summed with the weights, A and B separately:
//! `dW(w) = s (sum_i w_i B_i) (sum_j w_j A_j)`. So a single expert acts at `w²`, `dW(-w) = dW(w)`, the
//! gradient at `w = 0` is zero, and cross terms `B_i A_j` combine factors of different experts.
//!
//! *Objective.* `L / k + 0.05 mean |w|`, where L is the mean loss over the target tokens of all k rows: unlike the
//! paper, their code divides the mean by the number of rows again.
//!
//! *Optimizer.* nevergrad's `NGOpt`, which for a bounded problem of this budget is COBYLA and not CMA-ES: from `w = 0`
//! with initial steps of 0.5 and reflecting bounds at ±1.5, restarted from the best point while evaluations are left.
//! The seed has no effect; the order of the experts does.

use crate::error::{Result, RouteError};
use crate::fixed::lorahub::cobyla::{Search, minimize};
use crate::fixed::lorahub::row_losses::{RowLoss, RowLosses, Solution};
use crate::library_stack::LibraryStack;

/// The magnitude of the lower and upper bounds of a weight.
const BOUND: f64 = 1.5;
/// The optimizer's unit: a sixth of the range between the bounds. Its initial steps have length one.
const UNIT: f64 = 0.5;
/// The coefficient of the L1 penalty: of the weights' mean magnitude in the objective.
const PENALTY: f64 = 0.05;
/// The final step length, in the optimizer's unit.
const SHORTEST: f64 = 1e-6;

/// Refuses experts that the authors' code would refuse or mix at the wrong scale.
///
/// # Errors
/// If modules, ranks or scales differ; the experts and the module are named.
pub fn check(experts: &LibraryStack) -> Result<()> {
    let experts = experts.experts();
    let Some(first) = experts.first() else { return Ok(()) };
    for other in &experts[1..] {
        let refused = |module: &str, why: String| RouteError::AsPublished {
            module: module.to_owned(),
            first: first.name.clone(),
            second: other.name.clone(),
            why,
        };
        let (own, theirs) = (first.adapter.modules(), other.adapter.modules());
        if let Some(module) =
            own.keys().find(|m| !theirs.contains_key(*m)).or(theirs.keys().find(|m| !own.contains_key(*m)))
        {
            return Err(refused(module, "only one of them has it".to_owned()));
        }
        for ((module, own), theirs) in own.iter().zip(theirs.values()) {
            if own.rank() != theirs.rank() {
                return Err(refused(module, format!("their ranks are {} and {}", own.rank(), theirs.rank())));
            }
            if (own.scale() - theirs.scale()).abs() > 1e-9 * own.scale().abs() {
                return Err(refused(module, format!("their scales are {} and {}", own.scale(), theirs.scale())));
            }
        }
    }
    Ok(())
}

/// Finds weights of `experts` within `budget` evaluations.
///
/// # Errors
/// If the model fails.
pub fn find(experts: usize, budget: usize, losses: &mut dyn RowLosses) -> Result<Solution> {
    let mut base = None;
    let (weights, evaluations) = search(experts, budget, |weights| {
        let mut answers = losses.losses(&[weights.to_vec()]).map_err(RouteError::Model)?;
        let rows = answers.pop().unwrap_or_default();
        // The first point has zero weights.
        base.get_or_insert_with(|| mean(&rows));
        Ok::<_, RouteError>(objective(&rows, weights))
    })?;
    let fitted = losses.losses(std::slice::from_ref(&weights)).map_err(RouteError::Model)?;
    let fitted = fitted.into_iter().next_back().unwrap_or_default();
    Ok(Solution { fitted: mean(&fitted), base: base.unwrap_or(f64::NAN), weights, held_out: None, evaluations })
}

fn mean(rows: &[RowLoss]) -> f64 {
    rows.iter().map(|row| row.mean()).sum::<f64>() / rows.len().max(1) as f64
}

fn objective(rows: &[RowLoss], weights: &[f64]) -> f64 {
    let tokens: usize = rows.iter().map(|row| row.tokens).sum();
    let loss = rows.iter().map(|row| row.sum).sum::<f64>() / tokens.max(1) as f64;
    let magnitude = weights.iter().map(|w| w.abs()).sum::<f64>() / weights.len().max(1) as f64;
    loss / rows.len().max(1) as f64 + PENALTY * magnitude
}

/// The best point within `budget` evaluations, and the number of evaluations.
fn search<E>(
    n: usize,
    budget: usize,
    mut objective: impl FnMut(&[f64]) -> Result<f64, E>,
) -> Result<(Vec<f64>, usize), E> {
    let mut best = (f64::INFINITY, vec![0.0; n]);
    let mut done = 0;
    while done < budget {
        let search = Search { rho_begin: 1.0, rho_end: SHORTEST, evaluations: budget - done };
        let start = best.1.clone();
        minimize(&start, search, |point| {
            done += 1;
            let value = objective(&weights(point))?;
            if value < best.0 {
                best = (value, point.to_vec());
            }
            Ok(value)
        })?;
    }
    Ok((weights(&best.1), done))
}

/// The weights at a point in the optimizer's unit, reflected once at the bounds.
fn weights(point: &[f64]) -> Vec<f64> {
    let inside = |w: f64| w.clamp(-BOUND, BOUND);
    point.iter().map(|z| UNIT * z).map(|w| inside(2.0 * inside(w) - w)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::convert::Infallible;

    /// The recorded evaluations of nevergrad 0.11.0 with scipy 1.11.4.
    struct Trace {
        /// The objective is the squared distance from this point.
        target: Vec<f64>,
        /// The value and point of each evaluation.
        visited: Vec<Vec<f64>>,
        recommended: Vec<f64>,
    }

    fn trace() -> Trace {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/oracles/lorahub_cobyla_trace.tsv");
        let text = std::fs::read_to_string(path).unwrap();
        let numbers = |line: &str| line.split('\t').skip(1).map(|cell| cell.parse().unwrap()).collect::<Vec<f64>>();
        let mut lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).map(numbers).collect();
        let (target, recommended) = (lines.remove(0), lines.pop().unwrap());
        Trace { target, visited: lines, recommended }
    }

    fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).max_by(f64::total_cmp).unwrap()
    }

    #[test]
    #[ignore = "needs ../shared"]
    fn visits_the_same_points_as_nevergrad() {
        let Trace { target, visited, recommended } = trace();
        let mut found = Vec::new();
        let f = |w: &[f64]| w.iter().zip(&target).map(|(w, t)| (w - t) * (w - t)).sum::<f64>();
        let best = search(target.len(), visited.len(), |w| {
            found.push([&[f(w)], w].concat());
            Ok::<_, Infallible>(f(w))
        });
        assert_eq!((found.len(), visited.len()), (40, 40));
        for (index, (found, expected)) in found.iter().zip(&visited).enumerate() {
            let off = largest_difference(found, expected);
            assert!(off < 1e-9, "evaluation {index}: {off}");
        }
        assert!(largest_difference(&best.unwrap().0, &recommended) < 1e-9);
    }

    #[test]
    fn bounds_reflect_a_point_once() {
        assert_eq!(weights(&[1.0, 3.0, 4.0, -3.5, 20.0]), [0.5, 1.5, 1.0, -1.25, -1.5]);
    }

    #[test]
    fn the_objective_divides_the_mean_by_the_rows_again() {
        let rows = [RowLoss { sum: 6.0, tokens: 2 }, RowLoss { sum: 6.0, tokens: 4 }];
        assert!((objective(&rows, &[1.0, -0.5, 0.0]) - (2.0 / 2.0 + 0.05 * 0.5)).abs() < 1e-12);
    }
}
