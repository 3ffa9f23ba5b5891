//! Results computed from A and B equal those of the dense update, whichever pair represents it.

use lorakit_adapter::{LowRank, Matrix};

use crate::{assert_close, dense_dot, random_matrix, random_update, small_adapter};

/// Ranks and input and output widths of the tested updates: tall, wide, square, and ranks above a width.
const SHAPES: &[(usize, usize, usize)] =
    &[(1, 5, 7), (2, 6, 6), (4, 33, 9), (8, 16, 40), (5, 3, 12), (6, 11, 2), (3, 1, 4)];

fn product(x: &Matrix, y: &Matrix) -> Matrix {
    let (left, right) = (x.values(), y.values());
    let entry = |i: usize, j: usize| (0..x.cols()).map(|k| left[i * x.cols() + k] * right[k * y.cols() + j]).sum();
    let values = (0..x.rows()).flat_map(|i| (0..y.cols()).map(move |j| (i, j))).map(|(i, j)| entry(i, j)).collect();
    Matrix::new(x.rows(), y.cols(), values).unwrap()
}

/// `(B R^-1, R A)` for a triangular R, whose inverse is exact by construction.
fn in_another_gauge(update: &LowRank) -> LowRank {
    let rank = update.rank();
    let shear = |sign: f32| {
        let values = (0..rank * rank).map(|at| match (at / rank, at % rank) {
            (row, col) if row == col => 2f32.powi(if row % 2 == 0 { sign as i32 } else { -(sign as i32) }),
            _ => 0.0,
        });
        Matrix::new(rank, rank, values.collect()).unwrap()
    };
    let swap =
        Matrix::new(rank, rank, (0..rank * rank).map(|at| f32::from(at / rank + at % rank == rank - 1)).collect());
    let swap = swap.unwrap();
    let a = product(&product(&shear(1.0), &swap), update.a());
    let b = product(update.b(), &product(&swap, &shear(-1.0)));
    LowRank::new(a, b, update.scale()).unwrap()
}

#[test]
fn products_and_norms_are_those_of_the_dense_updates() {
    for (seed, &(rank, input, output)) in SHAPES.iter().enumerate() {
        let x = random_update(seed as u64, rank, input, output, 1.5);
        let y = random_update(seed as u64 + 100, rank + 2, input, output, -0.75);
        let (dense_x, dense_y) = (x.delta(), y.delta());
        let (xx, yy, xy) =
            (dense_dot(&dense_x, &dense_x), dense_dot(&dense_y, &dense_y), dense_dot(&dense_x, &dense_y));
        assert_close(x.dot(&y).unwrap(), xy, 1e-5);
        assert_close(x.norm(), xx.sqrt(), 1e-6);
        assert_close(x.cosine(&y).unwrap(), xy / (xx * yy).sqrt(), 1e-6);
    }
}

#[test]
fn the_top_singular_vector_is_that_of_the_dense_update() {
    for (seed, &(rank, input, output)) in SHAPES.iter().enumerate() {
        let update = random_update(seed as u64, rank, input, output, -3.0);
        let direction = update.top_singular_vector().unwrap();
        let stretched: Vec<f64> = update.delta().chunks(input).map(|row| dense_dot(row, &direction.vector)).collect();
        let length = |vector: &[f64]| vector.iter().map(|value| value * value).sum::<f64>().sqrt();
        assert_close(dense_dot(&direction.vector, &direction.vector), 1.0, 1e-6);
        assert_close(length(&stretched), direction.singular_value, 1e-5);
        // A singular vector: D' D v = sigma^2 v.
        for (column, value) in direction.vector.iter().enumerate() {
            let again: f64 =
                update.delta().chunks(input).zip(&stretched).map(|(row, y)| f64::from(row[column]) * y).sum();
            assert_close(again, direction.singular_value.powi(2) * f64::from(*value), 1e-4);
        }
        // The top one: no other direction has a larger gain, and the Frobenius norm is at least as large.
        assert!(direction.singular_value <= update.norm() * (1.0 + 1e-9));
        for probe in 0..20 {
            let x = random_matrix(1000 + probe, 1, input);
            let y: Vec<f64> = update.delta().chunks(input).map(|row| dense_dot(row, &x.values())).collect();
            assert!(length(&y) <= direction.singular_value * dense_dot(&x.values(), &x.values()).sqrt() * (1.0 + 1e-5));
        }
    }
}

