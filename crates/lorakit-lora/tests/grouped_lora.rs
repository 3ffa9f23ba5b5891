//! `GroupedLora` compared with its composed form, and its gradients with finite differences.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../tests/differences/mod.rs"]
mod differences;

use candle_core::{Device, Tensor, Var};
use differences::{largest, largest_difference};
use lorakit_format::rng::CounterRng;
use lorakit_lora::{GroupedLora, Outputs, StackBlock, StackLayout, TokenGroup, TokenSelection};
use std::sync::Arc;

const TOKENS: usize = 11;
const INPUT: usize = 7;
const OUTPUT: usize = 9;

/// Pseudo-random values in [-1, 1), the same on every platform.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = CounterRng::seeded(seed, 0);
    (0..count).map(|_| 2.0 * rng.uniform() - 1.0).collect()
}

fn tensor(seed: u64, rows: usize, columns: usize) -> Tensor {
    Tensor::from_vec(values(seed, rows * columns), (rows, columns), &Device::Cpu).unwrap()
}

/// Three experts of unequal rank over two projections (columns 0..4 and 4..9): the first with a tied A and two
/// scales, the second with separate A's, the third with the second projection only. A fourth has no module here.
fn layout() -> Arc<StackLayout> {
    let block = |a: [usize; 2], b: [usize; 2], columns: [usize; 2], scale| StackBlock {
        a: a[0]..a[1],
        b: b[0]..b[1],
        columns: columns[0]..columns[1],
        scale,
    };
    Arc::new(StackLayout(vec![
        vec![block([0, 2], [0, 2], [0, 4], 2.0), block([0, 2], [2, 4], [4, 9], -0.5)],
        vec![block([2, 5], [4, 7], [0, 4], 0.75), block([5, 6], [7, 8], [4, 9], 3.0)],
        vec![block([6, 8], [8, 10], [4, 9], 1.25)],
        vec![],
    ]))
}

/// Overlapping groups of contiguous and indexed tokens, with and without weights.
fn groups() -> Arc<[TokenGroup]> {
    let weights = |seed, count| Some(values(seed, count));
    Arc::new([
        TokenGroup { expert: 0, tokens: TokenSelection::Contiguous(0..7), weights: None },
        TokenGroup { expert: 0, tokens: TokenSelection::Indices(vec![8, 10]), weights: weights(21, 2) },
        TokenGroup { expert: 1, tokens: TokenSelection::Indices(vec![0, 3, 5, 6, 9]), weights: weights(22, 5) },
        TokenGroup { expert: 1, tokens: TokenSelection::Contiguous(2..10), weights: weights(23, 8) },
        TokenGroup { expert: 2, tokens: TokenSelection::Indices(vec![1, 4, 10]), weights: None },
        TokenGroup { expert: 2, tokens: TokenSelection::Contiguous(5..5), weights: None },
        TokenGroup { expert: 3, tokens: TokenSelection::Indices(vec![2, 7]), weights: weights(24, 2) },
    ])
}

fn inputs() -> (Tensor, Tensor, Tensor) {
    (tensor(1, TOKENS, INPUT), tensor(2, 8, INPUT), tensor(3, 10, OUTPUT))
}

#[test]
fn the_delta_matches_the_composed_form() {
    let (x, a, b) = inputs();
    let grouped = GroupedLora::new(a, b, layout()).unwrap();
    let composed = grouped.composed_delta(&x, &groups()).unwrap();
    assert!(largest(&composed) > 1.0);
    assert!(largest_difference(&grouped.delta(&x, groups()).unwrap(), &composed) < 1e-5);
}

