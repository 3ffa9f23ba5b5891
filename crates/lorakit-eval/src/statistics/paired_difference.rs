//! The difference of two routers, paired by task and seed, with a bootstrap over both.

use lorakit_format::rng::{CounterRng, Key};
use serde::{Deserialize, Serialize};

/// Bootstrap samples: the standard error of a standard error is then below one percent.
const SAMPLES: usize = 10_000;

/// The tails outside the interval, together, and the quantile of the normal distribution beyond each.
const OUTSIDE: f64 = 0.05;
const NORMAL_QUANTILE: f64 = 1.959_963_984_540_054;

/// The mean difference of two routers over tasks that both were scored on, and how far another draw of tasks and seeds
/// could move it.
///
/// With `d[t][s]` the difference on task `t` at seed `s`, the mean is `sum d / (T S)`. A bootstrap sample draws `T` tasks
/// and, apart from them, `S` seeds, both with replacement, and takes the mean of all their pairs: the pigeonhole bootstrap
/// of crossed factors (Owen 2007, <https://doi.org/10.1214/07-AOAS122>). With one seed it is the ordinary bootstrap over
/// tasks, whose standard error tends to `sqrt(sum (d[t] - mean)²) / T` (Efron and Tibshirani 1993, chapters 6 and 13).
/// The same seeds draw the same samples: equal differences give equal numbers.
///
/// The percentiles of the bootstrap's means are too close to the mean of few tasks. The interval is theirs, widened about
/// the mean by `sqrt(T / (T - 1)) t(T - 1) / z`, where `t` and `z` are the 97.5 % quantiles of Student's and the normal
/// distribution: for normal differences at one seed it is then Student's interval, from six tasks on; of fewer, which
/// decide nothing, it is narrower (the factor is Hesterberg's, 2015, <https://doi.org/10.1080/00031305.2015.1089789>). Few
/// seeds are not corrected for.
///
/// Tasks of one family, such as three translations, are not independent draws. [`PairedDifference::of_families`] draws
/// families in place of tasks, each with all of its tasks; the mean of a sample is over the tasks that it has then (the
/// bootstrap of clusters, Davison and Hinkley 1997, section 3.8), and `T` in the factor is the number of families.
///
/// ```
/// use lorakit_eval::PairedDifference;
///
/// // Four tasks at one seed: the standard error is sqrt(0.05) / 4.
/// let difference = PairedDifference::of(&[vec![0.1], vec![0.2], vec![0.3], vec![0.4]]).unwrap();
/// assert!((difference.mean - 0.25).abs() < 1e-12);
/// assert!((difference.stderr - 0.0559).abs() < 0.002);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairedDifference {
    /// Number of tasks.
    pub tasks: usize,
    /// Number of families, where these were drawn in place of tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub families: Option<usize>,
    /// Number of seeds.
    pub seeds: usize,
    /// The mean over tasks and seeds.
    pub mean: f64,
    /// The standard deviation of the bootstrap means.
    pub stderr: f64,
    /// The 95 % interval.
    pub interval: [f64; 2],
}

impl PairedDifference {
    /// From the differences by task, then by seed. None without tasks or seeds, or if tasks have different numbers of
    /// seeds.
    pub fn of(differences: &[Vec<f64>]) -> Option<Self> {
        Self::of_drawn(&differences.chunks(1).collect::<Vec<_>>())
    }

    /// From the differences by family, then by task, then by seed; none as in [`PairedDifference::of`], or where a family
    /// is empty. Where each family has one task, the numbers are those of [`PairedDifference::of`].
    pub fn of_families(differences: &[Vec<Vec<f64>>]) -> Option<Self> {
        let families: Vec<&[Vec<f64>]> = differences.iter().map(Vec::as_slice).collect();
        Some(Self { families: Some(families.len()), ..Self::of_drawn(&families)? })
    }

    /// From the differences by what is drawn, then by task, then by seed.
    fn of_drawn(families: &[&[Vec<f64>]]) -> Option<Self> {
        let tasks = || families.iter().copied().flatten();
        let seeds = tasks().next()?.len();
        if seeds == 0 || families.iter().any(|family| family.is_empty()) || tasks().any(|task| task.len() != seeds) {
            return None;
        }
        let mean = tasks().flatten().sum::<f64>() / (tasks().count() * seeds) as f64;
        let mut random = Key::new(0, "bootstrap").stream();
        let mut means: Vec<f64> = (0..SAMPLES).map(|_| resampled(families, seeds, &mut random)).collect();
        means.sort_by(f64::total_cmp);
        let center = means.iter().sum::<f64>() / SAMPLES as f64;
        let squares = means.iter().map(|mean| (mean - center).powi(2)).sum::<f64>();
        let stderr = (squares / (SAMPLES - 1) as f64).sqrt();
        let widened = |share| mean + widening(families.len()) * (quantile(&means, share) - mean);
        let interval = [OUTSIDE / 2.0, 1.0 - OUTSIDE / 2.0].map(widened);
        Some(Self { tasks: tasks().count(), families: None, seeds, mean, stderr, interval })
    }

