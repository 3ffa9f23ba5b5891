//! Properties of merges that hold for any values.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use lorakit_adapter::{AdapterMetadata, LowRank};
use lorakit_route::Expert;
use lorakit_route::merge::{
    Coefficients, Concatenation, MERGES, MergeMethod, Merged, Orientation, add_to_weight, parse_calibration,
    parse_merge,
};
use small_library::*;

const SUMS: [&str; 7] = [
    "cat",
    "svd:rank=full",
    "task_arithmetic",
    "knots:inner=task_arithmetic",
    "core_space:inner=task_arithmetic",
    "ctm:merge=task_arithmetic,rank=full",
    "lego:rank=full",
];

/// Merges that depend on deltas only, at a rank without truncation.
const IN_DELTA_SPACE: [&str; 25] = [
    "cat",
    "svd:rank=2",
    "task_arithmetic:scale=0.3",
    "linear:convention=mergekit",
    "ties:convention=mergekit,density=0.5,rank=full",
    "ties_svd:rank=full",
    "ties_svd:convention=paper,rank=full",
    "ties_svd:sign=frequency,rank=full",
    "dare_linear:convention=paper,density=0.5,rank=full",
    "dare_linear_svd:rank=full",
    "dare_ties:convention=mergekit,density=0.5,rank=full",
    "dare_ties_svd:rank=full",
    "magnitude_prune_svd:rank=full",
    "breadcrumbs:density=0.5,gamma=0.1,rank=full",
    "breadcrumbs_ties:density=0.5,gamma=0.1,rank=full",
    "core_space",
    "core_space:inner=dare_linear",
    "knots",
    "wudi",
    "tsv",
    "tsv:keep=all",
    "iso_c",
    "iso_cts",
    "ctm:merge=task_arithmetic",
    "ctm:rank=2,beta=1",
];

fn merge(text: &str, experts: &[Expert], weights: &[f64]) -> Merged {
    parse_merge(text).unwrap().merge(experts, &Coefficients::new(weights.to_vec())).unwrap()
}

/// Experts of different ranks and scales; the second lacks a module, as the third lacks another.
fn mixed() -> Vec<Expert> {
    vec![
        expert("one", [("q", random(1, 3, 9, 7, 2.0)), ("v", random(2, 3, 9, 4, 2.0))]),
        expert("two", [("q", random(3, 2, 9, 7, 0.5))]),
        expert("three", [("q", random(5, 1, 9, 7, -1.0)), ("o", random(6, 2, 7, 9, 1.5))]),
    ]
}

/// `sum w D`, dense, of a module that the first has.
fn dense_sum(experts: &[Expert], weights: &[f64], module: &str) -> Vec<f64> {
    let mut sum = Vec::new();
    for (expert, weight) in experts.iter().zip(weights) {
        let Some(update) = expert.adapter.modules().get(module) else { continue };
        sum.resize(update.input() * update.output(), 0.0);
        sum.iter_mut().zip(update.delta()).for_each(|(sum, value)| *sum += weight * f64::from(value));
    }
    sum
}

#[track_caller]
fn assert_delta(found: &LowRank, expected: &[f64], tolerance: f64, what: &str) {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let size = norm(&mut expected.iter().copied());
    assert!(size > 0.0, "a comparison with zeros proves nothing");
    let apart = norm(&mut found.delta().iter().zip(expected).map(|(a, b)| f64::from(*a) - b)) / size;
    assert!(apart < tolerance, "{what}: {apart}");
}

#[test]
fn sums_of_deltas_are_exact_for_any_ranks_scales_and_modules() {
    let (experts, weights) = (mixed(), [0.7, -1.2, 0.4]);
    for text in SUMS {
        let merged = merge(text, &experts, &weights);
        assert_eq!(merged.adapter.modules().len(), 3);
        for (module, update) in merged.adapter.modules() {
            assert_delta(update, &dense_sum(&experts, &weights, module), 1e-6, &format!("{text}, {module}"));
        }
        assert!(merged.report.iter().all(|of| of.retained == 1.0 && of.error == 0.0), "{:?}", merged.report);
    }
    assert_eq!(merge("cat", &experts, &weights).report.iter().map(|of| of.rank).collect::<Vec<_>>(), [2, 6, 3]);
}

#[test]
fn a_module_may_have_its_own_weights() {
    let experts = mixed();
    let coefficients = Coefficients::new(vec![1.0, 0.0, 0.0]).with_module("q", vec![0.5, 2.0, -1.0]);
    let merged = Concatenation.merge(&experts, &coefficients).unwrap().adapter;
    assert_delta(&merged.modules()["q"], &dense_sum(&experts, &[0.5, 2.0, -1.0], "q"), 1e-6, "q");
    assert_delta(&merged.modules()["v"], &dense_sum(&experts, &[1.0, 0.0, 0.0], "v"), 1e-6, "v");
}

#[test]
fn one_expert_at_weight_one_is_unchanged() {
    let one = &mixed()[..1];
    let unchanging = IN_DELTA_SPACE
        .iter()
        .filter(|text| !["density", "scale", "iso_c", "ctm:rank=2"].iter().any(|of| text.contains(of)));
    for text in unchanging.chain(&[
        "lego",
        "linear",
        "linear:convention=paper",
        "ties:density=1",
        "dare_ties:density=1",
        "magnitude_prune:density=1",
    ]) {
        let whole = text.replace("rank=2", "rank=full");
        let whole = match whole.as_str() {
            text if text.contains("_svd") => format!("{text},density=1"),
            "core_space" | "knots" => format!("{whole}:density=1"),
            "core_space:inner=dare_linear" => format!("{whole},density=1"),
            _ => whole,
        };
        let merged = merge(&whole, one, &[1.0]).adapter;
        for (module, update) in merged.modules() {
            assert_delta(update, &dense_sum(one, &[1.0], module), 1e-5, &format!("{whole}, {module}"));
        }
    }
}

