//! The pattern in which a library's experts respond to a prompt, and its distance from those of the tasks they learned.
//!
//! With the responses `r` of every expert at every site ([`crate::prompt::evidence::response`]), each standardized by its mean and deviation
//! over the reference prompts, a pattern is `f = (mean of r over a band of sites, for each band and expert)`: a
//! band is one site if there are few enough, else several neighboring ones. Patterns of prompts of one task are modeled as draws
//! of a Gaussian around the task's mean `m_t`, with one covariance for all tasks, and so the squared distance from a task is
//!
//! `d_t² = (f - m_t)ᵀ Σ⁻¹ (f - m_t)`, `Σ = (1 - λ) S + λ (tr S / D) I`
//!
//! where `S` is the covariance within tasks: linear discriminant analysis (Fisher 1936), shrunk as in Friedman 1989,
//! <https://doi.org/10.1080/01621459.1989.10478752>. All of it is in closed form.

use crate::error::{Result, RouteError};
use crate::ordered_results::ordered_results;
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Accum, Mat, MatRef, Par, Side};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::ops::Range;

/// The maximum number of values of a pattern, unless there are more experts: the covariance grows with its square.
const MAX_WIDTH: usize = 2048;
/// A deviation below this share of the mean is rounding.
const NEGLIGIBLE: f32 = 1e-6;
/// λ, the share of the covariance that is isotropic: a few prompts of each task estimate it badly.
const SHRINKAGE: f64 = 0.1;
/// The number of folds of the cross-validation by which the distances of reference prompts are computed.
const FOLDS: usize = 4;

/// The experts' responses to prompts of the tasks that they learned.
#[derive(Clone, Debug, Default)]
pub struct TaskResponses {
    /// For each touched site its index and `[prompts, experts]`.
    pub responses: Vec<(usize, Vec<f32>)>,
    /// The task of each prompt.
    pub tasks: Vec<usize>,
    /// The expert of each task.
    pub experts: Vec<usize>,
}

impl TaskResponses {
    /// The fold of each prompt: a task's prompts take turns.
    pub fn folds(&self) -> Vec<usize> {
        let mut seen = vec![0; self.experts.len()];
        let fold = |task: &usize| {
            seen[*task] += 1;
            (seen[*task] - 1) % FOLDS
        };
        self.tasks.iter().map(fold).collect()
    }
}

/// Means and deviations of every expert's column of `[prompts, experts]`, as `[2, experts]`.
pub(crate) fn spread(values: &[f32], experts: usize) -> Vec<f32> {
    let rows = (values.len() / experts) as f64;
    let mut means = vec![0f64; experts];
    let mut squares = vec![0f64; experts];
    for row in values.chunks_exact(experts) {
        means.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value) / rows);
    }
    for row in values.chunks_exact(experts) {
        for ((sum, value), mean) in squares.iter_mut().zip(row).zip(&means) {
            *sum += (f64::from(*value) - mean).powi(2) / rows;
        }
    }
    means.into_iter().chain(squares.into_iter().map(f64::sqrt)).map(|value| value as f32).collect()
}

/// The bands that `sites` are averaged in.
fn bands(sites: usize, experts: usize) -> impl Iterator<Item = Range<usize>> {
    let count = (MAX_WIDTH / experts.max(1)).clamp(1, sites.max(1));
    (0..count).map(move |band| band * sites / count..(band + 1) * sites / count)
}

/// The number of values of a pattern.
pub(crate) fn pattern_width(sites: usize, experts: usize) -> usize {
    bands(sites, experts).count() * experts
}

/// The pattern of the prompt in row `row` of the `responses` of each site, `[prompts, experts]`; `spreads` has each
/// site's means and deviations, `[2, experts]`. A response that never changes counts as zero.
pub(crate) fn pattern(
    row: usize,
    experts: usize,
    responses: &[(usize, Vec<f32>)],
    spreads: &[Vec<f32>],
) -> Result<Vec<f32>> {
    let mut pattern = Vec::with_capacity(pattern_width(responses.len(), experts));
    for band in bands(responses.len(), experts) {
        let mut sums = vec![0.0; experts];
        for ((_, responses), spread) in responses[band.clone()].iter().zip(&spreads[band.clone()]) {
            let here = responses.get(row * experts..(row + 1) * experts).ok_or(RouteError::OtherRows)?;
            let (means, deviations) = spread.split_at(experts);
            for (sum, ((response, mean), deviation)) in sums.iter_mut().zip(here.iter().zip(means).zip(deviations)) {
                if *deviation > NEGLIGIBLE * mean.abs() {
                    *sum += (response - mean) / deviation;
                }
            }
        }
        pattern.extend(sums.into_iter().map(|sum| sum / band.len().max(1) as f32));
    }
    Ok(pattern)
}

