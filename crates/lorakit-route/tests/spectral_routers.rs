//! SpectR and LAG: relations that hold for any weights.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use candle_core::Tensor;
use lorakit_adapter::LowRank;
use lorakit_lora::Site;
use lorakit_route::{LibraryStack, RouterContext, parse_router};
use small_library::*;

const INPUT: usize = 12;

fn qkv() -> Site {
    site(INPUT, &[("q", 8), ("k", 5), ("v", 6)])
}

/// Experts of several ranks, scales and module sets; the last adds nothing.
fn library(count: u64, change: impl Fn(LowRank) -> LowRank) -> LibraryStack {
    let one = |e: u64| {
        let module = |m: u64, width| {
            change(random(
                10 * e + m,
                1 + (e + m) as usize % 4,
                INPUT,
                width,
                if e.is_multiple_of(2) { 0.5 } else { 3.0 },
            ))
        };
        let all = [("q", module(1, 8)), ("k", module(2, 5)), ("v", module(3, 6))];
        expert(&format!("e{e:02}"), all.into_iter().skip(e as usize % 3).collect::<Vec<_>>())
    };
    let nothing = low_rank(2, values(7, 2 * INPUT), vec![0.0; 16], 2.0);
    experts((0..count).map(one).chain([expert("nothing", [("q", nothing)])]), &qkv())
}

/// `|s B A x|`, or `|V' x|` by the row space of the dense delta, orthonormalized one row after the other.
fn score(update: &LowRank, x: &[f32], norm: bool) -> f64 {
    let dot = |u: &[f64], v: &[f64]| u.iter().zip(v).map(|(u, v)| u * v).sum::<f64>();
    let wide = |row: &[f32]| row.iter().map(|value| f64::from(*value)).collect::<Vec<f64>>();
    let (x, mut basis) = (wide(x), Vec::<Vec<f64>>::new());
    let delta = update.delta();
    if norm {
        return delta.chunks(INPUT).map(|row| dot(&wide(row), &x).powi(2)).sum::<f64>().sqrt();
    }
    for row in delta.chunks(INPUT).map(wide) {
        let mut rest = row.clone();
        for _ in 0..2 {
            for known in &basis {
                let along = dot(known, &rest);
                rest.iter_mut().zip(known).for_each(|(rest, known)| *rest -= along * known);
            }
        }
        let length = dot(&rest, &rest).sqrt();
        if length > 1e-4 * dot(&row, &row).sqrt() {
            basis.push(rest.into_iter().map(|value| value / length).collect());
        }
    }
    basis.iter().map(|row| dot(row, &x).powi(2)).sum::<f64>().sqrt()
}

/// The weights `1/k` of the `top_k` experts of the highest scores, by token and projection.
fn weights(library: &LibraryStack, x: &Tensor, top_k: usize, norm: bool) -> Vec<Vec<Vec<f64>>> {
    let of = |x: &Vec<f32>, module: &str| {
        let changes = |e: usize| library.module(e, module).filter(|update| update.norm() > 0.0);
        let scored = (0..library.len()).filter_map(|e| Some((e, score(changes(e)?, x, norm))));
        let mut scored: Vec<(usize, f64)> = scored.collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1));
        scored.truncate(top_k);
        let mut weights = vec![0.0; library.len()];
        scored.iter().for_each(|(e, _)| weights[*e] = 1.0 / scored.len() as f64);
        weights
    };
    let modules: Vec<String> = library.sites()[0].projections.iter().map(|p| p.module.clone()).collect();
    let of_token = |x: &Vec<f32>| modules.iter().map(|module| of(x, module)).collect();
    x.to_vec2().unwrap().iter().map(of_token).collect()
}

#[test]
fn spectr_mixes_the_experts_of_the_highest_scores_equally() {
    let (library, x) = (library(7, |update| update), tokens(50, 40, INPUT));
    for (measure, norm) in [("length", false), ("norm", true)] {
        for top_k in [1, 2, 4] {
            let expected = weights(&library, &x, top_k, norm);
            let found = routed(&format!("spectr:measure={measure},top_k={top_k}"), &library, &x);
            assert_close(&found, &dense(&library, &x, |t, p, e| expected[t][p][e]), 1e-5);
        }
    }
    let all = weights(&library, &x, usize::MAX, false);
    assert_close(&routed("spectr:top_k=all", &library, &x), &dense(&library, &x, |t, p, e| all[t][p][e]), 1e-5);
}

#[test]
fn with_one_expert_both_are_that_expert() {
    let library = library(1, |update| update);
    let x = tokens(51, 9, INPUT);
    for router in ["spectr", "spectr:measure=norm", "spectr:top_k=1", "lag", "lag:top_k=1"] {
        assert_close(&routed(router, &library, &x), &routed("expert:e00", &library, &x), 1e-5);
    }
}

#[test]
fn lag_is_arrow_with_a_shortlist_of_one_and_spectr_with_one_of_all() {
    for count in [3, 7, 40] {
        let (library, x) = (library(count, |update| update), tokens(52, 30, INPUT));
        assert_eq!(routed("lag:top_k=1", &library, &x), routed("arrow:top_k=1", &library, &x));
        assert_eq!(routed("lag:top_k=all", &library, &x), routed("spectr:top_k=1", &library, &x));
    }
}