    /// The number of families if these were drawn, else of tasks.
    pub fn drawn(&self) -> usize {
        self.families.unwrap_or(self.tasks)
    }

    /// Whether the mean is more than two of the bootstrap's standard errors above zero; without any spread, whether it is
    /// above zero. Of few tasks it asks less than the interval does.
    pub fn is_clearly_positive(&self) -> bool {
        self.mean > 0.0 && self.mean > 2.0 * self.stderr
    }
}

/// The mean of one bootstrap sample.
fn resampled(families: &[&[Vec<f64>]], seeds: usize, random: &mut CounterRng) -> f64 {
    let columns: Vec<usize> = (0..seeds).map(|_| if seeds == 1 { 0 } else { random.below(seeds) }).collect();
    let drawn: Vec<&[Vec<f64>]> = families.iter().map(|_| families[random.below(families.len())]).collect();
    let tasks = || drawn.iter().copied().flatten();
    let sum: f64 = tasks().flat_map(|task| columns.iter().map(move |seed| task[*seed])).sum();
    sum / (tasks().count() * seeds) as f64
}

/// The factor by which the interval over `tasks`, or families, is wider than the bootstrap's.
fn widening(tasks: usize) -> f64 {
    if tasks < 2 {
        return 1.0;
    }
    let freedom = tasks as f64 - 1.0;
    ((freedom + 1.0) / freedom).sqrt() * student_quantile(freedom) / NORMAL_QUANTILE
}

