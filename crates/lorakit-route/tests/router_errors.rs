//! Errors of routers, and their messages.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_library;

use candle_core::Device;
use lorakit_lora::Site;
use lorakit_route::merge::{Coefficients, parse_merge};
use lorakit_route::{LibraryStack, Oracle, Router, RouterContext, parse_router};
use small_library::*;

#[track_caller]
fn refused<T>(result: Result<T, lorakit_route::RouteError>, needles: &[&str]) {
    let Err(error) = result else { panic!("was not refused") };
    let message = error.to_string();
    needles.iter().for_each(|needle| assert!(message.contains(needle), "{message:?} does not say {needle:?}"));
}

#[test]
fn rejects_a_library_of_another_base_and_names_expert_and_module() {
    let site = site(6, &[("q", 4)]);
    let build = |library| LibraryStack::new(library, std::slice::from_ref(&site), &Device::Cpu);
    refused(
        build(vec![expert("e", [("model.h.0.attn", random(1, 1, 6, 4, 1.0))])]),
        &["e", "model.h.0.attn", "another base"],
    );
    refused(build(vec![expert("e", [("q", random(1, 1, 6, 5, 1.0))])]), &["expert `e`", "q", "(6, 5)", "(6, 4)"]);
    let twin = || expert("e", [("q", random(1, 1, 6, 4, 1.0))]);
    refused(build(vec![twin(), twin()]), &["two experts", "e"]);
}

#[test]
fn separate_mixing_rejects_unequal_ranks_and_names_them() {
    let library =
        [expert("small", [("q", random(1, 1, 6, 4, 1.0))]), expert("large", [("q", random(2, 3, 6, 4, 1.0))])];
    let library = experts(library, &site(6, &[("q", 4)]));
    for router in ["uniform:mixing=separate", "arrow:mixing=separate"] {
        let router = parse_router(router).unwrap();
        refused(
            router.patches(&library, &RouterContext::default()),
            &["q", "`large` has rank 3", "`small` has rank 1", "mixing=outputs"],
        );
    }
}

#[test]
fn of_many_sites_that_refuse_a_library_the_first_is_named() {
    let names: Vec<String> = (0..64).map(|layer| format!("model.layers.{layer:02}.q")).collect();
    let sites: Vec<_> =
        names.iter().enumerate().map(|(layer, name)| Site { layer: Some(layer), ..site(6, &[(name, 4)]) }).collect();
    let modules = |rank: usize| {
        let update = |at: usize| (names[at].as_str(), random(at as u64 + 1, if at < 5 { 1 } else { rank }, 6, 4, 1.0));
        (0..names.len()).map(update).collect::<Vec<_>>()
    };
    let library = || [expert("small", modules(1)), expert("large", modules(3))];
    let stack = LibraryStack::new(library(), &sites, &Device::Cpu).unwrap();
    for _ in 0..20 {
        for router in ["uniform:mixing=separate", "arrow:mixing=separate"] {
            let router = parse_router(router).unwrap();
            refused(router.patches(&stack, &RouterContext::default()), &["model.layers.05.q"]);
        }
        let merged = parse_merge("linear").unwrap().merge(&library(), &Coefficients::uniform(2));
        refused(merged, &["model.layers.05.q"]);
    }
}

#[test]
fn a_prototype_per_site_requires_one_a() {
    let library = [expert("loose", [("q", random(1, 2, 6, 4, 1.0)), ("k", random(2, 2, 6, 3, 1.0))])];
    let library = experts(library, &site(6, &[("q", 4), ("k", 3)]));
    let router = parse_router("arrow:tie=site").unwrap();
    refused(router.patches(&library, &RouterContext::default()), &["loose", "0.qkv", "tie=none"]);
}

#[test]
fn the_oracle_requires_the_task() {
    let library = experts([expert("e", [("q", random(1, 1, 6, 4, 1.0))])], &site(6, &[("q", 4)]));
    refused(Oracle.patches(&library, &RouterContext::default()), &["task"]);
    let missing = parse_router("expert:f").unwrap();
    refused(missing.patches(&library, &RouterContext::default()), &["f", "there are: e"]);
}

#[test]
fn rejects_unknown_settings_and_lists_the_known() {
    let parse = |text: &str| parse_router(text);
    refused(
        parse("arow"),
        &["arow", "expected one of base, oracle, uniform, scaled_uniform, random, arrow_norm, arrow, ", ", expert"],
    );
    refused(parse("arrow:topk=3"), &["topk", "top_k=4, temperature=1, mixing=outputs, tie=none"]);
    refused(parse("arrow:top_k=0"), &["a number above zero, or all"]);
    refused(parse("arrow:temperature=0"), &["above zero"]);
    refused(parse("arrow:temperature=NaN"), &["above zero"]);
    refused(parse("arrow:mixing=both"), &["mixing=both", "outputs or separate"]);
    refused(parse("arrow:top_k=1,top_k=2"), &["given twice"]);
    refused(parse("uniform:top_k=1"), &["top_k", "mixing=outputs"]);
    refused(parse("base:x=1"), &["x", "none"]);
    refused(parse("expert"), &["name"]);
}
