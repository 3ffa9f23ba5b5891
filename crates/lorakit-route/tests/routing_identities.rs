//! Properties of routers that hold for any weights.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use candle_core::{DType, Device, Tensor, Var};
use lorakit_lora::{Outputs, Sequence, SequenceBatch, Site};
use lorakit_route::token::prototypes::{Prototypes, prototypes};
use lorakit_route::{
    Arrow, LibraryStack, Limit, Observer, PrototypeScope, Router, RouterContext, RoutingDecision, RoutingStats,
    expert_of_task, expert_per_row, parse_router,
};
use small_library::*;
use std::sync::{Arc, Mutex};

const INPUT: usize = 12;

fn qkv() -> Site {
    site(INPUT, &[("q", 8), ("k", 5), ("v", 6)])
}

/// Four experts of equal rank with all modules and different scales.
fn even() -> LibraryStack {
    let one = |e: u64| {
        let module = |m: u64, width| random(10 * e + m, 2, INPUT, width, 0.5 + e as f64);
        expert(&format!("e{e}"), [("q", module(1, 8)), ("k", module(2, 5)), ("v", module(3, 6))])
    };
    experts((0..4).map(one), &qkv())
}

/// Experts of different ranks, alphas and module sets.
fn uneven() -> LibraryStack {
    let library = [
        expert("a", [("q", random(1, 3, INPUT, 8, 2.0)), ("k", random(2, 1, INPUT, 5, 0.5))]),
        expert("b", [("q", random(3, 1, INPUT, 8, 2.0)), ("v", random(4, 4, INPUT, 6, 1.5))]),
        expert("c", [("k", random(5, 2, INPUT, 5, 3.0))]),
        expert(
            "d",
            [
                ("q", random(6, 2, INPUT, 8, 2.0)),
                ("k", random(7, 2, INPUT, 5, 3.0)),
                ("v", random(8, 2, INPUT, 6, 0.25)),
            ],
        ),
    ];
    experts(library, &qkv())
}

