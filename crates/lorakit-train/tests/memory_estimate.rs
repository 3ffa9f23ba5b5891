//! Memory estimates depend on what is trained and how.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod tiny_base;

use lorakit_model::{Base, BaseOptions};
use lorakit_train::memory_estimate::{bytes_per_token, check_fits, estimate, full_estimate};
use lorakit_train::{BackwardMode, DeviceMemory, MemoryEstimate, TrainConfig};

fn base(name: &str) -> Base {
    tiny_base::base(name, &BaseOptions::default())
}

fn settings(toml: &str) -> TrainConfig {
    TrainConfig::from_toml(toml, "the test").unwrap()
}

#[test]
fn more_is_kept_of_what_trains() {
    for name in ["mistral", "phi"] {
        let base = base(name);
        let of = |toml: &str, way| bytes_per_token(&base, &settings(toml), way);
        let attention = "target_modules = \"q_proj,k_proj,v_proj\"\ndropout = 0.0";
        let first_layer = "target_modules = '.*layers.0.self_attn.[qkv]_proj'\ndropout = 0.0";
        let (linear, dropped) = ("target_modules = \"all-linear\"\ndropout = 0.0", "target_modules = \"all-linear\"");
        for way in [BackwardMode::Tape, BackwardMode::Graph, BackwardMode::Weights] {
            assert!(of(linear, way) <= of(dropped, way), "{name} {way:?}: dropout frees memory");
            let recomputed = format!("{attention}\ngradient_checkpointing = true");
            assert!(of(&recomputed, way) < of(attention, way), "{name} {way:?}: checkpoints take memory");
        }
        // Each adapted site keeps two more copies of its output: q, k and v of one layer, then of all layers, then all
        // sites.
        let (one, all) = (of(first_layer, BackwardMode::Graph), of(attention, BackwardMode::Graph));
        assert!(
            one < all
                && all < of(linear, BackwardMode::Graph)
                && of(linear, BackwardMode::Graph) < of(dropped, BackwardMode::Graph),
            "{name}"
        );
        assert!(of(linear, BackwardMode::Tape) < of(linear, BackwardMode::Graph), "{name}: a tape keeps less");
        let weights = of(attention, BackwardMode::Weights);
        assert_eq!(
            weights,
            of(linear, BackwardMode::Weights),
            "{name}: all weights train whatever the adapters' targets"
        );
        assert!(weights < of(linear, BackwardMode::Graph), "{name}: adapters keep their deltas beside the outputs");
    }
}

#[test]
fn estimates_are_split_into_parts() {
    let base = base("mistral");
    let settings = TrainConfig::default();
    let [one, eight] = [1, 8].map(|experts| estimate(&base, &[], experts, &settings, BackwardMode::Tape).unwrap());
    assert_eq!((one.base, one.weights, 8 * one.adapters), (base.file_bytes(), 0, eight.adapters));
    assert_eq!(one.activations, eight.activations);
    let full = full_estimate(&base, &[], &settings);
    assert!(full.weights >= 24 * base.parameters() && full.adapters == 0);
    let memory = DeviceMemory::of_device(&base).unwrap();
    assert!(memory.available <= memory.total && eight.total() < memory.total, "{memory:?}");
}

#[test]
fn more_than_the_machine_has_is_refused() {
    let base = base("mistral");
    check_fits(&base, &MemoryEstimate { adapters: 1 << 10, ..MemoryEstimate::default() }).unwrap();
    let error = check_fits(&base, &MemoryEstimate { adapters: 1 << 50, ..MemoryEstimate::default() }).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("GiB") && message.contains("available"), "{message}");
}
