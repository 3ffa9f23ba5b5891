//! Quick trainings of the bundled base on four of its tasks, and the losses of what comes out.
#![allow(dead_code, reason = "every test file uses a part of this")]

use crate::binary::{Ran, words};
use serde_json::Value;
use std::path::Path;

pub const TASKS: &str =
    "suite:skills/shift_up1 suite:skills/shift_up2 suite:skills/order_reverse suite:skills/order_left";
pub const QUICK: &str = "--set batch_size=4 --set dropout=0 --set max_grad_norm=1 --set eval_steps=0";

pub fn train(library: &Path, options: &str) -> Ran {
    words(&format!(
        "train-experts --json --base pico --library {} --tasks {TASKS} {QUICK} {options}",
        library.display()
    ))
}

pub fn names(document: &Value, list: &str) -> Vec<String> {
    document[list].as_array().unwrap().iter().map(|entry| entry["expert"].as_str().unwrap().to_owned()).collect()
}

/// The mean loss of the router over the tasks.
pub fn loss(base: &str, options: &str, router: &str) -> f64 {
    let scores =
        words(&format!("eval --json --base {base} {options} --tasks {TASKS} --limit 4 --router {router}")).json();
    let tasks = scores["results"][router].as_object().unwrap();
    tasks.values().map(|task| task["metrics"]["loss"]["value"].as_f64().unwrap()).sum::<f64>() / tasks.len() as f64
}
