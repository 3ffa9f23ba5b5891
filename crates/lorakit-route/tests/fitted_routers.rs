//! Fitted routers: probes, and properties that hold for any state.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use candle_core::{DType, Device, Tensor};
use lorakit_adapter::Matrix;
use lorakit_lora::{Outputs, Sequence, SequenceBatch, Site};
use lorakit_route::prompt::evidence::Fallback;
use lorakit_route::token::general_knowledge;
use lorakit_route::token::phatgoose::gated_experts;
use lorakit_route::{
    Centroid, Evidence, InputMeans, LibraryStack, Limit, Pooling, PromptRouter, ResponseMeasure, ResponseProbe,
    RouteError, Router, RouterContext, RouterState, TaskResponses, parse_router,
};
use small_library::*;
use std::any::Any;
use std::sync::Arc;

const INPUT: usize = 12;

fn qkv() -> Site {
    site(INPUT, &[("q", 8), ("k", 5), ("v", 6)])
}

/// Experts of different ranks, alphas and module sets; `z` has a zero delta.
fn uneven() -> LibraryStack {
    let library = [
        expert("a", [("q", random(1, 3, INPUT, 8, 2.0)), ("k", random(2, 1, INPUT, 5, 0.5))]),
        expert("b", [("q", random(3, 1, INPUT, 8, 2.0)), ("v", random(4, 4, INPUT, 6, 1.5))]),
        expert("z", [("q", low_rank(2, values(9, 2 * INPUT), vec![0.0; 16], 1.0))]),
    ];
    experts(library, &qkv())
}

fn built(router: &str, library: &LibraryStack, learned: &RouterState, x: &Tensor) -> Vec<Vec<f32>> {
    let setting = RouterContext { state: Some(learned), ..RouterContext::default() };
    let patches = parse_router(router).unwrap().patches(library, &setting).unwrap();
    added(&patches, library, x, &SequenceBatch::packed([x.dim(0).unwrap()]))
}

/// A fitted state with one random matrix, for the only site.
fn random_vectors(library: &LibraryStack) -> RouterState {
    let n = library.len();
    RouterState::new([("0.qkv".to_owned(), Matrix::new(n, INPUT, values(70, n * INPUT)).unwrap())])
}

#[test]
fn routing_one_expert_equals_its_adapter() {
    let library = experts([expert("only", [("q", random(1, 3, INPUT, 8, 2.0))])], &qkv());
    let x = tokens(50, 9, INPUT);
    let expected = dense(&library, &x, |_, _, _| 1.0);
    for router in ["cm", "cm:top_k=1,score=cosine", "phatgoose"] {
        assert_close(&built(router, &library, &random_vectors(&library), &x), &expected, 1e-5);
    }
}

#[test]
fn weights_are_a_softmax_over_the_experts_of_the_projection() {
    let (library, x) = (uneven(), tokens(52, 7, INPUT));
    let learned = random_vectors(&library);
    let vectors = learned.matrices()["0.qkv"].values().into_owned();
    let rows = x.to_vec2::<f32>().unwrap();
    let score = |token: usize, expert: usize| {
        let vector = &vectors[expert * INPUT..][..INPUT];
        let dot: f64 = rows[token].iter().zip(vector).map(|(x, v)| f64::from(x * v)).sum();
        dot / (INPUT as f64).sqrt() / 0.5
    };
    // `z` changes nothing, so that it is never a candidate; `a` has no v, and `b` no k.
    let candidates: [&[usize]; 3] = [&[0, 1], &[0], &[1]];
    let expected = dense(&library, &x, |token, projection, expert| {
        let total: f64 = candidates[projection].iter().map(|e| score(token, *e).exp()).sum();
        if candidates[projection].contains(&expert) { score(token, expert).exp() / total } else { 0.0 }
    });
    assert_close(&built("cm:temperature=0.5", &library, &learned, &x), &expected, 1e-5);
}

