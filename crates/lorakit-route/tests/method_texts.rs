//! The exact text of each method, which is hashed into cache keys and written to results.json.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use lorakit_route::merge::{MERGES, parse_calibration, parse_merge};
use lorakit_route::{FITTED_MERGES, ROUTERS, parse_fitted_merge, parse_router};

/// Input text, and how the parsed router is displayed.
const ROUTER_TEXTS: &[(&str, &str)] = &[
    ("base", "base"),
    ("oracle", "oracle"),
    ("uniform", "uniform:mixing=outputs"),
    ("uniform:mixing=separate", "uniform:mixing=separate"),
    ("uniform:scale=1", "uniform:mixing=outputs"),
    ("uniform:scale=2.5", "uniform:mixing=outputs,scale=2.5"),
    ("scaled_uniform", "scaled_uniform:rows=16,mixing=outputs"),
    ("scaled_uniform:rows=4,mixing=separate", "scaled_uniform:rows=4,mixing=separate"),
    ("random", "random:top_k=4,seed=0,mixing=outputs"),
    ("random:top_k=all,seed=7,mixing=separate", "random:top_k=all,seed=7,mixing=separate"),
    ("arrow_norm", "arrow_norm:top_k=4,temperature=1,mixing=outputs"),
    ("arrow_norm:top_k=1,temperature=0.5,mixing=separate", "arrow_norm:top_k=1,temperature=0.5,mixing=separate"),
    ("arrow", "arrow:top_k=4,temperature=1,mixing=outputs,tie=none"),
    (
        "arrow:top_k=all,temperature=0.5,mixing=separate,tie=site,general=a+b,gks=deltas",
        "arrow:top_k=all,temperature=0.5,mixing=separate,tie=site,general=a+b,gks=deltas",
    ),
    ("arrow: top_k = 2 , tie=site", "arrow:top_k=2,temperature=1,mixing=outputs,tie=site"),
    ("arrow:gks=deltas", "arrow:top_k=4,temperature=1,mixing=outputs,tie=none"),
    ("spectr", "spectr:measure=length,top_k=4"),
    ("spectr:top_k=all,measure=norm", "spectr:measure=norm,top_k=all"),
    ("lag", "lag:top_k=20"),
    ("lag:top_k=all", "lag:top_k=all"),
    ("cm", "cm:top_k=all,temperature=1,score=dot,pool=last,rows=10,mixing=outputs"),
    (
        "cm:top_k=3,temperature=2,score=cosine,pool=mean,rows=all,mixing=separate",
        "cm:top_k=3,temperature=2,score=cosine,pool=mean,rows=all,mixing=separate",
    ),
    ("phatgoose", "phatgoose:top_k=2,temperature=1,steps=100,learning_rate=0.001,batch_size=4,rows=all,mixing=outputs"),
    (
        "phatgoose:top_k=all,temperature=0.25,steps=7,learning_rate=1e-5,batch_size=1,rows=9,mixing=separate",
        "phatgoose:top_k=all,temperature=0.25,steps=7,learning_rate=0.00001,batch_size=1,rows=9,mixing=separate",
    ),
    ("tp", "tp:top_k=1,temperature=1,rows=100,mixing=outputs"),
    ("tp:top_k=all,temperature=1.5,rows=all,mixing=separate", "tp:top_k=all,temperature=1.5,rows=all,mixing=separate"),
    ("tfidf", "tfidf:rows=100,mixing=outputs"),
    ("tfidf:rows=all,mixing=separate", "tfidf:rows=all,mixing=separate"),
    ("logo", "logo:measure=norm,top_k=20"),
    ("logo:top_k=all,measure=entropy", "logo:measure=entropy,top_k=all"),
    ("retrieve", "retrieve:rows=200,top_k=3,temperature=0.2"),
    ("retrieve:rows=all,top_k=all,temperature=1", "retrieve:rows=all,top_k=all,temperature=1"),
    (
        "evidence",
        "evidence:top_k=all,temperature=auto,far_tail=0.02,near_tail=0.2,fallback=auto,measure=energy,rows=16,calibration_rows=4,mixing=outputs",
    ),
    (
        "evidence:top_k=2,temperature=0.1,far_tail=0.01,near_tail=1,fallback=arrow,measure=arrow,rows=all,calibration_rows=9,mixing=separate",
        "evidence:top_k=2,temperature=0.1,far_tail=0.01,near_tail=1,fallback=arrow,measure=arrow,rows=all,calibration_rows=9,mixing=separate",
    ),
    ("poly", "poly:unseen=fit,rows=all,steps=100,rate=0.1"),
    ("poly:learning_rate=0.5", "poly:unseen=fit,rows=all,steps=100,rate=0.5"),
    ("poly:unseen=mean,rows=5,steps=1,rate=0.001", "poly:unseen=mean,rows=5,steps=1,rate=0.001"),
    ("mhr", "mhr:unseen=fit,rows=all,steps=100,rate=0.1"),
    ("mhr:unseen=mean,rows=5,steps=1,rate=0.001", "mhr:unseen=mean,rows=5,steps=1,rate=0.001"),
    ("lorahub", "lorahub:mode=greedy,rows=5,experts=3"),
    ("lorahub:mode=greedy,rows=7,experts=2", "lorahub:mode=greedy,rows=7,experts=2"),
    ("lorahub:mode=as-published", "lorahub:mode=as-published,rows=5,budget=40"),
    ("lorahub:mode=as-published,rows=2,budget=9", "lorahub:mode=as-published,rows=2,budget=9"),
    ("cat", "cat:per=layer,simplex=false,rows=100,steps=100,learning_rate=0.05"),
    (
        "cat:per=module,simplex=true,rows=3,steps=0,learning_rate=1e-4",
        "cat:per=module,simplex=true,rows=3,steps=0,learning_rate=0.0001",
    ),
    ("cat:per=expert", "cat:per=expert,simplex=false,rows=100,steps=100,learning_rate=0.05"),
    ("cat:per=site", "cat:per=site,simplex=false,rows=100,steps=100,learning_rate=0.05"),
    ("expert:boolq", "expert:boolq"),
    ("expert:a=b,c", "expert:a=b,c"),
    ("expert:a:b", "expert:a:b"),
];

