//! `minimize` and `TokenLoss`: gradients through patches match finite differences, and a known minimum is found.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod tiny_base;

use candle_core::{Device, Tensor, Var};
use lorakit_format::rng::Key;
use lorakit_lora::{
    GroupedLora, Outputs, Patch, Patches, SequenceBatch, Site, StackBlock, StackLayout, TokenGroup, TokenSelection,
};
use lorakit_model::{Base, BaseOptions, TokenBatch};
use lorakit_task::Example;
use lorakit_train::{
    FitRow, Gradients, LossReduction, LrSchedule, LrSchedulerType, ParameterGroup, TokenLoss, TrainConfig, minimize,
};
use std::sync::Arc;

fn base(name: &str) -> Base {
    tiny_base::base(name, &BaseOptions::default())
}

fn example(seed: u64, prompt: usize, target: usize) -> Example {
    let mut stream = Key::new(seed, "ids").stream();
    let mut ids = |n| (0..n).map(|_| 3 + stream.below(28) as u32).collect::<Vec<_>>();
    Example::new(&ids(prompt), &ids(target))
}

fn values(seed: u64, what: &str, n: usize) -> Vec<f32> {
    let mut stream = Key::new(seed, what).stream();
    (0..n).map(|_| 0.4 * (stream.uniform() - 0.5)).collect()
}

/// A low-rank delta whose B is scaled, rank by rank, by `exp` of a variable that all sites share, so that the variable
/// reaches the loss through every layer.
struct Scaled(GroupedLora);

impl Patch for Scaled {
    fn add(&self, x: &Tensor, _: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        let all = TokenGroup { expert: 0, tokens: TokenSelection::Contiguous(0..x.dim(0)?), weights: None };
        self.0.add(x, Arc::new([all]), out)
    }
}

fn patches(base: &Base, scales: &Tensor) -> anyhow::Result<Patches> {
    let patch = |site: &Site| -> anyhow::Result<Option<Arc<dyn Patch>>> {
        let ranks = scales.dim(0)?;
        let a = Tensor::from_vec(values(1, &site.key(), ranks * site.input), (ranks, site.input), &Device::Cpu)?;
        let b = Tensor::from_vec(values(2, &site.key(), ranks * site.output()), (ranks, site.output()), &Device::Cpu)?;
        let b = b.broadcast_mul(&scales.exp()?.unsqueeze(1)?)?;
        let block = StackBlock { a: 0..ranks, b: 0..ranks, columns: 0..site.output(), scale: 0.7 };
        Ok(Some(Arc::new(Scaled(GroupedLora::new(a, b, Arc::new(StackLayout(vec![vec![block]])))?))))
    };
    Ok(Patches::new(base.sites().iter().map(patch).collect::<anyhow::Result<_>>()?))
}

#[test]
fn the_gradient_of_a_variable_shared_by_all_sites_matches_finite_differences() {
    for name in ["mistral", "phi"] {
        let base = base(name);
        let rows: Vec<Example> = [(5, 7), (9, 3), (2, 12)].iter().map(|&(p, t)| example(p as u64, p, t)).collect();
        let rows: Vec<FitRow> = rows.iter().map(|row| (None, row)).collect();
        let scales = Var::new(&[0.3f32, -0.4, 0.1], &Device::Cpu).unwrap();
        for reduction in [LossReduction::Tokens, LossReduction::Rows] {
            // Small batches, so that there are several.
            let loss = TokenLoss { reduction, batch_tokens: 16, ..TokenLoss::new(&base, &TrainConfig::default()) };
            let mut gradients = Gradients::default();
            let make = |_: &TokenBatch| Ok(patches(&base, scales.as_tensor())?);
            let value = loss.gradients(&rows, make, std::slice::from_ref(&scales), &mut gradients).unwrap();
            let again = loss.value(&rows, &patches(&base, scales.as_tensor()).unwrap()).unwrap();
            assert!((value - again).abs() < 1e-5, "{value} {again}");
            let gradient: Vec<f32> = gradients.of(&scales).unwrap().unwrap().to_vec1().unwrap();
            let step = 1e-2;
            for (i, &gradient) in gradient.iter().enumerate() {
                let moved = |by: f32| {
                    let mut at: Vec<f32> = scales.to_vec1().unwrap();
                    at[i] += by;
                    let at = Tensor::new(at, &Device::Cpu).unwrap();
                    loss.value(&rows, &patches(&base, &at).unwrap()).unwrap()
                };
                let slope = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
                let off = (slope - f64::from(gradient)).abs();
                assert!(
                    off < 1e-3 + 1e-2 * slope.abs(),
                    "{name} {reduction:?} {i}: slope {slope}, gradient {gradient}"
                );
            }
        }
    }
}

#[test]
fn groups_with_different_learning_rates_minimize_a_quadratic() {
    let (fast, slow) = (Var::new(&[3f32, -2.0], &Device::Cpu).unwrap(), Var::new(&[1f32], &Device::Cpu).unwrap());
    let settings = TrainConfig { learning_rate: 0.1, max_grad_norm: 0.0, ..TrainConfig::default() };
    let groups = vec![
        ParameterGroup::new(vec![("fast".into(), fast.clone())], &settings),
        ParameterGroup { learning_rate: 1e-6, ..ParameterGroup::new(vec![("slow".into(), slow.clone())], &settings) },
    ];
    let target = Tensor::new(&[1f32, 0.5], &Device::Cpu).unwrap();
    let losses = minimize(groups, LrSchedule::new(LrSchedulerType::Linear, 0.0, 200), |_, variables, gradients| {
        let off = (variables[0].as_tensor() - &target)?.sqr()?.sum_all()?;
        let loss = (off + variables[1].as_tensor().sqr()?.sum_all()?)?;
        gradients.add_loss(&loss, variables)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    })
    .unwrap();
    assert_eq!(losses.len(), 200);
    let found: Vec<f32> = fast.to_vec1().unwrap();
    assert!((found[0] - 1.0).abs() < 1e-3 && (found[1] - 0.5).abs() < 1e-3, "{found:?}");
    assert!((slow.to_vec1::<f32>().unwrap()[0] - 1.0).abs() < 1e-3, "the other group hardly moves");
}

#[test]
fn a_variable_without_a_gradient_is_named() {
    let variable = Var::new(&[1f32], &Device::Cpu).unwrap();
    let groups = vec![ParameterGroup::new(vec![("gate of 0.qkv".into(), variable)], &TrainConfig::default())];
    let error = minimize(groups, LrSchedule::new(LrSchedulerType::Constant, 0.0, 1), |_, _, _| Ok(1.0)).unwrap_err();
    assert_eq!(error.to_string(), "no gradient reached `gate of 0.qkv`");
}