/// Experts whose A is tied across their projections.
fn tied() -> LibraryStack {
    let one = |e: u64, modules: &[(&'static str, usize)]| {
        let a = values(100 + e, 2 * INPUT);
        let module = |(i, (name, width)): (usize, &(&'static str, usize))| {
            (*name, low_rank(2, a.clone(), values(200 + 10 * e + i as u64, 2 * width), 1.0 + i as f64))
        };
        expert(&format!("t{e}"), modules.iter().enumerate().map(module).collect::<Vec<_>>())
    };
    let all = [("q", 8), ("k", 5), ("v", 6)];
    experts([one(0, &all), one(1, &all), one(2, &all[1..]), one(3, &all[..2])], &qkv())
}

#[test]
fn routing_one_expert_equals_its_adapter() {
    let library =
        experts([expert("only", [("q", random(1, 3, INPUT, 8, 2.0)), ("v", random(4, 4, INPUT, 6, 1.5))])], &qkv());
    let x = tokens(50, 9, INPUT);
    let expected = dense(&library, &x, |_, _, _| 1.0);
    for router in ["expert:only", "uniform", "uniform:mixing=separate", "arrow", "arrow:mixing=separate"] {
        assert_close(&routed(router, &library, &x), &expected, 1e-5);
    }
}

#[test]
fn a_single_expert_equals_its_dense_delta() {
    let x = tokens(51, 9, INPUT);
    for library in [uneven(), tied()] {
        for (index, name) in library.names().iter().enumerate() {
            let expected = dense(&library, &x, |_, _, e| f64::from(u8::from(e == index)));
            assert_close(&routed(&format!("expert:{name}"), &library, &x), &expected, 1e-5);
        }
    }
}

#[test]
fn uniform_outputs_equal_the_mean_delta() {
    let x = tokens(52, 9, INPUT);
    for library in [even(), uneven(), tied()] {
        let n = library.len() as f64;
        assert_close(&routed("uniform", &library, &x), &dense(&library, &x, |_, _, _| 1.0 / n), 1e-5);
    }
}

#[test]
fn arrow_at_high_temperature_is_uniform() {
    let (library, x) = (even(), tokens(53, 9, INPUT));
    for mixing in ["outputs", "separate"] {
        let arrow = routed(&format!("arrow:top_k=4,temperature=1e9,mixing={mixing}"), &library, &x);
        assert_close(&arrow, &routed(&format!("uniform:mixing={mixing}"), &library, &x), 1e-5);
    }
}

#[test]
fn top_k_above_the_number_of_experts_takes_all() {
    let (library, x) = (uneven(), tokens(54, 9, INPUT));
    assert_close(&routed("arrow:top_k=100", &library, &x), &routed("arrow:top_k=4", &library, &x), 1e-6);
}

/// The weights of Arrow with one prototype per projection, from dense scores.
fn arrow_weights(library: &LibraryStack, x: &Tensor, top_k: usize, tie: PrototypeScope) -> Vec<Vec<Vec<f64>>> {
    let site = &library.sites()[0];
    let rows = x.to_vec2::<f32>().unwrap();
    let weigh = |x: &Vec<f32>, prototypes: &Prototypes| {
        let score = |vector: &[f32]| vector.iter().zip(x).map(|(v, x)| f64::from(v * x)).sum::<f64>().abs();
        let mut scores = vec![None; library.len()];
        for (expert, vector) in prototypes.candidates[0].iter().zip(prototypes.vectors.chunks(INPUT)) {
            scores[*expert as usize] = Some(score(vector));
        }
        let mut order: Vec<usize> = (0..scores.len()).filter(|e| scores[*e].is_some()).collect();
        order.sort_by(|a, b| scores[*b].unwrap().total_cmp(&scores[*a].unwrap()));
        order.truncate(top_k);
        let sum: f64 = order.iter().map(|e| scores[*e].unwrap().exp()).sum();
        (0..scores.len())
            .map(|e| if order.contains(&e) { scores[e].unwrap().exp() / sum } else { 0.0 })
            .collect::<Vec<f64>>()
    };
    let per_projection = |projection: usize| {
        let group = tie.groups(site).into_iter().find(|group| group.contains(&projection)).unwrap();
        let prototypes = prototypes(library, site, &[group]).unwrap();
        rows.iter().map(|x| weigh(x, &prototypes)).collect()
    };
    (0..site.projections.len()).map(per_projection).collect()
}

fn scope(tie: &str) -> PrototypeScope {
    if tie == "site" { PrototypeScope::Site } else { PrototypeScope::Projection }
}

fn observed(observer: Arc<dyn Observer>) -> RouterContext<'static> {
    RouterContext { observer: Some(observer), ..RouterContext::default() }
}

#[test]
fn arrow_mixes_different_ranks_alphas_and_module_sets() {
    let x = tokens(55, 40, INPUT);
    for (library, tie, top_k) in [(even(), "none", 2), (uneven(), "none", 2), (tied(), "none", 3), (tied(), "site", 2)]
    {
        let weights = arrow_weights(&library, &x, top_k, scope(tie));
        let found = routed(&format!("arrow:top_k={top_k},tie={tie}"), &library, &x);
        assert_close(&found, &dense(&library, &x, |t, p, e| weights[p][t][e]), 1e-4);
    }
}

#[test]
fn separate_mixing_applies_mixed_b_to_mixed_a() {
    let x = tokens(56, 20, INPUT);
    for (library, tie) in [(even(), "none"), (tied(), "none"), (tied(), "site")] {
        let weights = arrow_weights(&library, &x, 2, scope(tie));
        let rows = x.to_vec2::<f32>().unwrap();
        let mixed = |t: usize| -> Vec<f32> {
            let site = &library.sites()[0];
            let of = |(p, projection): (usize, &lorakit_lora::Projection)| {
                let modules: Vec<_> = (0..library.len())
                    .filter_map(|e| Some((weights[p][t][e], library.module(e, &projection.module)?)))
                    .collect();
                let sum = |value: &dyn Fn(&lorakit_adapter::LowRank) -> Vec<f32>, scaled: bool| {
                    modules.iter().fold(Vec::new(), |mut sum, (w, m)| {
                        let factor = if scaled { w * m.scale() } else { *w } as f32;
                        let values = value(m);
                        sum.resize(values.len(), 0.0);
                        sum.iter_mut().zip(values).for_each(|(s, v)| *s += factor * v);
                        sum
                    })
                };
                let (a, b) = (sum(&|m| m.a().values().to_vec(), false), sum(&|m| m.b().values().to_vec(), true));
                let z: Vec<f32> = a.chunks(INPUT).map(|a| a.iter().zip(&rows[t]).map(|(a, x)| a * x).sum()).collect();
                b.chunks(z.len()).map(|b| b.iter().zip(&z).map(|(b, z)| b * z).sum()).collect::<Vec<f32>>()
            };
            site.projections.iter().enumerate().flat_map(of).collect()
        };
        let expected: Vec<Vec<f32>> = (0..rows.len()).map(mixed).collect();
        assert_close(&routed(&format!("arrow:top_k=2,mixing=separate,tie={tie}"), &library, &x), &expected, 1e-4);
    }
}

#[test]
fn top_1_picks_the_expert_in_the_direction_of_the_token() {
    let (library, site) = (even(), qkv());
    let prototypes = prototypes(&library, &site, &PrototypeScope::Projection.groups(&site)[..1]).unwrap();
    assert_eq!(prototypes.candidates, [(0..library.len() as u32).collect::<Vec<_>>()]);
    for (index, prototype) in prototypes.vectors.chunks(INPUT).enumerate() {
        let x = Tensor::from_slice(prototype, (1, INPUT), &Device::Cpu).unwrap();
        let found: Vec<f32> = routed("arrow:top_k=1", &library, &x)[0][..8].to_vec();
        let expected: Vec<f32> = dense(&library, &x, |_, _, e| f64::from(u8::from(e == index)))[0][..8].to_vec();
        assert_close(&[found], &[expected], 1e-5);
    }
}

#[test]
fn an_expert_without_a_delta_is_never_chosen() {
    let x = tokens(57, 30, INPUT);
    let full = || expert("full", [("q", random(1, 2, INPUT, 8, 2.0))]);
    // An untrained expert has a random A and a zero B.
    let zero = expert("empty", [("q", low_rank(2, values(2, 2 * INPUT), vec![0.0; 16], 2.0))]);
    let both = experts([full(), zero], &qkv());
    let found = prototypes(&both, &qkv(), &PrototypeScope::Projection.groups(&qkv())).unwrap();
    assert_eq!(found.candidates, [vec![1], vec![], vec![]], "only `full`, and only at q");
    assert_eq!(found.vectors, both.module(1, "q").unwrap().top_singular_vector().unwrap().vector);
    let alone = experts([full()], &qkv());
    assert_close(&routed("arrow:top_k=2", &both, &x), &routed("expert:full", &alone, &x), 1e-5);
}

#[test]
fn equal_experts_share_weight_and_ties_go_to_the_first_name() {
    let same = || random(1, 2, INPUT, 8, 1.0);
    let stronger = low_rank(2, values(1, 2 * INPUT), values(1001, 16).iter().map(|b| b * 3.0).collect(), 1.0);
    let library = experts([expert("z", [("q", stronger)]), expert("m", [("q", same())])], &qkv());
    let x = tokens(58, 9, INPUT);
    assert_close(&routed("arrow:top_k=1", &library, &x), &routed("expert:m", &library, &x), 1e-6);
}

#[test]
fn both_mixings_match_values_computed_by_hand() {
    let library = [
        expert("e0", [("q", low_rank(1, vec![1.0, 0.0], vec![1.0, 0.0], 1.0))]),
        expert("e1", [("q", low_rank(1, vec![0.0, 1.0], vec![0.0, 2.0], 1.0))]),
    ];
    let library = experts(library, &site(2, &[("q", 2)]));
    let x = Tensor::new(&[[3f32, 4.0]], &Device::Cpu).unwrap();
    assert_close(&routed("uniform:mixing=separate", &library, &x), &[vec![1.75, 3.5]], 1e-6);
    assert_close(&routed("uniform:mixing=outputs", &library, &x), &[vec![1.5, 4.0]], 1e-6);
    let arrow = |mixing: &str| routed(&format!("arrow:temperature=1e9,mixing={mixing}"), &library, &x);
    assert_close(&arrow("separate"), &[vec![1.75, 3.5]], 1e-6);
    assert_close(&arrow("outputs"), &[vec![1.5, 4.0]], 1e-6);
}

#[test]
fn each_row_can_have_its_own_expert() {
    let (library, x) = (uneven(), tokens(59, 10, INPUT));
    let row = |start, len, expert| Sequence { start, len, expert, ..Sequence::default() };
    let rows = SequenceBatch::new([row(0, 3, Some(3)), row(3, 2, None), row(5, 5, Some(0))]);
    let of = |token: usize| [Some(3), Some(3), Some(3), None, None, Some(0), Some(0), Some(0), Some(0), Some(0)][token];
    let expected = dense(&library, &x, |t, _, e| f64::from(u8::from(of(t) == Some(e))));
    let patches = expert_per_row(&library).unwrap();
    assert_close(&added(&patches, &library, &x, &rows), &expected, 1e-5);
    let mut out = Outputs::new(Tensor::zeros((10, 19), DType::F32, &Device::Cpu).unwrap());
    assert!(patches.at(0).unwrap().add(&x, &SequenceBatch::new([row(0, 10, Some(4))]), &mut out).is_err());
}

/// Site, projections, experts and weights of one decision.
type Decision = (usize, std::ops::Range<usize>, Vec<u32>, Vec<f32>);

/// Records all decisions.
#[derive(Default)]
struct Recorder(Mutex<Vec<Decision>>);

impl lorakit_route::Observer for Recorder {
    fn observe(&self, routing: &RoutingDecision) {
        assert_eq!(routing.rows.len(), 1);
        let seen = (routing.site, routing.projections.clone(), routing.experts.to_vec(), routing.weights.to_vec());
        self.0.lock().unwrap().push(seen);
    }
}

#[test]
fn an_observer_receives_every_choice() {
    let (library, x) = (uneven(), tokens(60, 6, INPUT));
    let recorder = Arc::new(Recorder::default());
    let arrow = Arrow { top_k: Limit(2), ..Arrow::default() };
    let patches = arrow.patches(&library, &observed(recorder.clone())).unwrap();
    added(&patches, &library, &x, &SequenceBatch::packed([6]));
    let weights = arrow_weights(&library, &x, 2, PrototypeScope::Projection);
    let seen = recorder.0.lock().unwrap();
    assert_eq!(seen.iter().map(|s| (s.0, s.1.clone())).collect::<Vec<_>>(), [(0, 0..1), (0, 1..2), (0, 2..3)]);
    for (_, projections, experts, found) in seen.iter() {
        for (slot, (expert, weight)) in experts.iter().zip(found).enumerate() {
            let expected = weights[projections.start][slot / 2][*expert as usize];
            assert!((f64::from(*weight) - expected).abs() < 1e-5);
        }
    }
    let usage = Arc::new(RoutingStats::default());
    let patches = arrow.patches(&library, &observed(usage.clone())).unwrap();
    added(&patches, &library, &x, &SequenceBatch::packed([6]));
    let total: f64 = usage.shares().values().map(|share| share.weight).sum();
    assert!((total - 18.0).abs() < 1e-4, "6 tokens at 3 projections");
}

#[test]
fn gradients_reach_the_input_through_the_chosen_experts() {
    let (library, x) = (even(), Var::from_tensor(&tokens(61, 5, INPUT)).unwrap());
    for mixing in ["outputs", "separate"] {
        let router = parse_router(&format!("arrow:top_k=2,mixing={mixing}")).unwrap();
        let patches = router.patches(&library, &RouterContext::default()).unwrap();
        let mut out = Outputs::new(Tensor::zeros((5, 19), DType::F32, &Device::Cpu).unwrap());
        patches.at(0).unwrap().add(&x, &SequenceBatch::packed([5]), &mut out).unwrap();
        let y = out.into_tensor();
        let gradient = y.sqr().unwrap().sum_all().unwrap().backward().unwrap().get(&x).unwrap().clone();
        // The delta is linear in x as long as the choice does not change: <x, d|y|²/dx> = 2 |y|².
        let along: f32 = (gradient * x.as_tensor()).unwrap().sum_all().unwrap().to_scalar().unwrap();
        let size: f32 = y.sqr().unwrap().sum_all().unwrap().to_scalar().unwrap();
        assert!(size > 0.1 && (along - 2.0 * size).abs() < 1e-3 * size, "{along} and {size}");
    }
}

#[test]
fn a_16_bit_model_gets_the_rounded_f32_delta() {
    let (library, x) = (even(), tokens(62, 5, INPUT).to_dtype(DType::BF16).unwrap());
    let router = parse_router("arrow:top_k=2").unwrap();
    let patches = router.patches(&library, &RouterContext::default()).unwrap();
    let mut out = Outputs::new(Tensor::zeros((5, 19), DType::BF16, &Device::Cpu).unwrap());
    patches.at(0).unwrap().add(&x, &SequenceBatch::packed([5]), &mut out).unwrap();
    let found = out.into_tensor().to_dtype(DType::F32).unwrap().to_vec2().unwrap();
    assert_close(&found, &routed("arrow:top_k=2", &library, &x.to_dtype(DType::F32).unwrap()), 0.01);
}

#[test]
fn the_oracle_prefers_the_recorded_expert_to_the_named_one() {
    let mut library = ["c0", "boolq", "piqa"].map(|name| expert(name, [("q", random(1, 2, INPUT, 8, 1.0))]));
    library[0].tasks = vec!["boolq".to_owned(), "arc".to_owned()];
    let library = experts(library, &qkv());
    assert_eq!(library.names()[expert_of_task("boolq", &library).unwrap()], "c0");
    assert_eq!(library.names()[expert_of_task("piqa", &library).unwrap()], "piqa");
    let error = expert_of_task("hellaswag", &library).unwrap_err().to_string();
    assert!(error.contains("hellaswag") && error.contains("boolq, c0 (boolq, arc), piqa"), "{error}");
}

#[test]
fn a_scaled_mean_is_a_multiple_of_the_mean() {
    let x = tokens(52, 9, INPUT);
    for library in [even(), tied()] {
        let n = library.len() as f64;
        for mixing in ["outputs", "separate"] {
            let mean = routed(&format!("uniform:mixing={mixing}"), &library, &x);
            let double: Vec<Vec<f32>> = mean.iter().map(|row| row.iter().map(|value| 2.0 * value).collect()).collect();
            assert_close(&routed(&format!("uniform:scale=2,mixing={mixing}"), &library, &x), &double, 1e-5);
        }
        assert_close(&routed("uniform:scale=0.5", &library, &x), &dense(&library, &x, |_, _, _| 0.5 / n), 1e-5);
    }
}

#[test]
fn all_random_experts_are_the_mean() {
    let x = tokens(54, 9, INPUT);
    for library in [even(), uneven(), tied()] {
        assert_close(&routed("random:top_k=all", &library, &x), &routed("uniform", &library, &x), 1e-5);
    }
}

#[test]
fn random_experts_depend_on_the_position_alone() {
    let library = even();
    let patches = parse_router("random:top_k=2").unwrap().patches(&library, &RouterContext::default()).unwrap();
    let x = tokens(55, 12, INPUT);
    let of = |rows: &SequenceBatch| added(&patches, &library, &x.narrow(0, 0, rows.tokens()).unwrap(), rows);
    let whole = of(&SequenceBatch::packed([12]));
    let cached = SequenceBatch::new([Sequence { len: 12, position: 3, ..Sequence::default() }]);
    let packed = of(&SequenceBatch::packed([5, 7]));
    assert_close(&whole[..5], &packed[..5], 1e-6);
    assert_ne!(whole[5..], packed[5..], "the second row begins at position zero");
    assert_ne!(whole, of(&cached));
    // Two experts at one half each, and not the same two everywhere.
    let weights = |token: usize| {
        (0..4)
            .flat_map(|a| (0..a).map(move |b| (a, b)))
            .filter(|(a, b)| {
                let pair = dense(&library, &x, |_, _, e| if e == *a || e == *b { 0.5 } else { 0.0 });
                pair[token].iter().zip(&whole[token]).all(|(one, other)| (one - other).abs() < 1e-4)
            })
            .collect::<Vec<_>>()
    };
    let drawn: Vec<Vec<(usize, usize)>> = (0..12).map(weights).collect();
    assert!(drawn.iter().all(|pairs| pairs.len() == 1), "{drawn:?}");
    assert!(drawn.iter().any(|pairs| pairs != &drawn[0]), "{drawn:?}");
    assert_ne!(whole, routed("random:top_k=2,seed=1", &library, &x));
}

#[test]
fn the_mean_at_arrows_norm_has_its_length_and_the_means_direction() {
    let x = tokens(56, 9, INPUT);
    for library in [even(), uneven(), tied()] {
        let (found, mean, arrow) = (
            routed("arrow_norm:top_k=2", &library, &x),
            routed("uniform", &library, &x),
            routed("arrow:top_k=2", &library, &x),
        );
        let length = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>().sqrt();
        for ((found, mean), arrow) in found.iter().zip(&mean).zip(&arrow) {
            let product: f32 = found.iter().zip(mean).map(|(a, b)| a * b).sum();
            assert!((product / length(found) / length(mean) - 1.0).abs() < 1e-5);
            assert!((length(found) / length(arrow) - 1.0).abs() < 1e-4, "{found:?} {arrow:?}");
        }
    }
}
