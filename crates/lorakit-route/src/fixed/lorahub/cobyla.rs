//! COBYLA without constraints: derivative-free minimization by linear interpolation at the vertices of a simplex.
//!
//! M. J. D. Powell, "A direct search optimization method that models the objective and constraint functions by linear
//! interpolation" (1994), with the constants of his code, reimplemented for the unconstrained case: the linear
//! model's minimum within the trust region is then a step of length `rho` against its gradient. LoraHub's authors use
//! it: see `published_search`.

/// Minimum distance of a vertex from the opposite face, in multiples of `rho`.
const LEAST_HEIGHT: f64 = 0.25;
/// Maximum distance of a vertex from the best one, in multiples of `rho`.
const LONGEST_EDGE: f64 = 2.1;
/// Distance from the opposite face to which a vertex is moved to repair the simplex, in multiples of `rho`.
const REPAIR: f64 = 0.5;
/// A vertex farther away than this, in multiples of `rho`, is replaced first.
const FAR: f64 = 1.1;
/// The search ends if the rounding error of the inverse of the edges exceeds this.
const ROUNDING: f64 = 0.1;

/// Step lengths and budget of a search.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Search {
    /// The initial step length.
    pub rho_begin: f64,
    /// The final step length.
    pub rho_end: f64,
    /// The maximum number of evaluations.
    pub evaluations: usize,
}

/// A simplex of `n + 1` vertices, with the best one as its origin.
struct Simplex {
    best: Vec<f64>,
    best_value: f64,
    /// The edges from the best vertex to the others.
    edges: Vec<Vec<f64>>,
    /// The inverse of the edges: row `j` times edge `k` is one if `j = k`, else zero.
    inverse: Vec<Vec<f64>>,
    values: Vec<f64>,
}

/// The quality of a simplex for interpolation.
struct Shape {
    /// The distance of each vertex from the face opposite to it.
    heights: Vec<f64>,
    /// The distance of each vertex from the best one.
    lengths: Vec<f64>,
    acceptable: bool,
}

/// Minimizes from `start` until the step length reaches `rho_end` or the evaluations are used up. The caller keeps
/// track of the best point in `objective`.
///
/// # Errors
/// Errors of the objective.
pub(crate) fn minimize<E>(
    start: &[f64],
    search: Search,
    mut objective: impl FnMut(&[f64]) -> Result<f64, E>,
) -> Result<(), E> {
    let mut left = search.evaluations;
    let mut evaluate = |point: &[f64]| -> Result<Option<f64>, E> {
        if left == 0 {
            return Ok(None);
        }
        left -= 1;
        objective(point).map(Some)
    };
    let mut rho = search.rho_begin;
    let Some(mut simplex) = Simplex::around(start, rho, &mut evaluate)? else { return Ok(()) };
    // After a repair, one step is taken before the shape is checked again.
    let mut fresh = true;
    loop {
        simplex.put_best_first();
        let rounding = simplex.rounding();
        if rounding.is_nan() || rounding > ROUNDING {
            return Ok(());
        }
        let shape = simplex.shape(rho);
        if !fresh && !shape.acceptable {
            if !simplex.repair(rho, &shape, &mut evaluate)? {
                return Ok(());
            }
            fresh = true;
            continue;
        }
        fresh = true;
        let Some(step) = simplex.descent(rho) else {
            // A flat model gives no direction at this step length.
            if !shape.acceptable {
                fresh = false;
            } else if !shorten(&mut rho, search.rho_end) {
                return Ok(());
            }
            continue;
        };
        let Some(value) = evaluate(&sum(&simplex.best, &step))? else { return Ok(()) };
        let (predicted, gained) = (-dot(&simplex.gradient(), &step), simplex.best_value - value);
        let replaced = simplex.vertex_to_replace(rho, &step, gained, &shape);
        if let Some(vertex) = replaced {
            simplex.replace(vertex, step, value);
        }
        if replaced.is_some() && gained > 0.0 && gained >= 0.1 * predicted {
            continue;
        }
        if !shape.acceptable {
            fresh = false;
        } else if !shorten(&mut rho, search.rho_end) {
            return Ok(());
        }
    }
}