/// The lengths of an input within the directions that an update reads, and of the update's response to it.
fn lengths(update: &LowRank, x: &[f32]) -> (f64, f64) {
    let all = update.right_singular_vectors().unwrap();
    let products: Vec<f64> = all.vectors.chunks(update.input()).map(|vector| dense_dot(vector, x)).collect();
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let response = &mut products.iter().zip(&all.singular_values).map(|(product, value)| product * value);
    (length(&mut products.iter().copied()), length(response))
}

#[test]
fn the_right_singular_vectors_are_those_of_the_dense_update() {
    for (seed, &(rank, input, output)) in SHAPES.iter().enumerate() {
        let update = random_update(seed as u64, rank, input, output, -3.0);
        let all = update.right_singular_vectors().unwrap();
        let vectors: Vec<&[f32]> = all.vectors.chunks(input).collect();
        assert_eq!((vectors.len(), all.singular_values.len()), (rank.min(input).min(output), vectors.len()));
        let top = update.top_singular_vector().unwrap();
        assert_close(dense_dot(&top.vector, vectors[0]).abs(), 1.0, 1e-6);
        assert_close(all.singular_values[0], top.singular_value, 1e-9);
        assert!(all.singular_values.is_sorted_by(|first, second| first >= second));
        for (i, x) in vectors.iter().enumerate() {
            vectors.iter().enumerate().for_each(|(j, y)| assert_close(dense_dot(x, y), f64::from(i == j), 1e-5));
        }
        let x = random_matrix(2000, 1, input);
        let y: Vec<f64> = update.delta().chunks(input).map(|row| dense_dot(row, &x.values())).collect();
        assert_close(lengths(&update, &x.values()).1, y.iter().map(|y| y * y).sum::<f64>().sqrt(), 1e-5);
    }
}

#[test]
fn ranks_that_add_nothing_have_no_singular_vectors() {
    let update = random_update(6, 3, 20, 12, 2.0);
    // A row of A that B does not read, and one that is there twice.
    let a = [&update.a().values()[..], random_matrix(7, 1, 20).values().as_ref(), &update.a().values()[..20]].concat();
    let b = update.b().values().chunks(3).flat_map(|row| [row, &[0.0, row[0]][..]].concat()).collect();
    let padded = LowRank::new(Matrix::new(5, 20, a).unwrap(), Matrix::new(12, 5, b).unwrap(), 2.0).unwrap();
    assert_eq!(padded.right_singular_vectors().unwrap().singular_values.len(), 3);
    let x = random_matrix(8, 1, 20);
    assert_close(lengths(&padded, &x.values()).0, lengths(&update, &x.values()).0, 1e-6);
}

#[test]
fn nothing_depends_on_which_pair_represents_the_update() {
    for (seed, &(rank, input, output)) in SHAPES.iter().enumerate() {
        let update = random_update(seed as u64, rank, input, output, 0.5);
        let other = in_another_gauge(&update);
        assert_close(update.cosine(&other).unwrap(), 1.0, 1e-6);
        assert_close(update.norm(), other.norm(), 1e-6);
        let (one, two) = (update.top_singular_vector().unwrap(), other.top_singular_vector().unwrap());
        assert_close(one.singular_value, two.singular_value, 1e-6);
        for (x, y) in one.vector.iter().zip(&two.vector) {
            assert_close(f64::from(*x), f64::from(*y), 1e-5);
        }
        let x = random_matrix(3000, 1, input);
        let (one, two) = (lengths(&update, &x.values()), lengths(&other, &x.values()));
        assert_close(one.0, two.0, 1e-5);
        assert_close(one.1, two.1, 1e-5);
    }
}

#[test]
fn a_zero_update_has_no_singular_vector_and_is_similar_to_nothing() {
    let update = random_update(1, 3, 8, 5, 2.0);
    let zero_b = Matrix::new(5, 3, vec![0.0; 15]).unwrap();
    let zero = LowRank::new(update.a().clone(), zero_b, 2.0).unwrap();
    for none in [&zero, &update.scaled(0.0)] {
        assert!(none.top_singular_vector().is_none() && none.right_singular_vectors().is_none());
    }
    assert_eq!(zero.cosine(&update).unwrap(), 0.0);
    assert_eq!(zero.norm(), 0.0);
}

#[test]
fn an_update_that_cancels_up_to_rounding_has_no_singular_vector() {
    let row = random_matrix(7, 1, 50);
    let twice = Matrix::new(2, 50, [row.values(), row.values()].concat()).unwrap();
    let opposed = Matrix::new(3, 2, vec![0.3, -0.3, 0.7, -0.7, 1.1, -1.1]).unwrap();
    let canceled = LowRank::new(twice, opposed, 1.0).unwrap();
    assert!(canceled.top_singular_vector().is_none() && canceled.right_singular_vectors().is_none());
}