#[test]
fn centroids_are_normalized_mean_inputs_of_the_experts_rows() {
    let library = uneven();
    let x = tokens(60, 9, INPUT);
    // Rows of 2, 3, 1 and 3 tokens; the third belongs to no expert.
    let row = |(start, len, expert)| Sequence { start, len, expert, ..Sequence::default() };
    let rows = SequenceBatch::new([(0, 2, Some(1)), (2, 3, Some(0)), (5, 1, None), (6, 3, Some(1))].map(row));
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
        (Pooling::Last, mean(&[values[1].clone(), values[8].clone()])),
        (Pooling::Mean, mean(&[average(0..2), average(6..9)])),
    ] {
        let inputs = InputMeans::new(&library, pool);
        let mut out = Outputs::new(Tensor::ones((9, 19), DType::F32, &Device::Cpu).unwrap());
        inputs.patches().at(0).unwrap().add(&x, &rows, &mut out).unwrap();
        assert_eq!(out.tensor().to_vec2::<f32>().unwrap(), vec![vec![1.0; 19]; 9], "a probe adds nothing");
        let error = Centroid::default().state(&library, &inputs).unwrap_err();
        assert!(matches!(&error, RouteError::NoRows(expert) if expert == "z"), "{error}");

        let third = SequenceBatch::new([Sequence { len: 1, expert: Some(2), ..Sequence::default() }]);
        inputs.patches().at(0).unwrap().add(&x.narrow(0, 4, 1).unwrap(), &third, &mut out).unwrap();
        let learned = Centroid::default().state(&library, &inputs).unwrap();
        let centroids = learned.matrices()["0.qkv"].values().into_owned();
        for (found, expected) in centroids[INPUT..2 * INPUT].iter().zip(&of_b) {
            assert!((found - expected).abs() < 1e-5, "{pool:?}: {found} {expected}");
        }
    }
}

#[test]
fn rejects_missing_state_and_state_of_another_library() {
    let library = uneven();
    let router = parse_router("cm").unwrap();
    let error = router.patches(&library, &RouterContext::default()).err().unwrap();
    assert!(error.to_string().contains("was not given what was fitted"), "{error}");
    let other = RouterState::new([("0.qkv".to_owned(), Matrix::new(2, INPUT, values(1, 2 * INPUT)).unwrap())]);
    let setting = RouterContext { state: Some(&other), ..RouterContext::default() };
    let message = router.patches(&library, &setting).err().unwrap().to_string();
    for part in ["0.qkv", "(3, 12)", "(2, 12)", "another library"] {
        assert!(message.contains(part), "{message}");
    }
}

/// The state of `evidence` fitted to a pass over `x`, whose rows have three tokens each, with their tasks and experts.
fn usual(evidence: &Evidence, library: &LibraryStack, x: &Tensor, tasks: &[usize], experts: &[usize]) -> RouterState {
    let pass = ResponseProbe::new(library, evidence.measure).unwrap().start();
    look(&pass.patches(), x, &vec![3; tasks.len()]);
    let prompts = TaskResponses { responses: pass.responses(), tasks: tasks.to_vec(), experts: experts.to_vec() };
    evidence.state(library, &prompts).unwrap()
}

fn with_state(state: &RouterState) -> RouterContext<'_> {
    RouterContext { state: Some(state), ..RouterContext::default() }
}

fn prompt_router(evidence: &Evidence, library: &LibraryStack, state: &RouterState) -> Arc<dyn PromptRouter> {
    evidence.prompt_router(library, &with_state(state)).unwrap().unwrap()
}

/// The weights that `evidence` gives a row of `x`.
fn weights_of(evidence: &Evidence, library: &LibraryStack, learned: &RouterState, x: &Tensor) -> Vec<f32> {
    let pass = prompt_router(evidence, library, learned).start();
    look(&pass.patches(), x, &[x.dim(0).unwrap()]);
    pass.weights(&SequenceBatch::packed([x.dim(0).unwrap()]), x).unwrap().remove(0).to_vec()
}

/// Eight prompts of three tokens for every task; those of a task lie around a direction determined by `kinds[task]`.
fn prompts_of(kinds: &[u64]) -> Tensor {
    let prompt = |kind: u64, number: u64| {
        let noise = values(500 + 100 * kind + number, 3 * INPUT);
        let center = values(900 + kind, INPUT);
        noise.into_iter().enumerate().map(move |(i, noise)| 0.3 * noise + center[i % INPUT]).collect::<Vec<f32>>()
    };
    let all: Vec<f32> = kinds.iter().flat_map(|&kind| (0..8).flat_map(move |number| prompt(kind, number))).collect();
    Tensor::from_vec(all, (kinds.len() * 8 * 3, INPUT), &Device::Cpu).unwrap()
}

