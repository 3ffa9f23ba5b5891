//! Experts in their own matrices compared with the same experts stacked, bit by bit.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use candle_core::{Device, Tensor, Var};
use lorakit_adapter::Matrix;
use lorakit_lora::{
    ExpertFactors, FactorRows, GroupedLora, Outputs, StackBlock, StackLayout, TokenGroup, TokenSelection,
};
use std::sync::Arc;

const INPUT: usize = 21;
const OUTPUT: usize = 14;
/// Each expert's rank; the second has no factors.
const RANKS: [usize; 4] = [2, 0, 5, 1];
/// The columns of both projections.
const COLUMNS: [std::ops::Range<usize>; 2] = [0..9, 9..OUTPUT];

/// Values in (-1, 1) that look random.
fn values(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7 + seed * 131) as f32 * 0.61).sin()).collect()
}

fn rows(seed: usize, rows: usize, columns: usize) -> Matrix {
    Matrix::new(rows, columns, values(seed, rows * columns)).unwrap()
}

fn scale(expert: usize, projection: usize) -> f32 {
    0.5 + expert as f32 + 0.25 * projection as f32
}

/// The same experts in both forms. An expert's projections share its A.
fn experts() -> (GroupedLora, GroupedLora) {
    let (mut own, mut layout, mut a, mut b, mut before) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), 0);
    for (expert, rank) in RANKS.into_iter().enumerate() {
        let own_a = Arc::new(FactorRows::of(rows(expert, rank, INPUT)));
        let own_b = [0, 1].map(|p| Arc::new(FactorRows::transposed(rows(10 + 2 * expert + p, COLUMNS[p].len(), rank))));
        a.extend_from_slice(own_a.values());
        for k in 0..rank {
            own_b
                .iter()
                .zip(&COLUMNS)
                .for_each(|(b_of, c)| b.extend_from_slice(&b_of.values()[k * c.len()..][..c.len()]));
        }
        let projections = if rank == 0 { 0 } else { 2 };
        let factors = |p: usize| ExpertFactors {
            a: own_a.clone(),
            rows: 0..rank,
            b: own_b[p].clone(),
            columns: COLUMNS[p].clone(),
            scale: scale(expert, p),
        };
        let span = before..before + rank;
        let block = |p: usize| StackBlock {
            a: span.clone(),
            b: span.clone(),
            columns: COLUMNS[p].clone(),
            scale: scale(expert, p),
        };
        own.push((0..projections).map(factors).collect());
        layout.push((0..projections).map(block).collect());
        before += rank;
    }
    let a = Tensor::from_vec(a, (before, INPUT), &Device::Cpu).unwrap();
    let b = Tensor::from_vec(b, (before, OUTPUT), &Device::Cpu).unwrap();
    let stacked = GroupedLora::new(a, b, Arc::new(StackLayout(layout))).unwrap();
    (GroupedLora::unstacked(own, INPUT, OUTPUT).unwrap(), stacked)
}

/// Runs and lists, with weights and without.
fn groups(tokens: usize) -> Arc<[TokenGroup]> {
    let odd: Vec<u32> = (0..tokens as u32).filter(|token| token % 2 == 1).collect();
    let weights = |seed, count| Some(values(seed, count));
    let all = TokenSelection::Contiguous(0..tokens);
    Arc::new([
        TokenGroup { expert: 2, weights: weights(3, tokens), tokens: all.clone() },
        TokenGroup { expert: 1, weights: None, tokens: all.clone() },
        TokenGroup { expert: 0, weights: weights(4, odd.len()), tokens: TokenSelection::Indices(odd) },
        TokenGroup { expert: 3, weights: None, tokens: all },
    ])
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn deltas_and_additions_are_those_of_stacked_experts() {
    let (own, stacked) = experts();
    for tokens in [1, 2, 130] {
        let x = Tensor::from_vec(values(20, tokens * INPUT), (tokens, INPUT), &Device::Cpu).unwrap();
        let groups = groups(tokens);
        let delta = stacked.delta(&x, groups.clone()).unwrap();
        assert!(bits(&delta).iter().all(|value| *value != 0), "{tokens}: every output changes");
        assert_eq!(bits(&own.delta(&x, groups.clone()).unwrap()), bits(&delta), "{tokens}");
        let added = |add: &dyn Fn(&mut Outputs) -> candle_core::Result<()>| {
            let before = Tensor::from_vec(values(21, tokens * OUTPUT), (tokens, OUTPUT), &Device::Cpu).unwrap();
            let mut out = Outputs::new(before);
            add(&mut out).unwrap();
            bits(&out.into_tensor())
        };
        let expected = added(&|out| stacked.begin(&x, groups.clone())?(out));
        assert_eq!(added(&|out| own.begin(&x, groups.clone())?(out)), expected, "{tokens}");
        assert_eq!(added(&|out| own.add(&x, groups.clone(), out)), expected, "{tokens}");
    }
}

#[test]
fn gradients_of_the_input_are_those_of_stacked_experts() {
    let (own, stacked) = experts();
    for tokens in [1, 70] {
        let x = Tensor::from_vec(values(22, tokens * INPUT), (tokens, INPUT), &Device::Cpu).unwrap();
        let x = Var::from_tensor(&x).unwrap();
        let dy = Tensor::from_vec(values(23, tokens * OUTPUT), (tokens, OUTPUT), &Device::Cpu).unwrap();
        let zeros = || Outputs::new(Tensor::zeros((tokens, OUTPUT), candle_core::DType::F32, &Device::Cpu).unwrap());
        let gradient = |out: Outputs| {
            let gradients = (out.into_tensor() * &dy).unwrap().sum_all().unwrap().backward().unwrap();
            bits(gradients.get(&x).unwrap())
        };
        let (mut of_own, mut of_stacked) = (zeros(), zeros());
        own.begin(&x, groups(tokens)).unwrap()(&mut of_own).unwrap();
        stacked.begin(&x, groups(tokens)).unwrap()(&mut of_stacked).unwrap();
        let expected = gradient(of_stacked);
        assert!(expected.iter().all(|value| *value != 0));
        assert_eq!(gradient(of_own), expected, "{tokens}");
    }
}

#[test]
fn factors_that_do_not_fit_are_refused() {
    let a = Arc::new(FactorRows::of(rows(1, 2, INPUT)));
    let factors = |width: usize, columns: std::ops::Range<usize>| ExpertFactors {
        a: a.clone(),
        rows: 0..2,
        b: Arc::new(FactorRows::transposed(rows(2, width, 2))),
        columns,
        scale: 1.0,
    };
    let made = |own: Vec<ExpertFactors>| GroupedLora::unstacked(vec![own], INPUT, OUTPUT).map(drop);
    assert!(made(vec![factors(9, 0..9), factors(5, 9..14)]).is_ok());
    assert!(made(vec![factors(8, 0..9)]).is_err(), "B of another width");
    assert!(made(vec![factors(9, 9..18)]).is_err(), "columns outside of the site");
    assert!(made(vec![ExpertFactors { rows: 1..3, ..factors(9, 0..9) }]).is_err(), "rows outside of A");
    let other = ExpertFactors { a: Arc::new(FactorRows::of(rows(1, 2, INPUT))), ..factors(5, 9..14) };
    assert!(made(vec![factors(9, 0..9), other]).unwrap_err().to_string().contains("several"), "two A's");
}
