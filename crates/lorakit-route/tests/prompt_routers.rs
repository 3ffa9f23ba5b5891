//! LoGo and the retrieval of experts by tasks: relations that hold for any weights.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use candle_core::{Device, Tensor};
use lorakit_lora::{Outputs, SequenceBatch, Site};
use lorakit_route::{LibraryStack, Retrieve, RouteError, RouterContext, RouterState, parse_router};
use small_library::*;
use std::sync::Arc;

const INPUT: usize = 12;
const QUERY: &str = "model.layers.1.self_attn.q_proj";
const KEY: &str = "model.layers.1.self_attn.k_proj";

/// Two layers, of which the second's queries are read.
fn sites() -> [Site; 2] {
    let second = Site { layer: Some(1), ..site(INPUT, &[(KEY, 5), (QUERY, 8)]) };
    [site(INPUT, &[("model.layers.0.self_attn.q_proj", 8)]), second]
}

fn build(library: impl IntoIterator<Item = lorakit_route::Expert>) -> LibraryStack {
    LibraryStack::new(library, &sites(), &Device::Cpu).unwrap()
}

/// Experts of several ranks and scales; the last one adds nothing to the queries.
fn library() -> LibraryStack {
    let one = |e: u64| {
        let of = |m: u64, width| random(10 * e + m, 1 + e as usize, INPUT, width, 0.5 + e as f64);
        expert(&format!("e{e}"), [("model.layers.0.self_attn.q_proj", of(1, 8)), (KEY, of(2, 5)), (QUERY, of(3, 8))])
    };
    let nothing = low_rank(2, values(7, 2 * INPUT), vec![0.0; 16], 2.0);
    build((0..4).map(one).chain([expert("idle", [(QUERY, nothing), (KEY, random(99, 2, INPUT, 5, 1.0))])]))
}

/// The weights that `logo` gives rows of these lengths, with `x` the input of the last block.
fn logo(router: &str, library: &LibraryStack, x: &Tensor, lengths: &[usize]) -> Vec<Arc<[f32]>> {
    let probe = parse_router(router).unwrap().prompt_router(library, &RouterContext::default()).unwrap().unwrap();
    let (pass, rows) = (probe.start(), SequenceBatch::packed(lengths.iter().copied()));
    let patches = pass.patches();
    assert!(patches.at(0).is_none());
    let zeros = Tensor::zeros((rows.tokens(), 13), x.dtype(), &Device::Cpu).unwrap();
    let mut out = Outputs::new(zeros);
    patches.at(1).unwrap().add(x, &rows, &mut out).unwrap();
    let added: Vec<f32> = out.into_tensor().flatten_all().unwrap().to_vec1().unwrap();
    assert!(added.iter().all(|value| *value == 0.0), "a probe adds nothing");
    pass.weights(&rows, x).unwrap()
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let near = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-5);
    assert!(near, "{found:?}, expected {expected:?}");
}

#[test]
fn logo_shares_a_row_by_the_norms_at_its_last_token() {
    let (library, x) = (library(), tokens(60, 9, INPUT));
    let lengths = [4, 5];
    let score = |expert: usize, token: usize, entropy: bool| {
        let x: Vec<f32> = x.get(token).unwrap().to_vec1().unwrap();
        let delta = library.module(expert, QUERY).unwrap().delta();
        let output: Vec<f64> = delta
            .chunks(INPUT)
            .map(|row| row.iter().zip(&x).map(|(d, x)| f64::from(*d) * f64::from(*x)).sum::<f64>())
            .collect();
        if !entropy {
            return output.iter().map(|o| o * o).sum::<f64>().sqrt();
        }
        let total: f64 = output.iter().map(|o| o.exp()).sum();
        1.0 / (output.iter().map(|o| o.exp() / total).map(|p| -p * p.ln()).sum::<f64>() + 1e-6)
    };
    for (measure, entropy) in [("norm", false), ("entropy", true)] {
        for top_k in [1, 2, 20] {
            let found = logo(&format!("logo:measure={measure},top_k={top_k}"), &library, &x, &lengths);
            for (found, last) in found.iter().zip([3, 8]) {
                let mut order: Vec<usize> = (0..4).collect();
                order.sort_by(|a, b| score(*b, last, entropy).total_cmp(&score(*a, last, entropy)));
                order.truncate(top_k);
                let total: f64 = order.iter().map(|e| score(*e, last, entropy)).sum();
                let mut expected = [0.0; 5];
                order.iter().for_each(|e| expected[*e] = (score(*e, last, entropy) / total) as f32);
                assert_near(found, &expected);
            }
        }
    }
}

