//! `WeightedLora` compared with its composed form, and its gradients with finite differences.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../tests/differences/mod.rs"]
mod differences;

use candle_core::{Device, Tensor, Var};
use differences::{largest, largest_difference};
use lorakit_format::rng::CounterRng;
use lorakit_lora::{StackBlock, StackLayout, WeightedLora};

/// More than one chunk.
const TOKENS: usize = 150;
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

/// Three experts over two projections (columns 0..4 and 4..9) whose A's are two segments of six ranks: the first
/// of rank 2 and two scales, the second of ranks 3 and 1, the third with the second projection only; a fourth has
/// no module. Weights are per expert, or per projection and expert.
fn stacked(by_projection: bool) -> WeightedLora {
    let block = |segment: usize, b: std::ops::Range<usize>, scale| StackBlock {
        a: segment * 6 + b.start..segment * 6 + b.end,
        b,
        columns: [0..4, 4..9][segment].clone(),
        scale,
    };
    let first = vec![block(0, 0..2, 2.0), block(1, 0..2, -0.5)];
    let second = vec![block(0, 2..5, 0.75), block(1, 2..3, 3.0)];
    let third = vec![block(1, 5..6, 1.25)];
    let layouts = match by_projection {
        false => vec![first, second, third, vec![]],
        true => [first, second, third].concat().into_iter().map(|block| vec![block]).collect(),
    };
    WeightedLora::new(tensor(2, 12, INPUT), tensor(3, 6, OUTPUT), &StackLayout(layouts)).unwrap()
}

#[test]
fn the_delta_and_its_gradients_match_the_composed_form() {
    for by_projection in [false, true] {
        let weighted = stacked(by_projection);
        let weights = Var::from_vec(values(4, weighted.slots()), weighted.slots(), &Device::Cpu).unwrap();
        let x = Var::from_tensor(&tensor(1, TOKENS, INPUT)).unwrap();
        let (own, composed) = (
            weighted.delta(&x, weights.as_tensor()).unwrap(),
            weighted.composed_delta(&x, weights.as_tensor()).unwrap(),
        );
        assert!(largest(&composed) > 1.0);
        assert!(largest_difference(&own, &composed) < 1e-5);
        let seed = tensor(5, TOKENS, OUTPUT);
        let gradients = |y: &Tensor| (y * &seed).unwrap().sum_all().unwrap().backward().unwrap();
        let (own, composed) = (gradients(&own), gradients(&composed));
        for variable in [&x, &weights] {
            let (own, composed) = (own.get(variable.as_tensor()).unwrap(), composed.get(variable.as_tensor()).unwrap());
            let size = largest(composed);
            assert!(size > 0.1 && largest_difference(own, composed) < 1e-5 * size, "{own} {composed}");
        }
    }
}

#[test]
fn weight_gradients_match_finite_differences() {
    let weighted = stacked(true);
    let at = values(4, weighted.slots());
    let (x, seed) = (tensor(1, TOKENS, INPUT), tensor(5, TOKENS, OUTPUT));
    let loss = |weights: &[f32]| -> f64 {
        let weights = Tensor::new(weights, &Device::Cpu).unwrap();
        let y: Vec<f32> =
            (weighted.delta(&x, &weights).unwrap() * &seed).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        y.iter().map(|y| f64::from(*y)).sum()
    };
    let weights = Var::new(at.as_slice(), &Device::Cpu).unwrap();
    let y = (weighted.delta(&x, weights.as_tensor()).unwrap() * &seed).unwrap().sum_all().unwrap();
    let gradient: Vec<f32> = y.backward().unwrap().get(weights.as_tensor()).unwrap().to_vec1().unwrap();
    for (slot, gradient) in gradient.iter().enumerate() {
        let moved = |by: f32| {
            loss(&at.iter().enumerate().map(|(i, w)| if i == slot { w + by } else { *w }).collect::<Vec<_>>())
        };
        let slope = (moved(0.5) - moved(-0.5)) as f32;
        assert!((slope - gradient).abs() < 1e-4 * slope.abs().max(1.0), "{slot}: {slope} {gradient}");
    }
    assert!(gradient.iter().all(|gradient| gradient.abs() > 1e-3), "zeros prove nothing: {gradient:?}");
}

#[test]
fn blocks_and_weights_that_do_not_fit_are_errors() {
    let block =
        |a: std::ops::Range<usize>, b: std::ops::Range<usize>| StackBlock { a, b, columns: 0..OUTPUT, scale: 1.0 };
    let refused = |layouts: Vec<Vec<StackBlock>>| {
        WeightedLora::new(tensor(2, 4, INPUT), tensor(3, 4, OUTPUT), &StackLayout(layouts)).err().map(|e| e.to_string())
    };
    assert!(refused(vec![vec![block(0..5, 0..5)]]).unwrap().contains("do not fit"));
    assert!(
        refused(vec![vec![block(0..2, 2..4)], vec![block(2..4, 0..2)]]).unwrap().contains("elsewhere in A than in B")
    );
    let weighted = stacked(false);
    let error =
        weighted.delta(&tensor(1, TOKENS, INPUT), &Tensor::ones(3, candle_core::DType::F32, &Device::Cpu).unwrap());
    assert!(error.unwrap_err().to_string().contains("under 4 weights"));
}
