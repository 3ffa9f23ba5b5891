//! The weights of LoraHub and CAT compared with their definitions.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use candle_core::{Device, Tensor};
use lorakit_adapter::Matrix;
use lorakit_lora::{Outputs, Patches, Sequence, SequenceBatch, Site};
use lorakit_route::fixed::lorahub::SearchMode;
use lorakit_route::fixed::weight_groups::Granularity;
use lorakit_route::{
    Cat, CatMerge, Expert, FittedMerge, LibraryStack, LoraHub, LossError, Mixing, Router, RouterContext, RouterState,
    RowLoss, RowLosses, by_row_weights, by_weights, parse_fitted_merge, single_expert,
};
use small_library::{added, assert_close, dense, expert as make, experts, random, site, tokens, values};

const Q: &str = "model.layers.0.self_attn.q_proj";
const K: &str = "model.layers.0.self_attn.k_proj";

fn qk() -> Site {
    site(6, &[(Q, 5), (K, 4)])
}

/// Unequal ranks and scales; the second expert lacks a projection.
fn mixed() -> LibraryStack {
    let library = [
        make("a", [(Q, random(1, 2, 6, 5, 2.0)), (K, random(2, 3, 6, 4, 2.0))]),
        make("b", [(Q, random(3, 4, 6, 5, 0.5))]),
        make("c", [(Q, random(4, 1, 6, 5, -1.5)), (K, random(5, 2, 6, 4, 3.0))]),
    ];
    experts(library, &qk())
}

/// Equal ranks and scales.
fn equal() -> LibraryStack {
    let one = |seed: u64| [(Q, random(seed, 2, 6, 5, 2.0)), (K, random(seed + 50, 2, 6, 4, 2.0))];
    experts([make("a", one(1)), make("b", one(2)), make("c", one(3))], &qk())
}

fn rows(count: usize) -> SequenceBatch {
    SequenceBatch::packed([count])
}

fn matrix(rows: usize, weights: &[f32]) -> Matrix {
    Matrix::new(rows, weights.len() / rows, weights.to_vec()).unwrap()
}

/// The output of a single adapter.
fn alone(adapter: lorakit_adapter::Adapter, x: &Tensor) -> Vec<Vec<f32>> {
    let single = experts([Expert::new("merged", adapter)], &qk());
    added(&single_expert(&single, 0).unwrap(), &single, x, &rows(x.dim(0).unwrap()))
}

/// One weight for each expert.
fn state(weights: &[f32]) -> RouterState {
    RouterState::new([("weights".to_owned(), matrix(1, weights))])
}

fn with_state(state: &RouterState) -> RouterContext<'_> {
    RouterContext { state: Some(state), ..RouterContext::default() }
}

#[test]
fn one_hot_weights_equal_that_expert() {
    let (library, x) = (mixed(), tokens(9, 7, 6));
    for index in 0..3 {
        let weights: Vec<f32> = (0..3).map(|e| if e == index { 1.0 } else { 0.0 }).collect();
        let expected = added(&single_expert(&library, index).unwrap(), &library, &x, &rows(7));
        let hub = LoraHub::default().patches(&library, &with_state(&state(&weights))).unwrap();
        let cat = Cat::default().patches(&library, &with_state(&state(&weights))).unwrap();
        for patches in [hub, cat] {
            assert_close(&added(&patches, &library, &x, &rows(7)), &expected, 1e-5);
        }
    }
}

