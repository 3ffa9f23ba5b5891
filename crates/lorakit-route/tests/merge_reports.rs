//! What merges report of their results, and the warnings about settings.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use lorakit_route::merge::parse_merge;
use small_library::merging::{dense_sum, merge, mixed, singular_values};
use small_library::*;

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
fn ctm_retains_more_at_a_higher_rank_and_reports_it() {
    let experts = mixed();
    let retained = |rank: &str| {
        let merged = merge(&format!("ctm:inner=task_arithmetic,beta=1,rank={rank}"), &experts, &[1.0; 3]);
        let report = merged.report.iter().find(|of| of.module == "q").unwrap().clone();
        (report.rank, report.retained)
    };
    let found = ["1", "2", "4", "full"].map(retained);
    assert_eq!(found.map(|(rank, _)| rank), [1, 2, 4, 6]);
    assert!(found.windows(2).all(|pair| pair[0].1 < pair[1].1), "{found:?}");
    assert_eq!(found[3].1, 1.0);
}
