//! Parity with the papers' code on recorded values (`mttl_oracle.json`: four experts, alpha / r = 8).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use candle_core::{Device, Tensor};
use lorakit_adapter::Matrix;
use lorakit_lora::SequenceBatch;
use lorakit_route::token::prototypes::prototypes;
use lorakit_route::{
    LibraryStack, Observer, PrototypeScope, RouterContext, RouterState, RoutingDecision, parse_router,
};
use serde_json::Value;
use small_library::*;
use std::path::Path;
use std::sync::{Arc, Mutex};

const MODULE: &str = "model.layers.0.self_attn.q_proj";

fn oracle() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracles/mttl_oracle.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn matrix(value: &Value) -> Vec<Vec<f32>> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The recorded matrices are the transposes of PEFT's: A is `[in, r]`, B is `[r, out]`.
fn transposed(value: &Value) -> Vec<f32> {
    let rows = matrix(value);
    (0..rows[0].len()).flat_map(|column| rows.iter().map(move |row| row[column]).collect::<Vec<_>>()).collect()
}

/// The four experts, with one site per projection, since the recorded inputs are per projection.
fn library(oracle: &Value, module: &str, width: usize) -> LibraryStack {
    let one = |(name, tensors): (&String, &Value)| {
        let a = transposed(&tensors[format!("{module}.lora_a")]);
        let b = transposed(&tensors[format!("{module}.lora_b")]);
        expert(name, [(module, low_rank(2, a, b, 8.0))])
    };
    experts(oracle["experts"].as_object().unwrap().iter().map(one), &site(6, &[(module, width)]))
}

fn input(oracle: &Value) -> Tensor {
    Tensor::new(matrix(&oracle["routing_input"][0]), &Device::Cpu).unwrap()
}

#[test]
#[ignore = "needs ../shared"]
fn prototypes_match_up_to_sign() {
    let oracle = oracle();
    for (projection, width) in [("q_proj", 6), ("k_proj", 4), ("o_proj", 5)] {
        let module = format!("model.layers.0.self_attn.{projection}");
        let library = library(&oracle, &module, width);
        let site = &library.sites()[0];
        let found = prototypes(&library, site, &PrototypeScope::Projection.groups(site)).unwrap();
        for (index, (name, vector)) in library.names().iter().zip(found.vectors.chunks(site.input)).enumerate() {
            let found = library.module(index, &module).unwrap().top_singular_vector().unwrap();
            assert_eq!(found.vector, vector, "{name} {module}");
            let expected: Vec<f32> =
                serde_json::from_value(oracle["arrow_prototypes_sign_free"][name][&module].clone()).unwrap();
            let cosine: f32 = expected.iter().zip(&found.vector).map(|(a, b)| a * b).sum();
            assert!((cosine.abs() - 1.0).abs() < 1e-5, "{name} {module}: {cosine}");
            // The recorded eigenvalue is of A B without alpha / r.
            let squared = oracle["arrow_eigvals_sigma1_sq"][name][&module].as_f64().unwrap() * 64.0;
            assert!((found.singular_value.powi(2) / squared - 1.0).abs() < 1e-4);
        }
    }
}

/// Records the experts and weights of a single decision.
#[derive(Default)]
struct LastChoice(Mutex<(Vec<u32>, Vec<f32>)>);

impl Observer for LastChoice {
    fn observe(&self, routing: &RoutingDecision) {
        *self.0.lock().unwrap() = (routing.experts.to_vec(), routing.weights.to_vec());
    }
}

#[test]
#[ignore = "needs ../shared"]
fn chosen_experts_and_weights_match() {
    let oracle = oracle();
    let library = library(&oracle, MODULE, 6);
    for (name, router) in [
        ("arrow_t1_all", "arrow:top_k=4"),
        ("arrow_t1_top2", "arrow:top_k=2"),
        ("arrow_t0.5_top2", "arrow:top_k=2,temperature=0.5"),
    ] {
        let seen = Arc::new(LastChoice::default());
        let setting = RouterContext { observer: Some(seen.clone()), ..RouterContext::default() };
        let patches = parse_router(router).unwrap().patches(&library, &setting).unwrap();
        added(&patches, &library, &input(&oracle), &SequenceBatch::packed([3]));
        let (experts, weights) = &*seen.0.lock().unwrap();
        let expected: Vec<f32> = matrix(&oracle[name]["weights"][0]).concat();
        weights.iter().zip(&expected).for_each(|(found, expected)| assert!((found - expected).abs() < 1e-4, "{name}"));
        if let Ok(chosen) = serde_json::from_value::<Vec<Vec<u32>>>(oracle[name]["experts"][0].clone()) {
            assert_eq!(*experts, chosen.concat(), "{name}");
        }
    }
}