/// A single token has products of its own, as in decoding.
#[test]
fn the_delta_of_a_token_alone_matches_the_composed_form() {
    let (x, a, b) = inputs();
    let grouped = GroupedLora::new(a, b, layout()).unwrap();
    let tokens = |weight: f32| (TokenSelection::Contiguous(0..1), Some(vec![weight]));
    for (token, experts) in [(0, vec![0, 1, 2, 3]), (4, vec![1]), (7, vec![2, 0]), (9, vec![])] {
        let groups: Arc<[TokenGroup]> = experts
            .iter()
            .map(|&expert| (expert, tokens(0.5 + expert as f32)))
            .map(|(expert, (tokens, weights))| TokenGroup { expert, tokens, weights })
            .collect();
        let x = x.narrow(0, token, 1).unwrap();
        let composed = grouped.composed_delta(&x, &groups).unwrap();
        assert!(largest_difference(&grouped.delta(&x, groups.clone()).unwrap(), &composed) < 1e-5, "{token}");
        // In two steps the same bits are added.
        let outputs = || Outputs::new(tensor(4, 1, OUTPUT));
        let (mut at_once, mut in_steps) = (outputs(), outputs());
        grouped.add(&x, groups.clone(), &mut at_once).unwrap();
        let rest = grouped.begin(&x, groups).unwrap();
        rest(&mut in_steps).unwrap();
        let [at_once, in_steps] = [at_once, in_steps].map(|out| out.into_tensor().to_vec2::<f32>().unwrap());
        assert_eq!(at_once, in_steps, "{token}");
        assert!(experts.is_empty() || at_once != tensor(4, 1, OUTPUT).to_vec2::<f32>().unwrap(), "{token}");
    }
}

#[test]
fn a_token_of_another_width_is_refused_before_it_is_multiplied() {
    let (x, a, b) = inputs();
    let grouped = GroupedLora::new(a, b, layout()).unwrap();
    let wide = Tensor::cat(&[&x, &x], 1).unwrap().narrow(0, 0, 1).unwrap();
    let error = grouped.begin(&wide, Arc::new([])).err().unwrap().to_string();
    assert!(error.contains("reads 7 features and was given 14"), "{error}");
}

#[test]
fn adding_in_place_adds_the_delta() {
    let (x, a, b) = inputs();
    let grouped = GroupedLora::new(a, b, layout()).unwrap();
    let base = tensor(4, TOKENS, OUTPUT);
    let expected = (&base + grouped.delta(&x, groups()).unwrap()).unwrap();
    let mut out = Outputs::new(base.copy().unwrap());
    grouped.add(&x, groups(), &mut out).unwrap();
    assert!(largest_difference(&out.into_tensor(), &expected) < 1e-5);
}

#[test]
fn a_tracked_input_is_not_changed_in_place() {
    let (x, a, b) = inputs();
    let grouped = GroupedLora::new(a, b, layout()).unwrap();
    let x = Var::from_tensor(&x).unwrap();
    let base = tensor(4, TOKENS, OUTPUT);
    let mut out = Outputs::new(base.clone());
    grouped.add(x.as_tensor(), groups(), &mut out).unwrap();
    let expected = (&base + grouped.composed_delta(&x, &groups()).unwrap()).unwrap();
    assert!(largest_difference(out.tensor(), &expected) < 1e-5);
    assert!(largest_difference(&base, &tensor(4, TOKENS, OUTPUT)) == 0.0);
    let gradients = out.tensor().sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&x).is_some());
}

/// Gradients of `sum(y * y * c)` for a fixed c.
#[test]
fn gradients_match_the_composed_form() {
    let (x, a, b) = inputs();
    let [x, a, b] = [x, a, b].map(|t| Var::from_tensor(&t).unwrap());
    let grouped = GroupedLora::new(a.as_tensor().clone(), b.as_tensor().clone(), layout()).unwrap();
    let loss = |y: Tensor| (y.sqr().unwrap() * tensor(5, TOKENS, OUTPUT)).unwrap().sum_all().unwrap();
    let ours = loss(grouped.delta(&x, groups()).unwrap()).backward().unwrap();
    let composed = loss(grouped.composed_delta(&x, &groups()).unwrap()).backward().unwrap();
    for (name, var) in [("x", &x), ("A", &a), ("B", &b)] {
        let (ours, composed) = (ours.get(var).unwrap(), composed.get(var).unwrap());
        let size = largest(composed);
        assert!(size > 0.1, "{name}: gradient of {size}");
        assert!(largest_difference(ours, composed) < 1e-5 * size, "{name}");
    }
}

