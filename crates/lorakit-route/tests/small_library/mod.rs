//! Small libraries with pseudo-random values, and an expert's delta computed from its definition.

#![allow(dead_code)]

pub mod merging;

use candle_core::{Device, Tensor};
use lorakit_adapter::{Adapter, LowRank, Matrix};
use lorakit_format::rng::CounterRng;
use lorakit_lora::{Outputs, Patches, Projection, SequenceBatch, Site};
use lorakit_route::{Expert, LibraryStack, RouterContext, parse_router};

/// Pseudo-random values in [-1, 1), the same on every platform.
pub fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = CounterRng::seeded(seed, 0);
    (0..count).map(|_| 2.0 * rng.uniform() - 1.0).collect()
}

pub fn low_rank(rank: usize, a: Vec<f32>, b: Vec<f32>, scale: f64) -> LowRank {
    let (input, output) = (a.len() / rank, b.len() / rank);
    LowRank::new(Matrix::new(rank, input, a).unwrap(), Matrix::new(output, rank, b).unwrap(), scale).unwrap()
}

pub fn random(seed: u64, rank: usize, input: usize, output: usize, scale: f64) -> LowRank {
    low_rank(rank, values(seed, rank * input), values(seed + 1000, output * rank), scale)
}

pub fn expert<'a>(name: &str, modules: impl IntoIterator<Item = (&'a str, LowRank)>) -> Expert {
    Expert::new(
        name,
        Adapter::new(modules.into_iter().map(|(module, low_rank)| (module.to_string(), low_rank)).collect()),
    )
}

/// A site of one layer with projections of the given names and widths.
pub fn site(input: usize, projections: &[(&str, usize)]) -> Site {
    let projections =
        projections.iter().map(|(module, width)| Projection { module: module.to_string(), width: *width }).collect();
    Site { layer: Some(0), name: "qkv", role: lorakit_lora::SiteRole::AttentionInput, input, projections }
}

pub fn experts(library: impl IntoIterator<Item = Expert>, site: &Site) -> LibraryStack {
    LibraryStack::new(library, std::slice::from_ref(site), &Device::Cpu).unwrap()
}

/// `[tokens, input]`.
pub fn tokens(seed: u64, count: usize, input: usize) -> Tensor {
    Tensor::from_vec(values(seed, count * input), (count, input), &Device::Cpu).unwrap()
}

/// A router's output at the first site, `[tokens, out]`.
pub fn routed(router: &str, experts: &LibraryStack, x: &Tensor) -> Vec<Vec<f32>> {
    let router = parse_router(router).unwrap();
    added(
        &router.patches(experts, &RouterContext::default()).unwrap(),
        experts,
        x,
        &SequenceBatch::packed([x.dim(0).unwrap()]),
    )
}

/// The output that patches add at the first site; outputs start at one, so that overwriting them would be detected.
pub fn added(patches: &Patches, experts: &LibraryStack, x: &Tensor, rows: &SequenceBatch) -> Vec<Vec<f32>> {
    let ones = Tensor::ones((x.dim(0).unwrap(), experts.sites()[0].output()), x.dtype(), &Device::Cpu).unwrap();
    let mut out = Outputs::new(ones.copy().unwrap());
    if let Some(patch) = patches.at(0) {
        patch.add(x, rows, &mut out).unwrap();
    }
    (out.into_tensor() - ones).unwrap().to_vec2().unwrap()
}

/// `sum_e w_e s_e B_e A_e x` over a site, from dense deltas; `weight` is called per token, projection and expert.
pub fn dense(experts: &LibraryStack, x: &Tensor, weight: impl Fn(usize, usize, usize) -> f64) -> Vec<Vec<f32>> {
    let site = &experts.sites()[0];
    let rows = x.to_vec2::<f32>().unwrap();
    let one = |token: usize, x: &Vec<f32>| {
        let mut y = vec![0f64; site.output()];
        for (projection, (of, columns)) in site.columns().enumerate() {
            for expert in 0..experts.len() {
                let Some(low_rank) = experts.module(expert, &of.module) else { continue };
                let weight = weight(token, projection, expert);
                for (y, row) in y[columns.clone()].iter_mut().zip(low_rank.delta().chunks(site.input)) {
                    *y += weight * row.iter().zip(x).map(|(d, x)| f64::from(*d) * f64::from(*x)).sum::<f64>();
                }
            }
        }
        y.into_iter().map(|y| y as f32).collect()
    };
    rows.iter().enumerate().map(|(token, x)| one(token, x)).collect()
}

#[track_caller]
pub fn assert_close(found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let size = expected.iter().flatten().fold(0f32, |size, value| size.max(value.abs()));
    assert!(size > 0.0, "a comparison with zeros proves nothing");
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() <= tolerance * size.max(1.0), "{found} is not {expected}");
    }
}