/// Input text, and how the parsed merge is displayed.
const MERGE_TEXTS: &[(&str, &str)] = &[
    ("cat", "cat"),
    ("svd", "svd:rank=largest"),
    ("svd:rank=full", "svd:rank=full"),
    ("svd:rank=8", "svd:rank=8"),
    ("linear", "linear:convention=peft,scale=1"),
    ("linear:convention=mergekit", "linear:convention=mergekit,scale=1,rank=full"),
    ("linear:convention=paper,scale=2", "linear:convention=paper,scale=2"),
    ("task_arithmetic", "task_arithmetic:convention=paper,scale=1,rank=full"),
    ("task_arithmetic:convention=peft,scale=0.4,rank=4", "task_arithmetic:convention=peft,scale=0.4,rank=4"),
    ("task_arithmetic:convention=mergekit", "task_arithmetic:convention=mergekit,scale=1,rank=full"),
    ("ties", "ties:convention=peft,density=0.5,sign=total,scale=1"),
    ("ties:convention=mergekit", "ties:convention=mergekit,density=1,sign=total,scale=1,rank=largest"),
    ("ties:convention=paper", "ties:convention=paper,density=0.2,sign=total,scale=1"),
    ("ties:density=0.2,sign=frequency,scale=0.3", "ties:convention=peft,density=0.2,sign=frequency,scale=0.3"),
    ("ties_svd", "ties_svd:convention=peft,density=0.5,sign=total,scale=1,rank=largest"),
    ("ties_svd:convention=paper,rank=full", "ties_svd:convention=paper,density=0.2,sign=total,scale=1,rank=full"),
    ("dare_linear", "dare_linear:convention=peft,density=0.5,seed=0,scale=1"),
    ("dare_linear:convention=mergekit", "dare_linear:convention=mergekit,density=1,seed=0,scale=1,rank=largest"),
    ("dare_linear:convention=paper,seed=7", "dare_linear:convention=paper,density=0.1,seed=7,scale=1,rank=largest"),
    ("dare_linear_svd", "dare_linear_svd:convention=peft,density=0.5,seed=0,scale=1,rank=largest"),
    (
        "dare_linear_svd:density=0.1,seed=3,scale=2,rank=2",
        "dare_linear_svd:convention=peft,density=0.1,seed=3,scale=2,rank=2",
    ),
    ("dare_ties", "dare_ties:convention=peft,density=0.5,sign=total,seed=0,scale=1"),
    ("dare_ties:convention=mergekit", "dare_ties:convention=mergekit,density=1,sign=total,seed=0,scale=1,rank=largest"),
    ("dare_ties:convention=paper", "dare_ties:convention=paper,density=0.1,sign=total,seed=0,scale=1,rank=largest"),
    (
        "dare_ties:density=1e-5,seed=18446744073709551615",
        "dare_ties:convention=peft,density=0.00001,sign=total,seed=18446744073709551615,scale=1",
    ),
    ("dare_ties_svd", "dare_ties_svd:convention=peft,density=0.5,sign=total,seed=0,scale=1,rank=largest"),
    ("magnitude_prune", "magnitude_prune:convention=peft,density=0.5,scale=1"),
    (
        "magnitude_prune:convention=mergekit,density=0.9",
        "magnitude_prune:convention=mergekit,density=0.9,scale=1,rank=largest",
    ),
    ("magnitude_prune_svd", "magnitude_prune_svd:convention=peft,density=0.5,scale=1,rank=largest"),
    ("breadcrumbs", "breadcrumbs:convention=mergekit,density=1,gamma=0.01,scale=1,rank=largest"),
    (
        "breadcrumbs:density=0.9,gamma=0.05,scale=3,rank=full",
        "breadcrumbs:convention=mergekit,density=0.9,gamma=0.05,scale=3,rank=full",
    ),
    ("breadcrumbs_ties", "breadcrumbs_ties:convention=mergekit,density=1,gamma=0.01,sign=total,scale=1,rank=largest"),
    (
        "breadcrumbs_ties:sign=frequency",
        "breadcrumbs_ties:convention=mergekit,density=1,gamma=0.01,sign=frequency,scale=1,rank=largest",
    ),
    ("core_space", "core_space:inner=ties,convention=peft,density=0.5,sign=total,scale=1,basis=deltas,rank=full"),
    (
        "core_space:inner=task_arithmetic",
        "core_space:inner=task_arithmetic,convention=peft,scale=1,basis=deltas,rank=full",
    ),
    (
        "core_space:inner=breadcrumbs_ties,convention=mergekit,gamma=0.1,basis=factors,rank=3",
        "core_space:inner=breadcrumbs_ties,convention=mergekit,density=1,gamma=0.1,sign=total,scale=1,basis=factors,rank=3",
    ),
    (
        "core_space:inner=dare_ties,convention=mergekit,density=0.4,seed=9",
        "core_space:inner=dare_ties,convention=mergekit,density=0.4,sign=total,seed=9,scale=1,basis=deltas,rank=full",
    ),
    ("knots", "knots:inner=ties,convention=peft,density=0.5,sign=total,scale=1,rank=full"),
    (
        "knots:inner=magnitude_prune,density=0.1,rank=largest",
        "knots:inner=magnitude_prune,convention=peft,density=0.1,scale=1,rank=largest",
    ),
    ("knots:inner=dare_linear", "knots:inner=dare_linear,convention=peft,density=0.5,seed=0,scale=1,rank=full"),
    ("wudi", "wudi:rank=full,tolerance=0.000001"),
    ("wudi:rank=4,tolerance=0", "wudi:rank=4,tolerance=0"),
    ("wudi:tolerance=1e-9", "wudi:rank=full,tolerance=0.000000001"),
    ("tsv", "tsv:keep=equal,rank=full"),
    ("tsv:keep=all,rank=8", "tsv:keep=all,rank=8"),
    ("iso_c", "iso_c:rank=full"),
    ("iso_cts:fraction=0.5", "iso_cts:fraction=0.5,rank=full"),
    ("iso_cts:rank=largest", "iso_cts:fraction=0.8,rank=largest"),
    ("ctm", "ctm:inner=ties,convention=peft,density=0.5,sign=total,scale=1,rank=largest,beta=0.25,stop=converged"),
    (
        "ctm:rank=8,beta=1,merge=task_arithmetic,stop=published",
        "ctm:inner=task_arithmetic,convention=peft,scale=1,rank=8,beta=1,stop=published",
    ),
    ("robust", "robust:density=0.2,clamp=0.2,factor=2"),
    ("lego", "lego:rank=largest,seed=0"),
    ("lego:rank=4,seed=7", "lego:rank=4,seed=7"),
];

