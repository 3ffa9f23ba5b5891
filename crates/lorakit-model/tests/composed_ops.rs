//! The ops composed of candle's own ops, run on a CPU: each must match our kernel in value and in all gradients.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../tests/differences/mod.rs"]
mod differences;

use candle_core::{DType, Device, Result, Tensor, Var};
use differences::{largest, largest_difference};
use lorakit_format::rng::CounterRng;
use lorakit_lora::SequenceBatch;
use lorakit_model::architecture::{RopeConfig, RopeScaling};
use lorakit_model::attention::{
    AttentionHeads, AttentionLayout, AttentionSegment, cached_attention, composed_cached_attention, composed_rotate,
    composed_self_attention, rotate, self_attention,
};
use lorakit_model::layer::activation::{
    composed_geglu, composed_gelu_new, composed_swiglu, geglu, gelu_new, relu, swiglu,
};
use lorakit_model::layer::linear::{FusedLinear, LinearWeights};
use lorakit_model::layer::lm_head::LmHead;
use lorakit_model::layer::logit_scale::LogitScale;
use lorakit_model::layer::norm::Norm;
use lorakit_model::layer::qk_norm::QkNorm;
use lorakit_model::layer::rope::{RopeFrequencies, RopeTable};
use lorakit_model::weights::{MmapMatrix, Weight};
use std::sync::Arc;

/// Pseudo-random values in [-2, 2), the same on every platform.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = CounterRng::seeded(seed, 0);
    (0..count).map(|_| 4.0 * rng.uniform() - 2.0).collect()
}

