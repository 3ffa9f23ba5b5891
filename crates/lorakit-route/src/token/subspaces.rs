//! The subspace of a site's inputs that each candidate's delta reads, and the part of a token that lies in it.

use crate::error::Result;
use crate::inner_products::inner_products;
use crate::library_stack::LibraryStack;
use crate::stack::Stack;
use crate::token::top_k::TOKENS_PER_TASK;
use candle_core::Tensor;
use lorakit_lora::Site;
use lorakit_lora::kernels::cpu_tensor;
use lorakit_lora::kernels::vector_product::row_products;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The name of the products in errors.
const NAME: &str = "subspaces";

/// How many times as long a product of one token with one row takes as its part of a product of all with all.
const SINGLE_PRODUCT_COST: usize = 5;

/// How the part of a token in a subspace is measured, with `V` of the delta's singular value decomposition `U S V'`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubspaceMeasure {
    /// `|V' x|`: its length.
    #[default]
    Length,
    /// `|S V' x| = |s B A x|`: the length of what the delta makes of it.
    Norm,
}

/// The subspaces of a site's candidates, projection by projection. Clones share the vectors.
#[derive(Clone)]
pub(crate) struct Subspaces {
    /// The rows of all candidates, `[sum of ranks, in]`: the part's measure is the length of its products with a
    /// candidate's rows.
    vectors: Tensor,
    /// Each candidate's rows.
    parts: Vec<Range<usize>>,
}

impl Subspaces {
    /// The subspaces of the experts that change a projection, with these experts of each projection: those that have a
    /// prototype there. None if there is no such expert.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub(crate) fn new(
        experts: &LibraryStack,
        site: &Site,
        stack: &Stack,
        measure: SubspaceMeasure,
    ) -> Result<Option<(Self, Vec<Vec<u32>>)>> {
        let modules = site.projections.iter().enumerate().flat_map(|(projection, of)| {
            (0..experts.len()).filter_map(move |expert| Some((projection, expert, experts.module(expert, &of.module)?)))
        });
        let rows = |(projection, expert, low_rank): (usize, usize, &lorakit_adapter::LowRank)| {
            let mut found = low_rank.right_singular_vectors()?;
            if measure == SubspaceMeasure::Norm {
                for (row, value) in found.vectors.chunks_exact_mut(site.input).zip(&found.singular_values) {
                    row.iter_mut().for_each(|x| *x = (f64::from(*x) * value) as f32);
                }
            }
            Some((projection, expert, found.vectors))
        };
        let made: Vec<_> = modules.collect::<Vec<_>>().into_par_iter().filter_map(rows).collect();
        let (mut vectors, mut parts) = (Vec::new(), Vec::with_capacity(made.len()));
        let mut candidates = vec![Vec::new(); site.projections.len()];
        for (projection, expert, rows) in made {
            let start = vectors.len() / site.input;
            vectors.extend(rows);
            parts.push(start..vectors.len() / site.input);
            candidates[projection].push(expert as u32);
        }
        if parts.is_empty() {
            return Ok(None);
        }
        let height = vectors.len() / site.input;
        let vectors = Tensor::from_vec(vectors, (height, site.input), stack.device())?;
        Ok(Some((Self { vectors, parts }, candidates)))
    }

    /// Number of candidates.
    pub(crate) fn len(&self) -> usize {
        self.parts.len()
    }

    /// The measures of contiguous f32 tokens, `[tokens, in]`, in every subspace: `[tokens, candidates]`.
    pub(crate) fn lengths(&self, x: &Tensor) -> candle_core::Result<Vec<f32>> {
        let products = inner_products(x, &self.vectors)?;
        let rows = self.vectors.dim(0)?;
        let mut lengths = vec![0.0; x.dim(0)? * self.len()];
        let of_token = |(lengths, products): (&mut [f32], &[f32])| {
            lengths.iter_mut().zip(&self.parts).for_each(|(to, part)| *to = length(&products[part.clone()]));
        };
        let by_token = lengths.par_chunks_exact_mut(self.len()).zip(products.par_chunks_exact(rows));
        by_token.with_min_len(TOKENS_PER_TASK).for_each(of_token);
        Ok(lengths)
    }

    /// The same for the `listed` tokens of each candidate alone, ascending; minus infinity elsewhere.
    pub(crate) fn lengths_of(&self, x: &Tensor, listed: &[Vec<u32>]) -> candle_core::Result<Vec<f32>> {
        let ((tokens, input), width) = (x.dims2()?, self.len());
        let pairs = listed.iter().map(Vec::len).sum::<usize>() * if tokens > 1 { SINGLE_PRODUCT_COST } else { 1 };
        let of_listed = if x.device().is_cpu() && pairs < tokens * width {
            cpu_tensor::with_values(x, NAME, |x| {
                cpu_tensor::with_values(&self.vectors, NAME, |vectors| {
                    let one = |(part, tokens): (&Range<usize>, &Vec<u32>)| {
                        lengths_in(&vectors[part.start * input..part.end * input], x, tokens, input)
                    };
                    self.parts.par_iter().zip(listed).map(one).collect::<Vec<_>>()
                })
            })??
        } else {
            // Of most tokens, or on a device, one product of all is faster.
            let all = self.lengths(x)?;
            let of = |column: usize, token: &u32| all[*token as usize * width + column];
            listed.iter().enumerate().map(|(column, tokens)| tokens.iter().map(|t| of(column, t)).collect()).collect()
        };
        let mut lengths = vec![f32::NEG_INFINITY; tokens * width];
        for (column, (tokens, of_tokens)) in listed.iter().zip(of_listed).enumerate() {
            tokens.iter().zip(of_tokens).for_each(|(token, to)| lengths[*token as usize * width + column] = to);
        }
        Ok(lengths)
    }
}

/// The measures of some of the tokens `x` in a subspace of these rows: gathering the tokens for a matrix product would take
/// longer than multiplying them by so few rows.
fn lengths_in(rows: &[f32], x: &[f32], tokens: &[u32], input: usize) -> Vec<f32> {
    let mut products = vec![0.0; rows.len() / input];
    let of_token = |token: &u32| {
        row_products(rows, &x[*token as usize * input..][..input], &mut products);
        length(&products)
    };
    tokens.iter().map(of_token).collect()
}

fn length(values: &[f32]) -> f32 {
    values.iter().map(|value| value * value).sum::<f32>().sqrt()
}