/// Input text, and how the parsed fitted merge is displayed.
const FITTED_MERGE_TEXTS: &[(&str, &str)] = &[
    ("lorahub", "lorahub:mode=greedy,rows=5,experts=3"),
    ("lorahub:mode=as-published,budget=3", "lorahub:mode=as-published,rows=5,budget=3"),
    ("cat_learned", "cat_learned:per=layer,simplex=false,rows=100,steps=100,learning_rate=0.05"),
    ("cat_learned:per=site,steps=5", "cat_learned:per=site,simplex=false,rows=100,steps=5,learning_rate=0.05"),
    ("cat", "cat_learned:per=layer,simplex=false,rows=100,steps=100,learning_rate=0.05"),
    ("cat:rows=9", "cat_learned:per=layer,simplex=false,rows=9,steps=100,learning_rate=0.05"),
    ("lorahub:mode=as-published,rows=2,budget=9", "lorahub:mode=as-published,rows=2,budget=9"),
];

/// Names, and their listed usage.
const ROUTER_USAGE: &[(&str, &str)] = &[
    ("base", "base"),
    ("oracle", "oracle"),
    ("uniform", "uniform:mixing=outputs,scale=1"),
    ("scaled_uniform", "scaled_uniform:rows=16,mixing=outputs"),
    ("random", "random:top_k=4,seed=0,mixing=outputs"),
    ("arrow_norm", "arrow_norm:top_k=4,temperature=1,mixing=outputs"),
    ("arrow", "arrow:top_k=4,temperature=1,mixing=outputs,tie=none,general=none,gks=factors"),
    ("spectr", "spectr:measure=length,top_k=4"),
    ("lag", "lag:top_k=20"),
    ("cm", "cm:top_k=all,temperature=1,score=dot,pool=last,rows=10,mixing=outputs"),
    ("phatgoose", "phatgoose:top_k=2,temperature=1,steps=100,learning_rate=0.001,batch_size=4,rows=all,mixing=outputs"),
    ("tp", "tp:top_k=1,temperature=1,rows=100,mixing=outputs"),
    ("tfidf", "tfidf:rows=100,mixing=outputs"),
    ("logo", "logo:measure=norm,top_k=20"),
    ("retrieve", "retrieve:rows=200,top_k=3,temperature=0.2"),
    (
        "evidence",
        "evidence:top_k=all,temperature=auto,far_tail=0.02,near_tail=0.2,fallback=auto,measure=energy,rows=16,calibration_rows=4,mixing=outputs",
    ),
    ("poly", "poly:unseen=fit,rows=all,steps=100,rate=0.1"),
    ("mhr", "mhr:unseen=fit,rows=all,steps=100,rate=0.1"),
    ("lorahub", "lorahub:mode=greedy,rows=5,experts=3"),
    ("cat", "cat:per=layer,simplex=false,rows=100,steps=100,learning_rate=0.05"),
    ("expert", "expert:NAME"),
];