fn eight_of_each(tasks: usize) -> Vec<usize> {
    (0..tasks * 8).map(|prompt| prompt / 8).collect()
}

/// Applies the patches of one site to a pass, and asserts that they add nothing.
fn look(patches: &lorakit_lora::Patches, x: &Tensor, lengths: &[usize]) {
    let mut out = Outputs::new(Tensor::ones((x.dim(0).unwrap(), 19), DType::F32, &Device::Cpu).unwrap());
    patches.at(0).unwrap().add(x, &SequenceBatch::packed(lengths.iter().copied()), &mut out).unwrap();
    assert!(out.tensor().flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|y| *y == 1.0));
}

#[test]
fn a_response_is_the_norm_of_the_delta_for_a_unit_input() {
    let (library, x) = (uneven(), tokens(80, 5, INPUT));
    let pass = ResponseProbe::new(&library, ResponseMeasure::Energy).unwrap().start();
    look(&pass.patches(), &x, &[2, 3]);
    let responses = pass.responses();
    assert_eq!((responses.len(), responses[0].0, responses[0].1.len()), (1, 0, 6));
    let rows = x.to_vec2::<f32>().unwrap();
    for (row, tokens) in [0..2, 2..5].into_iter().enumerate() {
        for expert in 0..3 {
            let added = dense(&library, &x, |_, _, e| f64::from(u8::from(e == expert)));
            let length = |v: &[f32]| v.iter().map(|v| v * v).sum::<f32>().sqrt();
            let mean = tokens.clone().map(|t| length(&added[t]) / length(&rows[t])).sum::<f32>() / tokens.len() as f32;
            let found = responses[0].1[row * 3 + expert];
            assert!((found - mean).abs() < 1e-5 * mean.max(1.0), "{found} {mean}");
        }
    }
    assert_eq!(responses[0].1[2], 0.0, "a zero delta does not respond");
}

#[test]
fn evidence_routes_a_prompt_to_the_experts_of_similar_tasks() {
    let library = uneven();
    let router = parse_router("evidence:temperature=0.1,fallback=base,far_tail=0,near_tail=0").unwrap();
    let any: &dyn Any = &*router;
    let evidence: &Evidence = any.downcast_ref().unwrap();
    // Four tasks: one of `a`, two of `b`, and one of `z`, which changes nothing.
    let learned = usual(evidence, &library, &prompts_of(&[1, 2, 3, 4]), &eight_of_each(4), &[0, 1, 1, 2]);
    let names = ["0.qkv", "distances", "experts", "means", "whitening"];
    assert_eq!(learned.matrices().keys().collect::<Vec<_>>(), names);
    for (kind, expert) in [(1, 0), (2, 1), (3, 1), (4, 2)] {
        let prompt = prompts_of(&[kind]).narrow(0, 6, 3).unwrap();
        let weights = weights_of(evidence, &library, &learned, &prompt);
        assert!(weights[expert] > 0.99, "{kind}: {weights:?}");
        // Under its patches the row has that mixture, and nothing else.
        let setting = RouterContext { state: Some(&learned), ..RouterContext::default() };
        let patches = router.patches(&library, &setting).unwrap();
        let expected = dense(&library, &prompt, |_, _, e| f64::from(weights[e]));
        let rows = SequenceBatch::new([Sequence { len: 3, weights: Some(weights.into()), ..Sequence::default() }]);
        assert_close(&added(&patches, &library, &prompt, &rows), &expected, 1e-5);
    }
    let pass = prompt_router(evidence, &library, &learned).start();
    look(&pass.patches(), &prompts_of(&[1]).narrow(0, 0, 3).unwrap(), &[3]);
    let error = pass.weights(&SequenceBatch::packed([3, 1]), &prompts_of(&[1])).unwrap_err();
    assert!(matches!(error, RouteError::OtherRows), "{error}");
}

