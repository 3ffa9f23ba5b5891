//! Three published adapters of GPT-2, two of which are similar.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use lorakit_adapter::Adapter;
use lorakit_cluster::{ComparisonSpace, ExpertSet, MbcOptions, Similarity, mbc};

#[test]
#[ignore = "needs ../shared"]
fn medical_and_sports_are_one_cluster_and_legal_is_another() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/adapters/gpt2");
    let names = ["medical", "legal", "sports"].map(str::to_owned);
    let open = |name: &str| Adapter::read(&folder.join(format!("skeleton-{name}")));
    let experts = ExpertSet::new(names, open).unwrap();
    let similarity = Similarity::of(&experts, ComparisonSpace::Delta).unwrap();
    // Sorted by name: legal, medical, sports.
    for (i, j, expected, tolerance) in [(1, 2, 0.714, 5e-4), (0, 1, 0.20, 5e-3), (0, 2, 0.20, 5e-3)] {
        assert!((similarity.at(i, j) - expected).abs() < tolerance, "{i} {j}: {}", similarity.at(i, j));
    }
    let partition = mbc(&experts, &MbcOptions { k: 2, ..MbcOptions::default() }).unwrap();
    assert_eq!(partition.members(), [vec![1, 2], vec![0]]);
}