#[test]
fn logo_weighs_a_row_alone_as_in_a_batch() {
    let (library, x) = (library(), tokens(61, 24, INPUT));
    for router in ["logo", "logo:measure=entropy,top_k=2"] {
        let together = logo(router, &library, &x, &[3, 1, 20]);
        for (row, (start, len)) in [(0, 3), (3, 1), (4, 20)].into_iter().enumerate() {
            let alone = logo(router, &library, &x.narrow(0, start, len).unwrap(), &[len]);
            assert_near(&alone[0], &together[row]);
        }
    }
    // A row without a token, and an input without a direction, have no experts.
    let found = logo("logo", &library, &tokens(61, 3, INPUT).zeros_like().unwrap(), &[0, 3]);
    assert!(found.iter().all(|weights| **weights == [0.0; 5]));
}

#[test]
fn logo_reads_a_fused_projection_whole_and_refuses_a_library_that_leaves_it_alone() {
    let fused = site(INPUT, &[("model.layers.0.self_attn.qkv_proj", 8), ("other", 4)]);
    let changes =
        |module: &'static str, width| experts([expert("e", [(module, random(1, 2, INPUT, width, 1.0))])], &fused);
    let router = parse_router("logo").unwrap();
    let probe = |library: &LibraryStack| router.prompt_router(library, &RouterContext::default()).map(|_| ());
    assert!(probe(&changes("model.layers.0.self_attn.qkv_proj", 8)).is_ok());
    let error = probe(&changes("other", 4)).unwrap_err();
    assert!(error.to_string().contains("`model.layers.0.self_attn.qkv_proj`, and none of them changes it"), "{error}");
}

#[test]
fn a_pass_over_other_rows_is_refused() {
    let library = library();
    let probe = parse_router("logo").unwrap().prompt_router(&library, &RouterContext::default()).unwrap().unwrap();
    let weights = probe.start().weights(&SequenceBatch::packed([2]), &tokens(1, 2, INPUT));
    assert!(matches!(weights, Err(RouteError::OtherRows)));
}

/// The weights that `retrieve` gives rows of these lengths, with these hidden states.
fn retrieved(
    router: &str,
    library: &LibraryStack,
    state: &RouterState,
    hidden: &Tensor,
    lengths: &[usize],
) -> Vec<Arc<[f32]>> {
    let context = RouterContext { state: Some(state), ..RouterContext::default() };
    let nearest = parse_router(router).unwrap().prompt_router(library, &context).unwrap().unwrap();
    nearest.start().weights(&SequenceBatch::packed(lengths.iter().copied()), hidden).unwrap()
}