#[test]
fn a_tiny_update_has_a_singular_vector() {
    let update = random_update(3, 2, 9, 4, 1.0);
    let tiny = Matrix::new(4, 2, update.b().values().iter().map(|value| value * 1e-20).collect()).unwrap();
    let tiny = LowRank::new(update.a().clone(), tiny, 1.0).unwrap().top_singular_vector().unwrap();
    let usual = update.top_singular_vector().unwrap();
    assert_close(tiny.singular_value / usual.singular_value, 1e-20, 1e-6);
    assert_close(dense_dot(&tiny.vector, &usual.vector), 1.0, 1e-6);
}

#[test]
fn scaling_scales_the_product_once() {
    let update = random_update(4, 2, 6, 6, 1.5);
    let other = random_update(5, 3, 6, 6, 1.0);
    assert_close(update.scaled(-2.0).dot(&other).unwrap(), -2.0 * update.dot(&other).unwrap(), 1e-12);
    assert_eq!(update.scaled(4.0).scale(), 6.0);
}

#[test]
fn updates_of_other_shapes_are_refused_with_both_shapes() {
    let error = random_update(1, 2, 6, 4, 1.0).dot(&random_update(2, 2, 6, 5, 1.0)).unwrap_err().to_string();
    assert!(error.contains("output 4") && error.contains("output 5"), "{error}");
    let (a, b) = (random_matrix(1, 2, 6), random_matrix(2, 4, 3));
    assert!(LowRank::new(a, b, 1.0).unwrap_err().to_string().contains("rank"));
    let (a, b) = (random_matrix(1, 2, 6), random_matrix(2, 4, 2));
    assert!(LowRank::new(a, b, f64::NAN).is_err());
}

#[test]
fn adapter_products_sum_over_modules_and_a_missing_module_counts_as_zero() {
    let (x, y) = (small_adapter(1), small_adapter(2));
    let sum: f64 = x.modules().iter().map(|(path, update)| update.dot(&y.modules()[path]).unwrap()).sum();
    assert_close(x.dot(&y).unwrap(), sum, 1e-12);
    assert_close(x.norm(), x.dot(&x).unwrap().sqrt(), 1e-12);
    let mut fewer = y.modules().clone();
    let (path, removed) = fewer.pop_first().unwrap();
    let fewer = lorakit_adapter::Adapter::new(fewer);
    assert_close(x.dot(&fewer).unwrap(), sum - x.modules()[&path].dot(&removed).unwrap(), 1e-12);
    assert_eq!(x.parameters(), 2 * (2 * 12 + 2 * 10));
}

/// B A of rank 2 whose terms cancel up to `rest`: factors of length 1, a singular value of about `rest`.
fn nearly_canceling(rest: f32) -> LowRank {
    let (row, other) = (random_matrix(8, 1, 64).values().into_owned(), random_matrix(9, 1, 64).values().into_owned());
    let moved: Vec<f32> = row.iter().zip(&other).map(|(x, y)| x + rest * y).collect();
    let column = random_matrix(10, 1, 48).values().into_owned();
    let b = column.iter().flat_map(|value| [*value, -*value]).collect();
    LowRank::new(Matrix::new(2, 64, [row, moved].concat()).unwrap(), Matrix::new(48, 2, b).unwrap(), 1.0).unwrap()
}

#[test]
fn updates_that_nearly_cancel_have_the_singular_vector_of_what_is_left() {
    for rest in [1e-1, 1e-2, 1e-3, 1e-4, 1e-5] {
        let update = nearly_canceling(rest);
        // A' (1, -1), the only direction that is left, without further rounding.
        let a = update.a().values();
        let expected: Vec<f64> = (0..64).map(|i| f64::from(a[i]) - f64::from(a[64 + i])).collect();
        let length = expected.iter().map(|value| value * value).sum::<f64>().sqrt();
        let found = update.top_singular_vector().unwrap().vector;
        let dot: f64 = expected.iter().zip(&found).map(|(x, y)| x / length * f64::from(*y)).sum();
        assert!((dot.abs() - 1.0).abs() < 1e-6, "{rest}: {dot}");
        let apart = |(x, y): (&f64, &f32)| (x / length * dot.signum() - f64::from(*y)).abs();
        let largest = expected.iter().zip(&found).map(apart).max_by(f64::total_cmp).unwrap();
        assert!(largest < 1e-6, "{rest}: {largest}");
    }
}
