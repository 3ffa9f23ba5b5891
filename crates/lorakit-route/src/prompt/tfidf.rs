//! A classifier of prompts that reads their tokens alone: a row goes to the expert whose tasks' prompts share its words.
//! A router that looks at hidden states or experts has to beat it to be worth its cost.
//!
//! A prompt is the vector of its tokens' counts times `ln((1 + N) / (1 + d)) + 1`, with `N` training prompts of which `d`
//! contain the token (TF-IDF with smoothing, Salton and Buckley 1988), of length one. An expert's centroid is the mean of
//! the vectors of its tasks' prompts, of length one too. The expert of the largest cosine serves the row, at weight one;
//! a prompt that shares no token with any centroid gets none.
//!
//! State: `idf`, `[1, vocabulary]`, and `centroids`, `[experts, vocabulary]`.

use crate::error::{Result, RouteError};
use crate::fixed::row_weights::observed_row_weights;
use crate::library_stack::LibraryStack;
use crate::limit::Limit;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, defaults, read, write};
use crate::mixing::Mixing;
use crate::prompt::prompt_router::{PromptPass, PromptRouter};
use crate::router::{Router, RouterContext};
use crate::training_data::TrainingData;
use candle_core::{DType, Device, Tensor};
use lorakit_lora::{EmbeddingPatch, Outputs, Patch, Patches, SequenceBatch};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The router `tfidf`.
pub static TFIDF: MethodInfo<dyn Router> = MethodInfo {
    name: "tfidf",
    aliases: &[],
    summary: "per row, the expert whose tasks' prompts share its words: the nearest centroid of TF-IDF vectors",
    link: None,
    defaults: defaults::<Tfidf>,
    parse: |name, typed| Ok(Arc::new(read::<Tfidf>(name, typed)?)),
    version: 1,
};

/// The router `tfidf`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tfidf {
    /// The maximum number of rows of each task.
    pub rows: Limit,
    /// How the expert's delta is applied; of one expert both mixings are the same.
    pub mixing: Mixing,
}

impl Default for Tfidf {
    fn default() -> Self {
        Self { rows: Limit(100), mixing: Mixing::Outputs }
    }
}

impl Settings for Tfidf {}

impl fmt::Display for Tfidf {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, TFIDF.name, self)
    }
}

impl Router for Tfidf {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &TFIDF
    }

    fn mixing(&self) -> Mixing {
        self.mixing
    }

    /// # Errors
    /// Under separate mixing, if ranks differ at a projection.
    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        observed_row_weights(experts, self.mixing, context.observer.clone())
    }

    /// # Errors
    /// If the state is missing, or was fitted to another library.
    fn prompt_router(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Option<Arc<dyn PromptRouter>>> {
        let state = context.state_of(self)?;
        let vocabulary = state.matrices().get("idf").map_or(0, |idf| idf.cols());
        let device = experts.stacks().next().map_or(Device::Cpu, |(_, _, stack)| stack.device().clone());
        // The table reads each token as its id, exactly: ids are far below 2^24.
        let ids: Vec<f32> = (0..vocabulary).map(|id| id as f32).collect();
        Ok(Some(Arc::new(TokenReader(Arc::new(NearestCentroid {
            idf: state.values("idf", (1, vocabulary))?,
            centroids: state.values("centroids", (experts.len(), vocabulary))?,
            table: Tensor::from_vec(ids, (vocabulary, 1), &device)?,
        })))))
    }

    fn training_data(&self) -> Option<TrainingData> {
        Some(TrainingData::ExpertTasks { rows: self.rows.0 })
    }
}

/// Reads the tokens of prompts for a classifier.
struct TokenReader(Arc<NearestCentroid>);

struct NearestCentroid {
    idf: Vec<f32>,
    /// `[experts, vocabulary]`.
    centroids: Vec<f32>,
    /// `[vocabulary, 1]`.
    table: Tensor,
}

impl PromptRouter for TokenReader {
    fn start(&self) -> Box<dyn PromptPass> {
        Box::new(TokenPass { classifier: Arc::clone(&self.0), tokens: Arc::default() })
    }
}

/// One pass: records the tokens that the embedding reads.
struct TokenPass {
    classifier: Arc<NearestCentroid>,
    tokens: Arc<TokenProbe>,
}

/// The ids of the tokens so far.
#[derive(Default)]
struct TokenProbe(Mutex<Vec<u32>>);

impl Patch for TokenProbe {
    fn add(&self, x: &Tensor, _: &SequenceBatch, _: &mut Outputs) -> candle_core::Result<()> {
        let ids = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.extend(ids.into_iter().map(|id| id as u32));
        Ok(())
    }
}

impl PromptPass for TokenPass {
    fn patches(&self) -> Patches {
        let (table, patch) = (self.classifier.table.clone(), self.tokens.clone());
        Patches::none().with_embedding(EmbeddingPatch { table, patch })
    }

    fn weights(&self, rows: &SequenceBatch, _: &Tensor) -> Result<Vec<Arc<[f32]>>> {
        let tokens = self.tokens.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() != rows.tokens() {
            return Err(RouteError::OtherRows);
        }
        Ok(rows.iter().map(|row| self.classifier.weights(&tokens[row.tokens()])).collect())
    }
}

impl NearestCentroid {
    /// One for the expert of the largest cosine, the first of equal ones.
    fn weights(&self, tokens: &[u32]) -> Arc<[f32]> {
        let vocabulary = self.idf.len();
        let prompt = tfidf(tokens, &self.idf);
        let cosine = |centroid: &[f32]| prompt.iter().map(|(token, value)| value * centroid[*token]).sum::<f32>();
        let mut weights = vec![0.0; self.centroids.len() / vocabulary.max(1)];
        let mut nearest = (0.0, None);
        for (expert, centroid) in self.centroids.chunks_exact(vocabulary.max(1)).enumerate() {
            let cosine = cosine(centroid);
            if cosine > nearest.0 {
                nearest = (cosine, Some(expert));
            }
        }
        if let Some(expert) = nearest.1 {
            weights[expert] = 1.0;
        }
        weights.into()
    }
}

/// The vector of a prompt by token, of length one; empty for a prompt of unknown tokens.
pub fn tfidf(tokens: &[u32], idf: &[f32]) -> BTreeMap<usize, f32> {
    let mut vector: BTreeMap<usize, f32> = BTreeMap::new();
    for token in tokens.iter().map(|token| *token as usize) {
        if let Some(weight) = idf.get(token) {
            *vector.entry(token).or_default() += weight;
        }
    }
    let length = vector.values().map(|value| value * value).sum::<f32>().sqrt();
    vector.values_mut().for_each(|value| *value /= length.max(f32::MIN_POSITIVE));
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rarer_token_decides() {
        let idf = vec![1.0, 1.0, 3.0, 1.0];
        let centroids = [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]].concat();
        let table = Tensor::zeros((4, 1), DType::F32, &Device::Cpu);
        let Ok(table) = table else { panic!("a table of zeros") };
        let classifier = NearestCentroid { idf, centroids, table };
        assert_eq!(*classifier.weights(&[0, 0, 2]), [0.0, 1.0], "3 is more than 2");
        assert_eq!(*classifier.weights(&[0, 0, 0, 0, 2]), [1.0, 0.0], "and less than 4");
        assert_eq!(*classifier.weights(&[3, 9]), [0.0, 0.0], "nothing shared, and a token that no row had");
    }
}
