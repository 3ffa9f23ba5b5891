//! SpectR, LAG, LoGo and LoRAuter compared with recorded values of their authors' code or formulas.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use candle_core::{Device, Tensor};
use lorakit_adapter::{LowRank, Matrix};
use lorakit_lora::{Outputs, Sequence, SequenceBatch};
use lorakit_route::{LibraryStack, Observer, RouterContext, RouterState, RoutingDecision, parse_router};
use serde_json::Value;
use small_library::*;
use std::path::Path;
use std::sync::{Arc, Mutex};

const MODULE: &str = "model.layers.0.self_attn.q_proj";

/// The recorded values.
struct Recorded(Value);

impl Recorded {
    fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracles/newer_routers.json");
        Self(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
    }

    /// The cases whose names begin so.
    fn cases(&self, start: &str) -> Vec<&Value> {
        let cases = self.0["cases"].as_array().unwrap().iter();
        cases.filter(|case| case["id"].as_str().unwrap().starts_with(start)).collect()
    }

    fn x(&self) -> Tensor {
        Tensor::new(rows::<f32>(&self.0["x"]), &Device::Cpu).unwrap()
    }

    /// The adapters of a case, as experts of one projection, in their order.
    fn library(&self, case: &Value) -> LibraryStack {
        let adapters = self.0["adapters"][case["adapters"].as_str().unwrap()].as_array().unwrap();
        let one = |(index, of): (usize, &Value)| {
            let (rank, alpha) = (of["r"].as_u64().unwrap() as usize, of["alpha"].as_f64().unwrap());
            let update = low_rank(rank, rows(&of["A"]).concat(), rows(&of["B"]).concat(), alpha / rank as f64);
            expert(&format!("e{index}"), [(MODULE, update)])
        };
        experts(adapters.iter().enumerate().map(one), &site(16, &[(MODULE, 20)]))
    }

    /// Recorded outputs less those of the base.
    fn deltas(&self, outputs: &Value) -> Vec<Vec<f32>> {
        let weight: Vec<Vec<f64>> = rows(&self.0["W"]);
        let less = |(x, y): (&Vec<f64>, &Vec<f64>)| -> Vec<f32> {
            let dot = |row: &Vec<f64>| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
            y.iter().zip(&weight).map(|(y, row)| (y - dot(row)) as f32).collect()
        };
        let (x, outputs): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (rows(&self.0["x"]), rows(outputs));
        x.iter().zip(&outputs).map(less).collect()
    }
}

fn rows<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<Vec<T>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn list<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Records the experts of a single decision.
#[derive(Default)]
struct LastExperts(Mutex<Vec<u32>>);

impl Observer for LastExperts {
    fn observe(&self, routing: &RoutingDecision) {
        *self.0.lock().unwrap() = routing.experts.to_vec();
    }
}

/// The experts that a router chooses, the highest score first, and what it adds.
fn chosen(router: &str, library: &LibraryStack, x: &Tensor) -> (Vec<u32>, Vec<Vec<f32>>) {
    let seen = Arc::new(LastExperts::default());
    let context = RouterContext { observer: Some(seen.clone()), ..RouterContext::default() };
    let patches = parse_router(router).unwrap().patches(library, &context).unwrap();
    let added = added(&patches, library, x, &SequenceBatch::packed([x.dim(0).unwrap()]));
    (seen.0.lock().unwrap().clone(), added)
}

/// The `spectr` of a case's score.
fn spectr(score: &str, top_k: &Value) -> String {
    let measure = if score == "scaled_norm" { "norm" } else { "length" };
    format!("spectr:measure={measure},top_k={top_k}")
}

