//! MBC against figures that the authors' code gave for nine planted experts (shared/oracles/mttl_oracle.json).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lorakit_adapter::{Adapter, LowRank, Matrix};
use lorakit_cluster::{
    Clusters, ComparisonSpace, ExpertSet, MbcEmbedding, MbcOptions, adjusted_rand, mbc, read_published,
};
use serde_json::Value;

fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path);
    if !path.exists() {
        println!("skipped: no ../shared");
        return None;
    }
    Some(path)
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
fn cosines_and_clusters_are_those_of_the_authors_code() {
    let Some(path) = shared("oracles/mttl_oracle.json") else { return };
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
fn published_clusters_are_read_with_their_sizes() {
    let folder = "data/tasks/mttl_task_sets";
    let read = |file: &str| shared(&format!("{folder}/{file}")).map(|path| read_published(&path));
    let Some(phi) = read("modular_llm__task_sets__phi__10_mbc.json") else { return };
    let phi = phi.unwrap();
    let sizes: Vec<usize> = phi.clusters().iter().map(|cluster| cluster.experts.len()).collect();
    assert_eq!(sizes, [36, 38, 24, 24, 23, 18, 12, 37, 27, 17]);

    let mistral =
        read("modular_llm__task_sets__hf__ostapeno__library-mistral7B_flan_2ep__10_mbc.json").unwrap().unwrap();
    let random =
        read("modular_llm__task_sets__hf__ostapeno__library-mistral7B_flan_2ep__10_random.json").unwrap().unwrap();
    let neo = read("modular_llm__task_sets__gpt_neo1B__10_mbc.json").unwrap().unwrap();
    assert!(neo.settings().contains_key("description"));
    let agreement = |other: &Clusters| mistral.partition().adjusted_rand(&other.partition()).unwrap();
    assert!(agreement(&random).abs() < 0.05);
    assert_eq!(agreement(&mistral), 1.0);

    let refused = read("modular_llm__task_sets__phi__phi2_40_phi2_v2.json").unwrap().unwrap_err().to_string();
    assert!(refused.contains("`phi40` is no cluster"), "{refused}");
    let overlap = read("xfit_data__random.json").unwrap().unwrap_err().to_string();
    assert!(overlap.contains("is in cluster `all` and in `train`"), "{overlap}");
}