/// The recorded weights were computed with prototypes as centroids and as gates.
#[test]
#[ignore = "needs ../shared"]
fn weights_by_fitted_vectors_match() {
    let oracle = oracle();
    let library = library(&oracle, MODULE, 6);
    let of =
        |name: &String| serde_json::from_value(oracle["arrow_prototypes_sign_free"][name][MODULE].clone()).unwrap();
    let vectors: Vec<f32> = library.names().iter().flat_map(|name| -> Vec<f32> { of(name) }).collect();
    let site = library.sites()[0].key();
    let learned = RouterState::new([(site, Matrix::new(4, 6, vectors).unwrap())]);
    for (router, name) in [("cm", "avg_act_all"), ("phatgoose", "phatgoose_top2")] {
        let seen = Arc::new(LastChoice::default());
        let setting = RouterContext { observer: Some(seen.clone()), state: Some(&learned), ..RouterContext::default() };
        let patches = parse_router(router).unwrap().patches(&library, &setting).unwrap();
        added(&patches, &library, &input(&oracle), &SequenceBatch::packed([3]));
        let expected: Vec<f32> = matrix(&oracle[name]["weights"][0]).concat();
        let (experts, weights) = &*seen.0.lock().unwrap();
        assert_eq!(weights.len(), expected.len());
        weights.iter().zip(&expected).for_each(|(found, expected)| assert!((found - expected).abs() < 1e-6, "{name}"));
        if let Ok(chosen) = serde_json::from_value::<Vec<Vec<u32>>>(oracle[name]["experts"][0].clone()) {
            assert_eq!(*experts, chosen.concat(), "{name}");
        }
    }
}

#[test]
#[ignore = "needs ../shared"]
fn both_mixings_match() {
    let oracle = oracle();
    let library = library(&oracle, MODULE, 6);
    for (name, mixing) in
        [("mix_arrow_t1_top2_merge_after_True", "outputs"), ("mix_arrow_t1_top2_merge_after_False", "separate")]
    {
        let found = routed(&format!("arrow:top_k=2,mixing={mixing}"), &library, &input(&oracle));
        assert_close(&found, &matrix(&oracle[name][0]), 1e-5);
    }
}

#[test]
#[ignore = "needs ../shared"]
fn uniform_separate_matches_the_uniform_merge() {
    let oracle = oracle();
    let library = library(&oracle, MODULE, 6);
    let merged = &oracle["uniform_merge"];
    let a = transposed(&merged[format!("{MODULE}.lora_a")]);
    let b = transposed(&merged[format!("{MODULE}.lora_b")]);
    let merged = experts([expert("merged", [(MODULE, low_rank(2, a, b, 8.0))])], &library.sites()[0]);
    let x = input(&oracle);
    assert_close(&routed("uniform:mixing=separate", &library, &x), &routed("expert:merged", &merged, &x), 1e-5);
}

/// Computed by hand: prototypes (1,0,0,0), (0,-1,0,0), (.6,.8,0,0), here as rank-one experts.
#[test]
fn the_small_case_matches() {
    let one = |(name, a): (&str, [f32; 4])| expert(name, [("q", low_rank(1, a.to_vec(), vec![1.0, 2.0], 1.0))]);
    let library = [("e0", [1., 0., 0., 0.]), ("e1", [0., -1., 0., 0.]), ("e2", [0.6, 0.8, 0., 0.])].map(one);
    let library = experts(library, &site(4, &[("q", 2)]));
    let x = Tensor::new(&[[2f32, 1., 0., 3.], [0.5, -2., 1., 0.]], &Device::Cpu).unwrap();
    let weights = |router: &str| {
        let seen = Arc::new(LastChoice::default());
        let setting = RouterContext { observer: Some(seen.clone()), ..RouterContext::default() };
        let patches = parse_router(router).unwrap().patches(&library, &setting).unwrap();
        added(&patches, &library, &x, &SequenceBatch::packed([2]));
        seen.0.lock().unwrap().clone()
    };
    let close = |found: &[f32], expected: &[f32]| {
        found.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{found:?}"))
    };
    close(&weights("arrow").1, &[0.422319, 0.155362, 0.422319, 0.129748, 0.581492, 0.28876]);
    let (experts, top2) = weights("arrow:top_k=2");
    assert_eq!(experts[2..], [1, 2]);
    close(&top2[2..], &[0.668188, 0.331812]);
    close(&weights("arrow:top_k=2,temperature=0.5").1[2..], &[0.802184, 0.197816]);
}
