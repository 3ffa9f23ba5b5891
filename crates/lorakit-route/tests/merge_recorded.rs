//! Merges compared with recorded values of PEFT, mttl and the TIES authors' code, and with values computed by hand.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use lorakit_adapter::Adapter;
use lorakit_route::merge::{Coefficients, Merged, parse_merge};
use lorakit_route::{Expert, RouteError};
use serde_json::Value;
use small_library::*;
use std::path::{Path, PathBuf};

fn shared(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path)
}

fn json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(shared(path)).unwrap()).unwrap()
}

fn rows(value: &Value) -> Vec<Vec<f64>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn flat(value: &Value) -> Vec<f32> {
    rows(value).concat().into_iter().map(|value| value as f32).collect()
}

fn merge(merge: &str, experts: &[Expert], weights: &[f64]) -> Result<Merged, RouteError> {
    parse_merge(merge).unwrap().merge(experts, &Coefficients::new(weights.to_vec()))
}

/// The norm of the difference, relative to the norm of the expected values.
fn distance(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let size = norm(&mut expected.iter().copied());
    assert!(size > 0.0, "a comparison with zeros proves nothing");
    norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - b)) / size
}

#[test]
#[ignore = "needs ../shared"]
fn merges_match_the_27_recorded_cases_of_peft() {
    let oracle = json("oracles/peft_merge_oracle.json");
    let expert = |name: &str| {
        let of = &oracle["adapters"][name];
        let (rank, alpha) = (of["r"].as_u64().unwrap() as usize, of["alpha"].as_f64().unwrap());
        expert(name, [("m", low_rank(rank, flat(&of["A"]), flat(&of["B"]), alpha / rank as f64))])
    };
    let (mut agreed, mut refused) = (0, 0);
    for case in oracle["merges"].as_array().unwrap() {
        let kind = case["combination_type"].as_str().unwrap();
        let settings = [("density", "density"), ("majority_sign_method", "sign"), ("svd_rank", "rank")];
        let settings: Vec<String> = settings
            .iter()
            .filter(|(theirs, _)| !case[theirs].is_null())
            .map(|(theirs, ours)| format!("{ours}={}", case[theirs].to_string().trim_matches('"')))
            .collect();
        let text = if settings.is_empty() { kind.to_owned() } else { format!("{kind}:{}", settings.join(",")) };
        let names: Vec<String> = serde_json::from_value(case["adapters"].clone()).unwrap();
        let experts: Vec<Expert> = names.iter().map(|name| expert(name)).collect();
        let weights: Vec<f64> = serde_json::from_value(case["weights"].clone()).unwrap();
        let found = merge(&text, &experts, &weights);
        if case["error"].is_string() {
            let message = found.unwrap_err().to_string();
            assert!(["`a` has rank 2", "`d` has rank 3", "m"].iter().all(|part| message.contains(part)), "{message}");
            refused += 1;
            continue;
        }
        let found = found.unwrap();
        let update = &found.adapter.modules()["m"];
        // PEFT pads a result of lower rank with zeros up to the requested rank.
        assert!(update.rank() <= case["r"].as_u64().unwrap() as usize, "{text}");
        let expected = rows(&case["delta"]).concat();
        let distance = distance(&update.delta(), &expected);
        assert!(distance < 1e-5, "{text} of {names:?}: {distance}");
        agreed += 1;
    }
    assert_eq!((agreed, refused), (23, 4));
}

#[test]
#[ignore = "needs ../shared"]
fn rslora_and_rank_patterns_merge_to_the_exact_sum() {
    // PEFT 0.21.2 copies use_rslora to the result, whose scale is then sqrt(r) too large (its issue #3761).
    for base in ["mistral", "phi", "window", "llama3"] {
        let folder = shared(&format!("oracles/peft/{base}/adapters"));
        let experts = ["e0", "rs"].map(|name| Expert::new(name, Adapter::read(&folder.join(name)).unwrap()));
        for text in ["cat", "svd:rank=full", "task_arithmetic"] {
            let merged = merge(text, &experts, &[0.7, -1.3]).unwrap();
            for (path, update) in merged.adapter.modules() {
                let [e0, rs] = [0, 1].map(|at| experts[at].adapter.modules()[path].delta());
                let expected: Vec<f64> =
                    e0.iter().zip(&rs).map(|(a, b)| 0.7 * f64::from(*a) - 1.3 * f64::from(*b)).collect();
                let distance = distance(&update.delta(), &expected);
                assert!(distance < 1e-6, "{base}, {text}, {path}: {distance}");
            }
        }
        // It survives a round trip through a file, without rsLoRA.
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("merged");
        let merged = merge("cat", &experts, &[0.7, -1.3]).unwrap().adapter;
        merged.write(&folder).unwrap();
        // Absent means false.
        assert!(!std::fs::read_to_string(folder.join("adapter_config.json")).unwrap().contains("use_rslora"));
        let again = Adapter::read(&folder).unwrap();
        let apart = (merged.dot(&merged).unwrap() - again.dot(&merged).unwrap()).abs() / merged.dot(&merged).unwrap();
        assert!(apart < 1e-12, "{apart}");
    }
}

