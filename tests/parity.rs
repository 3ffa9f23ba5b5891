//! Logits compared with those of PEFT and transformers, on random bases with adapters and routers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;
mod differences;

use binary::{PEFT_FIXTURES, SHARED_ORACLES, SMALL_PEFT_FIXTURES, peft_fixture, run, shared_oracle};
use candle_core::{Device, Tensor, safetensors};
use differences::{difference_of_values, largest_difference};
use std::collections::HashMap;
use std::path::PathBuf;

const EXPERTS: [&str; 5] = ["e0", "e1", "e2", "e3", "e4"];

/// The tolerance of logits in f32. Differences are about 1e-5, except for `rs`: its updates are so large that attention
/// scores reach 55, where one rounding is 4e-6 and softmax propagates it. Over three seeds (0, 202, 203) of eleven bases its
/// largest difference is 1.9e-4, but for one token of `phi3long` (seed 202), where it is 3.3e-4: compared with f64, PyTorch's
/// logits differ there by 4.2e-4 and ours by 0.8e-4. The root mean square of differences from f64 is between 3.4e-6 and
/// 5.6e-6, that of PyTorch's between 3.0e-6 and 8.0e-6. With seed 204 `phi3long` is beyond the tolerance: it differs by
/// 8.6e-4, where PyTorch's own error against f64 is 4.4e-4 and ours 4.3e-4.
fn tolerance(adapter: &str) -> f32 {
    if adapter.ends_with("rs") { 4e-4 } else { 1e-4 }
}

/// A base with reference results, and a temporary folder.
struct Oracle {
    folder: PathBuf,
    expected: HashMap<String, Tensor>,
    work: tempfile::TempDir,
}

impl Oracle {
    fn open(folder: PathBuf) -> Self {
        let expected = safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
        Self { folder, expected, work: tempfile::tempdir().unwrap() }
    }

    fn path(&self, path: &str) -> String {
        self.folder.join(path).display().to_string()
    }

    fn library(&self) -> String {
        self.work.path().join("library").display().to_string()
    }

    /// Adds adapters to the library.
    fn add(&self, experts: &[&str]) {
        let folders = experts.iter().map(|name| self.path(&format!("adapters/{name}")));
        let options = ["library", "add", "--library", &self.library(), "--base", &self.path("base")].map(str::to_owned);
        run(options.into_iter().chain(folders)).ok();
    }

    /// The largest difference between the binary's logits with `options` and the expected ones of `case`.
    fn difference(&self, case: &str, options: &[&str]) -> f32 {
        let (input, out) = (self.path("expected.safetensors"), self.work.path().join("logits.safetensors"));
        let fixed = ["logits", "--base", &self.path("base"), "--input", &input, "--out", out.to_str().unwrap()]
            .map(str::to_owned);
        run(fixed.iter().map(String::as_str).chain(options.iter().copied())).ok();
        let logits = safetensors::load(&out, &Device::Cpu).unwrap().remove("logits").unwrap();
        largest_difference(&logits, &self.expected[case])
    }
}

#[test]
fn a_nan_on_either_side_is_within_no_bound() {
    for (a, b) in [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::NAN, f32::NAN), (f32::INFINITY, f32::INFINITY)] {
        assert!(difference_of_values(&[1.0, a, 3.0], &[1.0, b, 9.0]).is_nan(), "{a} {b}");
        let [a, b] = [a, b].map(|value| Tensor::new(&[1.0, value, 3.0], &Device::Cpu).unwrap());
        assert!(largest_difference(&a, &b).is_nan(), "{a} {b}");
    }
    assert_eq!(difference_of_values(&[1.0, -2.0], &[1.5, 2.0]), 4.0);
}

/// Bases and adapters give PEFT's logits.
fn check_adapters(name: &str, oracle: &Oracle) {
    let difference = oracle.difference("base", &[]);
    assert!(difference < tolerance("base"), "{name}, base: {difference}");
    for adapter in EXPERTS.iter().chain(&["rs"]) {
        let case = format!("adapter/{adapter}");
        let difference = oracle.difference(&case, &["--adapter", &oracle.path(&format!("adapters/{adapter}"))]);
        assert!(difference < tolerance(adapter), "{name}, {case}: {difference}");
    }
    let difference = oracle.difference("train_final", &["--adapter", &oracle.path("train_final")]);
    assert!(difference < tolerance("train_final"), "{name}, train_final: {difference}");
}

/// The router `expert:NAME` gives the adapter's logits, and `base` the base's.
fn check_single_experts(name: &str, oracle: &Oracle) {
    oracle.add(&["e0", "e3", "rs"]);
    for expert in ["e0", "e3", "rs"] {
        let difference = oracle.difference(
            &format!("adapter/{expert}"),
            &["--library", &oracle.library(), "--router", &format!("expert:{expert}")],
        );
        assert!(difference < tolerance(expert), "{name}, expert:{expert}: {difference}");
    }
    let difference = oracle.difference("base", &["--library", &oracle.library(), "--router", "base"]);
    assert!(difference < tolerance("base"), "{name}, router base: {difference}");
}

/// Arrow gives the logits of PEFT's Arrow with exact prototypes.
fn check_arrow(name: &str, oracle: &Oracle) {
    oracle.add(&EXPERTS);
    for top_k in [1, 2, 5] {
        for temperature in ["1", "0.5"] {
            let router = format!("arrow:top_k={top_k},temperature={temperature}");
            let difference = oracle.difference(
                &format!("arrow/k{top_k}_t{temperature}"),
                &["--library", &oracle.library(), "--router", &router],
            );
            assert!(difference < tolerance(&router), "{name}, {router}: {difference}");
        }
    }
}

#[test]
fn adapters_match_peft() {
    for name in PEFT_FIXTURES {
        check_adapters(name, &Oracle::open(peft_fixture(name)));
    }
}

#[test]
fn rank_stabilized_adapters_match_peft_on_small_bases() {
    for name in SMALL_PEFT_FIXTURES {
        let oracle = Oracle::open(peft_fixture(name));
        let adapter = oracle.path("adapters/rs");
        let [base, tuned] = [("base", vec![]), ("adapter/rs", vec!["--adapter", &adapter])]
            .map(|(case, o)| oracle.difference(case, &o));
        assert!(base < tolerance("base") && tuned < tolerance("rs"), "{name}: {base}, {tuned}");
    }
}

#[test]
#[ignore = "needs ../shared"]
fn adapters_match_peft_on_shared_bases() {
    for name in SHARED_ORACLES {
        check_adapters(name, &Oracle::open(shared_oracle(name)));
    }
}

#[test]
fn single_experts_match_their_adapters() {
    for name in PEFT_FIXTURES {
        check_single_experts(name, &Oracle::open(peft_fixture(name)));
    }
}

#[test]
#[ignore = "needs ../shared"]
fn single_experts_match_their_adapters_on_shared_bases() {
    for name in SHARED_ORACLES {
        check_single_experts(name, &Oracle::open(shared_oracle(name)));
    }
}

#[test]
fn arrow_matches_peft() {
    for name in PEFT_FIXTURES {
        check_arrow(name, &Oracle::open(peft_fixture(name)));
    }
}

#[test]
#[ignore = "needs ../shared"]
fn arrow_matches_peft_on_shared_bases() {
    for name in SHARED_ORACLES {
        check_arrow(name, &Oracle::open(shared_oracle(name)));
    }
}