/// PEFT's `add_weighted_adapter` merges a single adapter linearly, whatever the method; mergekit trims it.
#[test]
fn one_expert_is_trimmed_by_mergekit_and_not_by_peft() {
    let one = &mixed()[..1];
    for kind in ["ties", "dare_ties", "dare_linear", "magnitude_prune", "ties_svd", "magnitude_prune_svd"] {
        let merged = merge(&format!("{kind}:density=0.2"), one, &[-0.5]).adapter;
        for (module, update) in merged.modules() {
            assert_delta(update, &dense_sum(one, &[-0.5], module), 1e-5, &format!("{kind}, {module}"));
        }
    }
    let trimmed = merge("ties:convention=mergekit,density=0.2,rank=full", one, &[1.0]).adapter;
    assert!(trimmed.norm() < 0.99 * one[0].adapter.norm());
}

#[test]
fn one_hot_weights_give_that_expert() {
    let (experts, weights) = (mixed(), [1.0, 0.0, 0.0]);
    for text in SUMS.iter().chain(&["wudi", "linear:convention=mergekit", "ties:convention=mergekit,rank=full"]) {
        let merged = merge(text, &experts, &weights).adapter;
        for module in ["q", "v"] {
            assert_delta(&merged.modules()[module], &dense_sum(&experts, &weights, module), 1e-5, text);
        }
        // The module that only another expert changes is present, and zero.
        assert_eq!(merged.modules()["o"].norm(), 0.0, "{text}");
    }
}

/// The same deltas with other factors: `(B R^-1, R A)` with `R = [[2, 1, 0], [0, 1, 0], [1, 0, -4]]`.
fn gauged(expert: &Expert) -> Expert {
    let update = |update: &LowRank| {
        let rank = update.rank();
        // Elementary row operations on A and their inverses on B multiply by R and its inverse.
        let (mut a, mut b) = (update.a().values().into_owned(), update.b().values().into_owned());
        let input = update.input();
        for (from, to, by) in [(0, 1, 0.75f32), (1, 2, -1.5), (2, 0, 0.5)] {
            if from >= rank || to >= rank {
                continue;
            }
            for column in 0..input {
                a[to * input + column] += by * a[from * input + column];
            }
            for row in b.chunks_exact_mut(rank) {
                row[from] -= by * row[to];
            }
        }
        a.iter_mut().for_each(|value| *value *= 4.0);
        b.iter_mut().for_each(|value| *value /= 4.0);
        low_rank(rank, a, b, update.scale())
    };
    let modules = expert.adapter.modules().iter().map(|(module, of)| (module.as_str(), update(of)));
    small_library::expert(&expert.name, modules)
}

#[test]
fn merges_of_deltas_do_not_depend_on_the_factorization() {
    let (experts, weights) = (mixed(), [0.7, 0.9, 0.4]);
    let turned: Vec<Expert> = experts.iter().map(gauged).collect();
    for text in IN_DELTA_SPACE {
        let (first, second) = (merge(text, &experts, &weights), merge(text, &turned, &weights));
        for (module, update) in first.adapter.modules() {
            let expected: Vec<f64> = update.delta().into_iter().map(f64::from).collect();
            assert_delta(&second.adapter.modules()[module], &expected, 1e-5, &format!("{text}, {module}"));
        }
    }
    // Merges of factors do, which is why they are not the default.
    let equal = [expert("one", [("q", random(1, 3, 9, 7, 2.0))]), expert("two", [("q", random(3, 3, 9, 7, 0.5))])];
    let turned = [equal[0].clone(), gauged(&equal[1])];
    for text in ["linear", "ties", "magnitude_prune"] {
        let [first, second] = [&equal, &turned].map(|of| merge(text, of, &[1.0, 1.0]).adapter);
        assert!(first.cosine(&second).unwrap() < 0.999, "{text}");
    }
}

/// Merges of A and B separately, by name and convention. All others depend on deltas only.
const ON_FACTORS: [(&str, &str); 9] = [
    ("robust", ""),
    ("lego", ""),
    ("linear", "peft"),
    ("linear", "paper"),
    ("ties", "peft"),
    ("ties", "paper"),
    ("dare_linear", "peft"),
    ("dare_ties", "peft"),
    ("magnitude_prune", "peft"),
];

#[test]
fn other_merges_do_not_depend_on_the_factorization_in_any_convention() {
    let (experts, weights) = (mixed(), [0.7, 0.9, 0.4]);
    let turned: Vec<Expert> = experts.iter().map(gauged).collect();
    let mut checked = 0;
    for about in MERGES {
        for convention in ["", "peft", "mergekit", "paper"] {
            let Some(text) = at_full_rank(about.name, convention) else { continue };
            let named = parse_merge(&text).unwrap().to_string();
            let is_of = |of: &str| of.is_empty() || named.contains(&format!("convention={of}"));
            if ON_FACTORS.iter().any(|(name, of)| about.name == *name && is_of(of)) {
                continue;
            }
            let (first, second) = (merge(&text, &experts, &weights), merge(&text, &turned, &weights));
            for (module, update) in first.adapter.modules() {
                let expected: Vec<f64> = update.delta().into_iter().map(f64::from).collect();
                assert_delta(&second.adapter.modules()[module], &expected, 1e-5, &format!("{text}, {module}"));
            }
            checked += 1;
        }
    }
    assert!(checked >= 2 * MERGES.len() - ON_FACTORS.len(), "{checked}");
}