/// The 97.5 % quantile of Student's distribution, by the first terms of its expansion about the normal one (Abramowitz and
/// Stegun 1964, 26.7.5), within 0.2 % from five degrees of freedom on, the fewest that decide a claim.
fn student_quantile(freedom: f64) -> f64 {
    let z = NORMAL_QUANTILE;
    let terms = [
        (z.powi(3) + z) / 4.0,
        (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0,
        (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0,
    ];
    terms.iter().rev().fold(0.0, |sum, term| (sum + term) / freedom) + z
}

/// The value below which a share of ascending values lies, by linear interpolation.
fn quantile(ascending: &[f64], share: f64) -> f64 {
    let at = share * (ascending.len() - 1) as f64;
    let (below, part) = (at as usize, at.fract());
    let above = ascending[(below + 1).min(ascending.len() - 1)];
    ascending[below] + part * (above - ascending[below])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn one_seed(values: &[f64]) -> Vec<Vec<f64>> {
        values.iter().map(|value| vec![*value]).collect()
    }

    #[test]
    fn with_one_seed_the_standard_error_is_that_of_the_plug_in_variance() {
        let values: Vec<f64> = (0..24).map(|i| f64::from(i * 7 % 24) / 10.0 - 1.0).collect();
        let found = PairedDifference::of(&one_seed(&values)).unwrap();
        let mean = values.iter().sum::<f64>() / 24.0;
        let exact = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>().sqrt() / 24.0;
        assert!((found.mean - mean).abs() < 1e-12);
        assert!((found.stderr - exact).abs() < 0.02 * exact, "{} is not {exact}", found.stderr);
        // Student's interval: t(23) is 2.0687, and the standard error has n - 1 in place of n.
        let expected = 2.0 * 2.0687 * exact * (24.0f64 / 23.0).sqrt();
        let width = found.interval[1] - found.interval[0];
        assert!((width - expected).abs() < 0.05 * expected, "{found:?}");
    }

    #[test]
    fn the_pigeonhole_variance_is_that_of_crossed_factors() {
        // d[t][s] = a[t] + b[s]: tasks and seeds are drawn apart, so that the variances of the two means add up.
        let (a, b): (Vec<f64>, [f64; 3]) = ((0..12).map(|t| f64::from(t * 5 % 12)).collect(), [0.0, 2.0, 7.0]);
        let differences: Vec<Vec<f64>> = a.iter().map(|a| b.iter().map(|b| a + b).collect()).collect();
        let variance = |values: &[f64]| {
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n * n)
        };
        let exact = (variance(&a) + variance(&b)).sqrt();
        let found = PairedDifference::of(&differences).unwrap();
        assert!((found.stderr - exact).abs() < 0.02 * exact, "{} is not {exact}", found.stderr);
    }

    /// Against the quantiles of Student's distribution as tables print them.
    #[test]
    fn quantiles_are_those_of_student() {
        for (freedom, printed) in [(5.0, 2.5706), (7.0, 2.3646), (10.0, 2.2281), (23.0, 2.0687), (100.0, 1.9840)] {
            let found = student_quantile(freedom);
            assert!((found - printed).abs() < 2e-3 * printed, "{freedom}: {found} is not {printed}");
        }
        assert!((widening(1_000_000) - 1.0).abs() < 1e-5);
    }

    /// Differences of independent normal values around zero: the interval leaves zero out about once in twenty times.
    #[test]
    fn where_nothing_differs_the_interval_contains_zero_nineteen_times_in_twenty() {
        let mut random = Key::new(1, "normal").stream();
        // The sum of twelve uniform values is normal for this purpose.
        let mut normal = || (0..12).map(|_| random.uniform_f64()).sum::<f64>() - 6.0;
        for tasks in [6, 24] {
            let trials = 600;
            let excludes_zero = |_: &usize| {
                let values: Vec<f64> = (0..tasks).map(|_| normal()).collect();
                let [low, high] = PairedDifference::of(&one_seed(&values)).unwrap().interval;
                assert!(low <= high, "{low} {high}");
                low > 0.0 || high < 0.0
            };
            let wrong = (0..trials).filter(excludes_zero).count() as f64 / f64::from(trials as u32);
            assert!((0.025..0.08).contains(&wrong), "{tasks} tasks: {wrong}");
        }
    }

    #[test]
    fn the_interval_of_two_tasks_is_that_of_their_three_means_widened() {
        // Samples have the means 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4.
        let found = PairedDifference::of(&one_seed(&[0.0, 1.0])).unwrap();
        let half = 0.5 * widening(2);
        assert_eq!((found.mean, found.interval), (0.5, [0.5 - half, 0.5 + half]));
        assert!((found.stderr - 0.125f64.sqrt()).abs() < 0.01, "{found:?}");
    }

    #[test]
    fn equal_differences_have_no_spread_and_the_sign_flips_with_the_routers() {
        let same = PairedDifference::of(&one_seed(&[0.25; 8])).unwrap();
        assert_eq!((same.stderr, same.interval), (0.0, [0.25, 0.25]));
        assert!(same.is_clearly_positive());
        let values = [0.5, -0.25, 1.0, 0.75, 0.0, 2.0];
        let (one, other) = (one_seed(&values), one_seed(&values.map(|v| -v)));
        let (one, other) = (PairedDifference::of(&one).unwrap(), PairedDifference::of(&other).unwrap());
        assert!((one.mean + other.mean).abs() < 1e-12 && (one.stderr - other.stderr).abs() < 1e-12);
        assert!((one.interval[0] + other.interval[1]).abs() < 1e-9, "{one:?} {other:?}");
        // 2.2 standard errors, and 0.6 of one.
        assert!(one.is_clearly_positive() && !other.is_clearly_positive());
        let little = PairedDifference::of(&one_seed(&[1.0, -0.5, 0.5, -0.25])).unwrap();
        assert!(little.mean > 0.0 && !little.is_clearly_positive(), "{little:?}");
    }

    #[test]
    fn tasks_of_a_family_count_once() {
        let by_task: Vec<Vec<f64>> =
            (0..24).map(|t| vec![f64::from(t * 7 % 24) / 10.0 - 1.0, f64::from(t % 5) / 10.0]).collect();
        let alone: Vec<Vec<Vec<f64>>> = by_task.iter().map(|task| vec![task.clone()]).collect();
        let of_tasks = PairedDifference::of(&by_task).unwrap();
        let of_families = PairedDifference::of_families(&alone).unwrap();
        assert_eq!(of_families, PairedDifference { families: Some(24), ..of_tasks }, "each task is its own family");

        // Three copies of each of eight tasks say no more than the eight.
        let eight = || by_task[..8].iter();
        let copies: Vec<Vec<Vec<f64>>> = eight().map(|task| vec![task.clone(); 3]).collect();
        let (few, many) =
            (PairedDifference::of(&by_task[..8]).unwrap(), PairedDifference::of(&copies.concat()).unwrap());
        let found = PairedDifference::of_families(&copies).unwrap();
        assert_eq!((found.tasks, found.families, found.drawn()), (24, Some(8), 8));
        for (found, few) in [(found.mean, few.mean), (found.stderr, few.stderr), (found.interval[0], few.interval[0])] {
            assert!((found - few).abs() < 1e-9, "{found} is not {few}");
        }
        let width = |of: PairedDifference| of.interval[1] - of.interval[0];
        assert!(width(found) > 1.3 * width(many), "{found:?} {many:?}");
    }

    #[test]
    fn a_large_family_weighs_as_many_tasks_as_it_has() {
        let family = |value: f64, tasks: usize| vec![vec![value]; tasks];
        let found = PairedDifference::of_families(&[family(1.0, 3), family(5.0, 1)]).unwrap();
        assert_eq!(found.mean, 2.0);
        // The samples: 1 with 6 tasks, 5 with 2, and twice 2 with 4.
        assert!((found.stderr - 1.5).abs() < 0.03, "{found:?}");
    }

    #[test]
    fn tasks_without_every_seed_have_no_difference() {
        assert_eq!(PairedDifference::of(&[]), None);
        assert_eq!(PairedDifference::of(&[vec![]]), None);
        assert_eq!(PairedDifference::of(&[vec![1.0, 2.0], vec![1.0]]), None);
        assert_eq!(PairedDifference::of_families(&[vec![vec![1.0]], vec![]]), None);
    }
}
