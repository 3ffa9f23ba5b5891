//! Merges of 2024 to 2026 compared with results of their authors' code, recorded in float64.
//!
//! Results are compared delta against delta, relative to the largest value. The merged factors are f32, which rounds a delta
//! by some 1e-7.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use lorakit_adapter::LowRank;
use lorakit_route::Expert;
use lorakit_route::merge::{Coefficients, parse_calibration, parse_merge};
use serde_json::Value;
use small_library::*;
use std::path::Path;

/// Of results in f64, stored in f32.
const TOLERANCE: f64 = 1e-6;
/// Of CtM at its end, which its code approaches until the error changes by less than 1e-15.
const CONVERGED: f64 = 5e-5;

/// How an adapter's scale is read.
#[derive(Clone, Copy, Debug)]
enum Scaled {
    /// As it is.
    AsWritten,
    /// Multiplied into B; the scale is then 1.
    IntoB,
    /// As that of the case's first adapter, for code that ignores it.
    LikeTheFirst,
    /// As 1, for the same.
    AsOne,
}

struct Oracle(Value);

impl Oracle {
    fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracles/newer_merges.json");
        Self(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
    }

    /// The cases whose id starts so.
    fn cases(&self, start: &str) -> Vec<&Value> {
        let found = |case: &&Value| case["id"].as_str().unwrap().starts_with(start);
        self.0["cases"].as_array().unwrap().iter().filter(found).collect()
    }

    fn scale(&self, name: &Value) -> f64 {
        let adapter = &self.0["adapters"][name.as_str().unwrap()];
        adapter["alpha"].as_f64().unwrap() / adapter["r"].as_f64().unwrap()
    }

    fn experts(&self, case: &Value, scaled: Scaled) -> Vec<Expert> {
        let names = case["adapters"].as_array().unwrap();
        let one = |name: &Value| {
            let text = name.as_str().unwrap();
            let own = self.scale(name);
            let (into_b, scale) = match scaled {
                Scaled::AsWritten => (1.0, own),
                Scaled::IntoB => (own, 1.0),
                Scaled::LikeTheFirst => (1.0, self.scale(&names[0])),
                Scaled::AsOne => (1.0, 1.0),
            };
            let modules = self.0["adapters"][text]["modules"].as_object().unwrap().iter();
            let modules = modules.map(|(path, of)| {
                let (a, b) = (flat(&of["A"]), flat(&of["B"]));
                let single = |values: Vec<f64>, by: f64| values.into_iter().map(|value| (by * value) as f32).collect();
                let rank = of["A"].as_array().unwrap().len();
                (path.as_str(), low_rank(rank, single(a, 1.0), single(b, into_b), scale))
            });
            expert(text, modules)
        };
        names.iter().map(one).collect()
    }
}

fn flat(rows: &Value) -> Vec<f64> {
    serde_json::from_value::<Vec<Vec<f64>>>(rows.clone()).unwrap().concat()
}

/// `B A` in f64.
fn product(b: &Value, a: &Value) -> Vec<f64> {
    let [b, a]: [Vec<Vec<f64>>; 2] = [b, a].map(|rows| serde_json::from_value(rows.clone()).unwrap());
    let entry = |row: &Vec<f64>, column: usize| row.iter().zip(&a).map(|(b, a)| b * a[column]).sum();
    b.iter().flat_map(|row| (0..a[0].len()).map(move |column| (row, column))).map(|(row, c)| entry(row, c)).collect()
}

/// The largest difference, relative to the largest value.
fn apart(found: &LowRank, expected: &[f64]) -> f64 {
    let found = found.delta();
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    assert!(largest > 0.0, "a comparison with zeros proves nothing");
    found.iter().zip(expected).fold(0f64, |apart, (a, b)| apart.max((f64::from(*a) - b).abs())) / largest
}

/// Compares a merge with the recorded modules of a case.
#[track_caller]
fn check(case: &Value, experts: &[Expert], text: &str, expected: impl Fn(&Value) -> Vec<f64>, tolerance: f64) {
    let id = case["id"].as_str().unwrap();
    let merge = parse_merge(text).unwrap();
    let merged = merge.merge(experts, &Coefficients::ones(experts.len())).unwrap().adapter;
    for (path, of) in case["modules"].as_object().unwrap() {
        let apart = apart(&merged.modules()[path], &expected(of));
        assert!(apart < tolerance, "{id}, {text}, {path}: {apart:e}");
    }
}