/// A merge in a convention, if it has it, with a density below one and a rank without truncation.
fn at_full_rank(name: &str, convention: &str) -> Option<String> {
    let settings = [("convention", convention), ("density", "0.6"), ("gamma", "0.1"), ("rank", "full")];
    let mut text = name.to_owned();
    for (key, value) in settings.into_iter().filter(|(_, value)| !value.is_empty()) {
        let separator = if text.contains(':') { ',' } else { ':' };
        let more = format!("{text}{separator}{key}={value}");
        match parse_merge(&more) {
            Ok(_) => text = more,
            Err(_) if key == "convention" => return None,
            // A setting that this merge does not have.
            Err(_) => {}
        }
    }
    Some(text)
}

#[test]
fn at_density_one_dare_is_task_arithmetic_and_ties_of_agreeing_signs_is_the_mean() {
    let (experts, weights) = (mixed(), [0.7, -1.2, 0.4]);
    for text in ["dare_linear_svd:density=1,rank=full", "dare_linear:convention=mergekit,rank=full"] {
        let merged = merge(text, &experts, &weights).adapter;
        for (module, update) in merged.modules() {
            assert_delta(update, &dense_sum(&experts, &weights, module), 1e-6, text);
        }
    }
    let positive = |seed| {
        let positive = |values: Vec<f32>| values.into_iter().map(|value| value.abs() + 0.1).collect();
        low_rank(2, positive(values(seed, 18)), positive(values(seed + 1, 14)), 0.5)
    };
    let agreeing = [expert("one", [("q", positive(1))]), expert("two", [("q", positive(3))])];
    for text in [
        "ties_svd:density=1,rank=full",
        "ties:convention=mergekit,rank=full",
        "ties_svd:convention=paper,density=1,rank=full",
    ] {
        let merged = merge(text, &agreeing, &[1.0, 1.0]).adapter;
        assert_delta(&merged.modules()["q"], &dense_sum(&agreeing, &[0.5, 0.5], "q"), 1e-6, text);
    }
}

#[test]
fn dare_depends_on_seed_and_name_not_on_order() {
    let experts = mixed();
    let dare = |seed: u64, experts: &[Expert]| {
        merge(&format!("dare_linear_svd:density=0.4,rank=full,seed={seed}"), experts, &[1.0; 3]).adapter
    };
    let same = |a: &lorakit_adapter::Adapter, b: &lorakit_adapter::Adapter| a.cosine(b).unwrap() > 1.0 - 1e-9;
    let reversed: Vec<Expert> = experts.iter().rev().cloned().collect();
    assert!(same(&dare(1, &experts), &dare(1, &reversed)));
    assert!(!same(&dare(1, &experts), &dare(2, &experts)));
    assert_eq!(dare(1, &experts).modules(), dare(1, &experts).modules());
}

#[test]
fn the_gradient_of_the_wudi_objective_is_zero_at_the_result() {
    let experts = vec![
        expert("one", [("q", random(1, 3, 9, 7, 2.0))]),
        expert("two", [("q", random(3, 2, 9, 7, 0.5))]),
        expert("three", [("q", random(5, 3, 9, 7, 1.0))]),
    ];
    let (input, output) = (9, 7);
    let gradient = |w: &[f64]| {
        let mut gradient = vec![0f64; output * input];
        for expert in &experts {
            let d: Vec<f64> = expert.adapter.modules()["q"].delta().into_iter().map(f64::from).collect();
            let norm: f64 = d.iter().map(|value| value * value).sum();
            for row in 0..output {
                for column in 0..input {
                    for k in 0..input {
                        let gram: f64 = (0..output).map(|at| d[at * input + k] * d[at * input + column]).sum();
                        gradient[row * input + column] += 2.0 * (w[row * input + k] - d[row * input + k]) * gram / norm;
                    }
                }
            }
        }
        gradient.iter().map(|value| value * value).sum::<f64>().sqrt()
    };
    let merged = merge("wudi", &experts, &[1.0; 3]).adapter.modules()["q"].delta();
    let merged: Vec<f64> = merged.into_iter().map(f64::from).collect();
    let (before, after) = (gradient(&dense_sum(&experts, &[1.0; 3], "q")), gradient(&merged));
    assert!(before > 0.1 && after < 1e-5 * before, "{before} {after}");
}

#[test]
fn wudi_of_disjoint_inputs_is_the_sum() {
    let apart = |seed, from: usize| {
        let mut a = vec![0f32; 2 * 9];
        for (at, value) in values(seed, 8).into_iter().enumerate() {
            a[(at / 4) * 9 + from + at % 4] = value;
        }
        low_rank(2, a, values(seed + 1, 14), 1.5)
    };
    let experts = [expert("one", [("q", apart(1, 0))]), expert("two", [("q", apart(7, 5))])];
    let merged = merge("wudi", &experts, &[1.0, 1.0]).adapter;
    assert_delta(&merged.modules()["q"], &dense_sum(&experts, &[1.0, 1.0], "q"), 1e-5, "wudi");
}

