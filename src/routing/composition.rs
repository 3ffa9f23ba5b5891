//! The weights of `lorahub` and `cat`.

use super::Rows;
use crate::composition::{Ground, fit_weights};
use anyhow::Result;
use lorakit_route::{Composition, Learned};
use lorakit_task::Example;

/// The weights, from the rows of all tasks together.
pub fn learn(composition: Composition, rows: &Rows) -> Result<Learned> {
    let examples: Vec<Example> = rows.examples()?.into_iter().map(|row| row.example).collect();
    let ground = Ground { base: rows.base(), experts: rows.experts(), seed: rows.seed() };
    let fitted = fit_weights(&composition, ground, &examples)?;
    rows.tell(format!("{}: {}", composition.name(), fitted.told(rows.experts())));
    Ok(Learned::new([("weights".to_owned(), fitted.weights)]))
}
