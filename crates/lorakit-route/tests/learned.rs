//! Routers that learn: what a probe records, and what must hold whatever was learned.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small;

use candle_core::{DType, Device, Tensor};
use lorakit_adapter::{Matrix, Outputs, Row, Rows, Site};
use lorakit_route::{Cm, Experts, Inputs, Learned, Pool, RouteError, Router, Setting};
use small::*;

const INPUT: usize = 12;

fn qkv() -> Site {
    site(INPUT, &[("q", 8), ("k", 5), ("v", 6)])
}

/// Experts of different rank, alpha and module set; `z` has a delta of zeros.
fn uneven() -> Experts {
    let library = [
        expert("a", [("q", random(1, 3, INPUT, 8, 2.0)), ("k", random(2, 1, INPUT, 5, 0.5))]),
        expert("b", [("q", random(3, 1, INPUT, 8, 2.0)), ("v", random(4, 4, INPUT, 6, 1.5))]),
        expert("z", [("q", low_rank(2, values(9, 2 * INPUT), vec![0.0; 16], 1.0))]),
    ];
    experts(library, &qkv())
}

fn built(router: &str, library: &Experts, learned: &Learned, x: &Tensor) -> Vec<Vec<f32>> {
    let setting = Setting { learned: Some(learned), ..Setting::default() };
    let patches = router.parse::<Router>().unwrap().build(library, &setting).unwrap();
    added(&patches, library, x, &Rows::packed([x.dim(0).unwrap()]))
}

/// One matrix, as it might have been learned, for the one site.
fn random_vectors(library: &Experts) -> Learned {
    let n = library.len();
    Learned::new([("0.qkv".to_owned(), Matrix::new(n, INPUT, values(70, n * INPUT)).unwrap())])
}

#[test]
fn one_expert_routed_is_that_adapter() {
    let library = experts([expert("only", [("q", random(1, 3, INPUT, 8, 2.0))])], &qkv());
    let x = tokens(50, 9, INPUT);
    let expected = dense(&library, &x, |_, _, _| 1.0);
    for router in ["cm", "cm:top_k=1,score=cosine"] {
        assert_close(&built(router, &library, &random_vectors(&library), &x), &expected, 1e-5);
    }
}

#[test]
fn weights_are_a_softmax_over_the_experts_that_change_the_projection() {
    let (library, x) = (uneven(), tokens(52, 7, INPUT));
    let learned = random_vectors(&library);
    let vectors = learned.matrices()["0.qkv"].values().into_owned();
    let rows = x.to_vec2::<f32>().unwrap();
    let score = |token: usize, expert: usize| {
        let vector = &vectors[expert * INPUT..][..INPUT];
        let dot: f64 = rows[token].iter().zip(vector).map(|(x, v)| f64::from(x * v)).sum();
        dot / (INPUT as f64).sqrt() / 0.5
    };
    // `z` changes nothing, so that it is no candidate anywhere; `a` has no v, and `b` no k.
    let candidates: [&[usize]; 3] = [&[0, 1], &[0], &[1]];
    let expected = dense(&library, &x, |token, projection, expert| {
        let total: f64 = candidates[projection].iter().map(|e| score(token, *e).exp()).sum();
        if candidates[projection].contains(&expert) { score(token, expert).exp() / total } else { 0.0 }
    });
    assert_close(&built("cm:temperature=0.5", &library, &learned, &x), &expected, 1e-5);
}

#[test]
fn centroids_are_unit_means_of_what_the_experts_rows_bring() {
    let library = uneven();
    let x = tokens(60, 9, INPUT);
    // Rows of 2, 3, 1 and 3 tokens; the third belongs to nobody.
    let row = |(start, len, expert)| Row { start, len, expert, ..Row::default() };
    let rows = Rows::new([(0, 2, Some(1)), (2, 3, Some(0)), (5, 1, None), (6, 3, Some(1))].map(row));
    let values = x.to_vec2::<f32>().unwrap();
    let mean = |pooled: &[Vec<f32>]| -> Vec<f32> {
        let mean: Vec<f32> =
            (0..INPUT).map(|i| pooled.iter().map(|row| row[i]).sum::<f32>() / pooled.len() as f32).collect();
        let length = mean.iter().map(|m| m * m).sum::<f32>().sqrt();
        mean.iter().map(|m| m / length).collect()
    };
    let average = |tokens: std::ops::Range<usize>| -> Vec<f32> {
        let n = tokens.len() as f32;
        (0..INPUT).map(|i| tokens.clone().map(|t| values[t][i]).sum::<f32>() / n).collect()
    };
    for (pool, of_b) in [
        (Pool::Last, mean(&[values[1].clone(), values[8].clone()])),
        (Pool::Mean, mean(&[average(0..2), average(6..9)])),
    ] {
        let inputs = Inputs::new(&library, pool);
        let mut out = Outputs::new(Tensor::ones((9, 19), DType::F32, &Device::Cpu).unwrap());
        inputs.patches().at(0).unwrap().add(&x, &rows, &mut out).unwrap();
        assert_eq!(out.tensor().to_vec2::<f32>().unwrap(), vec![vec![1.0; 19]; 9], "a probe adds nothing");
        let error = Cm::default().learned(&library, &inputs).unwrap_err();
        assert!(matches!(&error, RouteError::NoRows(expert) if expert == "z"), "{error}");

        let third = Rows::new([Row { len: 1, expert: Some(2), ..Row::default() }]);
        inputs.patches().at(0).unwrap().add(&x.narrow(0, 4, 1).unwrap(), &third, &mut out).unwrap();
        let learned = Cm::default().learned(&library, &inputs).unwrap();
        let centroids = learned.matrices()["0.qkv"].values().into_owned();
        for (found, expected) in centroids[INPUT..2 * INPUT].iter().zip(&of_b) {
            assert!((found - expected).abs() < 1e-5, "{pool}: {found} {expected}");
        }
    }
}

#[test]
fn what_was_learned_must_be_there_and_fit() {
    let library = uneven();
    let router: Router = "cm".parse().unwrap();
    let error = router.build(&library, &Setting::default()).err().unwrap();
    assert!(error.to_string().contains("was not given what it learned"), "{error}");
    let other = Learned::new([("0.qkv".to_owned(), Matrix::new(2, INPUT, values(1, 2 * INPUT)).unwrap())]);
    let setting = Setting { learned: Some(&other), ..Setting::default() };
    let message = router.build(&library, &setting).err().unwrap().to_string();
    for part in ["0.qkv", "(3, 12)", "(2, 12)", "another library"] {
        assert!(message.contains(part), "{message}");
    }
}