#[test]
fn the_report_has_the_truncation_error() {
    let (experts, weights) = (mixed(), [0.7, -1.2, 0.4]);
    let expected = dense_sum(&experts, &weights, "q");
    let squared: f64 = expected.iter().map(|value| value * value).sum();
    for text in [
        "svd:rank=2",
        "task_arithmetic:rank=2",
        "magnitude_prune_svd:density=1,rank=2",
        "knots:inner=task_arithmetic,rank=2",
    ] {
        let merged = merge(text, &experts, &weights);
        let report = merged.report.iter().find(|of| of.module == "q").unwrap();
        let found = merged.adapter.modules()["q"].delta();
        let apart: f64 = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
        assert_eq!(report.rank, 2);
        assert!(apart > 0.0 && (report.error - (apart / squared).sqrt()).abs() < 1e-6, "{text}: {report:?}");
        assert!((report.retained - (1.0 - apart / squared)).abs() < 1e-6, "{text}: {report:?}");
    }
}

#[test]
fn subspace_iteration_retains_as_much_as_the_exact_svd() {
    // Above 512 rows and columns, only the leading singular triples of a dense delta are computed; a product is exact.
    let experts =
        [expert("one", [("q", random(1, 12, 700, 600, 0.3))]), expert("two", [("q", random(3, 12, 700, 600, 0.2))])];
    let exact = merge("svd:rank=8", &experts, &[1.0, 0.5]);
    let dense = merge("magnitude_prune_svd:density=1,rank=8", &experts, &[1.0, 0.5]);
    assert!(
        (exact.report[0].retained - dense.report[0].retained).abs() < 1e-8,
        "{:?} {:?}",
        exact.report,
        dense.report
    );
    assert!(exact.adapter.cosine(&dense.adapter).unwrap() > 1.0 - 1e-6);
}

#[test]
fn zero_deltas_merge_to_zero() {
    let zero = |name| expert(name, [("q", low_rank(2, values(1, 18), vec![0.0; 14], 1.0))]);
    for about in MERGES {
        let merged = merge(about.name, &[zero("one"), zero("two")], &[1.0, -1.0]);
        assert_eq!(merged.adapter.norm(), 0.0, "{}", about.name);
        assert_eq!(merged.report[0].error, 0.0, "{}", about.name);
        // Beside another expert, a zero delta affects the result only by being counted.
        let beside = merge(about.name, &[zero("one"), expert("two", [("q", random(3, 2, 9, 7, 1.0))])], &[1.0, 1.0]);
        assert!(beside.adapter.norm().is_finite());
    }
    let canceled = merge("cat", &[mixed()[0].clone(), Expert::new("twin", mixed()[0].adapter.clone())], &[1.0, -1.0]);
    assert!(canceled.adapter.norm() < 1e-5);
}

#[test]
fn experts_of_weight_zero_add_no_ranks() {
    let update = |merged: &Merged, module: &str| merged.adapter.modules()[module].clone();
    for text in ["cat", "svd:rank=full", "svd", "task_arithmetic", "wudi"] {
        let (all, alone) = (merge(text, &mixed(), &[0.7, 0.0, 0.0]), merge(text, &mixed()[..1], &[0.7]));
        for module in ["q", "v"] {
            assert_eq!(update(&all, module), update(&alone, module), "{text}: {module}");
        }
        // Only the third has it.
        assert_eq!((update(&all, "o").rank(), update(&all, "o").norm()), (1, 0.0), "{text}");
        let report = all.report.iter().find(|report| report.module == "o").unwrap();
        assert_eq!((report.rank, report.retained), (1, 1.0), "{text}");
    }
    let zero = merge("cat", &mixed(), &[0.0; 3]);
    assert_eq!((update(&zero, "q").rank(), zero.adapter.norm()), (1, 0.0));
    // Between the others.
    let without = vec![mixed()[0].clone(), mixed()[2].clone()];
    let (all, two) = (merge("cat", &mixed(), &[0.7, 0.0, -0.4]), merge("cat", &without, &[0.7, -0.4]));
    assert_eq!(update(&all, "q"), update(&two, "q"));
}

#[test]
fn calibrated_experts_keep_their_names_and_tasks() {
    let tasks = vec!["t".to_owned()];
    let experts: Vec<Expert> = mixed().into_iter().map(|expert| Expert { tasks: tasks.clone(), ..expert }).collect();
    let coefficients = Coefficients::new(vec![1.0; experts.len()]);
    let calibrated = parse_calibration("pico").unwrap().calibrated(&experts, &coefficients).unwrap();
    assert!(calibrated.iter().zip(&experts).all(|(one, other)| one.name == other.name && one.tasks == tasks));
}

/// Merges in which experts of any weight vote on signs, as in PEFT; or whose basis is that of all experts, with such a merge in
/// it.
const OF_ALL_EXPERTS: [&str; 7] = ["ties", "ties_svd", "dare_ties", "dare_ties_svd", "core_space", "knots", "ctm"];

