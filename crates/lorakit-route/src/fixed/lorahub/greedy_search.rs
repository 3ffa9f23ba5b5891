//! LoraHub's default search: greedy forward selection of experts by the loss of held-out rows, with weights of deltas.
//!
//! The first round tries each expert alone, at full and at half strength. Each further round adds one expert: at full
//! strength, at half strength, or as one more member of a mean. The candidates are the experts along whose weights the
//! loss falls most steeply at the current mixture; one backward pass gives the gradients of all experts' weights. (Mixing
//! A and B separately has zero gradients at zero.) The number of rounds is chosen by cross-validation (leave-one-out, or
//! [`FOLDS`] folds for more rows), where every fold runs its own rounds. If no number of rounds beats the base on
//! held-out rows, the weights are zero. The reported held-out loss is that of the chosen number of rounds, and
//! therefore slightly optimistic, as a minimum over a few values.
//!
//! The search needs about as many evaluations as COBYLA (40), most of them in batches. In a large library, gradients also
//! choose the experts that are tried alone.

use crate::error::{Result, RouteError};
use crate::fixed::held_out_losses::HeldOutLosses;
use crate::fixed::lorahub::row_losses::{RowLoss, RowLosses, Solution};
use std::collections::BTreeMap;

/// The maximum number of cross-validation folds.
const FOLDS: usize = 10;
/// Above this number of experts, gradients choose those that are tried alone.
const MAX_FIRST_CANDIDATES: usize = 32;
/// The number of candidates per round after the first.
const CANDIDATES_PER_ROUND: usize = 6;

/// Finds weights for `experts`, of which at most `most` are non-zero.
///
/// # Errors
/// If there are no rows, or the model fails.
pub fn find(experts: usize, most: usize, losses: &mut dyn RowLosses) -> Result<Solution> {
    // A round adds one expert.
    let most = most.min(experts);
    let zero = vec![0.0; experts];
    let mut rows = SearchedRows { experts, most, asked: BTreeMap::new(), gradients: BTreeMap::new(), losses };
    rows.ask(std::slice::from_ref(&zero))?;
    let count = rows.of(&zero).len();
    if count == 0 {
        return Err(RouteError::NoRowsToSearch);
    }
    let path = rows.path(&vec![true; count])?;
    let folds = count.min(FOLDS);
    let mut left_out = vec![vec![0.0; count]; most + 1];
    if folds > 1 {
        for fold in 0..folds {
            let included: Vec<bool> = (0..count).map(|row| row % folds != fold).collect();
            let path = rows.path(&included)?;
            for (depth, losses) in left_out.iter_mut().enumerate() {
                let own = rows.of(&path[depth.min(path.len() - 1)]);
                (0..count).filter(|row| !included[*row]).for_each(|row| losses[row] = own[row].mean());
            }
        }
    }
    let depth = match folds {
        // A single row cannot be held out: use the best single expert, if any.
        0 | 1 => 1,
        _ => least(left_out.iter().map(|losses| losses.iter().sum::<f64>())),
    };
    let weights = path[depth.min(path.len() - 1)].clone();
    let all = vec![true; count];
    Ok(Solution {
        fitted: rows.mean(&weights, &all),
        base: rows.mean(&zero, &all),
        held_out: (folds > 1).then(|| HeldOutLosses::of(&left_out[0], &left_out[depth])),
        evaluations: rows.asked.len(),
        weights,
    })
}

/// The index of the smallest value, the first of equal ones.
fn least(values: impl Iterator<Item = f64>) -> usize {
    let less = |found: (usize, f64), (index, value): (usize, f64)| if value < found.1 { (index, value) } else { found };
    values.enumerate().fold((0, f64::INFINITY), less).0
}

/// The rows, with all results so far.
struct SearchedRows<'a> {
    experts: usize,
    most: usize,
    /// Losses of the rows, by the bits of the weights.
    asked: BTreeMap<Vec<u64>, Vec<RowLoss>>,
    /// Gradients of the rows' losses, by the bits of the weights.
    gradients: BTreeMap<Vec<u64>, Vec<Vec<f64>>>,
    losses: &'a mut dyn RowLosses,
}

fn key(weights: &[f64]) -> Vec<u64> {
    weights.iter().map(|w| w.to_bits()).collect()
}

