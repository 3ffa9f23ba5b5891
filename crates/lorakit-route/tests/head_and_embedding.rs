//! Routers at an embedding, whose input is a token, and at the head.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use candle_core::{Device, Tensor};
use lorakit_lora::{Outputs, Patches, Projection, Sequence, SequenceBatch, Site, SiteRole};
use lorakit_route::{
    Cat, LibraryStack, Mixing, RouterContext, by_weights, expert_per_row, parse_router, single_expert,
};
use small_library::*;

const VOCABULARY: usize = 9;
const HIDDEN: usize = 6;
const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

fn library() -> LibraryStack {
    let site = |role, name, input, (module, width): (&str, usize)| Site {
        layer: None,
        name,
        role,
        input,
        projections: vec![Projection { module: module.to_owned(), width }],
    };
    let sites = [
        small_library::site(HIDDEN, &[("q", 4)]),
        site(SiteRole::Embedding, "embedding", VOCABULARY, (EMBEDDING, HIDDEN)),
        site(SiteRole::LmHead, "head", HIDDEN, (HEAD, VOCABULARY)),
    ];
    let one = |e: u64| {
        let modules = [
            (EMBEDDING, random(10 * e + 1, 2, VOCABULARY, HIDDEN, 0.5 + e as f64)),
            (HEAD, random(10 * e + 2, 2, HIDDEN, VOCABULARY, 0.5 + e as f64)),
        ];
        expert(&format!("e{e}"), modules)
    };
    LibraryStack::new((0..3).map(one), &sites, &Device::Cpu).unwrap()
}

const IDS: [u32; 5] = [3, 0, 8, 3, 5];

/// Two rows, of the experts 2 and 0.
fn rows() -> SequenceBatch {
    let row = |start, len, expert| Sequence { start, len, expert: Some(expert), ..Sequence::default() };
    SequenceBatch::new([row(0, 2, 2), row(2, 3, 0)])
}

/// What the patches add to the embeddings of [`IDS`].
fn embedded(patches: &Patches) -> Vec<Vec<f32>> {
    let mut out = Outputs::new(Tensor::zeros((IDS.len(), HIDDEN), candle_core::DType::F32, &Device::Cpu).unwrap());
    patches.embedding().iter().for_each(|patch| patch.add(&IDS, &rows(), &mut out).unwrap());
    out.into_tensor().to_vec2().unwrap()
}

/// `sum_e w[token][e] s_e B_e A_e[:, id]` from dense deltas.
fn expected(library: &LibraryStack, weight: impl Fn(usize, usize) -> f32) -> Vec<Vec<f32>> {
    let deltas: Vec<Vec<f32>> = (0..3).map(|e| library.module(e, EMBEDDING).unwrap().delta()).collect();
    let of = |(token, id): (usize, &u32)| {
        let value = |feature: usize| {
            (0..3).map(|e| weight(token, e) * deltas[e][feature * VOCABULARY + *id as usize]).sum::<f32>()
        };
        (0..HIDDEN).map(value).collect()
    };
    IDS.iter().enumerate().map(of).collect()
}

#[test]
fn an_embedding_looks_up_its_a_by_token() {
    let library = library();
    let routed = |text: &str| parse_router(text).unwrap().patches(&library, &RouterContext::default()).unwrap();
    let third = |_: usize, _: usize| 1.0 / 3.0;
    assert_close(&embedded(&routed("uniform")), &expected(&library, third), 1e-5);
    // A token has no direction that Arrow could compare.
    assert_close(&embedded(&routed("arrow:top_k=1")), &expected(&library, third), 1e-5);
    let one = |expert: usize| move |_: usize, e: usize| f32::from(u8::from(e == expert));
    assert_close(&embedded(&single_expert(&library, 1).unwrap()), &expected(&library, one(1)), 1e-5);
    let of_row = |token: usize, e: usize| f32::from(u8::from(e == if token < 2 { 2 } else { 0 }));
    assert_close(&embedded(&expert_per_row(&library).unwrap()), &expected(&library, of_row), 1e-5);
    let weights = [0.5, -1.0, 0.25];
    let weighted = by_weights(&library, Mixing::Outputs, &weights).unwrap();
    assert_close(&embedded(&weighted), &expected(&library, |_, e| weights[e]), 1e-5);
    let twice = weighted.clone().with(weighted);
    assert_close(&embedded(&twice), &expected(&library, |_, e| 2.0 * weights[e]), 1e-5);
}

#[test]
fn arrow_routes_at_the_head_as_at_any_linear_module() {
    let library = library();
    let x = tokens(7, IDS.len(), HIDDEN);
    let patches = parse_router("arrow:top_k=2,temperature=0.7").unwrap();
    let patches = patches.patches(&library, &RouterContext::default()).unwrap();
    let added = |patches: &Patches| {
        let mut out = Outputs::new(Tensor::zeros((IDS.len(), VOCABULARY), x.dtype(), &Device::Cpu).unwrap());
        let patch = patches.head().or_else(|| patches.at(0)).unwrap();
        patch.add(&x, &rows(), &mut out).unwrap();
        out.into_tensor().to_vec2::<f32>().unwrap()
    };
    // The same experts at a site of a layer.
    let site = small_library::site(HIDDEN, &[(HEAD, VOCABULARY)]);
    let head = |e: usize| expert(&format!("e{e}"), [(HEAD, library.module(e, HEAD).unwrap().clone())]);
    let inner = experts((0..3).map(head), &site);
    let as_layer = parse_router("arrow:top_k=2,temperature=0.7").unwrap();
    let as_layer = as_layer.patches(&inner, &RouterContext::default()).unwrap();
    assert_close(&added(&patches), &added(&as_layer), 1e-6);
}

#[test]
fn what_fits_weights_of_layers_refuses_such_experts_by_name() {
    let error = Cat::default().trainable_weights(&library()).err().unwrap().to_string();
    assert!(error.contains("cat") && error.contains(EMBEDDING), "{error}");
}