#[test]
fn experts_of_weight_zero_have_no_effect() {
    let experts: Vec<Expert> = [("one", 1, 2.0), ("two", 3, 0.5), ("three", 5, -1.0)]
        .map(|(name, seed, scale)| expert(name, [("q", random(seed, 3, 9, 7, scale))]))
        .into();
    let (weights, without) = ([0.7, -0.4, 0.0], [0.7, -0.4]);
    let mut compared = 0;
    for calibration in ["", "pico", "pico:basis=factors"] {
        for about in MERGES {
            let made = |experts: &[Expert], weights: &[f64]| {
                let (merge, coefficients) = (parse_merge(about.name).unwrap(), Coefficients::new(weights.to_vec()));
                match calibration {
                    "" => merge.merge(experts, &coefficients),
                    text => parse_calibration(text).unwrap().merge(&*merge, experts, &coefficients),
                }
                .unwrap()
            };
            let zero = made(&experts, &[0.0; 3]);
            assert_eq!(zero.adapter.norm(), 0.0, "{}", about.name);
            let report = &zero.report[0];
            assert!(report.retained.is_finite() && report.error.is_finite(), "{}: {report:?}", about.name);
            let of_all = OF_ALL_EXPERTS.contains(&about.name);
            assert_eq!(parse_merge(about.name).unwrap().counts_weight_zero(), of_all, "{}", about.name);
            let (all, two) = (made(&experts, &weights), made(&experts[..2], &without));
            if of_all {
                let [all, two] = [&all, &two].map(|merged| merged.adapter.modules()["q"].delta());
                assert!(all.iter().zip(&two).any(|(a, b)| (a - b).abs() > 1e-4), "{calibration} {}", about.name);
                continue;
            }
            let expected: Vec<f64> = two.adapter.modules()["q"].delta().into_iter().map(f64::from).collect();
            assert_delta(&all.adapter.modules()["q"], &expected, 1e-5, &format!("{calibration} {}", about.name));
            compared += 1;
        }
    }
    assert_eq!(compared, 3 * (MERGES.len() - OF_ALL_EXPERTS.len()));
    for text in [
        "ctm:merge=task_arithmetic",
        "ctm:merge=task_arithmetic,beta=1,rank=2",
        "ctm:merge=magnitude_prune",
        "ctm:merge=dare_linear",
        "knots:inner=task_arithmetic",
        "core_space:inner=task_arithmetic",
        "knots:inner=magnitude_prune,density=1",
        "robust:density=1,clamp=1",
    ] {
        assert!(!parse_merge(text).unwrap().counts_weight_zero(), "{text}");
        let (all, two) = (merge(text, &experts, &weights), merge(text, &experts[..2], &without));
        let expected: Vec<f64> = two.adapter.modules()["q"].delta().into_iter().map(f64::from).collect();
        assert_delta(&all.adapter.modules()["q"], &expected, 1e-5, text);
    }
    for text in ["knots:inner=magnitude_prune", "core_space:inner=dare_linear"] {
        assert!(parse_merge(text).unwrap().counts_weight_zero(), "{text}");
    }
    // Its rank is no obstacle.
    let wide = [experts[0].clone(), expert("wide", [("q", random(7, 4, 9, 7, 1.0))])];
    let (all, alone) = (merge("robust", &wide, &[0.7, 0.0]), merge("robust", &wide[..1], &[0.7]));
    assert_eq!(all.adapter.modules(), alone.adapter.modules());
}

#[test]
fn a_key_that_peft_takes_from_the_base_does_not_keep_experts_apart() {
    let turned = |expert: &Expert| {
        let metadata = AdapterMetadata { fan_in_fan_out: true, ..AdapterMetadata::default() };
        Expert::new(expert.name.clone(), expert.adapter.clone().with_metadata(metadata))
    };
    let (plain, mut other) = (mixed(), mixed());
    other[1] = turned(&other[1]);
    let merged = |experts: &[Expert]| merge("cat", experts, &[0.7, 0.2, -0.4]).adapter;
    assert_eq!(merged(&other).modules(), merged(&plain).modules());
}

#[test]
fn settings_that_one_expert_ignores_are_named() {
    let warning = |text: &str, experts| parse_merge(text).unwrap().warning(experts);
    for text in ["ties:density=0.2", "dare_linear", "magnitude_prune_svd:density=0.9", "ties_svd:density=1,rank=2"] {
        let said = warning(text, 1).unwrap();
        assert!(
            said.contains("merged linearly, as in PEFT") && said.contains(text.split(':').next().unwrap()),
            "{said}"
        );
        assert_eq!(warning(text, 2), None, "{text}");
        let one = &mixed()[..1];
        let (found, plain) = (merge(text, one, &[0.7]), merge("cat", one, &[0.7]));
        for (module, update) in plain.adapter.modules() {
            assert!(found.adapter.modules()[module].cosine(update).unwrap() > 1.0 - 1e-6, "{text}: {module}");
        }
    }
    for text in
        ["cat", "linear", "task_arithmetic", "ties:density=1", "ties:convention=paper,density=0.2", "svd:rank=1"]
    {
        assert_eq!(warning(text, 1), None, "{text}");
    }
}

#[test]
fn merges_that_drop_nothing_by_default_say_so() {
    let warning = |text: &str| parse_merge(text).unwrap().warning(2);
    for text in [
        "breadcrumbs",
        "breadcrumbs_ties:gamma=0.2",
        "ties:convention=mergekit",
        "dare_linear:convention=mergekit",
        "dare_ties:convention=mergekit",
        "magnitude_prune:convention=mergekit",
        "knots:inner=breadcrumbs,convention=mergekit",
    ] {
        let said = warning(text).unwrap();
        assert!(said.starts_with(text.split(':').next().unwrap()) && said.contains("density=1"), "{said}");
        assert_eq!(said.contains("whatever gamma="), text.contains("breadcrumbs"), "{said}");
    }
    for text in ["breadcrumbs:density=0.9", "ties:convention=mergekit,density=0.5", "ties:density=1", "knots", "ctm"] {
        assert_eq!(warning(text), None, "{text}");
    }
}