impl SearchedRows<'_> {
    /// Evaluates all new candidates in one batch.
    fn ask(&mut self, candidates: &[Vec<f64>]) -> Result<()> {
        let mut new: BTreeMap<Vec<u64>, Vec<f64>> = BTreeMap::new();
        for candidate in candidates.iter().filter(|candidate| !self.asked.contains_key(&key(candidate))) {
            new.insert(key(candidate), candidate.clone());
        }
        if !new.is_empty() {
            let (keys, new): (Vec<_>, Vec<_>) = new.into_iter().unzip();
            let answers = self.losses.losses(&new).map_err(RouteError::Model)?;
            if answers.len() != new.len() {
                return Err(RouteError::Answers { candidates: new.len(), answers: answers.len() });
            }
            self.asked.extend(keys.into_iter().zip(answers));
        }
        Ok(())
    }

    fn of(&self, weights: &[f64]) -> &[RowLoss] {
        self.asked.get(&key(weights)).map_or(&[], Vec::as_slice)
    }

    /// The mean loss of the included rows; infinite if it is NaN.
    fn mean(&self, weights: &[f64], included: &[bool]) -> f64 {
        let own = self.of(weights).iter().zip(included).filter(|(_, included)| **included).map(|(row, _)| row.mean());
        let (sum, count) = own.fold((0.0, 0), |(sum, count), loss| (sum + loss, count + 1));
        let mean = sum / f64::from(count.max(1));
        if mean.is_finite() { mean } else { f64::INFINITY }
    }

    /// The weights after each round that lowered the loss of the included rows, starting with zero weights.
    fn path(&mut self, included: &[bool]) -> Result<Vec<Vec<f64>>> {
        let mut path = vec![vec![0.0; self.experts]];
        while path.len() <= self.most {
            let members = path.len() - 1;
            let now = path[members].clone();
            let tried = if members == 0 { MAX_FIRST_CANDIDATES } else { CANDIDATES_PER_ROUND };
            let steepest = self.steepest(&now, tried, included)?;
            let options: Vec<Vec<f64>> = match members {
                0 => steepest.into_iter().flat_map(|e| [1.0, 0.5].map(|strength| self.alone(e, strength))).collect(),
                _ => steepest.into_iter().flat_map(|e| additions(&now, &self.alone(e, 1.0), members)).collect(),
            };
            self.ask(&options)?;
            let best = least(options.iter().map(|option| self.mean(option, included)));
            let lower = |option: &&Vec<f64>| self.mean(option, included) < self.mean(&now, included);
            let Some(next) = options.get(best).filter(lower) else { break };
            path.push(next.clone());
        }
        Ok(path)
    }

    /// Weights with a single expert at `strength`.
    fn alone(&self, expert: usize, strength: f64) -> Vec<f64> {
        (0..self.experts).map(|e| if e == expert { strength } else { 0.0 }).collect()
    }

    /// Up to `count` experts with zero weight along which the loss of the included rows falls most steeply.
    fn steepest(&mut self, at: &[f64], count: usize, included: &[bool]) -> Result<Vec<usize>> {
        let mut left: Vec<usize> = (0..self.experts).filter(|expert| at[*expert] == 0.0).collect();
        if left.len() <= count {
            return Ok(left);
        }
        if !self.gradients.contains_key(&key(at)) {
            let gradients = self.losses.gradients(at).map_err(RouteError::Model)?;
            self.gradients.insert(key(at), gradients);
        }
        let gradients = self.gradients.get(&key(at)).map_or(&[][..], Vec::as_slice);
        let sum = |expert: usize| -> f64 {
            gradients.iter().zip(included).filter(|(_, included)| **included).map(|(row, _)| row[expert]).sum()
        };
        let sums: Vec<f64> = (0..self.experts).map(sum).collect();
        left.sort_by(|a, b| sums[*a].total_cmp(&sums[*b]));
        left.truncate(count);
        Ok(left)
    }
}