#[test]
fn tasks_with_equal_prompts_share_the_weight() {
    let library = uneven();
    let evidence = Evidence { far_tail: 0.0, near_tail: 0.0, ..Evidence::default().fixed(0.1, Fallback::Base) };
    // The prompts of the first task again, as those of another expert.
    let learned = usual(&evidence, &library, &prompts_of(&[1, 2, 1]), &eight_of_each(3), &[0, 2, 1]);
    let prompt = prompts_of(&[1]).narrow(0, 6, 3).unwrap();
    let weights = weights_of(&evidence, &library, &learned, &prompt);
    assert!((weights[0] - 0.5).abs() < 1e-3 && (weights[1] - 0.5).abs() < 1e-3, "{weights:?}");
    // At a high temperature, all tasks have equal weight.
    let hot = weights_of(&evidence.fixed(1e9, Fallback::Base), &library, &learned, &prompt);
    assert!(hot.iter().all(|weight| (weight - 1.0 / 3.0).abs() < 1e-4), "{hot:?}");
    let one = weights_of(&Evidence { top_k: Limit(1), ..evidence }, &library, &learned, &prompt);
    assert_eq!(one.iter().filter(|weight| **weight == 1.0).count(), 1, "{one:?}");
}

#[test]
fn evidence_with_one_expert_equals_its_adapter() {
    let library = experts([expert("only", [("q", random(1, 3, INPUT, 8, 2.0))])], &qkv());
    let evidence = Evidence { far_tail: 0.0, near_tail: 0.0, ..Evidence::default().fixed(0.1, Fallback::Base) };
    let x = prompts_of(&[1]);
    let learned = usual(&evidence, &library, &x, &eight_of_each(1), &[0]);
    assert_eq!(weights_of(&evidence, &library, &learned, &x.narrow(0, 3, 3).unwrap()), [1.0]);
}

#[test]
fn experts_that_change_nothing_do_not_respond() {
    let fresh = low_rank(2, values(3, 12), vec![0.0; 8], 1.0);
    let library = experts([expert("fresh", [("q", fresh)])], &site(6, &[("q", 4)]));
    for measure in [ResponseMeasure::Energy, ResponseMeasure::Arrow] {
        let pass = ResponseProbe::new(&library, measure).unwrap().start();
        look(&pass.patches(), &tokens(2, 6, 6), &[4, 2]);
        assert!(pass.responses().iter().all(|(_, responses)| responses.iter().all(|response| *response == 0.0)));
    }
}

#[test]
fn a_prompt_unlike_all_tasks_goes_to_the_fallback() {
    let library = uneven();
    let evidence = Evidence::default().fixed(0.1, Fallback::Base);
    let learned = usual(&evidence, &library, &prompts_of(&[1, 2]), &eight_of_each(2), &[0, 1]);
    let known = prompts_of(&[1]).narrow(0, 6, 3).unwrap();
    // No input has a higher response of `b` than its top singular vector.
    let direction = library.module(1, "v").unwrap().top_singular_vector().unwrap().vector;
    let strange = Tensor::from_vec(direction.repeat(3), (3, INPUT), &Device::Cpu).unwrap();
    assert!(weights_of(&evidence, &library, &learned, &known)[0] > 0.99);
    assert_eq!(weights_of(&evidence, &library, &learned, &strange), [0.0; 3]);

    // The choice of `auto` is read from the state: here the mean.
    let auto = Evidence::default();
    assert!(auto.prompt_router(&library, &with_state(&learned)).is_err(), "nothing was chosen");
    let chosen = Evidence::with_chosen(learned.clone(), 0.1, Fallback::Uniform).unwrap();
    let weights = weights_of(&auto, &library, &chosen, &strange);
    assert!(weights.iter().all(|weight| (weight - 1.0 / 3.0).abs() < 1e-6), "{weights:?}");

    // Here Arrow over all experts: fully if no task fits, by half if the weights leave half, and otherwise not at all.
    let chosen = Evidence::with_chosen(learned, 0.1, Fallback::Arrow).unwrap();
    assert_eq!(weights_of(&auto, &library, &chosen, &strange), [0.0; 3]);
    let patches = auto.patches(&library, &with_state(&chosen)).unwrap();
    let arrow = added(
        &auto.arrow().patches(&library, &RouterContext::default()).unwrap(),
        &library,
        &strange,
        &SequenceBatch::packed([3]),
    );
    for left in [1.0f32, 0.5, 0.0] {
        let weights: Arc<[f32]> = [1.0 - left, 0.0, 0.0].into();
        let own = dense(&library, &strange, |_, _, e| if e == 0 { f64::from(1.0 - left) } else { 0.0 });
        let expected: Vec<Vec<f32>> = own
            .iter()
            .zip(&arrow)
            .map(|(own, arrow)| own.iter().zip(arrow).map(|(o, a)| o + left * a).collect())
            .collect();
        let rows = SequenceBatch::new([Sequence { len: 3, weights: Some(weights), ..Sequence::default() }]);
        assert_close(&added(&patches, &library, &strange, &rows), &expected, 1e-5);
    }
}

