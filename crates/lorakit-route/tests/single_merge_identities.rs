//! Properties of single merges of 2024 to 2026: WUDI, TSV, Iso-C, Iso-CTS, RobustMerge and LoRA-LEGO.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use lorakit_route::Expert;
use small_library::merging::{assert_delta, dense_sum, gauged, merge, mixed, singular_values};
use small_library::*;

#[test]
fn the_gradient_of_the_wudi_objective_is_zero_at_the_result() {
    let experts = vec![
        expert("one", [("q", random(1, 3, 9, 7, 2.0))]),
        expert("two", [("q", random(3, 2, 9, 7, 0.5))]),
        expert("three", [("q", random(5, 3, 9, 7, 1.0))]),
    ];
    let (input, output) = (9, 7);
    let gradient = |w: &[f64]| {
        let mut gradient = vec![0f64; output * input];
        for expert in &experts {
            let d: Vec<f64> = expert.adapter.modules()["q"].delta().into_iter().map(f64::from).collect();
            let norm: f64 = d.iter().map(|value| value * value).sum();
            for row in 0..output {
                for column in 0..input {
                    for k in 0..input {
                        let gram: f64 = (0..output).map(|at| d[at * input + k] * d[at * input + column]).sum();
                        gradient[row * input + column] += 2.0 * (w[row * input + k] - d[row * input + k]) * gram / norm;
                    }
                }
            }
        }
        gradient.iter().map(|value| value * value).sum::<f64>().sqrt()
    };
    let merged = merge("wudi", &experts, &[1.0; 3]).adapter.modules()["q"].delta();
    let merged: Vec<f64> = merged.into_iter().map(f64::from).collect();
    let (before, after) = (gradient(&dense_sum(&experts, &[1.0; 3], "q")), gradient(&merged));
    assert!(before > 0.1 && after < 1e-5 * before, "{before} {after}");
}

#[test]
fn wudi_of_disjoint_inputs_is_the_sum() {
    let apart = |seed, from: usize| {
        let mut a = vec![0f32; 2 * 9];
        for (at, value) in values(seed, 8).into_iter().enumerate() {
            a[(at / 4) * 9 + from + at % 4] = value;
        }
        low_rank(2, a, values(seed + 1, 14), 1.5)
    };
    let experts = [expert("one", [("q", apart(1, 0))]), expert("two", [("q", apart(7, 5))])];
    let merged = merge("wudi", &experts, &[1.0, 1.0]).adapter;
    assert_delta(&merged.modules()["q"], &dense_sum(&experts, &[1.0, 1.0], "q"), 1e-5, "wudi");
}

/// `values` times a matrix with orthonormal rows, from a random one by Gram and Schmidt.
fn orthonormal_rows(seed: u64, rows: usize, columns: usize) -> Vec<Vec<f64>> {
    let mut found: Vec<Vec<f64>> = Vec::new();
    for row in values(seed, rows * columns).chunks_exact(columns) {
        let mut row: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
        for before in &found {
            let inside: f64 = row.iter().zip(before).map(|(a, b)| a * b).sum();
            row.iter_mut().zip(before).for_each(|(value, before)| *value -= inside * before);
        }
        let norm = row.iter().map(|value| value * value).sum::<f64>().sqrt();
        row.iter_mut().for_each(|value| *value /= norm);
        found.push(row);
    }
    found
}

#[test]
fn tsv_of_orthogonal_adapters_is_the_sum() {
    let (rows, columns) = (orthonormal_rows(1, 5, 9), orthonormal_rows(2, 5, 11));
    let one = |name, span: std::ops::Range<usize>, scale| {
        let rank = span.len();
        let a: Vec<f32> = rows[span.clone()].concat().into_iter().map(|value| value as f32).collect();
        let b = (0..11).flat_map(|output| span.clone().map(move |at| (at, output)));
        let b = b.map(|(at, output)| ((at + 1) as f64 * columns[at][output]) as f32).collect();
        expert(name, [("q", low_rank(rank, a, b, scale))])
    };
    let experts = [one("one", 0..3, 2.0), one("two", 3..5, 0.5)];
    for (text, weights) in [("tsv:keep=all", [0.7, -1.2]), ("tsv:keep=all,rank=full", [1.0, 1.0])] {
        let merged = merge(text, &experts, &weights).adapter;
        assert_delta(&merged.modules()["q"], &dense_sum(&experts, &weights, "q"), 1e-6, text);
    }
}

