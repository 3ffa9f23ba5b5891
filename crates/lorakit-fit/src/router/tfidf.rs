//! The fit of `tfidf`: counts of tokens over the prompts of each expert's tasks.

use super::router_fit::{RouterFit, as_kind};
use super::training_rows::TrainingRows;
use crate::error::{FitError, Result};
use lorakit_adapter::Matrix;
use lorakit_route::prompt::tfidf::tfidf;
use lorakit_route::{Router, RouterState, Tfidf};
use std::collections::BTreeSet;

/// The fit of [`Tfidf`].
pub struct TfidfFit;

impl RouterFit for TfidfFit {
    fn fit(&self, router: &dyn Router, rows: &TrainingRows) -> Option<Result<RouterState>> {
        as_kind(router).map(|_: &Tfidf| fit(rows))
    }
}

fn fit(rows: &TrainingRows) -> Result<RouterState> {
    let examples = rows.examples()?;
    let (vocabulary, experts) = (rows.base().config().vocabulary, rows.experts().len());
    let mut containing = vec![0u32; vocabulary];
    for row in &examples {
        let distinct: BTreeSet<&u32> = row.example.prompt().iter().collect();
        distinct.into_iter().for_each(|token| containing[*token as usize] += 1);
    }
    let n = examples.len() as f32;
    let idf: Vec<f32> = containing.iter().map(|d| ((1.0 + n) / (1.0 + *d as f32)).ln() + 1.0).collect();
    let mut centroids = vec![0.0; experts * vocabulary];
    for row in &examples {
        let centroid = &mut centroids[row.expert.ok_or(FitError::RowWithoutExpert)? * vocabulary..][..vocabulary];
        tfidf(row.example.prompt(), &idf).into_iter().for_each(|(token, value)| centroid[token] += value);
    }
    for centroid in centroids.chunks_exact_mut(vocabulary) {
        let length = centroid.iter().map(|value| value * value).sum::<f32>().sqrt();
        centroid.iter_mut().for_each(|value| *value /= length.max(f32::MIN_POSITIVE));
    }
    Ok(RouterState::new([
        ("idf".to_owned(), Matrix::new(1, vocabulary, idf)?),
        ("centroids".to_owned(), Matrix::new(experts, vocabulary, centroids)?),
    ]))
}