#[test]
#[ignore = "needs ../shared"]
fn pico_matches_its_authors() {
    let oracle = Oracle::open();
    let cases = oracle.cases("pico/");
    for case in &cases {
        let id = case["id"].as_str().unwrap();
        let (scaled, basis) = match id.split('/').nth(1).unwrap() {
            "raw" => (Scaled::AsWritten, "factors"),
            "scaled" => (Scaled::IntoB, "factors"),
            "singular" => (Scaled::AsWritten, "deltas"),
            "folder" => (Scaled::AsOne, "factors"),
            other => panic!("{other}"),
        };
        let experts = oracle.experts(case, scaled);
        let calibration = parse_calibration(&format!("pico:basis={basis}")).unwrap();
        let weights = Coefficients::uniform(experts.len());
        let calibrated = calibration.calibrated(&experts, &weights).unwrap();
        let mean = calibration.merge(&*parse_merge("cat").unwrap(), &experts, &weights).unwrap().adapter;
        for (path, of) in case["modules"].as_object().unwrap() {
            if !of["delta"].is_null() {
                let apart = apart(&mean.modules()[path], &flat(&of["delta"]));
                assert!(apart < TOLERANCE, "{id}, {path}: {apart:e}");
            }
            for (before, after) in experts.iter().zip(&calibrated) {
                let name = &before.name;
                let (before, after) = (&before.adapter.modules()[path], &after.adapter.modules()[path]);
                let (found, expected) = match (&of[format!("calibrated_{name}")], &of[format!("B_{name}")]) {
                    (Value::Null, Value::Null) => continue,
                    // The folder mode gives each adapter its own norm again.
                    (Value::Null, b) => {
                        let a = &oracle.0["adapters"][name]["modules"][path]["A"];
                        (after.scaled(before.norm() / after.norm()), product(b, a))
                    }
                    (calibrated, _) => (after.clone(), flat(calibrated)),
                };
                let apart = apart(&found, &expected);
                assert!(apart < TOLERANCE, "{id}, {path}, {name}: {apart:e}");
            }
        }
    }
    assert_eq!(cases.len(), 8);
}

#[test]
#[ignore = "needs ../shared"]
fn tsv_and_iso_match_their_authors() {
    let oracle = Oracle::open();
    let mut checked = 0;
    for (start, text) in [
        ("tsv/full/equal4", "tsv"),
        ("tsv/core/equal4", "tsv"),
        ("tsv/core/equal3", "tsv"),
        ("tsv/full/equal3/null_dropped", "tsv"),
        ("tsv/core/unequal3/null_dropped", "tsv"),
        ("tsv/core/unequal3/all", "tsv:keep=all"),
        ("iso_c/", "iso_c"),
        ("iso_cts/full/equal4/fraction0.8", "iso_cts"),
        ("iso_cts/core/", "iso_cts"),
        ("iso_cts/rank8/", "iso_cts:rank=8"),
    ] {
        for case in oracle.cases(start) {
            check(case, &oracle.experts(case, Scaled::AsWritten), text, |of| flat(&of["delta"]), TOLERANCE);
            checked += 1;
        }
    }
    assert_eq!(checked, 15);
}

#[test]
#[ignore = "needs ../shared"]
fn ctm_matches_its_authors() {
    let oracle = Oracle::open();
    let cases = oracle.cases("ctm/");
    for case in &cases {
        let settings = &case["settings"];
        let (rank, beta) = (settings["rank"].as_u64().unwrap(), &settings["beta"]);
        let stop = if case["id"].as_str().unwrap().ends_with("published") { "published" } else { "converged" };
        let tolerance = if stop == "published" { TOLERANCE } else { CONVERGED };
        let experts = oracle.experts(case, Scaled::AsWritten);
        let own = format!("rank={rank},beta={beta},stop={stop}");
        let sum = format!("ctm:inner=task_arithmetic,{own}");
        check(case, &experts, &sum, |of| flat(&of["delta_sum"]), tolerance);
        let merged = parse_merge(&sum).unwrap().merge(&experts, &Coefficients::ones(experts.len())).unwrap();
        for (path, of) in case["modules"].as_object().unwrap() {
            let retained = merged.report.iter().find(|report| report.module == *path).unwrap().retained;
            let expected = of["energy_kept"].as_f64().unwrap();
            assert!((retained - expected).abs() < 1e-6, "{}, {path}: {retained} {expected}", case["id"]);
        }
        // CtM's code keeps a value more than a quarter.
        let values = (rank * rank) as f64;
        for (key, density) in [
            ("delta_ties_kept_exactly_quarter", 0.25),
            ("delta_ties_top25", ((0.25 * values).floor() + 1.0 + 1e-9) / values),
        ] {
            check(case, &experts, &format!("ctm:inner=ties,density={density},{own}"), |of| flat(&of[key]), tolerance);
        }
    }
    assert_eq!(cases.len(), 10);
}

#[test]
#[ignore = "needs ../shared"]
fn robust_merge_matches_its_authors() {
    let oracle = Oracle::open();
    let cases = oracle.cases("robustmerge/official/");
    for case in &cases {
        let scale = oracle.scale(&case["adapters"][0]);
        let text = format!("robust:clamp={}", case["settings"]["att_ratio"]);
        let expected = |of: &Value| product(&of["B"], &of["A"]).into_iter().map(|value| scale * value).collect();
        check(case, &oracle.experts(case, Scaled::LikeTheFirst), &text, expected, TOLERANCE);
    }
    assert_eq!(cases.len(), 3);
}

#[test]
#[ignore = "needs ../shared"]
fn lego_matches_the_best_partition() {
    let oracle = Oracle::open();
    let cases = oracle.cases("lego/");
    for case in &cases {
        let is_raw = case["id"].as_str().unwrap().ends_with("raw");
        let experts = oracle.experts(case, if is_raw { Scaled::AsOne } else { Scaled::AsWritten });
        check(case, &experts, "lego:rank=4", |of| product(&of["B"], &of["A"]), TOLERANCE);
    }
    assert_eq!(cases.len(), 3);
}