/// The composed form skips experts that no token uses, and columns that only they fill.
#[test]
fn experts_of_some_columns_or_none_match_the_composed_form() {
    let (x, a, b) = inputs();
    let grouped = GroupedLora::new(a, b, layout()).unwrap();
    let own = |experts: &[usize]| -> Arc<[TokenGroup]> {
        groups().iter().filter(|group| experts.contains(&group.expert)).cloned().collect()
    };
    for experts in [&[2][..], &[3], &[], &[0, 2]] {
        let (ours, composed) =
            (grouped.delta(&x, own(experts)).unwrap(), grouped.composed_delta(&x, &own(experts)).unwrap());
        assert_eq!(composed.dims(), [TOKENS, OUTPUT]);
        assert!(largest_difference(&ours, &composed) < 1e-5, "{experts:?}");
    }
}

/// The delta in f64 from its definition, for differences too small for f32.
fn delta_in_f64(x: &[f64], a: &[f64], b: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; TOKENS * OUTPUT];
    for group in groups().iter() {
        let tokens: Vec<usize> = match &group.tokens {
            TokenSelection::Contiguous(run) => run.clone().collect(),
            TokenSelection::Indices(tokens) => tokens.iter().map(|t| *t as usize).collect(),
        };
        for (i, t) in tokens.into_iter().enumerate() {
            let weight = group.weights.as_ref().map_or(1.0, |w| f64::from(w[i]));
            for block in &layout().0[group.expert] {
                for (ra, rb) in block.a.clone().zip(block.b.clone()) {
                    let z: f64 = (0..INPUT).map(|k| x[t * INPUT + k] * a[ra * INPUT + k]).sum();
                    for column in block.columns.clone() {
                        y[t * OUTPUT + column] += weight * f64::from(block.scale) * z * b[rb * OUTPUT + column];
                    }
                }
            }
        }
    }
    y
}

/// `sum(c * y * y)`, one directional derivative per tensor, central differences in f64.
#[test]
fn gradients_match_finite_differences() {
    let (x, a, b) = inputs();
    let c: Vec<f64> = values(5, TOKENS * OUTPUT).into_iter().map(f64::from).collect();
    let wide = |t: &Tensor| {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect::<Vec<f64>>()
    };
    let point = [wide(&x), wide(&a), wide(&b)];
    let loss =
        |p: &[Vec<f64>; 3]| delta_in_f64(&p[0], &p[1], &p[2]).iter().zip(&c).map(|(y, c)| y * y * c).sum::<f64>();

    let vars = [x, a, b].map(|t| Var::from_tensor(&t).unwrap());
    let grouped = GroupedLora::new(vars[1].as_tensor().clone(), vars[2].as_tensor().clone(), layout()).unwrap();
    let y = grouped.delta(&vars[0], groups()).unwrap();
    let gradients = (y.sqr().unwrap() * tensor(5, TOKENS, OUTPUT)).unwrap().sum_all().unwrap().backward().unwrap();

    for (which, var) in vars.iter().enumerate() {
        let direction: Vec<f64> = values(31 + which as u64, point[which].len()).into_iter().map(f64::from).collect();
        let moved = |step: f64| {
            let mut point = point.clone();
            point[which].iter_mut().zip(&direction).for_each(|(p, d)| *p += step * d);
            loss(&point)
        };
        let numeric = (moved(1e-4) - moved(-1e-4)) / 2e-4;
        let ours: f64 = wide(gradients.get(var).unwrap()).iter().zip(&direction).map(|(g, d)| g * d).sum();
        assert!((ours - numeric).abs() < 1e-4 * numeric.abs().max(1.0), "tensor {which}: {ours} and {numeric}");
    }
}