const MERGE_USAGE: &[(&str, &str)] = &[
    ("cat", "cat"),
    ("svd", "svd:rank=largest"),
    ("linear", "linear:convention=peft,scale=1"),
    ("task_arithmetic", "task_arithmetic:convention=paper,scale=1,rank=full"),
    ("ties", "ties:convention=peft,density=0.5,sign=total,scale=1"),
    ("ties_svd", "ties_svd:convention=peft,density=0.5,sign=total,scale=1,rank=largest"),
    ("dare_linear", "dare_linear:convention=peft,density=0.5,seed=0,scale=1"),
    ("dare_linear_svd", "dare_linear_svd:convention=peft,density=0.5,seed=0,scale=1,rank=largest"),
    ("dare_ties", "dare_ties:convention=peft,density=0.5,sign=total,seed=0,scale=1"),
    ("dare_ties_svd", "dare_ties_svd:convention=peft,density=0.5,sign=total,seed=0,scale=1,rank=largest"),
    ("magnitude_prune", "magnitude_prune:convention=peft,density=0.5,scale=1"),
    ("magnitude_prune_svd", "magnitude_prune_svd:convention=peft,density=0.5,scale=1,rank=largest"),
    ("breadcrumbs", "breadcrumbs:convention=mergekit,density=1,gamma=0.01,scale=1,rank=largest"),
    ("breadcrumbs_ties", "breadcrumbs_ties:convention=mergekit,density=1,gamma=0.01,sign=total,scale=1,rank=largest"),
    ("core_space", "core_space:inner=ties,convention=peft,density=0.5,sign=total,scale=1,basis=deltas,rank=full"),
    ("knots", "knots:inner=ties,convention=peft,density=0.5,sign=total,scale=1,rank=full"),
    ("wudi", "wudi:rank=full,tolerance=0.000001"),
    ("tsv", "tsv:keep=equal,rank=full"),
    ("iso_c", "iso_c:rank=full"),
    ("iso_cts", "iso_cts:fraction=0.8,rank=full"),
    ("ctm", "ctm:inner=ties,convention=peft,density=0.5,sign=total,scale=1,rank=largest,beta=0.25,stop=converged"),
    ("robust", "robust:density=0.2,clamp=0.2,factor=2"),
    ("lego", "lego:rank=largest,seed=0"),
];

