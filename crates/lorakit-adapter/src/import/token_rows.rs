//! Embeddings of single tokens that replace the base's: PEFT's `trainable_token_indices`.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{AdapterError, Result};
use crate::matrix::Matrix;
use crate::peft::adapter_tensor::AdapterTensor;
use crate::peft::target_modules::ends_with_name;

/// The mark of such rows in a tensor's name. Despite it they are the new rows, not their differences.
const MARK: &str = ".token_adapter.trainable_tokens_delta";

/// New rows of a weight `[vocabulary, width]`.
#[derive(Clone, Debug)]
pub struct TokenRows {
    tokens: Vec<usize>,
    rows: Matrix,
}

impl TokenRows {
    /// The module that a tensor's name says it has rows of.
    pub(super) fn module_of(path: &str) -> Option<&str> {
        path.rsplit_once(MARK).map(|(module, _)| module)
    }

    /// The rows of a module, of which `indices` lists the tokens: by the end of its path, or by an empty one.
    ///
    /// # Errors
    /// If there is not a row for each token, or a token twice.
    pub(super) fn of(module: &str, tensor: AdapterTensor, indices: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
        let of_module = indices.iter().find(|(name, _)| name.is_empty() || ends_with_name(module, name));
        let tokens = of_module.map(|(_, tokens)| tokens.clone()).unwrap_or_default();
        let rows = tensor.matrix()?;
        if rows.rows() != tokens.len() || tokens.iter().collect::<BTreeSet<_>>().len() != tokens.len() {
            return Err(AdapterError::Tensors(format!(
                "the file holds {} rows of `{module}`, and trainable_token_indices of adapter_config.json lists the tokens \
                 {tokens:?}; expected one row for each, each once",
                rows.rows()
            )));
        }
        Ok(Self { tokens, rows })
    }

    /// The tokens, in the order of the rows.
    pub fn tokens(&self) -> &[usize] {
        &self.tokens
    }

    /// Their new rows, `[tokens, width]`.
    pub fn rows(&self) -> &Matrix {
        &self.rows
    }
}