/// Halves `rho`; returns false if it was at its minimum.
fn shorten(rho: &mut f64, end: f64) -> bool {
    if *rho <= end {
        return false;
    }
    *rho *= 0.5;
    if *rho <= 1.5 * end {
        *rho = end;
    }
    true
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

impl Simplex {
    /// The initial simplex: a step of `rho` along each axis in turn from the best vertex so far. `None` if there are
    /// too few evaluations.
    fn around<E>(
        start: &[f64],
        rho: f64,
        evaluate: &mut impl FnMut(&[f64]) -> Result<Option<f64>, E>,
    ) -> Result<Option<Self>, E> {
        let n = start.len();
        let axis = |j: usize, value: f64| (0..n).map(|i| if i == j { value } else { 0.0 }).collect();
        let diagonal = |value: f64| (0..n).map(|j| axis(j, value)).collect::<Vec<Vec<f64>>>();
        let Some(best_value) = evaluate(start)? else { return Ok(None) };
        let (edges, inverse) = (diagonal(rho), diagonal(1.0 / rho));
        let mut simplex = Self { best: start.to_vec(), best_value, edges, inverse, values: vec![0.0; n] };
        for axis in 0..n {
            let mut point = simplex.best.clone();
            point[axis] += rho;
            let Some(value) = evaluate(&point)? else { return Ok(None) };
            simplex.values[axis] = value;
            if value < simplex.best_value {
                simplex.best = point;
                simplex.values[axis] = std::mem::replace(&mut simplex.best_value, value);
                for earlier in 0..=axis {
                    simplex.edges[earlier][axis] = -rho;
                    simplex.inverse[axis][earlier] =
                        -(earlier..=axis).map(|row| simplex.inverse[row][earlier]).sum::<f64>();
                }
            }
        }
        Ok(Some(simplex))
    }

    /// Makes the vertex with the smallest value the origin.
    fn put_best_first(&mut self) {
        let least = |best: Option<usize>, vertex: usize| {
            let value = best.map_or(self.best_value, |best| self.values[best]);
            if self.values[vertex] < value { Some(vertex) } else { best }
        };
        let Some(vertex) = (0..self.values.len()).fold(None, least) else { return };
        std::mem::swap(&mut self.best_value, &mut self.values[vertex]);
        let edge = std::mem::replace(&mut self.edges[vertex], vec![0.0; self.best.len()]);
        self.best = sum(&self.best, &edge);
        for other in &mut self.edges {
            other.iter_mut().zip(&edge).for_each(|(other, by)| *other -= by);
        }
        let negated = (0..edge.len()).map(|i| -self.inverse.iter().map(|row| row[i]).sum::<f64>());
        self.inverse[vertex] = negated.collect();
    }

    /// The largest rounding error of the inverse; NaN if one is.
    fn rounding(&self) -> f64 {
        let off = |(j, row): (usize, &Vec<f64>)| {
            let error = |(k, edge): (usize, &Vec<f64>)| (dot(row, edge) - if j == k { 1.0 } else { 0.0 }).abs();
            self.edges.iter().enumerate().map(error).max_by(f64::total_cmp).unwrap_or(0.0)
        };
        self.inverse.iter().enumerate().map(off).max_by(f64::total_cmp).unwrap_or(0.0)
    }

    /// The gradient of the linear function that interpolates the vertices' values.
    fn gradient(&self) -> Vec<f64> {
        let mut gradient = vec![0.0; self.best.len()];
        for (value, row) in self.values.iter().zip(&self.inverse) {
            gradient.iter_mut().zip(row).for_each(|(g, r)| *g += (value - self.best_value) * r);
        }
        gradient
    }

    /// The step of length `rho` along the steepest descent of the linear model; `None` if it is flat, or not finite, as
    /// where the objective is infinite.
    fn descent(&self, rho: f64) -> Option<Vec<f64>> {
        let gradient = self.gradient();
        let length = dot(&gradient, &gradient).sqrt();
        (length > 0.0 && length.is_finite()).then(|| gradient.iter().map(|g| -rho * g / length).collect())
    }

    fn shape(&self, rho: f64) -> Shape {
        let heights: Vec<f64> = self.inverse.iter().map(|row| 1.0 / dot(row, row).sqrt()).collect();
        let lengths: Vec<f64> = self.edges.iter().map(|edge| dot(edge, edge).sqrt()).collect();
        let acceptable =
            heights.iter().all(|h| *h >= LEAST_HEIGHT * rho) && lengths.iter().all(|l| *l <= LONGEST_EDGE * rho);
        Shape { heights, lengths, acceptable }
    }

    /// Moves the vertex that degrades the simplex most away from its opposite face, to the side on which the model
    /// decreases. Returns false if there is no evaluation left.
    fn repair<E>(
        &mut self,
        rho: f64,
        shape: &Shape,
        evaluate: &mut impl FnMut(&[f64]) -> Result<Option<f64>, E>,
    ) -> Result<bool, E> {
        let farthest = first_largest(&shape.lengths, LONGEST_EDGE * rho);
        let flattest = || first_largest(&shape.heights.iter().map(|h| -h).collect::<Vec<_>>(), -LEAST_HEIGHT * rho);
        let Some(vertex) = farthest.or_else(flattest) else { return Ok(true) };
        let length = REPAIR * rho * shape.heights[vertex];
        let mut step: Vec<f64> = self.inverse[vertex].iter().map(|i| length * i).collect();
        if dot(&self.gradient(), &step) > 0.0 {
            step.iter_mut().for_each(|s| *s = -*s);
        }
        let Some(value) = evaluate(&sum(&self.best, &step))? else { return Ok(false) };
        self.replace(vertex, step, value);
        Ok(true)
    }

    /// The vertex that is replaced by the end of a step, if any; always one if the value decreased.
    fn vertex_to_replace(&self, rho: f64, step: &[f64], gained: f64, shape: &Shape) -> Option<usize> {
        let shares: Vec<f64> = self.inverse.iter().map(|row| dot(row, step).abs()).collect();
        let by_volume = first_largest(&shares, if gained > 0.0 { 0.0 } else { 1.0 });
        let distance = |vertex: usize| {
            // The height of the vertex after the replacement.
            let height = shares[vertex] * shape.heights[vertex];
            if height < LEAST_HEIGHT * rho && height < shape.heights[vertex] {
                return f64::NEG_INFINITY;
            }
            if gained <= 0.0 {
                return shape.lengths[vertex];
            }
            step.iter().zip(&self.edges[vertex]).map(|(s, e)| (s - e) * (s - e)).sum::<f64>().sqrt()
        };
        let distances: Vec<f64> = (0..shares.len()).map(distance).collect();
        first_largest(&distances, FAR * rho).or(by_volume)
    }

    /// Replaces a vertex by the end of a step from the best one.
    fn replace(&mut self, vertex: usize, step: Vec<f64>, value: f64) {
        let share = dot(&self.inverse[vertex], &step);
        self.inverse[vertex].iter_mut().for_each(|i| *i /= share);
        let own = self.inverse[vertex].clone();
        for (_, row) in self.inverse.iter_mut().enumerate().filter(|(j, _)| *j != vertex) {
            let share = dot(row, &step);
            row.iter_mut().zip(&own).for_each(|(i, own)| *i -= share * own);
        }
        self.edges[vertex] = step;
        self.values[vertex] = value;
    }
}

/// The index of the largest value, the first of equal ones, if it is above `least`.
fn first_largest(values: &[f64], least: f64) -> Option<usize> {
    let larger = |found: (Option<usize>, f64), (index, value): (usize, &f64)| {
        if *value > found.1 { (Some(index), *value) } else { found }
    };
    values.iter().enumerate().fold((None, least), larger).0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::convert::Infallible;

    fn best(start: &[f64], evaluations: usize, f: impl Fn(&[f64]) -> f64) -> (Vec<f64>, f64, usize) {
        let (mut best, mut count) = ((start.to_vec(), f64::INFINITY), 0);
        let search = Search { rho_begin: 0.5, rho_end: 1e-6, evaluations };
        minimize(start, search, |point| {
            count += 1;
            if f(point) < best.1 {
                best = (point.to_vec(), f(point));
            }
            Ok::<_, Infallible>(f(point))
        })
        .unwrap();
        (best.0, best.1, count)
    }

    #[test]
    fn descends_a_narrow_bent_valley() {
        let bent = |x: &[f64]| (1.0 - x[0]).powi(2) + 10.0 * (x[1] - x[0] * x[0]).powi(2);
        let (point, value, _) = best(&[-1.0, 1.0], 3000, bent);
        assert!(value < 1e-3, "{point:?} {value}");
        let squares = |x: &[f64]| x.iter().enumerate().map(|(i, x)| (i + 1) as f64 * (x - 0.3).powi(2)).sum::<f64>();
        let (point, value, count) = best(&[0.0; 7], 2000, squares);
        assert!(value < 1e-6 && count < 2000, "{point:?} {value} {count}");
    }

    #[test]
    fn counts_evaluations_and_stops_on_a_flat_function() {
        assert_eq!(best(&[0.0; 5], 3, |x| x[0]).2, 3, "fewer evaluations than vertices");
        assert_eq!(best(&[0.0; 5], 23, |x| x.iter().sum()).2, 23);
        assert!(best(&[0.0; 5], 1000, |_| 1.0).2 < 100, "a flat function ends the search");
        for value in [f64::NAN, f64::INFINITY] {
            let (point, _, count) = best(&[0.0; 5], 1000, |x| {
                assert!(x.iter().all(|x| x.is_finite()), "{x:?}");
                if x[1] > 0.0 { value } else { x[0] }
            });
            assert!(count < 1000 && point[1] == 0.0, "{value}: {point:?} after {count}");
        }
        let failed = minimize(&[0.0], Search { rho_begin: 1.0, rho_end: 0.1, evaluations: 9 }, |_| Err("no value"));
        assert_eq!(failed, Err("no value"));
    }
}
