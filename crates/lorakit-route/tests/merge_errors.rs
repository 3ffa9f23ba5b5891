//! Errors of merges, and their messages.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use lorakit_adapter::Adapter;
use lorakit_route::merge::{Coefficients, Concatenation, MergeMethod, parse_calibration, parse_merge};
use lorakit_route::{Expert, RouteError};
use small_library::*;

#[track_caller]
fn refused<T>(result: Result<T, RouteError>, needles: &[&str]) {
    let Err(error) = result else { panic!("was not refused") };
    let message = format!("{:#}", anyhow::Error::from(error));
    needles.iter().for_each(|needle| assert!(message.contains(needle), "{message:?} does not say {needle:?}"));
}

fn two() -> [Expert; 2] {
    [expert("small", [("q", random(1, 1, 6, 4, 1.0))]), expert("large", [("q", random(2, 3, 6, 4, 1.0))])]
}

fn apply(text: &str, experts: &[Expert], weights: &[f64]) -> Result<lorakit_route::merge::Merged, RouteError> {
    parse_merge(text).unwrap().merge(experts, &Coefficients::new(weights.to_vec()))
}

#[test]
fn rejects_unequal_ranks_if_factors_are_merged() {
    for text in [
        "linear",
        "linear:convention=paper",
        "ties",
        "dare_linear",
        "dare_ties",
        "magnitude_prune",
        "ties:convention=paper",
        "robust",
    ] {
        let name = text.split(':').next().unwrap();
        let instead = match name {
            "linear" => "cat".to_owned(),
            "robust" => "tsv".to_owned(),
            _ => format!("{name}_svd"),
        };
        refused(apply(text, &two(), &[1.0, 1.0]), &[name, "q", "`small` has rank 1", "`large` has rank 3", &instead]);
    }
}

#[test]
fn rejects_ranks_without_a_direction_for_each_expert() {
    let five: Vec<Expert> = (0..5).map(|at| expert(&format!("e{at}"), [("q", random(at, 2, 12, 12, 1.0))])).collect();
    refused(apply("iso_cts:rank=5", &five, &[1.0; 5]), &["q", "rank", "above the number of experts"]);
    assert_eq!(apply("iso_cts:rank=6", &five, &[1.0; 5]).unwrap().report[0].rank, 6);
}

#[test]
fn rejects_weights_that_are_not_one_finite_number_per_expert() {
    for text in ["cat", "ties_svd", "wudi", "tsv", "iso_c", "iso_cts", "ctm", "lego"] {
        refused(apply(text, &two(), &[1.0, f64::NAN]), &["large", "NaN", "finite"]);
        refused(apply(text, &two(), &[f64::INFINITY, 1.0]), &["small", "inf"]);
        refused(apply(text, &two(), &[1.0]), &["2 weights, one per expert", "found 1"]);
    }
    let coefficients = Coefficients::uniform(2).with_module("q", vec![1.0, f64::NAN]);
    refused(Concatenation.merge(&two(), &coefficients), &["large", "NaN"]);
    refused(Concatenation.merge(&two(), &Coefficients::uniform(2).with_module("k", vec![1.0; 2])), &["k", "none"]);
    // Finite weights whose product is not finite.
    refused(apply("cat", &two(), &[1.0, 1e300]), &["q", "inf"]);
}

#[test]
fn rejects_experts_of_different_bases() {
    let wide = expert("wide", [("q", random(1, 1, 8, 4, 1.0))]);
    refused(apply("cat", &[two()[0].clone(), wide], &[1.0; 2]), &["q", "small", "(6, 4)", "wide", "(8, 4)"]);
    refused(apply("cat", &[two()[0].clone(), two()[0].clone()], &[1.0; 2]), &["small", "differ"]);
    refused(apply("cat", &[], &[]), &["at least one"]);
    let empty = Expert::new("empty", Adapter::new(Default::default()));
    refused(apply("svd", &[empty], &[1.0]), &["none", "module"]);
}

#[test]
fn rejects_invalid_settings() {
    let parse = |text: &str| parse_merge(text);
    refused(parse("slerp"), &["slerp", "cat, svd, linear"]);
    refused(parse("cat:rank=4"), &["cat:", "rank"]);
    refused(parse("svd:rank=0"), &["svd:", "rank=0", "largest or full"]);
    refused(parse("ties:density=0"), &["density=0", "above 0"]);
    refused(parse("ties:density=1.5"), &["density=1.5"]);
    refused(parse("ties:rank=4"), &["rank", "density=0.5"]);
    refused(parse("ties:convention=torch"), &["convention=torch", "peft, mergekit or paper"]);
    refused(parse("ties_svd:convention=mergekit"), &["mergekit has no ties_svd", "peft, paper"]);
    refused(parse("dare_ties:seed=x"), &["seed=x"]);
    refused(parse("task_arithmetic:scale=NaN"), &["scale=NaN"]);
    refused(parse("knots:inner=linear"), &["inner=linear", "task_arithmetic"]);
    refused(parse("core_space:inner=ties,convention=paper"), &["convention=paper"]);
    refused(parse("core_space:basis=rows"), &["basis=rows", "deltas or factors"]);
    refused(parse("wudi:tolerance=2"), &["tolerance=2"]);
    refused(parse("tsv:keep=some"), &["keep=some", "equal or all"]);
    refused(parse("iso_c:fraction=0.8"), &["fraction", "rank=full"]);
    refused(parse("iso_cts:fraction=1.5"), &["fraction=1.5", "from 0 to 1"]);
    refused(parse("ctm:beta=-0.5"), &["beta=-0.5", "from 0 to 1"]);
    refused(parse("ctm:beta=NaN"), &["beta=NaN"]);
    refused(parse("ctm:inner=tsv"), &["inner=tsv", "task_arithmetic"]);
    refused(parse("ctm:merge=tsv"), &["inner=tsv", "task_arithmetic"]);
    refused(parse("ctm:inner=ties,merge=ties"), &["inner is given twice", "inner=ties"]);
    refused(parse("core_space:merge=ties"), &["unknown setting `merge`", "inner=ties"]);
    refused(parse("core_space:beta=0.5"), &["unknown setting `beta`"]);
    refused(parse("ctm:stop=never"), &["stop=never", "converged or published"]);
    refused(parse("robust:density=0"), &["density=0", "above 0"]);
    refused(parse("robust:clamp=2"), &["clamp=2", "up to 1"]);
    refused(parse("robust:factor=0"), &["factor=0"]);
    refused(parse("lego:rank=0"), &["rank=0", "largest or full"]);
    refused(parse_calibration("pica"), &["unknown calibration `pica`", "pico"]);
    refused(parse_calibration("pico:basis=rows"), &["basis=rows", "deltas or factors"]);
    refused(parse_calibration("pico:rank=2"), &["rank", "basis=deltas"]);
}