/// Enough tokens for several chunks, with groups that span chunks.
#[test]
fn several_chunks_match_the_composed_form() {
    let tokens = 700;
    let x = tensor(6, tokens, INPUT);
    let (_, a, b) = inputs();
    let grouped = GroupedLora::new(a, b, layout()).unwrap();
    let picked: Vec<u32> = (0..tokens as u32).filter(|t| t * 7 % 3 == 1).collect();
    let groups: Arc<[TokenGroup]> = Arc::new([
        TokenGroup { expert: 0, tokens: TokenSelection::Contiguous(10..690), weights: Some(values(7, 680)) },
        TokenGroup { expert: 1, weights: Some(values(8, picked.len())), tokens: TokenSelection::Indices(picked) },
    ]);
    let ours = grouped.delta(&x, groups.clone()).unwrap();
    assert!(largest_difference(&ours, &grouped.composed_delta(&x, &groups).unwrap()) < 1e-5);
    // Backward as well: the chunks' gradients add up to the full gradient.
    let (a, b) = grouped.stacked().unwrap();
    let vars = [x, a.clone(), b.clone()].map(|t| Var::from_tensor(&t).unwrap());
    let grouped = GroupedLora::new(vars[1].as_tensor().clone(), vars[2].as_tensor().clone(), layout()).unwrap();
    let of = |y: Tensor| (y.sqr().unwrap() * tensor(9, tokens, OUTPUT)).unwrap().sum_all().unwrap().backward().unwrap();
    let ours = of(grouped.delta(&vars[0], groups.clone()).unwrap());
    let composed = of(grouped.composed_delta(&vars[0], &groups).unwrap());
    for var in &vars {
        let composed = composed.get(var).unwrap();
        let size = largest_difference(composed, &composed.zeros_like().unwrap());
        assert!(largest_difference(ours.get(var).unwrap(), composed) < 1e-5 * size.max(1.0));
    }
}

#[test]
fn results_are_deterministic() {
    let (x, a, b) = inputs();
    let [x, a, b] = [x, a, b].map(|t| Var::from_tensor(&t).unwrap());
    let grouped = GroupedLora::new(a.as_tensor().clone(), b.as_tensor().clone(), layout()).unwrap();
    let once = || {
        let y = grouped.delta(&x, groups()).unwrap();
        let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        [&x, &a, &b].map(|v| gradients.get(v).unwrap().to_vec2::<f32>().unwrap())
    };
    assert_eq!(once(), once());
}

#[test]
fn outputs_of_another_shape_are_an_error() {
    let (x, a, b) = inputs();
    let grouped = GroupedLora::new(a, b, layout()).unwrap();
    let all = |tokens| -> Arc<[TokenGroup]> {
        Arc::new([TokenGroup { expert: 0, tokens: TokenSelection::Contiguous(0..tokens), weights: None }])
    };
    for (tokens, given) in [(TOKENS, (TOKENS, OUTPUT + 1)), (TOKENS, (TOKENS + 1, OUTPUT)), (1, (1, OUTPUT - 1))] {
        let x = x.narrow(0, 0, tokens).unwrap();
        let mut out = Outputs::new(tensor(5, given.0, given.1));
        let error = grouped.add(&x, all(tokens), &mut out).unwrap_err().to_string();
        assert!(error.contains(&format!("[{tokens}, {OUTPUT}]")), "{given:?}: {error}");
    }
}

#[test]
fn a_block_outside_the_stack_is_an_error() {
    let (_, a, b) = inputs();
    let outside = StackLayout(vec![vec![StackBlock { a: 0..2, b: 9..11, columns: 0..4, scale: 1.0 }]]);
    assert!(GroupedLora::new(a, b, Arc::new(outside)).is_err());
}