/// The ways to add one expert to `members`.
fn additions(weights: &[f64], expert: &[f64], members: usize) -> [Vec<f64>; 3] {
    let n = members as f64;
    let combined = |own: f64, more: f64| weights.iter().zip(expert).map(|(w, e)| own * w + more * e).collect();
    [combined(1.0, 1.0), combined(1.0, 0.5), combined(n / (n + 1.0), 1.0 / (n + 1.0))]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fixed::lorahub::row_losses::LossError;

    /// Rows whose losses are squared distances of the weights from each row's target.
    struct Quadratic {
        targets: Vec<Vec<f64>>,
        calls: usize,
    }

    impl RowLosses for Quadratic {
        fn losses(&mut self, candidates: &[Vec<f64>]) -> Result<Vec<Vec<RowLoss>>, LossError> {
            self.calls += 1;
            let one = |w: &Vec<f64>, t: &Vec<f64>| w.iter().zip(t).map(|(w, t)| (w - t) * (w - t)).sum::<f64>();
            let row = |w: &Vec<f64>| self.targets.iter().map(|t| RowLoss { sum: 3.0 * one(w, t), tokens: 3 }).collect();
            Ok(candidates.iter().map(row).collect())
        }

        fn gradients(&mut self, at: &[f64]) -> Result<Vec<Vec<f64>>, LossError> {
            let row = |t: &Vec<f64>| t.iter().zip(at).map(|(t, w)| 2.0 * (w - t)).collect();
            Ok(self.targets.iter().map(row).collect())
        }
    }

    fn found(experts: usize, targets: &[&[(usize, f64)]]) -> (Solution, usize) {
        let dense = |sparse: &&[(usize, f64)]| {
            let mut target = vec![0.0; experts];
            sparse.iter().for_each(|(expert, weight)| target[*expert] = *weight);
            target
        };
        let mut rows = Quadratic { targets: targets.iter().map(dense).collect(), calls: 0 };
        (find(experts, 3, &mut rows).unwrap(), rows.calls)
    }

    #[test]
    fn finds_both_experts_that_every_row_needs() {
        for experts in [6, 50] {
            let (found, calls) = found(experts, &[&[(1, 0.9), (4, 0.6)], &[(1, 1.1), (4, 0.4)], &[(1, 1.0), (4, 0.5)]]);
            let expected: Vec<f64> = (0..experts)
                .map(|e| {
                    if e == 1 {
                        1.0
                    } else if e == 4 {
                        0.5
                    } else {
                        0.0
                    }
                })
                .collect();
            assert_eq!(found.weights, expected);
            let held_out = found.held_out.unwrap();
            assert!(held_out.fitted < 0.1 && held_out.base > 1.0, "{held_out:?}");
            assert!(
                found.evaluations <= 2 * experts.min(MAX_FIRST_CANDIDATES) + 1 + 2 * 3 * CANDIDATES_PER_ROUND,
                "{}",
                found.evaluations
            );
            assert!(calls <= 8, "candidates are batched: {calls}");
        }
    }

    #[test]
    fn does_not_add_an_expert_that_helps_one_row_only() {
        // Every row needs the first expert; each also prefers another one that hurts the other rows.
        let rows: [&[(usize, f64)]; 4] =
            [&[(0, 1.0), (1, 1.5)], &[(0, 1.0), (2, 1.5)], &[(0, 1.0), (3, 1.5)], &[(0, 1.0), (4, 1.5)]];
        assert_eq!(found(5, &rows).0.weights, [1.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn weights_are_zero_if_no_expert_helps() {
        let (found, _) = found(3, &[&[(0, -1.0)], &[(1, -1.0)]]);
        assert_eq!((found.weights, found.fitted), (vec![0.0; 3], found.base));
    }

    #[test]
    fn more_experts_may_be_allowed_than_there_are() {
        let target = [(0, 1.0), (2, 0.5)];
        let search = |most| {
            let mut targets = vec![vec![0.0; 3]; 3];
            targets.iter_mut().for_each(|row| target.iter().for_each(|(expert, weight)| row[*expert] = *weight));
            find(3, most, &mut Quadratic { targets, calls: 0 }).unwrap()
        };
        assert_eq!(search(usize::MAX), search(3));
        assert_eq!(search(3).weights, [1.0, 0.0, 0.5]);
    }

    #[test]
    fn one_row_has_no_held_out_loss() {
        let (found, _) = found(3, &[&[(2, 1.0)]]);
        assert_eq!((found.weights, found.held_out), (vec![0.0, 0.0, 1.0], None));
    }
}