#[test]
fn directions_that_tsv_does_not_use_are_reported_as_lost() {
    let experts = [expert("one", [("q", random(1, 3, 9, 7, 2.0))]), expert("two", [("q", random(3, 1, 9, 7, 2.0))])];
    // Two of each, of four.
    let values = experts.each_ref().map(|expert| singular_values(&expert.adapter.modules()["q"].delta(), 9));
    let squares = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>();
    let (all, used) = (squares(&values.concat()), squares(&values[0][..2]) + squares(&values[1][..1]));
    let report = |text: &str| merge(text, &experts, &[1.0; 2]).report.remove(0);
    let found = report("tsv");
    assert!((found.retained - used / all).abs() < 1e-5, "{found:?}");
    assert!((found.error - (1.0 - used / all).sqrt()).abs() < 1e-4, "{found:?}");
    let truncated = report("tsv:rank=1");
    assert!(truncated.retained < found.retained && truncated.error > found.error, "{truncated:?}");
    assert!((truncated.retained + truncated.error.powi(2) - 1.0).abs() < 1e-9, "{truncated:?}");
    assert_eq!((report("tsv:keep=all").retained, report("tsv:keep=all").error), (1.0, 0.0));
}

#[test]
fn factors_that_calibration_replaces_are_named() {
    let warning = |text: &str| parse_calibration("pico").unwrap().warning(&*parse_merge(text).unwrap());
    for (text, setting) in [
        ("task_arithmetic:scale=0.3", "scale=0.3"),
        ("ties:scale=2", "scale=2"),
        ("core_space:scale=0.5", "scale=0.5"),
        ("robust:factor=1", "factor=1"),
    ] {
        let said = warning(text).unwrap();
        assert!(said.contains("mean norm") && said.ends_with(setting), "{said}");
    }
    for about in MERGES {
        assert_eq!(warning(about.name), None, "{}", about.name);
    }
}

#[test]
fn adding_an_adapter_to_a_weight_adds_its_delta() {
    let update = random(1, 3, 9, 7, 2.0);
    let weight = values(77, 63);
    let sum: Vec<f32> = weight.iter().zip(update.delta()).map(|(w, d)| (f64::from(*w) + f64::from(d)) as f32).collect();
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
    let mut found = weight.clone();
    add_to_weight("q", &update, &mut found, Orientation::OutIn).unwrap();
    assert!(close(&found, &sum));
    let transposed = |of: &[f32]| -> Vec<f32> { (0..9).flat_map(|i| (0..7).map(move |o| of[o * 9 + i])).collect() };
    let mut found = transposed(&weight);
    add_to_weight("q", &update, &mut found, Orientation::InOut).unwrap();
    assert!(close(&found, &transposed(&sum)));
    assert!(add_to_weight("q", &update, &mut found[1..], Orientation::InOut).unwrap_err().to_string().contains("q"));
}

/// `values` times a matrix with orthonormal rows, from a random one by Gram and Schmidt.
fn orthonormal_rows(seed: u64, rows: usize, columns: usize) -> Vec<Vec<f64>> {
    let mut found: Vec<Vec<f64>> = Vec::new();
    for row in values(seed, rows * columns).chunks_exact(columns) {
        let mut row: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
        for before in &found {
            let inside: f64 = row.iter().zip(before).map(|(a, b)| a * b).sum();
            row.iter_mut().zip(before).for_each(|(value, before)| *value -= inside * before);
        }
        let norm = row.iter().map(|value| value * value).sum::<f64>().sqrt();
        row.iter_mut().for_each(|value| *value /= norm);
        found.push(row);
    }
    found
}

#[test]
fn tsv_of_orthogonal_adapters_is_the_sum() {
    let (rows, columns) = (orthonormal_rows(1, 5, 9), orthonormal_rows(2, 5, 11));
    let one = |name, span: std::ops::Range<usize>, scale| {
        let rank = span.len();
        let a: Vec<f32> = rows[span.clone()].concat().into_iter().map(|value| value as f32).collect();
        let b = (0..11).flat_map(|output| span.clone().map(move |at| (at, output)));
        let b = b.map(|(at, output)| ((at + 1) as f64 * columns[at][output]) as f32).collect();
        expert(name, [("q", low_rank(rank, a, b, scale))])
    };
    let experts = [one("one", 0..3, 2.0), one("two", 3..5, 0.5)];
    for (text, weights) in [("tsv:keep=all", [0.7, -1.2]), ("tsv:keep=all,rank=full", [1.0, 1.0])] {
        let merged = merge(text, &experts, &weights).adapter;
        assert_delta(&merged.modules()["q"], &dense_sum(&experts, &weights, "q"), 1e-6, text);
    }
}