/// Tells tasks apart by their patterns.
#[derive(Clone, Debug)]
pub(crate) struct LinearDiscriminant {
    /// `L⁻¹` with `Σ = L Lᵀ`, `[width, width]`: the Euclidean distance of whitened patterns is `d`.
    pub(crate) whitening: Vec<f32>,
    /// The whitened mean of each task, `[tasks, width]`.
    pub(crate) means: Vec<f32>,
    pub(crate) width: usize,
}

impl LinearDiscriminant {
    /// From `patterns`, `[prompts, width]`, of `tasks`, which are then numbered in their order without gaps.
    pub(crate) fn of(patterns: &[f32], tasks: &[usize]) -> Result<Self> {
        let known: Vec<usize> = tasks.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let task_of = |row: usize| known.partition_point(|task| *task < tasks[row]);
        let (rows, width) = (tasks.len(), patterns.len() / tasks.len().max(1));
        let value = |row: usize, i: usize| f64::from(patterns[row * width + i]);
        let mut means = Mat::<f64>::zeros(known.len(), width);
        for row in 0..rows {
            let size = tasks.iter().filter(|task| **task == tasks[row]).count() as f64;
            (0..width).for_each(|i| means[(task_of(row), i)] += value(row, i) / size);
        }
        let within = Mat::from_fn(rows, width, |row, i| value(row, i) - means[(task_of(row), i)]);
        let inverse = inverse_root(&covariance(within.as_ref(), rows - known.len()))?;
        let mut whitened = Mat::<f64>::zeros(known.len(), width);
        matmul(&mut whitened, Accum::Replace, means.as_ref(), inverse.transpose(), 1.0, Par::Seq);
        let flat = |matrix: MatRef<'_, f64>| -> Vec<f32> {
            let row = |i: usize| (0..matrix.ncols()).map(move |j| matrix[(i, j)] as f32);
            (0..matrix.nrows()).flat_map(row).collect()
        };
        Ok(Self { whitening: flat(inverse.as_ref()), means: flat(whitened.as_ref()), width })
    }

    /// The squared distances of a pattern from every task.
    pub(crate) fn distances(&self, pattern: &[f32]) -> Vec<f32> {
        let whitening = MatRef::from_row_major_slice(&self.whitening, self.width, self.width);
        let whitened = whitening * MatRef::from_column_major_slice(pattern, self.width, 1);
        let distance = |mean: &[f32]| mean.iter().zip(whitened.col(0).iter()).map(|(m, f)| (m - f) * (m - f)).sum();
        self.means.chunks_exact(self.width.max(1)).map(distance).collect()
    }
}

/// `Σ` of the differences of patterns from their means, `[prompts, width]`, with so many `degrees` of freedom.
fn covariance(within: MatRef<'_, f64>, degrees: usize) -> Mat<f64> {
    let width = within.ncols();
    let mut covariance = Mat::<f64>::zeros(width, width);
    let scale = (1.0 - SHRINKAGE) / degrees.max(1) as f64;
    matmul(&mut covariance, Accum::Replace, within.transpose(), within, scale, Par::Seq);
    let trace: f64 = (0..width).map(|i| covariance[(i, i)]).sum();
    // If no task's prompts differ, as if each has one, all directions count alike.
    let alike = if trace > 0.0 { trace / (1.0 - SHRINKAGE) / width as f64 * SHRINKAGE } else { 1.0 };
    (0..width).for_each(|i| covariance[(i, i)] += alike);
    covariance
}

/// `L⁻¹` with `covariance = L Lᵀ`.
fn inverse_root(covariance: &Mat<f64>) -> Result<Mat<f64>> {
    // With shrinkage, the covariance of finite patterns is positive definite.
    let cholesky = covariance.llt(Side::Lower).map_err(|_| RouteError::NotFinite)?;
    let mut inverse = Mat::<f64>::identity(covariance.nrows(), covariance.ncols());
    solve_lower_triangular_in_place(cholesky.L(), inverse.as_mut(), Par::Seq);
    Ok(inverse)
}