const FITTED_MERGE_USAGE: &[(&str, &str)] = &[
    ("lorahub", "lorahub:mode=greedy,rows=5,experts=3"),
    ("cat_learned", "cat_learned:per=layer,simplex=false,rows=100,steps=100,learning_rate=0.05"),
];

#[test]
fn routers_print_all_settings() {
    for (typed, text) in ROUTER_TEXTS {
        let router = parse_router(typed).unwrap();
        assert_eq!(router.to_string(), *text);
        assert_eq!(parse_router(text).unwrap().to_string(), *text);
        assert!(text.starts_with(router.info().name));
    }
}

#[test]
fn merges_print_all_settings() {
    for (typed, text) in MERGE_TEXTS {
        let merge = parse_merge(typed).unwrap();
        assert_eq!(merge.to_string(), *text);
        assert_eq!(parse_merge(text).unwrap().to_string(), *text);
        assert!(text.starts_with(merge.info().name));
    }
}

#[test]
fn calibrations_print_all_settings() {
    for (typed, text) in [("pico", "pico:basis=deltas"), ("pico:basis=factors", "pico:basis=factors")] {
        assert_eq!(parse_calibration(typed).unwrap().to_string(), text);
        assert_eq!(parse_calibration(text).unwrap().to_string(), text);
    }
}

#[test]
fn fitted_merges_print_all_settings() {
    for (typed, text) in FITTED_MERGE_TEXTS {
        let merge = parse_fitted_merge(typed).unwrap();
        assert_eq!(merge.to_string(), *text);
        assert_eq!(parse_fitted_merge(text).unwrap().to_string(), *text);
        assert!(text.starts_with(merge.info().name));
    }
}