#[test]
#[ignore = "needs ../shared"]
fn spectr_chooses_and_mixes_as_recorded() {
    let recorded = Recorded::open();
    let cases = recorded.cases("spectr/");
    assert_eq!(cases.len(), 14);
    for case in cases {
        let (id, top_k) = (&case["id"], &case["settings"]["top_k"]);
        let router = spectr(case["settings"]["score"].as_str().unwrap(), top_k);
        let (experts, added) = chosen(&router, &recorded.library(case), &recorded.x());
        assert_eq!(experts, rows::<u32>(&case["chosen"]).concat(), "{id}");
        // Outputs of several experts are recorded at softmax weights too, which the router does not have.
        if !case["output_mixing"].is_null() {
            assert_close(&added, &recorded.deltas(&case["output_mixing"]), 1e-6);
        } else if top_k == 1 {
            assert_close(&added, &recorded.deltas(&case["output"]), 1e-6);
        }
    }
}

#[test]
#[ignore = "needs ../shared"]
fn scores_match() {
    let recorded = Recorded::open();
    let assert_scores = |case: &Value, name: &str, score: &dyn Fn(&LowRank, &[f32]) -> f64| {
        let library = recorded.library(case);
        let (tokens, scores) = (rows::<f32>(&recorded.0["x"]), rows::<f64>(&case[name]));
        assert_eq!((tokens.len(), scores.len()), (6, 6), "{} {name}", case["id"]);
        for (x, expected) in tokens.iter().zip(scores) {
            assert_eq!(expected.len(), library.len(), "{} {name}", case["id"]);
            for (expert, expected) in expected.iter().enumerate() {
                let found = score(library.module(expert, MODULE).unwrap(), x);
                assert!((found / expected - 1.0).abs() < 1e-6, "{} {name}: {found} and {expected}", case["id"]);
            }
        }
    };
    let dot = |v: &[f32], x: &[f32]| v.iter().zip(x).map(|(v, x)| f64::from(*v) * f64::from(*x)).sum::<f64>();
    let arrow = |update: &LowRank, x: &[f32]| dot(&update.top_singular_vector().unwrap().vector, x).abs();
    let projected = |update: &LowRank, x: &[f32], weighs: bool| {
        let all = update.right_singular_vectors().unwrap();
        let products = all.vectors.chunks(16).zip(&all.singular_values);
        let square = |(v, s): (&[f32], &f64)| (dot(v, x) * if weighs { *s } else { 1.0 }).powi(2);
        products.map(square).sum::<f64>().sqrt()
    };
    let (scores, seqr) = (recorded.cases("scores/"), recorded.cases("seqr/"));
    assert_eq!((scores.len(), seqr.len()), (2, 2));
    for case in scores {
        assert_scores(case, "arrow_abs_v1_x", &arrow);
        assert_scores(case, "spectr_length_V_x", &|update, x| projected(update, x, false));
        assert_scores(case, "norm_scaled_s_B_A_x", &|update, x| projected(update, x, true));
        for (name, router) in [
            ("chosen_arrow", "arrow:top_k=1"),
            ("chosen_length", "spectr:top_k=1"),
            ("chosen_scaled_norm", "spectr:measure=norm,top_k=1"),
        ] {
            let found = chosen(router, &recorded.library(case), &recorded.x()).0;
            assert_eq!(found, list::<u32>(&case[name]), "{} {name}", case["id"]);
        }
    }
    // SEQR's scores before it standardizes them.
    for case in seqr {
        assert_scores(case, "spectr_length_V_x", &|update, x| projected(update, x, false));
        assert_scores(case, "norms", &|update, x| projected(update, x, true));
    }
}

#[test]
#[ignore = "needs ../shared"]
fn lag_chooses_of_a_shortlist_as_recorded() {
    let recorded = Recorded::open();
    let cases = recorded.cases("lag/");
    assert_eq!(cases.len(), 8);
    for case in cases {
        let router = format!("lag:top_k={}", case["settings"]["k"]);
        let (experts, added) = chosen(&router, &recorded.library(case), &recorded.x());
        assert_eq!(experts, list::<u32>(&case["chosen_length"]), "{}", case["id"]);
        assert_close(&added, &recorded.deltas(&case["output_length"]), 1e-6);
    }
}