/// Experts that were trained from one A and left it as it was span no more inputs than one of them.
#[test]
fn experts_of_one_a_keep_all_their_directions() {
    let a = values(1, 3 * 9);
    let of = |name: &str, seed: u64| expert(name, [("q", low_rank(3, a.clone(), values(seed, 3 * 7), 2.0))]);
    let experts = [of("one", 3), of("two", 5)];
    let [equal, all] = ["tsv", "tsv:keep=all"].map(|text| merge(text, &experts, &[1.0; 2]).adapter);
    let all: Vec<f64> = all.modules()["q"].delta().into_iter().map(f64::from).collect();
    assert_delta(&equal.modules()["q"], &all, 1e-6, "tsv");
    // With other factors, rounding is in the directions that both lack.
    let turned = [experts[0].clone(), gauged(&experts[1])];
    for text in ["tsv", "iso_c", "iso_cts", "ctm", "core_space"] {
        let [first, second] = [&experts, &turned].map(|of| merge(text, of, &[1.0; 2]).adapter);
        let expected: Vec<f64> = first.modules()["q"].delta().into_iter().map(f64::from).collect();
        assert_delta(&second.modules()["q"], &expected, 1e-5, text);
    }
}

#[test]
fn iso_c_has_equal_singular_values_of_the_same_sum() {
    let experts = mixed();
    let nuclear = |delta: Vec<f32>| -> f64 { singular_values(&delta, 9).iter().sum() };
    let sum = merge("cat", &experts, &[0.7, 0.9, 0.4]).adapter.modules()["q"].delta();
    for (text, rank) in [("iso_c", 6), ("iso_c:rank=2", 2), ("iso_cts:fraction=1", 6), ("iso_cts:rank=5", 5)] {
        let merged = merge(text, &experts, &[0.7, 0.9, 0.4]);
        let values = singular_values(&merged.adapter.modules()["q"].delta(), 9);
        let report = merged.report.iter().find(|of| of.module == "q").unwrap();
        assert_eq!(report.rank, rank, "{text}");
        assert!(values[..rank].iter().all(|value| (value / values[0] - 1.0).abs() < 1e-5), "{text}: {values:?}");
        assert!(values[rank..].iter().all(|value| value / values[0] < 1e-5), "{text}: {values:?}");
        assert_eq!(report.retained == 1.0, rank == 6, "{text}: {report:?}");
    }
    let whole = merge("iso_c", &experts, &[0.7, 0.9, 0.4]).adapter.modules()["q"].delta();
    assert!((nuclear(whole.clone()) / nuclear(sum) - 1.0).abs() < 1e-5);
    // Without directions of the experts' own, Iso-CTS is Iso-C.
    let other = merge("iso_cts:fraction=1", &experts, &[0.7, 0.9, 0.4]).adapter;
    let whole: Vec<f64> = whole.into_iter().map(f64::from).collect();
    assert_delta(&other.modules()["q"], &whole, 1e-5, "iso_cts:fraction=1");
}

#[test]
fn a_lower_rank_is_that_of_the_largest_directions() {
    let (experts, weights) = (mixed(), [0.7, 0.9, 0.4]);
    // The merge of `text` is that of `then` over what `first` gives.
    for (text, first, then) in [
        ("iso_c:rank=2", "svd:rank=2", "iso_c"),
        ("tsv:rank=2", "tsv", "svd:rank=2"),
        ("tsv:rank=1", "tsv", "svd:rank=1"),
    ] {
        let whole = [Expert::new("whole", merge(first, &experts, &weights).adapter)];
        let expected = merge(then, &whole, &[1.0]).adapter.modules()["q"].delta();
        let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
        assert_delta(&merge(text, &experts, &weights).adapter.modules()["q"], &expected, 1e-5, text);
    }
}

/// RobustMerge takes A and B apart, so a weight or a scale acts as a factor of B.
#[test]
fn robust_multiplies_b_by_weight_and_scale() {
    let raw = [("one", 1, 2.0, 0.7), ("two", 3, 0.5, -1.2)];
    let plain = raw.map(|(name, seed, scale, _)| expert(name, [("q", random(seed, 3, 9, 7, scale))]));
    let in_b = raw.map(|(name, seed, scale, weight)| {
        let update = random(seed, 3, 9, 7, 1.0);
        let b = update.b().values().iter().map(|value| value * (weight * scale) as f32).collect();
        expert(name, [("q", low_rank(3, update.a().values().into_owned(), b, 1.0))])
    });
    let expected = merge("robust", &in_b, &[1.0; 2]).adapter.modules()["q"].delta();
    let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
    assert_delta(&merge("robust", &plain, &[0.7, -1.2]).adapter.modules()["q"], &expected, 1e-5, "robust");
}

#[test]
fn lego_of_two_equal_experts_is_their_sum_up_to_a_factor() {
    let one = expert("one", [("q", random(1, 3, 9, 7, 2.0))]);
    let twins = [one.clone(), Expert::new("twin", one.adapter.clone())];
    // Each cluster has a unit of each: the mean unit, and B times sqrt(6 / 3).
    let merged = merge("lego", &twins, &[1.0, 1.0]).adapter;
    let half = 2f64.sqrt() / 2.0;
    assert_delta(&merged.modules()["q"], &dense_sum(&twins, &[half, half], "q"), 1e-6, "lego");
}