#[test]
fn methods_list_their_defaults() {
    let routers: Vec<_> = ROUTERS.iter().map(|method| (method.name, method.usage())).collect();
    let merges: Vec<_> = MERGES.iter().map(|method| (method.name, method.usage())).collect();
    let fitted: Vec<_> = FITTED_MERGES.iter().map(|method| (method.name, method.usage())).collect();
    for (found, expected) in [(routers, ROUTER_USAGE), (merges, MERGE_USAGE), (fitted, FITTED_MERGE_USAGE)] {
        assert_eq!(found.iter().map(|(name, usage)| (*name, usage.as_str())).collect::<Vec<_>>(), expected);
    }
}

/// Routers that are refused, with parts of the message.
const REFUSED: &[(&str, &[&str])] = &[
    ("base:", &["unknown setting ``", "none"]),
    ("base:x=1", &["unknown setting `x`", "none"]),
    ("arow", &["unknown router `arow` (did you mean `arrow`?); expected one of base, oracle"]),
    ("arrow:", &["unknown setting ``", "top_k=4, temperature=1, mixing=outputs, tie=none, general=none, gks=factors"]),
    (
        "arrow:topk=3",
        &["unknown setting `topk`", "top_k=4, temperature=1, mixing=outputs, tie=none, general=none, gks=factors"],
    ),
    (
        "arrow:top_k=0",
        &[
            "top_k=0 cannot be read (a number above zero, or all)",
            "top_k=4, temperature=1, mixing=outputs, tie=none, general=none, gks=factors",
        ],
    ),
    (
        "arrow:top_k=x",
        &[
            "top_k=x cannot be read (a number above zero, or all)",
            "top_k=4, temperature=1, mixing=outputs, tie=none, general=none, gks=factors",
        ],
    ),
    (
        "arrow:temperature=0",
        &[
            "temperature=0 must be a number above zero",
            "top_k=4, temperature=1, mixing=outputs, tie=none, general=none, gks=factors",
        ],
    ),
    (
        "arrow:temperature=NaN",
        &[
            "temperature=NaN must be a number above zero",
            "top_k=4, temperature=1, mixing=outputs, tie=none, general=none, gks=factors",
        ],
    ),
    (
        "arrow:temperature=x",
        &[
            "temperature=x cannot be read (invalid float literal)",
            "top_k=4, temperature=1, mixing=outputs, tie=none, general=none, gks=factors",
        ],
    ),
    (
        "arrow:mixing=both",
        &[
            "mixing=both cannot be read (outputs or separate)",
            "top_k=4, temperature=1, mixing=outputs, tie=none, general=none, gks=factors",
        ],
    ),
    (
        "arrow:top_k=1,top_k=2",
        &["top_k is given twice", "top_k=4, temperature=1, mixing=outputs, tie=none, general=none, gks=factors"],
    ),
    (
        "arrow:general=",
        &[
            "general= cannot be read (names of experts, as in NAME+NAME, or none)",
            "top_k=4, temperature=1, mixing=outputs, tie=none, general=none, gks=factors",
        ],
    ),
    ("uniform:top_k=1", &["unknown setting `top_k`", "mixing=outputs"]),
    ("uniform:scale=0", &["scale=0 must be a number above zero", "mixing=outputs, scale=1"]),
    ("expert", &["no name is given", "the name of one expert, as in expert:boolq"]),
    ("expert:", &["no name is given", "the name of one expert, as in expert:boolq"]),
    (
        "cat:simplex=yes",
        &[
            "simplex=yes cannot be read (provided string was not `true` or `false`)",
            "per=layer, simplex=false, rows=100, steps=100, learning_rate=0.05",
        ],
    ),
    (
        "cat:rows=0",
        &["rows=0 must be a number above zero", "per=layer, simplex=false, rows=100, steps=100, learning_rate=0.05"],
    ),
    (
        "cat:learning_rate=0",
        &[
            "learning_rate=0 must be a number above zero",
            "per=layer, simplex=false, rows=100, steps=100, learning_rate=0.05",
        ],
    ),
    (
        "phatgoose:steps=0",
        &[
            "steps=0 must be a number above zero",
            "top_k=2, temperature=1, steps=100, learning_rate=0.001, batch_size=4, rows=all, mixing=outputs",
        ],
    ),
    (
        "phatgoose:learning_rate=inf",
        &[
            "learning_rate=inf must be a number above zero",
            "top_k=2, temperature=1, steps=100, learning_rate=0.001, batch_size=4, rows=all, mixing=outputs",
        ],
    ),
    (
        "evidence:temperature=-1",
        &[
            "temperature=-1 cannot be read (a number above zero, or auto)",
            "top_k=all, temperature=auto, far_tail=0.02, near_tail=0.2, fallback=auto, measure=energy, rows=16, calibration_rows=4, mixing=outputs",
        ],
    ),
    (
        "evidence:far_tail=0.5",
        &[
            "far_tail=0.5,near_tail=0.2 must be shares, 0 <= far_tail <= near_tail <= 1",
            "top_k=all, temperature=auto, far_tail=0.02, near_tail=0.2, fallback=auto, measure=energy, rows=16, calibration_rows=4, mixing=outputs",
        ],
    ),
    (
        "evidence:calibration_rows=0",
        &["calibration_rows=0 must be a number above zero", "rows=16, calibration_rows=4, mixing=outputs"],
    ),
    (
        "evidence:fallback=x",
        &[
            "fallback=x cannot be read (auto, base, uniform or arrow)",
            "top_k=all, temperature=auto, far_tail=0.02, near_tail=0.2, fallback=auto, measure=energy, rows=16, calibration_rows=4, mixing=outputs",
        ],
    ),
    ("spectr:top_k=0", &["top_k=0 cannot be read (a number above zero, or all)", "measure=length, top_k=4"]),
    ("spectr:measure=x", &["measure=x cannot be read (length or norm)", "measure=length, top_k=4"]),
    ("spectr:temperature=1", &["unknown setting `temperature`", "measure=length, top_k=4"]),
    ("lag:top_k=0", &["top_k=0 cannot be read (a number above zero, or all)", "top_k=20"]),
    ("lag:mixing=outputs", &["unknown setting `mixing`", "top_k=20"]),
    ("logo:measure=x", &["measure=x cannot be read (norm or entropy)", "measure=norm, top_k=20"]),
    ("logo:rows=3", &["unknown setting `rows`", "measure=norm, top_k=20"]),
    ("retrieve:rows=0", &["rows=0 cannot be read (a number above zero, or all)", "rows=200, top_k=3, temperature=0.2"]),
    ("retrieve:temperature=0", &["temperature=0 must be a number above zero", "rows=200, top_k=3, temperature=0.2"]),
    (
        "retrieve:temperature=NaN",
        &["temperature=NaN must be a number above zero", "rows=200, top_k=3, temperature=0.2"],
    ),
    ("poly:steps=0", &["steps and rate must be above zero", "unseen=fit, rows=all, steps=100, rate=0.1"]),
    (
        "lorahub:budget=4",
        &["budget is a setting of mode=as-published, not of mode=greedy", "mode=greedy, rows=5, experts=3"],
    ),
    (
        "lorahub:mode=as-published,experts=4",
        &["experts is a setting of mode=greedy, not of mode=as-published", "mode=as-published, rows=5, budget=40"],
    ),
    ("lorahub:mode=x", &["mode=x cannot be read (greedy or as-published)", "mode=greedy, rows=5, experts=3"]),
    ("lorahub:experts=0", &["experts=0 must be a number above zero", "mode=greedy, rows=5, experts=3"]),
    (
        "cm:rows=-1",
        &[
            "rows=-1 cannot be read (a number above zero, or all)",
            "top_k=all, temperature=1, score=dot, pool=last, rows=10, mixing=outputs",
        ],
    ),
    (
        "cm:score=x",
        &[
            "score=x cannot be read (dot or cosine)",
            "top_k=all, temperature=1, score=dot, pool=last, rows=10, mixing=outputs",
        ],
    ),
];

#[test]
fn errors_name_the_problem_and_the_settings() {
    for (typed, parts) in REFUSED {
        let error = parse_router(typed).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "{typed}: {error:?} does not contain {part:?}"));
    }
}
