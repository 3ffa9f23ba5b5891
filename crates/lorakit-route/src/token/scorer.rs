//! How the tokens of a site score the candidates of its choices.

use crate::inner_products::inner_products;
use crate::token::subspaces::Subspaces;
use crate::token::top_k::TopK;
use candle_core::{Result, Tensor};

/// The scores of a site's tokens: one for each candidate of each choice.
#[derive(Clone)]
pub(crate) enum ExpertScorer {
    /// The inner product with the candidate's vector, `[candidates of all choices, in]`: one product computes all scores.
    Vectors(Tensor),
    /// The measure of the token's part in the candidate's subspace.
    Subspaces(Subspaces),
    /// The same of the `top_k` candidates of each choice whose vectors have the largest inner products, whatever their signs;
    /// all others have none.
    Shortlist { vectors: Tensor, top_k: usize, subspaces: Subspaces },
}

impl ExpertScorer {
    /// The vectors, if they alone decide.
    pub(crate) fn vectors(&self) -> Option<&Tensor> {
        match self {
            Self::Vectors(vectors) => Some(vectors),
            Self::Subspaces(_) | Self::Shortlist { .. } => None,
        }
    }

    /// The number of candidates of all choices.
    pub(crate) fn width(&self) -> Result<usize> {
        match self {
            Self::Vectors(vectors) => vectors.dim(0),
            Self::Subspaces(subspaces) | Self::Shortlist { subspaces, .. } => Ok(subspaces.len()),
        }
    }

    /// The scores of contiguous f32 tokens, `[tokens, in]`, for these choices: `[tokens, candidates of all choices]`, minus
    /// infinity where there is none. On a device they are copied to the host.
    pub(crate) fn scores(&self, x: &Tensor, choices: &[TopK]) -> Result<Vec<f32>> {
        match self {
            Self::Vectors(vectors) => inner_products(x, vectors),
            Self::Subspaces(subspaces) => subspaces.lengths(x),
            Self::Shortlist { top_k, subspaces, .. } if choices.iter().all(|c| *top_k >= c.candidates.len()) => {
                subspaces.lengths(x)
            }
            Self::Shortlist { vectors, top_k, subspaces } => {
                let mut by_vectors = inner_products(x, vectors)?;
                by_vectors.iter_mut().for_each(|score| *score = score.abs());
                let mut listed = vec![Vec::new(); subspaces.len()];
                for choice in choices {
                    choice.shortlist(&by_vectors, *top_k, &mut listed);
                }
                subspaces.lengths_of(x, &listed)
            }
        }
    }
}
