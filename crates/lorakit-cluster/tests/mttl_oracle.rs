//! MBC compared with results of the authors' code for nine synthetic experts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lorakit_adapter::{Adapter, LowRank, Matrix};
use lorakit_cluster::{
    Clusters, ComparisonSpace, ExpertSet, MbcEmbedding, MbcOptions, adjusted_rand, mbc, read_published,
};
use serde_json::Value;

/// A path in `../shared`.
fn shared(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path)
}

fn table(value: &Value) -> Vec<Vec<f64>> {
    serde_json::from_value(value.clone()).unwrap()
}

/// A matrix in the oracle, transposed: mttl keeps A as [in, r] and B as [r, out], PEFT the other way round.
fn transposed(value: &Value) -> Matrix {
    let table = table(value);
    let (rows, cols) = (table[0].len(), table.len());
    let values =
        (0..rows).flat_map(|row| (0..cols).map(move |col| (col, row))).map(|(row, col)| table[row][col] as f32);
    Matrix::new(rows, cols, values.collect()).unwrap()
}

fn adapter(tensors: &Value) -> Adapter {
    let tensors = tensors.as_object().unwrap();
    let modules = tensors.keys().filter_map(|key| key.strip_suffix(".lora_a"));
    let update = |module: &str| {
        let side = |side: &str| transposed(&tensors[&format!("{module}.{side}")]);
        LowRank::new(side("lora_a"), side("lora_b"), 4.0).unwrap()
    };
    Adapter::new(modules.map(|module| (module.to_owned(), update(module))).collect())
}

#[test]
#[ignore = "needs ../shared"]
fn cosines_and_clusters_equal_those_of_the_authors_code() {
    let path = shared("oracles/mttl_oracle.json");
    let oracle: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let experts = oracle["mbc_experts"].as_object().unwrap();
    let experts = ExpertSet::in_memory(experts.iter().map(|(name, tensors)| (name.clone(), adapter(tensors)))).unwrap();
    let options =
        MbcOptions { space: ComparisonSpace::Parameters, sparsity: 0.5, components: 4, k: 3, ..MbcOptions::default() };

    let found = MbcEmbedding::of(&experts, &options).unwrap().similarity;
    let expected = table(&oracle["mbc_cosine_of_svd_embeddings_n4_s0.5"]);
    for (i, row) in expected.iter().enumerate() {
        for (j, expected) in row.iter().enumerate() {
            assert!((found.at(i, j) - expected).abs() < 1e-4, "{i} {j}: {} {expected}", found.at(i, j));
        }
    }

    let clusters: BTreeMap<String, Vec<String>> =
        serde_json::from_value(oracle["mbc_clusters_k3_n4_s0.5"].clone()).unwrap();
    let label = |name: &String| clusters.values().position(|members| members.contains(name)).unwrap();
    let expected: Vec<usize> = experts.names().iter().map(label).collect();
    let partition = mbc(&experts, &options).unwrap();
    assert_eq!(adjusted_rand(partition.labels(), &expected).unwrap(), 1.0, "{:?}", partition.labels());
}

#[test]
#[ignore = "needs ../shared"]
fn published_clusters_are_read_with_their_sizes() {
    let folder = "data/tasks/mttl_task_sets";
    let read = |file: &str| read_published(&shared(&format!("{folder}/{file}")));
    let refused = |file: &str| {
        let error = read(file).unwrap_err();
        format!("{error}: {}", std::error::Error::source(&error).unwrap())
    };
    let phi = read("modular_llm__task_sets__phi__10_mbc.json").unwrap();
    let sizes: Vec<usize> = phi.clusters().iter().map(|cluster| cluster.experts.len()).collect();
    assert_eq!(sizes, [36, 38, 24, 24, 23, 18, 12, 37, 27, 17]);

    let mistral = read("modular_llm__task_sets__hf__ostapeno__library-mistral7B_flan_2ep__10_mbc.json").unwrap();
    let random = read("modular_llm__task_sets__hf__ostapeno__library-mistral7B_flan_2ep__10_random.json").unwrap();
    let neo = read("modular_llm__task_sets__gpt_neo1B__10_mbc.json").unwrap();
    assert!(neo.settings().contains_key("description"));
    let agreement = |other: &Clusters| mistral.partition().adjusted_rand(&other.partition()).unwrap();
    assert!(agreement(&random).abs() < 0.05);
    assert_eq!(agreement(&mistral), 1.0);

    let pairs = refused("modular_llm__task_sets__phi__phi2_40_phi2_v2.json");
    assert!(pairs.contains("`phi40` is not a cluster"), "{pairs}");
    let overlap = refused("xfit_data__random.json");
    assert!(overlap.contains("is in cluster `all` and in `train`"), "{overlap}");
}
