//! Properties of calibrated merges (Pico).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use lorakit_route::Expert;
use lorakit_route::merge::{Coefficients, Concatenation, MERGES, parse_calibration, parse_merge};
use small_library::merging::{assert_delta, gauged, mixed};
use small_library::*;

#[test]
fn calibrated_experts_keep_their_names_and_tasks() {
    let tasks = vec!["t".to_owned()];
    let experts: Vec<Expert> = mixed().into_iter().map(|expert| Expert { tasks: tasks.clone(), ..expert }).collect();
    let coefficients = Coefficients::new(vec![1.0; experts.len()]);
    let calibrated = parse_calibration("pico").unwrap().calibrated(&experts, &coefficients).unwrap();
    assert!(calibrated.iter().zip(&experts).all(|(one, other)| one.name == other.name && one.tasks == tasks));
}

#[test]
fn factors_that_calibration_replaces_are_named() {
    let warning = |text: &str| parse_calibration("pico").unwrap().warning(&*parse_merge(text).unwrap());
    for (text, setting) in [
        ("task_arithmetic:scale=0.3", "scale=0.3"),
        ("ties:scale=2", "scale=2"),
        ("core_space:scale=0.5", "scale=0.5"),
        ("robust:factor=1", "factor=1"),
    ] {
        let said = warning(text).unwrap();
        assert!(said.contains("mean norm") && said.ends_with(setting), "{said}");
    }
    for about in MERGES {
        assert_eq!(warning(about.name), None, "{}", about.name);
    }
}

#[test]
fn an_expert_that_changes_nothing_has_no_part_in_calibration() {
    let zero = expert("zero", [("q", low_rank(2, values(1, 18), vec![0.0; 14], 1.0))]);
    let beside = [mixed(), vec![zero]].concat();
    for text in ["pico", "pico:basis=factors"] {
        let of = |experts: &[Expert]| {
            let (calibration, ones) = (parse_calibration(text).unwrap(), Coefficients::ones(experts.len()));
            calibration.merge(&*parse_merge("cat").unwrap(), experts, &ones).unwrap().adapter.modules()["q"].clone()
        };
        let expected: Vec<f64> = of(&mixed()).delta().into_iter().map(f64::from).collect();
        assert_delta(&of(&beside), &expected, 1e-5, text);
    }
}

#[test]
fn calibrated_experts_depend_on_the_deltas_alone() {
    let experts = mixed();
    let turned: Vec<Expert> = experts.iter().map(gauged).collect();
    let calibration = parse_calibration("pico").unwrap();
    let ones = Coefficients::ones(3);
    let [first, second] = [&experts, &turned].map(|of| calibration.calibrated(of, &ones).unwrap());
    let by_factors = parse_calibration("pico:basis=factors").unwrap();
    let [raw, other_raw] = [&experts, &turned].map(|of| by_factors.calibrated(of, &ones).unwrap());
    for at in 0..experts.len() {
        let before = &experts[at].adapter;
        assert_eq!(first[at].adapter.modules().keys().collect::<Vec<_>>(), before.modules().keys().collect::<Vec<_>>());
        let update = &first[at].adapter.modules()["q"];
        assert_eq!(update.rank(), before.modules()["q"].rank());
        let expected: Vec<f64> = update.delta().into_iter().map(f64::from).collect();
        assert_delta(&second[at].adapter.modules()["q"], &expected, 1e-5, "pico");
        assert!(update.norm() < 0.99 * before.modules()["q"].norm(), "shared directions are damped");
    }
    // From the factors, it depends on how they were chosen.
    let apart = raw[0].adapter.modules()["q"].cosine(&other_raw[0].adapter.modules()["q"]).unwrap();
    assert!(apart < 0.9999, "{apart}");
    // A module that only one expert changes has nothing to share.
    assert_eq!(first[0].adapter.modules()["v"], experts[0].adapter.modules()["v"]);
}

#[test]
fn calibrated_merges_have_the_mean_norm_of_the_experts() {
    let experts = mixed();
    let calibration = parse_calibration("pico").unwrap();
    let norm = |at: usize| experts[at].adapter.modules()["q"].norm();
    for text in ["cat", "svd:rank=2", "tsv", "ties_svd", "ctm"] {
        let merge = parse_merge(text).unwrap();
        let of = |weights: [f64; 3]| {
            let merged = calibration.merge(&*merge, &experts, &Coefficients::new(weights.to_vec())).unwrap();
            merged.adapter.modules()["q"].norm()
        };
        assert!((of([1.0; 3]) / ((norm(0) + norm(1) + norm(2)) / 3.0) - 1.0).abs() < 1e-6, "{text}");
        assert!((of([2.0, -1.0, 1.0]) / ((2.0 * norm(0) + norm(1) + norm(2)) / 4.0) - 1.0).abs() < 1e-6, "{text}");
        assert_eq!(of([0.0; 3]), 0.0, "{text}");
    }
}

#[test]
fn what_rounding_leaves_of_canceling_experts_is_not_enlarged() {
    let one = expert("one", [("q", random(1, 3, 9, 7, 2.0))]);
    let twins = [one.clone(), Expert::new("twin", one.adapter.clone())];
    let calibration = parse_calibration("pico").unwrap();
    let norm = |weights: [f64; 2]| {
        let coefficients = Coefficients::new(weights.to_vec());
        calibration.merge(&Concatenation, &twins, &coefficients).unwrap().adapter.norm()
    };
    let own = one.adapter.norm();
    assert!(norm([0.7, -0.7]) < 1e-5 * own);
    // A small difference is one.
    assert!((norm([0.7, -0.69]) / own - 1.0).abs() < 1e-4);
}