/// Few of many experts are multiplied by their own tokens alone, most of few with all.
#[test]
fn lag_takes_of_arrows_shortlist_the_expert_of_the_greatest_length() {
    let (library, x) = (library(40, |update| update), tokens(53, 30, INPUT));
    let modules: Vec<String> = library.sites()[0].projections.iter().map(|p| p.module.clone()).collect();
    for top_k in [2, 5, 20] {
        let of = |x: &Vec<f32>, module: &String| {
            let arrow = |update: &LowRank| {
                let vector = update.top_singular_vector()?.vector;
                Some(vector.iter().zip(x).map(|(v, x)| f64::from(v * x)).sum::<f64>().abs())
            };
            let scored = |e: usize| Some((e, arrow(library.module(e, module)?)?));
            let mut list: Vec<(usize, f64)> = (0..library.len()).filter_map(scored).collect();
            list.sort_by(|a, b| b.1.total_cmp(&a.1));
            let length = |e: usize| score(library.module(e, module).unwrap(), x, false);
            list.iter().take(top_k).map(|(e, _)| *e).max_by(|a, b| length(*a).total_cmp(&length(*b))).unwrap()
        };
        let best: Vec<Vec<usize>> =
            x.to_vec2().unwrap().iter().map(|x| modules.iter().map(|module| of(x, module)).collect()).collect();
        let expected = dense(&library, &x, |t, p, e| f64::from(u8::from(best[t][p] == e)));
        let router = format!("lag:top_k={top_k}");
        assert_close(&routed(&router, &library, &x), &expected, 1e-5);
        // Token by token, as in decoding.
        for (token, expected) in expected.iter().enumerate() {
            let one = routed(&router, &library, &x.narrow(0, token, 1).unwrap());
            assert_close(&one, std::slice::from_ref(expected), 1e-5);
        }
    }
}

/// `(B R^-1, R A)` with an `R` that mixes all ranks, whose inverse is exact.
fn in_another_gauge(update: LowRank) -> LowRank {
    let (rank, input) = (update.rank(), update.input());
    let mut a = update.a().values().into_owned();
    let mut b = update.b().values().into_owned();
    // Row i of A gains twice row i + 1, column i + 1 of B loses twice column i; then each is scaled.
    for i in 0..rank.saturating_sub(1) {
        let next = a[(i + 1) * input..(i + 2) * input].to_vec();
        a[i * input..(i + 1) * input].iter_mut().zip(&next).for_each(|(to, next)| *to += 2.0 * next);
        b.chunks_exact_mut(rank).for_each(|row| row[i + 1] -= 2.0 * row[i]);
    }
    a.iter_mut().for_each(|value| *value *= 8.0);
    b.iter_mut().for_each(|value| *value /= -4.0);
    low_rank(rank, a, b, update.scale() / -2.0)
}

#[test]
fn the_choice_depends_on_the_deltas_alone() {
    let x = tokens(54, 30, INPUT);
    let (library, other) = (library(9, |update| update), library(9, in_another_gauge));
    for router in ["spectr:top_k=2", "spectr:measure=norm,top_k=2", "lag:top_k=3"] {
        assert_close(&routed(router, &other, &x), &routed(router, &library, &x), 1e-4);
    }
    // The length ignores an expert's strength, the norm does not.
    let stronger = |update: LowRank| if update.rank() == 2 { update.scaled(1e3) } else { update };
    let stronger = crate::library(9, stronger);
    let best = |library: &LibraryStack, norm| weights(library, &x, 1, norm);
    assert_eq!(best(&stronger, false), best(&library, false));
    for (measure, norm) in [("length", false), ("norm", true)] {
        let best = best(&stronger, norm);
        let found = routed(&format!("spectr:measure={measure},top_k=1"), &stronger, &x);
        assert_close(&found, &dense(&stronger, &x, |t, p, e| best[t][p][e]), 1e-5);
    }
}

#[test]
fn equal_scores_go_to_the_first_name_and_nothing_without_a_delta_is_chosen() {
    let x = tokens(55, 9, INPUT);
    let same = || random(1, 2, INPUT, 8, 1.0);
    let zero = || low_rank(2, values(2, 2 * INPUT), vec![0.0; 16], 2.0);
    let (z, m) = (expert("z", [("q", same())]), expert("m", [("q", same().scaled(-1.0))]));
    let library = experts([z, expert("a", [("q", zero())]), m], &qkv());
    for router in ["spectr:top_k=1", "spectr:measure=norm,top_k=1", "lag", "lag:top_k=1"] {
        assert_close(&routed(router, &library, &x), &routed("expert:m", &library, &x), 1e-6);
    }
    let empty = experts([expert("a", [("q", zero())])], &qkv());
    for router in ["spectr", "lag"] {
        let patches = parse_router(router).unwrap().patches(&empty, &RouterContext::default()).unwrap();
        assert!(patches.at(0).is_none());
    }
}