/// Experts that were trained from one A and left it as it was span no more inputs than one of them.
#[test]
fn experts_of_one_a_keep_all_their_directions() {
    let a = values(1, 3 * 9);
    let of = |name: &str, seed: u64| expert(name, [("q", low_rank(3, a.clone(), values(seed, 3 * 7), 2.0))]);
    let experts = [of("one", 3), of("two", 5)];
    let [equal, all] = ["tsv", "tsv:keep=all"].map(|text| merge(text, &experts, &[1.0; 2]).adapter);
    let all: Vec<f64> = all.modules()["q"].delta().into_iter().map(f64::from).collect();
    assert_delta(&equal.modules()["q"], &all, 1e-6, "tsv");
    // With other factors, rounding is in the directions that both lack.
    let turned = [experts[0].clone(), gauged(&experts[1])];
    for text in ["tsv", "iso_c", "iso_cts", "ctm", "core_space"] {
        let [first, second] = [&experts, &turned].map(|of| merge(text, of, &[1.0; 2]).adapter);
        let expected: Vec<f64> = first.modules()["q"].delta().into_iter().map(f64::from).collect();
        assert_delta(&second.modules()["q"], &expected, 1e-5, text);
    }
}

#[test]
fn iso_c_has_equal_singular_values_of_the_same_sum() {
    let experts = mixed();
    let nuclear = |delta: Vec<f32>| -> f64 { singular_values(&delta, 9).iter().sum() };
    let sum = merge("cat", &experts, &[0.7, 0.9, 0.4]).adapter.modules()["q"].delta();
    for (text, rank) in [("iso_c", 6), ("iso_c:rank=2", 2), ("iso_cts:fraction=1", 6), ("iso_cts:rank=5", 5)] {
        let merged = merge(text, &experts, &[0.7, 0.9, 0.4]);
        let values = singular_values(&merged.adapter.modules()["q"].delta(), 9);
        let report = merged.report.iter().find(|of| of.module == "q").unwrap();
        assert_eq!(report.rank, rank, "{text}");
        assert!(values[..rank].iter().all(|value| (value / values[0] - 1.0).abs() < 1e-5), "{text}: {values:?}");
        assert!(values[rank..].iter().all(|value| value / values[0] < 1e-5), "{text}: {values:?}");
        assert_eq!(report.retained == 1.0, rank == 6, "{text}: {report:?}");
    }
    let whole = merge("iso_c", &experts, &[0.7, 0.9, 0.4]).adapter.modules()["q"].delta();
    assert!((nuclear(whole.clone()) / nuclear(sum) - 1.0).abs() < 1e-5);
    // Without directions of the experts' own, Iso-CTS is Iso-C.
    let other = merge("iso_cts:fraction=1", &experts, &[0.7, 0.9, 0.4]).adapter;
    let whole: Vec<f64> = whole.into_iter().map(f64::from).collect();
    assert_delta(&other.modules()["q"], &whole, 1e-5, "iso_cts:fraction=1");
}

#[test]
fn a_lower_rank_is_that_of_the_largest_directions() {
    let (experts, weights) = (mixed(), [0.7, 0.9, 0.4]);
    // The merge of `text` is that of `then` over what `first` gives.
    for (text, first, then) in [
        ("iso_c:rank=2", "svd:rank=2", "iso_c"),
        ("tsv:rank=2", "tsv", "svd:rank=2"),
        ("tsv:rank=1", "tsv", "svd:rank=1"),
    ] {
        let whole = [Expert::new("whole", merge(first, &experts, &weights).adapter)];
        let expected = merge(then, &whole, &[1.0]).adapter.modules()["q"].delta();
        let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
        assert_delta(&merge(text, &experts, &weights).adapter.modules()["q"], &expected, 1e-5, text);
    }
}

/// RobustMerge takes A and B apart, so a weight or a scale acts as a factor of B.
#[test]
fn robust_multiplies_b_by_weight_and_scale() {
    let raw = [("one", 1, 2.0, 0.7), ("two", 3, 0.5, -1.2)];
    let plain = raw.map(|(name, seed, scale, _)| expert(name, [("q", random(seed, 3, 9, 7, scale))]));
    let in_b = raw.map(|(name, seed, scale, weight)| {
        let update = random(seed, 3, 9, 7, 1.0);
        let b = update.b().values().iter().map(|value| value * (weight * scale) as f32).collect();
        expert(name, [("q", low_rank(3, update.a().values().into_owned(), b, 1.0))])
    });
    let expected = merge("robust", &in_b, &[1.0; 2]).adapter.modules()["q"].delta();
    let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
    assert_delta(&merge("robust", &plain, &[0.7, -1.2]).adapter.modules()["q"], &expected, 1e-5, "robust");
}

#[test]
fn an_expert_that_changes_nothing_has_no_part_in_calibration() {
    let zero = expert("zero", [("q", low_rank(2, values(1, 18), vec![0.0; 14], 1.0))]);
    let beside = [mixed(), vec![zero]].concat();
    for text in ["pico", "pico:basis=factors"] {
        let of = |experts: &[Expert]| {
            let (calibration, ones) = (parse_calibration(text).unwrap(), Coefficients::ones(experts.len()));
            calibration.merge(&*parse_merge("cat").unwrap(), experts, &ones).unwrap().adapter.modules()["q"].clone()
        };
        let expected: Vec<f64> = of(&mixed()).delta().into_iter().map(f64::from).collect();
        assert_delta(&of(&beside), &expected, 1e-5, text);
    }
}

