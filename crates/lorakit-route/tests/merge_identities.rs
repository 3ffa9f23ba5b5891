//! Properties of merges that hold for any values.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use lorakit_adapter::AdapterMetadata;
use lorakit_route::Expert;
use lorakit_route::merge::{
    Coefficients, Concatenation, MERGES, MergeMethod, Merged, Orientation, add_to_weight, parse_calibration,
    parse_merge,
};
use small_library::merging::{assert_delta, dense_sum, gauged, merge, mixed};
use small_library::*;

const SUMS: [&str; 7] = [
    "cat",
    "svd:rank=full",
    "task_arithmetic",
    "knots:inner=task_arithmetic",
    "core_space:inner=task_arithmetic",
    "ctm:inner=task_arithmetic,rank=full",
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
    "ctm:inner=task_arithmetic",
    "ctm:rank=2,beta=1",
];

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
        "ctm:inner=task_arithmetic",
        "ctm:inner=task_arithmetic,beta=1,rank=2",
        "ctm:inner=magnitude_prune",
        "ctm:inner=dare_linear",
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