#[test]
fn each_fold_has_a_quarter_of_each_tasks_prompts() {
    let prompts = TaskResponses {
        responses: vec![(3, (0..12).map(|i| i as f32).collect())],
        tasks: vec![0, 0, 0, 0, 0, 1],
        experts: vec![1, 0],
    };
    assert_eq!(prompts.folds(), [0, 1, 2, 3, 0, 0]);
    let library = experts([expert("only", [("q", random(1, 3, INPUT, 8, 2.0))])], &qkv());
    let error = Evidence::default().state(&library, &TaskResponses::default()).unwrap_err();
    assert!(matches!(error, RouteError::FewPrompts(0)), "{error}");
}

#[test]
fn the_task_predictor_takes_the_likeliest_expert_of_the_mean_hidden_state() {
    let library = uneven();
    let matrix = |rows, values: Vec<f32>| Matrix::new(rows, values.len() / rows, values).unwrap();
    let learned = RouterState::new([
        ("centre".to_owned(), matrix(1, vec![1.0, 0.0])),
        ("spread".to_owned(), matrix(1, vec![2.0, 0.5])),
        ("weights".to_owned(), matrix(3, vec![1.0, 0.0, 0.0, 1.0, -1.0, -1.0])),
        ("biases".to_owned(), matrix(1, vec![0.0, 0.25, 0.0])),
    ]);
    let setting = RouterContext { state: Some(&learned), ..RouterContext::default() };
    // Rows of two tokens and one: their means are (3, 0.5) and (-3, -1).
    let hidden = Tensor::new(&[[2f32, 0.], [4., 1.], [-3., -1.]], &Device::Cpu).unwrap();
    let weights = |router: &str| {
        let rule = parse_router(router).unwrap().prompt_router(&library, &setting).unwrap().unwrap();
        rule.start().weights(&SequenceBatch::packed([2, 1]), &hidden).unwrap()
    };
    // Logits: (1, 1 + 0.25, -2), and (-2, -2 + 0.25, 4).
    let of_one = weights("tp");
    assert_eq!((&of_one[0][..], &of_one[1][..]), (&[0.0, 1.0, 0.0][..], &[0.0, 0.0, 1.0][..]));
    let of_two = weights("tp:top_k=2,temperature=0.5");
    let expected = 1.0 / (1.0 + (0.25f32 / 0.5).exp());
    assert!((of_two[0][0] - expected).abs() < 1e-6 && (of_two[0][1] - 1.0 + expected).abs() < 1e-6, "{of_two:?}");
}

