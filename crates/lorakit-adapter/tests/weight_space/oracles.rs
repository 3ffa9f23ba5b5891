//! Comparison with values computed by mttl and PEFT. mttl's factors are transposed: `lora_a [in, r]`, `lora_b [r,
//! out]`.

use std::fs;

use lorakit_adapter::{LowRank, Matrix};
use serde_json::Value;

use crate::{assert_close, shared};

/// A list of rows, transposed.
fn transposed(rows: &Value) -> Matrix {
    let rows: Vec<Vec<f32>> = serde_json::from_value(rows.clone()).unwrap();
    let (height, width) = (rows.len(), rows[0].len());
    let values = (0..width).flat_map(|col| rows.iter().map(move |row| row[col])).collect();
    Matrix::new(width, height, values).unwrap()
}

#[test]
#[ignore = "needs ../shared"]
fn top_singular_vectors_are_mttls_arrow_prototypes() {
    let path = shared("oracles/mttl_oracle.json");
    let oracle: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut compared = 0;
    for (expert, modules) in oracle["arrow_prototypes_sign_free"].as_object().unwrap() {
        for (module, prototype) in modules.as_object().unwrap() {
            let pair = &oracle["experts"][expert];
            let a = transposed(&pair[format!("{module}.lora_a")]);
            let b = transposed(&pair[format!("{module}.lora_b")]);
            let direction = LowRank::new(a, b, 1.0).unwrap().top_singular_vector().unwrap();
            let prototype: Vec<f64> = serde_json::from_value(prototype.clone()).unwrap();
            let cosine: f64 = direction.vector.iter().zip(&prototype).map(|(x, y)| f64::from(*x) * y).sum();
            assert_close(cosine.abs(), 1.0, 1e-5);
            let squared = oracle["arrow_eigvals_sigma1_sq"][expert][module].as_f64().unwrap();
            assert_close(direction.singular_value.powi(2), squared, 1e-5);
            compared += 1;
        }
    }
    assert_eq!(compared, 12);
}

#[test]
#[ignore = "needs ../shared"]
fn dense_updates_are_those_of_peft() {
    let path = shared("oracles/peft_merge_oracle.json");
    let oracle: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    for (name, adapter) in oracle["adapters"].as_object().unwrap() {
        let matrix = |key: &str| -> Matrix {
            let rows: Vec<Vec<f32>> = serde_json::from_value(adapter[key].clone()).unwrap();
            Matrix::new(rows.len(), rows[0].len(), rows.concat()).unwrap()
        };
        let scale = adapter["alpha"].as_f64().unwrap() / adapter["r"].as_f64().unwrap();
        let delta = LowRank::new(matrix("A"), matrix("B"), scale).unwrap().delta();
        for (found, expected) in delta.iter().zip(matrix("delta").values().iter()) {
            assert!((found - expected).abs() < 1e-6, "{name}: {found} and {expected}");
        }
    }
}