/// What a prompt router adds to all tokens of `x`, as one row of these weights.
fn added_at(router: &str, library: &LibraryStack, weights: Arc<[f32]>, x: &Tensor) -> Vec<Vec<f32>> {
    let patches = parse_router(router).unwrap().patches(library, &RouterContext::default()).unwrap();
    let row = Sequence { len: x.dim(0).unwrap(), weights: Some(weights), ..Sequence::default() };
    added(&patches, library, x, &SequenceBatch::new([row]))
}

#[track_caller]
fn assert_weights(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    let close = found.iter().zip(expected).all(|(found, expected)| (f64::from(*found) - expected).abs() < 1e-6);
    assert!(close, "{found:?}, expected {expected:?}");
}

#[test]
#[ignore = "needs ../shared"]
fn logo_weighs_experts_as_recorded() {
    let (recorded, x) = (Recorded::open(), Recorded::open().x());
    let cases = recorded.cases("logo/");
    assert_eq!(cases.len(), 12);
    for case in cases {
        let settings = &case["settings"];
        let router = format!("logo:measure={},top_k={}", settings["signal"].as_str().unwrap(), settings["top_k"]);
        let library = recorded.library(case);
        let probe = parse_router(&router).unwrap().prompt_router(&library, &RouterContext::default()).unwrap().unwrap();
        let (pass, rows) = (probe.start(), SequenceBatch::packed([x.dim(0).unwrap()]));
        let mut out = Outputs::new(x.zeros_like().unwrap());
        pass.patches().at(0).unwrap().add(&x, &rows, &mut out).unwrap();
        let found = pass.weights(&rows, &x).unwrap().remove(0);
        let mut expected = vec![0.0; library.len()];
        let chosen = list::<usize>(&case["chosen"]).into_iter().zip(list::<f64>(&case["weights"]));
        chosen.for_each(|(expert, weight)| expected[expert] = weight);
        assert_weights(&found, &expected);
        assert_close(&added_at(&router, &library, found, &x), &recorded.deltas(&case["output"]), 1e-6);
    }
}

#[test]
#[ignore = "needs ../shared"]
fn retrieve_weighs_experts_as_recorded() {
    let (recorded, x) = (Recorded::open(), Recorded::open().x());
    let cases = recorded.cases("lorauter/");
    assert_eq!(cases.len(), 3);
    let tasks = recorded.0["lorauter"]["row_embeddings"].as_array().unwrap();
    // No mean over the tasks is subtracted there.
    let mean = |task: &Value| -> Vec<f32> {
        let rows = rows::<f64>(task);
        (0..8).map(|at| (rows.iter().map(|row| row[at]).sum::<f64>() / rows.len() as f64) as f32).collect()
    };
    let matrix = |rows, values: Vec<f32>| Matrix::new(rows, values.len() / rows, values).unwrap();
    let state = RouterState::new([
        ("center".to_owned(), matrix(1, vec![0.0; 8])),
        ("embeddings".to_owned(), matrix(6, tasks.iter().flat_map(mean).collect())),
        ("experts".to_owned(), matrix(1, list(&recorded.0["lorauter"]["adapter_of_task"]))),
    ]);
    let context = RouterContext { state: Some(&state), ..RouterContext::default() };
    let queries = Tensor::new(rows::<f32>(&recorded.0["lorauter"]["queries"]), &Device::Cpu).unwrap();
    for case in cases {
        let settings = &case["settings"];
        let router = format!("retrieve:top_k={},temperature={}", settings["top_k"], settings["temperature"]);
        let library = recorded.library(case);
        let nearest = parse_router(&router).unwrap().prompt_router(&library, &context).unwrap().unwrap();
        let found = nearest.start().weights(&SequenceBatch::packed([1; 4]), &queries).unwrap();
        for (found, expected) in found.iter().zip(rows::<f64>(&case["adapter_weights"])) {
            assert_weights(found, &expected);
        }
        let added = added_at(&router, &library, found[0].clone(), &x);
        assert_close(&added, &recorded.deltas(&case["output_of_the_first_query"]), 1e-6);
    }
}
