//! The fallbacks of `evidence` without one expert equal the same routers over a library that never had it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use candle_core::{DType, Device, Tensor};
use lorakit_lora::{Outputs, Patches, Projection, SequenceBatch, Site, SiteRole};
use lorakit_route::prompt::evidence::Fallback;
use lorakit_route::prompt::evidence::leave_one_out::LeaveOneOut;
use lorakit_route::{Evidence, Expert, LibraryStack, Mixing, Router, RouterContext, Uniform};
use small_library::*;

const INPUT: usize = 12;
const VOCABULARY: usize = 9;
const IDS: [u32; 5] = [3, 0, 8, 3, 5];

/// Two sites of layers, an embedding and a head.
fn sites() -> Vec<Site> {
    let outer = |role, name, input, (module, width): (&str, usize)| Site {
        layer: None,
        name,
        role,
        input,
        projections: vec![Projection { module: module.to_owned(), width }],
    };
    vec![
        site(INPUT, &[("q", 8), ("k", 5), ("v", 6)]),
        Site { layer: Some(1), ..site(INPUT, &[("o", 7)]) },
        outer(SiteRole::Embedding, "embedding", VOCABULARY, ("embedding", INPUT)),
        outer(SiteRole::LmHead, "head", INPUT, ("head", VOCABULARY)),
    ]
}

/// Experts of different modules and alphas, and under `ranks` of different ranks; `o` and `head` are one expert's alone, and
/// `z` changes nothing. Two neighbors have equal scales, so that they are joined where none between them is left out.
fn library(ranks: [usize; 5]) -> Vec<Expert> {
    let [a, b, c, d, e] = ranks;
    vec![
        expert("a", [("q", random(1, a, INPUT, 8, 2.0)), ("k", random(2, b, INPUT, 5, 0.5))]),
        expert("b", [("q", random(3, b, INPUT, 8, 2.0)), ("v", random(4, c, INPUT, 6, 1.5))]),
        expert("c", [("q", random(5, c, INPUT, 8, 2.0)), ("o", random(6, a, INPUT, 7, 1.0))]),
        expert(
            "d",
            [
                ("q", random(7, d, INPUT, 8, 2.0)),
                ("v", random(8, e, INPUT, 6, 0.7)),
                ("embedding", random(9, a, VOCABULARY, INPUT, 0.3)),
                ("head", random(10, c, INPUT, VOCABULARY, 1.1)),
            ],
        ),
        expert("e", [("k", random(11, e, INPUT, 5, 3.0)), ("embedding", random(12, b, VOCABULARY, INPUT, 0.4))]),
        expert("z", [("q", low_rank(a, values(13, a * INPUT), vec![0.0; a * 8], 1.0))]),
    ]
}

/// What the patches add at every site, the embedding and the head.
fn all_added(patches: &Patches) -> Vec<Vec<f32>> {
    let (x, rows) = (tokens(50, IDS.len(), INPUT), SequenceBatch::packed([2, 3]));
    let of = |width: usize, add: &dyn Fn(&mut Outputs)| {
        let mut out = Outputs::new(Tensor::zeros((IDS.len(), width), DType::F32, &Device::Cpu).unwrap());
        add(&mut out);
        out.into_tensor().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let at = |width, site: usize| {
        of(width, &|out| patches.at(site).into_iter().for_each(|patch| patch.add(&x, &rows, out).unwrap()))
    };
    let embedded =
        |out: &mut Outputs| patches.embedding().iter().for_each(|patch| patch.add(&IDS, &rows, out).unwrap());
    let head = |out: &mut Outputs| patches.head().into_iter().for_each(|patch| patch.add(&x, &rows, out).unwrap());
    vec![at(19, 0), at(7, 1), of(INPUT, &embedded), of(VOCABULARY, &head)]
}

/// The fallback over a library, as if it were the router alone.
fn alone(evidence: &Evidence, fallback: Fallback, experts: &LibraryStack) -> Patches {
    let context = RouterContext::default();
    match fallback {
        Fallback::Base => Patches::none(),
        Fallback::Uniform => {
            Uniform { mixing: evidence.mixing, ..Uniform::default() }.patches(experts, &context).unwrap()
        }
        Fallback::Arrow => evidence.arrow().patches(experts, &context).unwrap(),
    }
}

#[test]
fn a_fallback_without_an_expert_is_that_of_a_library_without_it() {
    let equal = [2; 5];
    for (mixing, ranks) in [(Mixing::Outputs, [3, 1, 4, 2, 5]), (Mixing::Outputs, equal), (Mixing::Separate, equal)] {
        let evidence = Evidence { mixing, ..Evidence::default() };
        let stack = |experts: Vec<Expert>| LibraryStack::new(experts, &sites(), &Device::Cpu).unwrap();
        let all = stack(library(ranks));
        let without = LeaveOneOut::new(&evidence, &all).unwrap();
        for fallback in [Fallback::Base, Fallback::Uniform, Fallback::Arrow] {
            let whole = all_added(&alone(&evidence, fallback, &all));
            for left_out in 0..all.len() {
                let mut others = library(ranks);
                others.remove(left_out);
                let expected = all_added(&alone(&evidence, fallback, &stack(others)));
                let found = all_added(&without.patches(fallback, left_out).unwrap());
                if fallback == Fallback::Base {
                    assert!(found == expected && found.iter().flatten().all(|value| *value == 0.0));
                    continue;
                }
                assert_close(&found, &expected, 1e-6);
                // Without `z`, which changes nothing, the means still are of fewer.
                assert!(found != whole, "{mixing:?} {fallback:?} {left_out}");
            }
        }
    }
}
