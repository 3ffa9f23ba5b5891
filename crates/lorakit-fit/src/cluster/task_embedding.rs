//! Embeddings of tasks: means of the base's hidden states over their rows. Nothing is trained.

use crate::error::{Result, WithContext as _};
use crate::router::training_rows::BATCH_TOKENS;
use candle_core::DType;
use lorakit_lora::Patches;
use lorakit_model::{Base, TokenBatch};
use lorakit_task::{Example, Split, Task, Tokenizer};
use std::collections::BTreeMap;

/// Rows of a task that are embedded by default.
pub const ROWS: usize = 64;

/// Embeds each task: the mean over its first `rows` training rows, prompt and answer, of the mean over a row's tokens
/// of the hidden states that enter the base's last layer (the "penultimate layer" that
/// <https://arxiv.org/abs/2405.11157> averages); then, since all texts have much in common, less the mean over the
/// tasks, and scaled to length 1.
pub fn embed_tasks(
    base: &Base,
    tokenizer: &Tokenizer,
    tasks: &[Task],
    rows: usize,
) -> Result<BTreeMap<String, Vec<f32>>> {
    let mut embeddings = BTreeMap::new();
    for task in tasks {
        let of = || format!("task `{}` ({})", task.name, task.path.display());
        let rows = task.rows(Split::Train, Some(rows)).with_context(of)?;
        let encode = |row| Example::encode(row, tokenizer, base.config().max_positions);
        let rows = rows.into_iter().map(encode).collect::<lorakit_task::Result<Vec<_>>>().with_context(of)?;
        embeddings.insert(task.name.clone(), mean(&row_states(base, &rows)?));
    }
    center(&mut embeddings);
    Ok(embeddings)
}

/// A mean hidden state for each row, `[hidden]`.
fn row_states(base: &Base, rows: &[Example]) -> Result<Vec<Vec<f32>>> {
    let mut states = Vec::with_capacity(rows.len());
    for batch in lorakit_model::split_by_tokens(rows.iter().map(Example::len), BATCH_TOKENS) {
        let mut packed = TokenBatch::default();
        rows[batch].iter().for_each(|row| packed.push_masked(&row.tokens, &row.loss, None));
        let plan = base.plan(packed.sequences());
        let mut h = base.embed(packed.ids())?;
        for layer in 0..base.layers().saturating_sub(1) {
            h = base.layer(layer, &h, &plan, &Patches::none())?;
        }
        for row in packed.sequences().iter() {
            states.push(h.narrow(0, row.start, row.len)?.to_dtype(DType::F32)?.mean(0)?.to_vec1()?);
        }
    }
    Ok(states)
}

/// The mean of vectors of one length; empty where there are none.
pub fn mean<V: AsRef<[f32]>>(vectors: &[V]) -> Vec<f32> {
    let mut sum = vec![0.0f64; vectors.first().map_or(0, |vector| vector.as_ref().len())];
    for vector in vectors {
        sum.iter_mut().zip(vector.as_ref()).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    sum.iter().map(|sum| (sum / vectors.len() as f64) as f32).collect()
}

/// Takes the common mean away and scales what is left to length 1; a vector that is the mean stays zero.
fn center(embeddings: &mut BTreeMap<String, Vec<f32>>) {
    let common = mean(&embeddings.values().collect::<Vec<_>>());
    for vector in embeddings.values_mut() {
        vector.iter_mut().zip(&common).for_each(|(value, mean)| *value -= mean);
        let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        if length > 0.0 {
            vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use lorakit_cluster::{adjusted_rand, embedding_clusters};
    use lorakit_model::BaseOptions;
    use lorakit_task::skills;
    use std::path::Path;

    #[test]
    fn what_all_have_in_common_is_taken_away() {
        let vectors = [("a", vec![3.0f32, 1.0]), ("b", vec![5.0, 1.0]), ("c", vec![4.0, 1.0])];
        let mut vectors = BTreeMap::from(vectors.map(|(name, vector)| (name.to_owned(), vector)));
        center(&mut vectors);
        assert_eq!(vectors.into_values().collect::<Vec<_>>(), [[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]);
    }

    #[test]
    fn tasks_of_one_family_are_near_each_other() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/pico");
        let base = Base::open(&folder, &BaseOptions::default()).unwrap();
        let tasks = skills::tasks(skills::SEED, skills::SuitePart::Training);
        let vectors = embed_tasks(&base, &Tokenizer::open(&folder).unwrap(), &tasks, ROWS).unwrap();
        let families = skills::labels(vectors.keys().map(String::as_str)).unwrap();
        let k = 1 + families.iter().max().unwrap();
        let found = embedding_clusters(vectors, k, 0).unwrap();
        let index = adjusted_rand(found.labels(), &families).unwrap();
        assert!(index > 0.5, "adjusted Rand index {index} of {k} clusters");
    }
}