/// The squared distance of each of `patterns`, `[prompts, width]`, from the nearest task, by cross-validation: the tasks are
/// estimated without the prompt's fold. Ascending. The only prompt of a task is left out, since its task would be unknown.
pub(crate) fn held_out_distances(patterns: &[f32], prompts: &TaskResponses) -> Result<Vec<f32>> {
    let width = patterns.len() / prompts.tasks.len().max(1);
    let (folds, of) = (prompts.folds(), |row: usize| &patterns[row * width..(row + 1) * width]);
    let of_fold = |fold: usize| -> Result<Vec<f32>> {
        let (new, seen): (Vec<usize>, Vec<usize>) = (0..folds.len()).partition(|row| folds[*row] == fold);
        let tasks: Vec<usize> = seen.iter().map(|row| prompts.tasks[*row]).collect();
        let new: Vec<usize> = new.into_iter().filter(|row| tasks.contains(&prompts.tasks[*row])).collect();
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let patterns: Vec<f32> = seen.iter().flat_map(|row| of(*row)).copied().collect();
        let discriminant = LinearDiscriminant::of(&patterns, &tasks)?;
        let nearest = |row: &usize| discriminant.distances(of(*row)).into_iter().fold(f32::INFINITY, f32::min);
        Ok(new.par_iter().map(nearest).collect())
    };
    let mut nearest = ordered_results((0..FOLDS).into_par_iter().map(of_fold))?.concat();
    nearest.sort_by(f32::total_cmp);
    Ok(nearest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use faer::linalg::solvers::DenseSolveCore;
    use lorakit_format::rng::CounterRng;

    fn values(seed: u64, count: usize) -> Vec<f32> {
        let mut rng = CounterRng::seeded(seed, 0);
        (0..count).map(|_| 2.0 * rng.uniform() - 1.0).collect()
    }

    /// The formula itself, with an explicit inverse.
    fn distance(patterns: &[f32], tasks: &[usize], task: usize, pattern: &[f32]) -> f64 {
        let (width, count) = (pattern.len(), 1 + tasks.iter().max().unwrap());
        let of =
            |task: usize| patterns.chunks_exact(width).zip(tasks).filter(move |(_, t)| **t == task).map(|(p, _)| p);
        let mean = |task: usize, i: usize| of(task).map(|p| f64::from(p[i])).sum::<f64>() / of(task).count() as f64;
        let within = |i: usize, j: usize| {
            let rows = patterns.chunks_exact(width).zip(tasks);
            let products = rows.map(|(p, &t)| (f64::from(p[i]) - mean(t, i)) * (f64::from(p[j]) - mean(t, j)));
            products.sum::<f64>() / (tasks.len() - count) as f64
        };
        let trace: f64 = (0..width).map(|i| within(i, i)).sum();
        let alike = |i, j| if i == j { trace / width as f64 } else { 0.0 };
        let covariance = Mat::from_fn(width, width, |i, j| 0.9 * within(i, j) + 0.1 * alike(i, j));
        let inverse = covariance.partial_piv_lu().inverse();
        let off = |i: usize| f64::from(pattern[i]) - mean(task, i);
        (0..width).flat_map(|i| (0..width).map(move |j| (i, j))).map(|(i, j)| off(i) * inverse[(i, j)] * off(j)).sum()
    }

    #[test]
    fn distances_are_those_of_the_formula() {
        let (width, tasks) = (5, [0, 0, 0, 2, 2, 2, 2, 1, 1, 1, 1]);
        let patterns = values(1, tasks.len() * width);
        let discriminant = LinearDiscriminant::of(&patterns, &tasks).unwrap();
        let pattern = values(2, width);
        for (task, found) in discriminant.distances(&pattern).into_iter().enumerate() {
            let expected = distance(&patterns, &tasks, task, &pattern);
            assert!((f64::from(found) - expected).abs() < 1e-4 * expected, "{task}: {found} {expected}");
        }
    }

    #[test]
    fn tasks_without_prompts_are_passed_over_and_one_prompt_each_is_enough() {
        let patterns = [0.0, 0.0, 3.0, 4.0];
        let distances = LinearDiscriminant::of(&patterns, &[1, 7]).unwrap().distances(&[3.0, 0.0]);
        assert_eq!(distances, [9.0, 16.0]);
        assert!(matches!(
            LinearDiscriminant::of(&[0.0, f32::NAN, 1.0, 2.0, 0.5, 1.0], &[0, 0, 0]),
            Err(RouteError::NotFinite)
        ));
    }

    #[test]
    fn patterns_of_large_libraries_are_averaged_over_neighboring_sites() {
        let experts = MAX_WIDTH / 2;
        let responses: Vec<(usize, Vec<f32>)> = (0..5).map(|site| (site, vec![site as f32; experts])).collect();
        let spreads = vec![[vec![1.0; experts], vec![2.0; experts]].concat(); 5];
        let pattern = pattern(0, experts, &responses, &spreads).unwrap();
        assert_eq!(pattern.len(), pattern_width(5, experts));
        // Sites 0 and 1, and sites 2 to 4.
        assert_eq!((pattern[0], pattern[experts]), (-0.25, 1.0));
    }
}