#[test]
fn fitted_weights_give_a_weighted_sum_as_router_and_as_merge() {
    let (library, x) = (mixed(), tokens(9, 7, 6));
    for (per, weights) in [
        (Granularity::Expert, matrix(1, &[0.5, -1.25, 0.0])),
        (Granularity::Layer, matrix(1, &[0.5, -1.25, 2.0])),
        (Granularity::Module, matrix(2, &[0.5, -1.25, 2.0, 0.75, 9.0, -0.5])),
    ] {
        let cat = Cat { per, ..Cat::default() };
        let weight = |_: usize, projection: usize, expert: usize| {
            let group = if per == Granularity::Module { projection } else { 0 };
            f64::from(weights.values()[group * 3 + expert])
        };
        let expected = dense(&library, &x, weight);
        assert_close(
            &added(
                &cat.patches(&library, &with_state(&RouterState::new([("weights".to_owned(), weights.clone())])))
                    .unwrap(),
                &library,
                &x,
                &rows(7),
            ),
            &expected,
            1e-5,
        );
        // Merged into one adapter.
        let composition = CatMerge(cat);
        let (merge, coefficients) = composition.merge(&library, &weights).unwrap();
        let merged = merge.merge(library.experts(), &coefficients).unwrap();
        assert_close(&alone(merged.adapter, &x), &expected, 1e-5);
    }
}

#[test]
fn initial_weights_are_uniform_and_a_simplex_excludes_absent_experts() {
    let (library, x) = (mixed(), tokens(9, 7, 6));
    let free = Cat { per: Granularity::Module, ..Cat::default() }.trainable_weights(&library).unwrap();
    assert_eq!(free.values().unwrap().values()[..], [1.0 / 3.0; 6]);
    let found = added(&free.patches().unwrap(), &library, &x, &rows(7));
    assert_close(&found, &dense(&library, &x, |_, _, _| 1.0 / 3.0), 1e-5);
    let simplex =
        Cat { per: Granularity::Module, simplex: true, ..Cat::default() }.trainable_weights(&library).unwrap();
    assert_eq!(simplex.values().unwrap().values()[..], [1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.5, 0.0, 0.5]);
    // The exponential of 100 overflows in f32.
    let (_, logits) = &simplex.variables()[0];
    logits.set(&Tensor::full(100f32, (2, 3), &Device::Cpu).unwrap()).unwrap();
    assert_eq!(simplex.values().unwrap().values()[..], [1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.5, 0.0, 0.5]);
}

#[test]
fn a_projection_without_experts_does_not_affect_the_others() {
    let projections = [("q", 4), ("k", 3), ("v", 2)];
    let of = |seed| [("q", random(seed, 2, 6, 4, 1.5)), ("v", random(seed + 1, 2, 6, 2, 0.5))];
    let library = experts([make("one", of(1)), make("two", of(3))], &site(6, &projections));
    let gates = Cat { per: Granularity::Module, simplex: true, ..Cat::default() }.trainable_weights(&library).unwrap();
    assert_eq!(gates.values().unwrap().values()[..], [0.5; 6]);
    let x = tokens(9, 7, 6);
    assert_close(&added(&gates.patches().unwrap(), &library, &x, &rows(7)), &dense(&library, &x, |_, _, _| 0.5), 1e-5);
}

#[test]
fn weight_gradients_match_finite_differences() {
    let (library, x) = (mixed(), tokens(9, 7, 6));
    let seed = Tensor::from_vec(values(11, 7 * 9), (7, 9), &Device::Cpu).unwrap();
    let loss = |patches: &Patches| {
        let mut out = Outputs::new(Tensor::zeros((7, 9), candle_core::DType::F32, &Device::Cpu).unwrap());
        patches.at(0).unwrap().add(&x, &rows(7), &mut out).unwrap();
        (out.into_tensor().sqr().unwrap() * &seed).unwrap().sum_all().unwrap()
    };
    for per in [Granularity::Layer, Granularity::Module] {
        for simplex in [false, true] {
            let gates = Cat { per, simplex, ..Cat::default() }.trainable_weights(&library).unwrap();
            let gradients = loss(&gates.patches().unwrap()).backward().unwrap();
            for (name, variable) in gates.variables() {
                let gradient: Vec<f32> =
                    gradients.get(variable.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                let at: Vec<f32> = variable.flatten_all().unwrap().to_vec1().unwrap();
                assert!(gradient.iter().any(|g| g.abs() > 1e-2), "zeros prove nothing");
                for i in 0..at.len() {
                    let moved = |by: f32| {
                        let mut values = at.clone();
                        values[i] += by;
                        variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu).unwrap()).unwrap();
                        loss(&gates.patches().unwrap()).to_scalar::<f32>().unwrap()
                    };
                    let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                    moved(0.0);
                    let off = (slope - gradient[i]).abs();
                    assert!(off < 1e-2 * slope.abs().max(1.0), "{per:?} {simplex} {name} {i}: {slope} {}", gradient[i]);
                }
            }
        }
    }
}