#[test]
fn a_gate_scales_its_expert_and_receives_a_gradient() {
    let (library, x) = (uneven(), tokens(90, 5, INPUT));
    let gates = candle_core::Var::from_vec(values(91, 3 * INPUT), (3, INPUT), &Device::Cpu).unwrap();
    let patches = gated_experts(&library, &[gates.as_tensor().clone()]).unwrap();
    let of = [0, 0, 1, 1, 1];
    let rows = SequenceBatch::new([(0, 2, 0), (2, 3, 1)].map(|(start, len, expert)| Sequence {
        start,
        len,
        expert: Some(expert),
        ..Sequence::default()
    }));
    let (inputs, vectors) = (x.to_vec2::<f32>().unwrap(), gates.as_tensor().to_vec2::<f32>().unwrap());
    let gate = |token: usize| {
        let z: f32 = inputs[token].iter().zip(&vectors[of[token]]).map(|(x, v)| x * v).sum();
        1.0 / (1.0 + (-z).exp())
    };
    let expected =
        dense(&library, &x, |token, _, expert| if of[token] == expert { f64::from(gate(token)) } else { 0.0 });
    assert_close(&added(&patches, &library, &x, &rows), &expected, 1e-5);

    // d sum(y) / d v_e = sum over e's tokens of gate (1 - gate) (sum of what e adds) x.
    let mut out = Outputs::new(Tensor::zeros((5, 19), DType::F32, &Device::Cpu).unwrap());
    patches.at(0).unwrap().add(&x, &rows, &mut out).unwrap();
    let store = out.tensor().sum_all().unwrap().backward().unwrap();
    let gradient = store.get(gates.as_tensor()).unwrap().to_vec2::<f32>().unwrap();
    let whole = dense(&library, &x, |token, _, expert| f64::from(u8::from(of[token] == expert)));
    for (expert, gradient) in gradient.iter().enumerate() {
        for (i, found) in gradient.iter().enumerate() {
            let term = |t: usize| gate(t) * (1.0 - gate(t)) * whole[t].iter().sum::<f32>() * inputs[t][i];
            let expected: f32 = (0..5).filter(|t| of[*t] == expert).map(term).sum();
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }
}

#[test]
fn general_knowledge_is_subtracted_from_all_others() {
    let one = |name: &str, seed: u64, scale: f64| {
        expert(name, [("q", random(seed, 2, INPUT, 8, scale)), ("v", random(seed + 50, 2, INPUT, 6, scale))])
    };
    let library = experts([one("a", 1, 2.0), one("b", 2, 1.0), one("g", 3, 0.5), one("h", 4, 3.0)], &qkv());
    let x = tokens(95, 6, INPUT);
    let index = |name: &str| library.index(name).unwrap();
    let general: general_knowledge::GeneralExperts = "g+h".parse().unwrap();
    let less = general_knowledge::subtracted(&library, &general, general_knowledge::SubtractionSpace::Deltas).unwrap();
    let expected = dense(&library, &x, |_, _, e| match e {
        e if e == index("a") => 1.0,
        e if e == index("b") => 0.0,
        _ => -0.5,
    });
    assert_close(&routed("expert:a", &less, &x), &expected, 1e-5);
    assert!(less.experts()[index("g")].adapter.modules().is_empty());

    // By factors, as PEFT: (B - mean B) (A - mean A), at the expert's own scale.
    let less = general_knowledge::subtracted(&library, &general, general_knowledge::SubtractionSpace::Factors).unwrap();
    let of = |name: &str| library.module(index(name), "q").unwrap();
    let mean = |own: &[f32], g: &[f32], h: &[f32]| -> Vec<f32> {
        own.iter().zip(g.iter().zip(h)).map(|(own, (g, h))| own - 0.5 * (g + h)).collect()
    };
    let a = mean(&of("a").a().values(), &of("g").a().values(), &of("h").a().values());
    let b = mean(&of("a").b().values(), &of("g").b().values(), &of("h").b().values());
    let by_hand = low_rank(2, a, b, 2.0);
    let found = less.module(index("a"), "q").unwrap();
    assert!((found.dot(&by_hand).unwrap() / by_hand.norm().powi(2) - 1.0).abs() < 1e-6);

    // Under Arrow the general experts have no token; one other expert is then that difference.
    let pair = experts([one("a", 1, 2.0), one("g", 3, 0.5)], &qkv());
    let expected = dense(&pair, &x, |_, _, e| if e == 0 { 1.0 } else { -1.0 });
    assert_close(&routed("arrow:general=g,gks=deltas", &pair, &x), &expected, 1e-5);
    let refused = |router: &str, library: &LibraryStack| {
        let refused = parse_router(router).unwrap().patches(library, &RouterContext::default()).err().unwrap();
        refused.to_string()
    };
    let message = refused("arrow:general=g+a,gks=deltas", &pair);
    assert!(message.contains("general=g+a names all experts"), "{message}");
    // A name may contain what separates names.
    let plus = experts([one("a", 1, 2.0), one("g++", 3, 0.5)], &qkv());
    assert_close(&routed("arrow:general=g++,gks=deltas", &plus, &x), &expected, 1e-5);
    let message = refused("arrow:general=g+h,gks=deltas", &plus);
    assert!(message.contains("no expert has the name `g`"), "{message}");
    let uneven = uneven();
    let message = parse_router("arrow:general=b").unwrap().patches(&uneven, &RouterContext::default()).err().unwrap();
    for part in ["gks=deltas", "rank 3", "rank 1"] {
        assert!(message.to_string().contains(part), "{message}");
    }
}