#[test]
#[ignore = "needs ../shared"]
fn separate_averages_match_mttl() {
    let oracle = json("oracles/mttl_oracle.json");
    // mttl has A as [in, r] and B as [r, out].
    let transposed = |value: &Value| -> Vec<f32> {
        let rows = rows(value);
        (0..rows[0].len()).flat_map(|at| rows.iter().map(move |row| row[at] as f32).collect::<Vec<_>>()).collect()
    };
    const SCALE: f64 = 8.0;
    let projections = ["q_proj", "k_proj", "o_proj"].map(|name| format!("model.layers.0.self_attn.{name}"));
    let experts: Vec<Expert> = oracle["experts"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, tensors)| {
            expert(
                name,
                projections.iter().map(|module| {
                    let half = |half| transposed(&tensors[format!("{module}.lora_{half}")]);
                    (module.as_str(), low_rank(2, half("a"), half("b"), SCALE))
                }),
            )
        })
        .collect();
    for (key, weights) in [("uniform_merge", [0.25; 4]), ("weighted_merge_0.1_0.2_0.3_0.4", [0.1, 0.2, 0.3, 0.4])] {
        let merged = merge("linear:convention=paper", &experts, &weights).unwrap();
        for module in &projections {
            let found = &merged.adapter.modules()[module];
            let expected = |half| -> Vec<f64> {
                transposed(&oracle[key][format!("{module}.lora_{half}")]).into_iter().map(f64::from).collect()
            };
            let b: Vec<f64> = expected("b").into_iter().map(|value| value * SCALE).collect();
            assert!(distance(&found.a().values(), &expected("a")) < 1e-6);
            assert!(distance(&found.b().values(), &b) < 1e-6);
        }
    }
}

#[test]
fn ties_with_a_common_threshold_matches_its_authors() {
    // Computed by the code of https://arxiv.org/abs/2306.01708 on A and B flattened together.
    let one = |name, a: [f32; 5], b: [f32; 5]| expert(name, [("m", low_rank(1, a.to_vec(), b.to_vec(), 1.0))]);
    let experts = [
        one("e1", [1., -2., 3., -4., 5.], [0.1, 0.2, 0.3, 0.4, 0.5]),
        one("e2", [-5., 4., 0.3, -2., 1.], [6., -7., 0.8, 0.9, 1.]),
        one("e3", [2., 2.5, -3.5, -4.5, 0.], [-1., -2., 3., 0.5, 0.25]),
    ];
    for (density, a, b) in [
        (0.4, [-5., 3.25, -3.5, -4.25, 5.], [6., -7., 3., 0., 0.]),
        (0.2, [0., 0., -3.5, -4.25, 5.], [6., -7., 0., 0., 0.]),
    ] {
        let merged = merge(&format!("ties:convention=paper,density={density}"), &experts, &[1.0; 3]).unwrap();
        let update = &merged.adapter.modules()["m"];
        assert_eq!((update.a().values().as_ref(), update.b().values().as_ref()), (&a[..], &b[..]));
    }
}

/// Experts whose deltas are the given 2 x 2 matrices.
fn deltas(of: &[[f32; 4]]) -> Vec<Expert> {
    let identity = vec![1., 0., 0., 1.];
    let one = |(at, delta): (usize, &[f32; 4])| {
        expert(&format!("t{at}"), [("m", low_rank(2, identity.clone(), delta.to_vec(), 1.0))])
    };
    of.iter().enumerate().map(one).collect()
}

#[test]
fn ties_and_pruning_match_values_computed_by_hand() {
    let experts = deltas(&[[1., -2., 3., -4.], [-1., 2., 1., -1.]]);
    let check = |text: &str, experts: &[Expert], weights: &[f64], expected: [f64; 4]| {
        let found = merge(text, experts, weights).unwrap().adapter.modules()["m"].delta();
        assert!(distance(&found, &expected) < 1e-6, "{text} {weights:?}: {found:?}");
    };
    // As PEFT computes them.
    let ties = "ties_svd:density=0.5,rank=full";
    check(ties, &experts, &[1., 1.], [0., 2., 3., -2.5]);
    check(ties, &experts, &[2., 0.5], [0., 1., 6., -4.25]);
    let two = deltas(&[[1., -2., 3., -4.], [8., 1., 0., 0.]]);
    check("magnitude_prune_svd:density=0.3", &two, &[1., 1.], [8., 0., 0., -4.]);
    // PEFT merges one adapter linearly.
    check("magnitude_prune_svd:density=0.3", &experts[..1], &[1.], [1., -2., 3., -4.]);
    // mergekit elects by the weighted values and divides by the weights that agree: for the first value the votes are
    // 2 against -3, which gives -1; for the second -4 against 6; and so on.
    let ties = "ties:convention=mergekit,rank=full";
    check(ties, &experts, &[2., 3.], [-1., 2., (2. * 3. + 3.) / 5., (-8. - 3.) / 5.]);
    // PEFT elects by the unweighted values, whose first two votes are 0, which counts as plus.
    check("ties_svd:density=1,rank=full", &experts, &[2., 3.], [2., 6., 4.5, -5.5]);
    check("linear:convention=mergekit", &experts, &[2., 3.], [-0.2, 0.4, 1.8, -2.2]);
    check("dare_ties:convention=mergekit,rank=full", &experts, &[2., 3.], [-3., 6., 9., -11.]);
    check("task_arithmetic:scale=0.5", &experts, &[2., 3.], [-0.5, 1., 4.5, -5.5]);
    // Two plus signs outvote a larger minus by count, but not by sum.
    let three = deltas(&[[1., 1., 1., 1.], [1., 1., 1., 1.], [-5., -5., -5., 1.]]);
    check("ties_svd:density=1,sign=total,rank=full", &three, &[1.; 3], [-5., -5., -5., 1.]);
    check("ties_svd:density=1,sign=frequency,rank=full", &three, &[1.; 3], [1., 1., 1., 1.]);
}