#[test]
fn rows_of_a_batch_have_their_own_weights() {
    let (library, x) = (mixed(), tokens(9, 7, 6));
    let candidates = [Some([0.5f32, 0.0, -1.0]), None, Some([0.0, 2.0, 0.25])];
    let lengths = [3, 1, 3];
    let mut start = 0;
    let batch = SequenceBatch::new(candidates.iter().zip(lengths).map(|(weights, len)| {
        let row = Sequence { start, len, weights: weights.map(|w| w.into()), ..Sequence::default() };
        start += len;
        row
    }));
    let row_of = [0, 0, 0, 1, 2, 2, 2];
    let expected = dense(&library, &x, |token, _, e| candidates[row_of[token]].map_or(0.0, |w| f64::from(w[e])));
    let found = added(&by_row_weights(&library, Mixing::Outputs).unwrap(), &library, &x, &batch);
    assert_close(&found, &expected, 1e-5);
}

/// `s (sum_i w_i B_i) (sum_j w_j A_j) x` over the site.
fn composed(library: &LibraryStack, x: &Tensor, weights: &[f32]) -> Vec<Vec<f32>> {
    let sum = |module: &str, part: fn(&lorakit_adapter::LowRank) -> &Matrix| {
        let mut sum: Vec<f64> = Vec::new();
        for (e, weight) in weights.iter().enumerate() {
            let values = part(library.module(e, module).unwrap()).values().into_owned();
            sum.resize(values.len(), 0.0);
            sum.iter_mut().zip(&values).for_each(|(s, v)| *s += f64::from(*weight) * f64::from(*v));
        }
        sum.into_iter().map(|v| v as f32).collect::<Vec<f32>>()
    };
    let one = |module: &str| {
        let scale = library.module(0, module).unwrap().scale();
        (module.to_string(), small_library::low_rank(2, sum(module, |p| p.a()), sum(module, |p| p.b()), scale))
    };
    alone(lorakit_adapter::Adapter::new([Q, K].map(one).into()), x)
}

#[test]
fn as_published_mixes_a_and_b_separately() {
    let (library, x) = (equal(), tokens(9, 7, 6));
    let hub = LoraHub { mode: SearchMode::AsPublished, ..LoraHub::default() };
    let weights = [0.5f32, -1.25, 0.75];
    let expected = composed(&library, &x, &weights);
    let found = added(&hub.patches(&library, &with_state(&state(&weights))).unwrap(), &library, &x, &rows(7));
    assert_close(&found, &expected, 1e-5);
    // Negating all weights has no effect, and a single expert acts at the square of its weight.
    let negated = weights.map(|w| -w);
    assert_close(
        &added(&by_weights(&library, Mixing::Separate, &negated).unwrap(), &library, &x, &rows(7)),
        &expected,
        1e-5,
    );
    let half = added(&by_weights(&library, Mixing::Separate, &[0.0, 0.5, 0.0]).unwrap(), &library, &x, &rows(7));
    assert_close(&half, &dense(&library, &x, |_, _, e| if e == 1 { 0.25 } else { 0.0 }), 1e-5);
    // The merged adapter is equivalent, at the experts' rank.
    let (merge, coefficients) = FittedMerge::merge(&hub, &library, &matrix(1, &weights)).unwrap();
    let merged = merge.merge(library.experts(), &coefficients).unwrap();
    assert!(merged.adapter.modules().values().all(|pair| pair.rank() == 2));
    assert_close(&alone(merged.adapter, &x), &expected, 1e-5);
}

/// A model whose loss is minimal if the first two experts have the given weights.
struct Toward([f64; 2]);