fn tensor(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_vec(values(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
}

/// Asserts that the two differ by at most `tolerance` times the largest value.
fn assert_equal(what: &str, kernel: &Tensor, composed: &Tensor, tolerance: f32) {
    assert_eq!((kernel.dims(), kernel.dtype()), (composed.dims(), composed.dtype()), "{what}");
    let (size, difference) = (largest(kernel), largest_difference(kernel, composed));
    assert!(size > 0.01, "{what}: nothing above {size}");
    assert!(difference <= tolerance * size, "{what}: {difference} apart, of {size}");
}

/// Compares values, and the gradients of `sum(y c)` with respect to every variable.
fn assert_same(what: &str, variables: &[(&str, &Var)], kernel: &Tensor, composed: &Tensor, tolerance: f32) {
    assert_equal(what, kernel, composed, tolerance);
    let c = tensor(99, kernel.dims());
    let gradients = |y: &Tensor| (y * &c).unwrap().sum_all().unwrap().backward().unwrap();
    let (kernel, composed) = (gradients(kernel), gradients(composed));
    for (name, variable) in variables {
        let of = |store: &candle_core::backprop::GradStore| store.get(variable.as_tensor()).unwrap().clone();
        assert_equal(&format!("{what}, gradient of {name}"), &of(&kernel), &of(&composed), tolerance);
    }
}

fn var(seed: u64, shape: &[usize]) -> Var {
    Var::from_tensor(&tensor(seed, shape)).unwrap()
}

/// Three projections of different widths, the second without a bias: with memory-mapped weights, and with tensors.
fn linears(dtype: DType) -> (FusedLinear, FusedLinear) {
    let projections = |tensors: bool| {
        let projection = |(i, width): (usize, usize)| {
            let w = tensor(10 + i as u64, &[width, 7]).to_dtype(dtype).unwrap();
            let wide = w.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let mapped = MmapMatrix::from_values(wide, width, 7).unwrap();
            let weight = if tensors { Weight::Tensor(w) } else { Weight::Mapped(mapped) };
            LinearWeights { weight, bias: (i != 1).then(|| tensor(20 + i as u64, &[width])), width }
        };
        FusedLinear::new([5, 3, 4].into_iter().enumerate().map(projection).collect()).unwrap()
    };
    (projections(false), projections(true))
}

#[test]
fn frozen_linears() {
    let x = var(1, &[11, 7]);
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        let (kernel, composed) = linears(dtype);
        let (kernel, composed) = (kernel.forward(&x).unwrap(), composed.forward(&x).unwrap());
        assert_same(&format!("linear in {dtype:?}"), &[("x", &x)], &kernel, &composed, tolerance);
    }
}

#[test]
fn gradients_below_the_range_of_f16() {
    let x = var(1, &[11, 7]);
    let (kernel, composed) = linears(DType::F16);
    // The smallest positive f16 is 6e-8.
    let tiny = (tensor(99, &[11, 12]) * 1e-9).unwrap();
    let gradient = |y: Tensor, size: f64| {
        let store = (y * &tiny).unwrap().sum_all().unwrap().backward().unwrap();
        (store.get(x.as_tensor()).unwrap() * size).unwrap()
    };
    let [kernel, composed] = [kernel, composed].map(|linear| gradient(linear.forward(&x).unwrap(), 1e9));
    assert_equal("gradient of x", &kernel, &composed, 2e-3);
}

#[test]
fn trained_linears() {
    let (x, w, b) = (var(1, &[11, 7]), var(2, &[5, 7]), var(3, &[5]));
    let projection =
        LinearWeights { weight: Weight::Tensor(w.as_tensor().clone()), bias: Some(b.as_tensor().clone()), width: 5 };
    let own = FusedLinear::new(vec![projection]).unwrap().forward(&x).unwrap();
    let composed = x.matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
    assert_same("linear", &[("x", &x), ("W", &w), ("b", &b)], &own, &composed, 1e-5);
}

#[test]
fn norms() {
    let (x, w) = (var(1, &[11, 13]), var(2, &[13]));
    let zeros = || Tensor::zeros(13, DType::F32, &Device::Cpu).unwrap();
    for (name, norm) in [
        ("frozen RMS norm", Norm::rms(w.as_detached_tensor(), 1e-5)),
        ("frozen norm of one plus a weight", Norm::rms_plus_one(w.as_detached_tensor(), 1e-5).unwrap()),
        ("frozen layer norm", Norm::layer(w.as_detached_tensor(), zeros(), 1e-5)),
    ] {
        let (kernel, composed) = (norm.forward(&x).unwrap(), norm.composed(&x).unwrap());
        assert_same(name, &[("x", &x)], &kernel, &composed, 1e-5);
    }
    for (name, norm) in [
        ("RMS norm", Norm::rms(w.as_tensor().clone(), 1e-5)),
        ("norm of one plus a weight", Norm::rms_plus_one(w.as_tensor().clone(), 1e-5).unwrap()),
        ("layer norm", Norm::layer(w.as_tensor().clone(), zeros(), 1e-5)),
    ] {
        let (kernel, composed) = (norm.forward(&x).unwrap(), norm.composed(&x).unwrap());
        assert_same(name, &[("x", &x), ("w", &w)], &kernel, &composed, 1e-5);
    }
}

/// Norms as wide as a head, and as wide as all of them.
#[test]
fn norms_of_queries_and_keys() {
    let heads = AttentionHeads::new(4, 2, 6);
    let qkv = var(1, &[11, heads.fused_width()]);
    for [queries, keys] in [[6, 6], [24, 12]] {
        let norm = |seed, width: usize| Norm::rms(tensor(seed, &[width]), 1e-5);
        let norms = QkNorm { queries: norm(2, queries), keys: norm(3, keys) };
        let (kernel, composed) = (norms.forward(heads, &qkv).unwrap(), norms.composed(heads, &qkv).unwrap());
        assert_same(&format!("norms of {queries}"), &[("qkv", &qkv)], &kernel, &composed, 1e-5);
    }
}

#[test]
fn activations() {
    let x = var(1, &[11, 14]);
    assert_same("SwiGLU", &[("x", &x)], &swiglu(&x).unwrap(), &composed_swiglu(&x).unwrap(), 1e-5);
    assert_same("GeGLU", &[("x", &x)], &geglu(&x).unwrap(), &composed_geglu(&x).unwrap(), 1e-5);
    // A range that covers the tails of tanh.
    let wide = Var::from_tensor(&(tensor(2, &[11, 13]) * 4.0).unwrap()).unwrap();
    assert_same("GELU", &[("x", &wide)], &gelu_new(&wide).unwrap(), &composed_gelu_new(&wide).unwrap(), 1e-5);
    assert_same("ReLU", &[("x", &wide)], &relu(&wide).unwrap(), &wide.relu().unwrap(), 1e-6);
    let bad = Tensor::new(&[[-1f32, f32::NAN, 2.0]], &Device::Cpu).unwrap();
    let found = relu(&bad).unwrap().to_vec2::<f32>().unwrap();
    assert!(found[0][0] == 0.0 && found[0][1].is_nan() && found[0][2] == 2.0, "{found:?}");
}

fn angles(features: usize, positions: &[u32]) -> RopeTable {
    if features == 0 {
        return RopeFrequencies::none().angles(positions);
    }
    RopeFrequencies::new(&RopeConfig { theta: 10_000.0, features, scaling: RopeScaling::None }).angles(positions)
}

/// Grouped-query attention, partial rotary embeddings, and windows: none, shorter than sequences, and of one token;
/// with head widths of both CPU kernels.
fn all_heads() -> Vec<(AttentionHeads, usize)> {
    let of = |features: usize| {
        let heads =
            move |queries, keys, window| AttentionHeads { window, ..AttentionHeads::new(queries, keys, features) };
        vec![
            (heads(6, 2, None), features),
            (heads(3, 3, Some(4)), 4),
            (heads(4, 1, Some(1)), 6),
            (heads(2, 2, Some(40)), features),
            (AttentionHeads { scale: Some(0.4), ..heads(4, 2, None) }, features),
            (AttentionHeads { soft_cap: Some(3.0), scale: Some(0.4), ..heads(4, 2, Some(9)) }, features),
            // Positions are not encoded.
            (heads(2, 1, None), 0),
        ]
    };
    [10, 8, 16].into_iter().flat_map(of).collect()
}

/// Heads whose matrix products are in f32 and in 16 bits, each with its tolerance.
fn in_all_types(heads: AttentionHeads) -> [(AttentionHeads, f32); 3] {
    [(DType::F32, 1e-5), (DType::F16, 5e-3), (DType::BF16, 8e-2)]
        .map(|(products, far)| (AttentionHeads { products, ..heads }, far))
}

#[test]
fn self_attention_of_packed_sequences() {
    // Empty sequences, sequences of one token, some that share a block of queries, and some that span two blocks.
    for lengths in [&[5usize, 1, 17, 0, 8][..], &[3, 600, 40, 530]] {
        let rows = SequenceBatch::packed(lengths.iter().copied());
        let segments: Arc<[AttentionSegment]> =
            rows.iter().map(|row| AttentionSegment { queries: row.tokens(), keys: vec![row.tokens()] }).collect();
        for (heads, rotated) in all_heads() {
            let angles = angles(rotated, &rows.positions());
            let qkv = var(1, &[rows.tokens(), heads.fused_width()]);
            let packing = AttentionLayout::new(angles, segments.clone());
            let kernel = self_attention(&qkv, heads, &packing).unwrap();
            for (heads, tolerance) in in_all_types(heads) {
                let packing = AttentionLayout::new(packing.rope.clone(), segments.clone());
                let composed = composed_self_attention(&qkv, heads, &packing).unwrap();
                assert_same(&format!("{heads:?} over {lengths:?}"), &[("qkv", &qkv)], &kernel, &composed, tolerance);
            }
        }
    }
}

/// An offset common to all keys and values does not change the gradient of the queries, which in 16 bits is a small
/// difference of large numbers.
#[test]
fn self_attention_with_a_common_offset_of_keys_and_values() {
    let heads = AttentionHeads::new(4, 4, 16);
    let rows = SequenceBatch::packed([300, 40]);
    let segments: Arc<[AttentionSegment]> =
        rows.iter().map(|row| AttentionSegment { queries: row.tokens(), keys: vec![row.tokens()] }).collect();
    let random = (tensor(1, &[rows.tokens(), heads.fused_width()]) * 0.5).unwrap();
    let width = heads.key_width();
    let offset = |at| if at < width { 0f32 } else { 3.0 };
    let offset = Tensor::from_iter((0..heads.fused_width()).map(offset), &Device::Cpu).unwrap();
    let qkv = Var::from_tensor(&random.broadcast_add(&offset).unwrap()).unwrap();
    let packing = || AttentionLayout::new(angles(16, &vec![0; rows.tokens()]), segments.clone());
    let kernel = self_attention(&qkv, heads, &packing()).unwrap();
    let c = tensor(99, kernel.dims());
    let of_queries = |y: &Tensor| {
        let gradients = (y * &c).unwrap().sum_all().unwrap().backward().unwrap();
        gradients.get(qkv.as_tensor()).unwrap().narrow(1, 0, width).unwrap()
    };
    let expected = of_queries(&kernel);
    for (products, tolerance) in [(DType::F32, 1e-4), (DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        let composed = composed_self_attention(&qkv, AttentionHeads { products, ..heads }, &packing()).unwrap();
        assert_equal(&format!("gradient of queries in {products:?}"), &expected, &of_queries(&composed), tolerance);
    }
}

#[test]
fn rotations() {
    for (heads, features) in all_heads() {
        let angles = angles(features, &[0, 1, 2, 7, 8, 1000, 3]);
        let qkv = tensor(1, &[7, heads.fused_width()]);
        let kernel = rotate(&qkv, heads, &angles).unwrap();
        assert_equal("rotation", &kernel, &composed_rotate(&qkv, heads, &angles).unwrap(), 1e-5);
    }
}

#[test]
fn cached_attention_of_several_sequences() {
    // A sequence with a shared prefix, one token after many, and as many queries as keys; slots are out of order.
    let segment = |queries, keys: &[std::ops::Range<usize>]| AttentionSegment { queries, keys: keys.to_vec() };
    let segments: Arc<[AttentionSegment]> = Arc::new([
        segment(0..3, &[10..14, 20..25]),
        segment(3..4, std::slice::from_ref(&(0..9))),
        segment(4..4, &[]),
        segment(4..11, std::slice::from_ref(&(13..20))),
        segment(11..12, &[10..14, 30..31, 26..29]),
    ]);
    // Queries are already rotated.
    let packing = || AttentionLayout::new(angles(2, &[]), segments.clone());
    for (heads, _) in all_heads() {
        let qkv = tensor(1, &[12, heads.fused_width()]);
        let (k, v) = (tensor(2, &[32, heads.key_width()]), tensor(3, &[32, heads.key_width()]));
        let kernel = cached_attention(&qkv, &k, &v, heads, &packing()).unwrap();
        for (heads, tolerance) in in_all_types(heads) {
            let composed = composed_cached_attention(&qkv, &k, &v, heads, &packing()).unwrap();
            assert_equal(&format!("{heads:?}"), &kernel, &composed, tolerance);
        }
    }
}

#[test]
fn cached_attention_of_a_long_prompt() {
    // More queries than one block, after earlier keys, beside a short sequence.
    let segments: Arc<[AttentionSegment]> = Arc::new([
        AttentionSegment { queries: 0..1100, keys: vec![40..70, 100..1200] },
        AttentionSegment { queries: 1100..1103, keys: vec![0..5, 90..94] },
    ]);
    let packing = || AttentionLayout::new(angles(2, &[]), segments.clone());
    for (heads, _) in all_heads() {
        let qkv = tensor(1, &[1103, heads.fused_width()]);
        let (k, v) = (tensor(2, &[1200, heads.key_width()]), tensor(3, &[1200, heads.key_width()]));
        let kernel = cached_attention(&qkv, &k, &v, heads, &packing()).unwrap();
        let composed = composed_cached_attention(&qkv, &k, &v, heads, &packing()).unwrap();
        assert_equal(&format!("{heads:?}"), &kernel, &composed, 1e-5);
    }
}

/// The loss and logits of a head with a bias: with a memory-mapped weight, and with a tensor.
fn losses(
    (vocabulary, n, d): (usize, usize, usize),
    scale: LogitScale,
) -> (Var, [Result<Tensor>; 2], [Result<Tensor>; 2]) {
    let (w, b) = (tensor(2, &[vocabulary, d]), tensor(3, &[vocabulary]));
    let mapped = MmapMatrix::from_values(w.flatten_all().unwrap().to_vec1().unwrap(), vocabulary, d).unwrap();
    let heads = [Weight::Mapped(mapped), Weight::Tensor(w)]
        .map(|w| LmHead::new(w, Some(b.clone()), vocabulary).with_scale(scale));
    let targets: Vec<u32> = (0..n).map(|i| ((i * 7919 + 5) % vocabulary) as u32).collect();
    let h = var(1, &[n, d]);
    let losses = heads.each_ref().map(|head| head.nll(&h, &targets, None));
    let logits = heads.each_ref().map(|head| head.logits(&h.as_detached_tensor(), None));
    (h, losses, logits)
}

#[test]
fn logits_and_losses() {
    // The second vocabulary is large enough that tokens are processed in several chunks.
    let scaled = |multiplier, soft_cap| LogitScale { multiplier, soft_cap };
    for shape in [(37, 11, 5), (1 << 18, 70, 3)] {
        for scale in [LogitScale::NONE, scaled(0.3, None), scaled(1.0, Some(4.0)), scaled(0.5, Some(2.0))] {
            let (h, [kernel, composed], [logits, composed_logits]) = losses(shape, scale);
            assert_same(&format!("loss, {scale:?}"), &[("h", &h)], &kernel.unwrap(), &composed.unwrap(), 2e-5);
            assert_equal("logits", &logits.unwrap(), &composed_logits.unwrap(), 1e-5);
        }
    }
}

#[test]
fn losses_of_a_trained_head() {
    let (h, w) = (var(1, &[11, 5]), var(2, &[37, 5]));
    let targets: Vec<u32> = (0..11).map(|i| (i * 3) % 37).collect();
    let own = LmHead::new(Weight::Tensor(w.as_tensor().clone()), None, 37).nll(&h, &targets, None).unwrap();
    let log = candle_nn::ops::log_softmax(&h.matmul(&w.t().unwrap()).unwrap(), 1).unwrap();
    let index = Tensor::new(targets, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    let composed = log.gather(&index, 1).unwrap().squeeze(1).unwrap().neg().unwrap();
    assert_same("loss", &[("h", &h), ("W", &w)], &own, &composed, 1e-5);
}

/// So many tokens that their logits are made in chunks, again in the backward.
#[test]
fn losses_of_a_trained_head_over_many_tokens() {
    let (vocabulary, n, d) = (1 << 16, 300, 3);
    let (h, w, b) = (var(1, &[n, d]), var(2, &[vocabulary, d]), var(3, &[vocabulary]));
    let targets: Vec<u32> = (0..n).map(|i| ((i * 7919 + 5) % vocabulary) as u32).collect();
    let head = LmHead::new(Weight::Tensor(w.as_tensor().clone()), Some(b.as_tensor().clone()), vocabulary);
    let own = head.with_scale(LogitScale { multiplier: 0.5, soft_cap: Some(4.0) }).nll(&h, &targets, None).unwrap();
    let logits = h.matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
    let logits = (((logits * 0.5).unwrap() / 4.0).unwrap().tanh().unwrap() * 4.0).unwrap();
    let index = Tensor::new(targets, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    let log = candle_nn::ops::log_softmax(&logits, 1).unwrap();
    let composed = log.gather(&index, 1).unwrap().squeeze(1).unwrap().neg().unwrap();
    assert_same("loss", &[("h", &h), ("W", &w), ("b", &b)], &own, &composed, 1e-4);
}