/// Decreasing singular values of a matrix of `columns` columns, by Jacobi's one-sided rotations of its rows.
fn singular_values(matrix: &[f32], columns: usize) -> Vec<f64> {
    let mut rows: Vec<Vec<f64>> =
        matrix.chunks_exact(columns).map(|row| row.iter().map(|value| f64::from(*value)).collect()).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for _ in 0..60 {
        for one in 0..rows.len() {
            for other in 0..one {
                let (a, b, c) =
                    (dot(&rows[one], &rows[one]), dot(&rows[other], &rows[other]), dot(&rows[one], &rows[other]));
                if c.abs() <= 1e-15 * (a * b).sqrt() {
                    continue;
                }
                let angle = 0.5 * (2.0 * c).atan2(a - b);
                let (sin, cos) = angle.sin_cos();
                let (before, after) = rows.split_at_mut(one);
                for (x, y) in after[0].iter_mut().zip(&mut before[other]) {
                    (*x, *y) = (cos * *x + sin * *y, cos * *y - sin * *x);
                }
            }
        }
    }
    let mut values: Vec<f64> = rows.iter().map(|row| dot(row, row).sqrt()).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

#[test]
fn ctm_retains_more_at_a_higher_rank_and_reports_it() {
    let experts = mixed();
    let retained = |rank: &str| {
        let merged = merge(&format!("ctm:merge=task_arithmetic,beta=1,rank={rank}"), &experts, &[1.0; 3]);
        let report = merged.report.iter().find(|of| of.module == "q").unwrap().clone();
        (report.rank, report.retained)
    };
    let found = ["1", "2", "4", "full"].map(retained);
    assert_eq!(found.map(|(rank, _)| rank), [1, 2, 4, 6]);
    assert!(found.windows(2).all(|pair| pair[0].1 < pair[1].1), "{found:?}");
    assert_eq!(found[3].1, 1.0);
}

#[test]
fn calibrated_experts_depend_on_the_deltas_alone() {
    let experts = mixed();
    let turned: Vec<Expert> = experts.iter().map(gauged).collect();
    let calibration = parse_calibration("pico").unwrap();
    let ones = Coefficients::ones(3);
    let [first, second] = [&experts, &turned].map(|of| calibration.calibrated(of, &ones).unwrap());
    let by_factors = parse_calibration("pico:basis=factors").unwrap();
    let [raw, other_raw] = [&experts, &turned].map(|of| by_factors.calibrated(of, &ones).unwrap());
    for at in 0..experts.len() {
        let before = &experts[at].adapter;
        assert_eq!(first[at].adapter.modules().keys().collect::<Vec<_>>(), before.modules().keys().collect::<Vec<_>>());
        let update = &first[at].adapter.modules()["q"];
        assert_eq!(update.rank(), before.modules()["q"].rank());
        let expected: Vec<f64> = update.delta().into_iter().map(f64::from).collect();
        assert_delta(&second[at].adapter.modules()["q"], &expected, 1e-5, "pico");
        assert!(update.norm() < 0.99 * before.modules()["q"].norm(), "shared directions are damped");
    }
    // From the factors, it depends on how they were chosen.
    let apart = raw[0].adapter.modules()["q"].cosine(&other_raw[0].adapter.modules()["q"]).unwrap();
    assert!(apart < 0.9999, "{apart}");
    // A module that only one expert changes has nothing to share.
    assert_eq!(first[0].adapter.modules()["v"], experts[0].adapter.modules()["v"]);
}

#[test]
fn calibrated_merges_have_the_mean_norm_of_the_experts() {
    let experts = mixed();
    let calibration = parse_calibration("pico").unwrap();
    let norm = |at: usize| experts[at].adapter.modules()["q"].norm();
    for text in ["cat", "svd:rank=2", "tsv", "ties_svd", "ctm"] {
        let merge = parse_merge(text).unwrap();
        let of = |weights: [f64; 3]| {
            let merged = calibration.merge(&*merge, &experts, &Coefficients::new(weights.to_vec())).unwrap();
            merged.adapter.modules()["q"].norm()
        };
        assert!((of([1.0; 3]) / ((norm(0) + norm(1) + norm(2)) / 3.0) - 1.0).abs() < 1e-6, "{text}");
        assert!((of([2.0, -1.0, 1.0]) / ((2.0 * norm(0) + norm(1) + norm(2)) / 4.0) - 1.0).abs() < 1e-6, "{text}");
        assert_eq!(of([0.0; 3]), 0.0, "{text}");
    }
}

#[test]
fn what_rounding_leaves_of_canceling_experts_is_not_enlarged() {
    let one = expert("one", [("q", random(1, 3, 9, 7, 2.0))]);
    let twins = [one.clone(), Expert::new("twin", one.adapter.clone())];
    let calibration = parse_calibration("pico").unwrap();
    let norm = |weights: [f64; 2]| {
        let coefficients = Coefficients::new(weights.to_vec());
        calibration.merge(&Concatenation, &twins, &coefficients).unwrap().adapter.norm()
    };
    let own = one.adapter.norm();
    assert!(norm([0.7, -0.7]) < 1e-5 * own);
    // A small difference is one.
    assert!((norm([0.7, -0.69]) / own - 1.0).abs() < 1e-4);
}

#[test]
fn lego_of_two_equal_experts_is_their_sum_up_to_a_factor() {
    let one = expert("one", [("q", random(1, 3, 9, 7, 2.0))]);
    let twins = [one.clone(), Expert::new("twin", one.adapter.clone())];
    // Each cluster has a unit of each: the mean unit, and B times sqrt(6 / 3).
    let merged = merge("lego", &twins, &[1.0, 1.0]).adapter;
    let half = 2f64.sqrt() / 2.0;
    assert_delta(&merged.modules()["q"], &dense_sum(&twins, &[half, half], "q"), 1e-6, "lego");
}