impl RowLosses for Toward {
    fn losses(&mut self, candidates: &[Vec<f64>]) -> Result<Vec<Vec<RowLoss>>, LossError> {
        let loss = |w: &Vec<f64>| 1.0 + (w[0] - self.0[0]).powi(2) + (w[1] - self.0[1]).powi(2);
        Ok(candidates.iter().map(|w| vec![RowLoss { sum: 2.0 * loss(w), tokens: 2 }; 4]).collect())
    }

    fn gradients(&mut self, at: &[f64]) -> Result<Vec<Vec<f64>>, LossError> {
        Ok(vec![vec![at[0] - self.0[0], at[1] - self.0[1], 0.0]; 4])
    }
}

#[test]
fn published_search_is_deterministic_counts_evaluations_and_keeps_the_best() {
    let hub = LoraHub { mode: SearchMode::AsPublished, rows: 4, budget: 25, ..LoraHub::default() };
    let find = || hub.find(&equal(), &mut Toward([1.0, 0.5])).unwrap();
    let found = find();
    assert_eq!(found, find());
    assert_eq!((found.evaluations, found.held_out), (25, None));
    assert!(found.fitted < 1.2 && found.base == 2.25, "{found:?}");
    let greedy = LoraHub::default().find(&mixed(), &mut Toward([1.0, 0.5])).unwrap();
    assert_eq!(greedy.weights, [1.0, 0.5, 0.0]);
}

#[test]
fn as_published_rejects_experts_of_different_shapes() {
    let hub = LoraHub { mode: SearchMode::AsPublished, rows: 4, budget: 9, ..LoraHub::default() };
    let error = |library: &LibraryStack| hub.find(library, &mut Toward([1.0, 1.0])).unwrap_err().to_string();
    let rank = experts([make("a", [(Q, random(1, 2, 6, 5, 2.0))]), make("b", [(Q, random(2, 3, 6, 5, 2.0))])], &qk());
    assert!(error(&rank).contains("`a` and `b` differ there: their ranks are 2 and 3"), "{}", error(&rank));
    let scale = experts([make("a", [(Q, random(1, 2, 6, 5, 2.0))]), make("b", [(Q, random(2, 2, 6, 5, 1.0))])], &qk());
    assert!(error(&scale).contains("their scales are 2 and 1"), "{}", error(&scale));
    assert!(error(&mixed()).contains(&format!("the B's of `{K}`, and the experts `a` and `b`")), "{}", error(&mixed()));
}

#[test]
fn settings_round_trip() {
    let full = |text: &str| parse_fitted_merge(text).unwrap().to_string();
    assert_eq!(full("lorahub"), "lorahub:mode=greedy,rows=5,experts=3");
    assert_eq!(full("lorahub:rows=9,mode=as-published"), "lorahub:mode=as-published,rows=9,budget=40");
    assert_eq!(full("cat"), "cat_learned:per=layer,simplex=false,rows=100,steps=100,learning_rate=0.05");
    assert_eq!(full(&full("cat:per=module,steps=0,simplex=true")), full("cat_learned:per=module,steps=0,simplex=true"));
    for (wrong, named) in [
        ("lorahub:budget=3", "budget is a setting of mode=as-published, not of mode=greedy"),
        ("lorahub:experts=3,mode=as-published", "experts is a setting of mode=greedy, not of mode=as-published"),
        ("lorahub:mode=cma,budget=3", "mode=cma cannot be read (greedy or as-published)"),
        ("lorahub:rows=0", "rows=0"),
        ("lorahub:mode=cma", "greedy or as-published"),
        ("cat:per=head", "expert, layer, site or module"),
        ("cat:learning_rate=-1", "above zero"),
        ("soup", "lorahub, cat_learned"),
    ] {
        let error = parse_fitted_merge(wrong).unwrap_err().to_string();
        assert!(error.contains(named), "{wrong}: {error}");
    }
}

#[test]
fn rejects_weights_of_another_library() {
    let error = Cat::default().patches(&mixed(), &with_state(&state(&[1.0, 2.0]))).err().unwrap().to_string();
    assert!(error.contains("(1, 3)"), "{error}");
    assert!(LoraHub::default().patches(&mixed(), &with_state(&state(&[1.0, 2.0]))).is_err());
}