#[test]
fn retrieve_sums_the_weights_of_an_experts_tasks() {
    let library = library();
    // Means (3, 1), (-1, 1), (1, 4), (1, -2) about the center (1, 1); the last two are of the third expert.
    let rows = [[4.0, 1.0], [2.0, 1.0], [-1.0, 1.0], [1.0, 4.0], [1.0, -2.0], [1.0, 1.0], [1.0, 1.0]].map(Vec::from);
    // The other experts' tasks have the center as their mean, and so a cosine of zero with everything.
    let state = Retrieve::state(&library, &rows, &[0, 0, 1, 2, 3, 4, 5], &[0, 1, 2, 2, 3, 4]).unwrap();
    // Rows of two tokens and one: their means less the center are (2, 2) and (0, -1).
    let hidden = Tensor::new(&[[3f32, 2.], [3., 4.], [1., 0.]], &Device::Cpu).unwrap();
    let found = retrieved("retrieve:temperature=0.5,top_k=all", &library, &state, &hidden, &[2, 1]);
    let expected = |cosines: [f64; 6]| {
        let terms = cosines.map(|cosine| (cosine / 0.5).exp());
        let total: f64 = terms.iter().sum();
        [terms[0], terms[1], terms[2] + terms[3], terms[4], terms[5]].map(|term| (term / total) as f32)
    };
    let half = 0.5f64.sqrt();
    assert_near(&found[0], &expected([half, -half, half, -half, 0.0, 0.0]));
    assert_near(&found[1], &expected([0.0, 0.0, -1.0, 1.0, 0.0, 0.0]));
    // Of equal cosines the first.
    assert_near(&retrieved("retrieve:top_k=1", &library, &state, &hidden, &[2, 1])[0], &[1.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn retrieve_weighs_a_row_alone_as_in_a_batch_and_ignores_experts_that_change_nothing() {
    let library = library();
    let rows: Vec<Vec<f32>> = (0..10).map(|row| values(70 + row, 6)).collect();
    let state = Retrieve::state(&library, &rows, &[0, 0, 1, 1, 2, 2, 3, 3, 4, 4], &[0, 1, 2, 3, 4]).unwrap();
    let hidden = tokens(71, 12, 6);
    let together = retrieved("retrieve", &library, &state, &hidden, &[5, 1, 6]);
    for (row, (start, len)) in [(0, 5), (5, 1), (6, 6)].into_iter().enumerate() {
        let alone = retrieved("retrieve", &library, &state, &hidden.narrow(0, start, len).unwrap(), &[len]);
        assert_near(&alone[0], &together[row]);
        assert!((alone[0].iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert_eq!(alone[0].iter().filter(|weight| **weight > 0.0).count(), 3);
    }
    let zero = |name| expert(name, [(QUERY, low_rank(2, values(7, 2 * INPUT), vec![0.0; 16], 2.0))]);
    let only = |name| expert(name, [(QUERY, random(1, 2, INPUT, 8, 1.0))]);
    let weights = |library: LibraryStack| {
        let state = Retrieve::state(&library, &rows[..2], &[0, 1], &[0, 1]).unwrap();
        retrieved("retrieve", &library, &state, &hidden, &[12]).remove(0)
    };
    assert_eq!(*weights(build([zero("a"), only("b")])), [0.0, 1.0]);
    assert_eq!(*weights(build([zero("a"), zero("b")])), [0.0, 0.0]);
}

#[test]
fn with_one_expert_both_are_that_expert() {
    let library = build([expert("only", [(QUERY, random(3, 2, INPUT, 8, 1.5)), (KEY, random(4, 1, INPUT, 5, 2.0))])]);
    let x = tokens(72, 6, INPUT);
    for router in ["logo", "logo:measure=entropy", "logo:top_k=1"] {
        logo(router, &library, &x, &[2, 4]).iter().for_each(|weights| assert_near(weights, &[1.0]));
    }
    let state = Retrieve::state(&library, &[values(1, 6), values(2, 6)], &[0, 1], &[0, 0]).unwrap();
    let found = retrieved("retrieve", &library, &state, &tokens(73, 6, 6), &[2, 4]);
    found.iter().for_each(|weights| assert_near(weights, &[1.0]));
}

#[test]
fn retrieve_refuses_states_of_other_libraries() {
    let library = library();
    let error = Retrieve::state(&library, &[values(1, 6)], &[0], &[3]).unwrap_err();
    assert!(matches!(&error, RouteError::NoRows(expert) if expert == "e0"), "{error}");
    let router = parse_router("retrieve").unwrap();
    assert!(matches!(router.prompt_router(&library, &RouterContext::default()), Err(RouteError::MissingState(_))));
    let rows: Vec<Vec<f32>> = (0..5).map(|row| values(row, 6)).collect();
    let state = Retrieve::state(&library, &rows, &[0, 1, 2, 3, 4], &[0, 1, 2, 3, 4]).unwrap();
    let context = RouterContext { state: Some(&state), ..RouterContext::default() };
    let smaller = build([expert("e", [(QUERY, random(1, 2, INPUT, 8, 1.0))])]);
    assert!(matches!(router.prompt_router(&smaller, &context), Err(RouteError::StateExperts(1))));
    let nearest = router.prompt_router(&library, &context).unwrap().unwrap();
    let weights = nearest.start().weights(&SequenceBatch::packed([2]), &tokens(1, 2, INPUT));
    assert!(matches!(weights, Err(RouteError::Features { expected: 6, found: 12 })));
}
