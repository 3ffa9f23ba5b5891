//! A probe that measures how strongly each expert would respond to a site's input, without applying it.
//!
//! At a site, for a token `x` and an expert whose projections have the deltas `s_p B_p A_p`, the response is
//! `sqrt(sum_p |s_p B_p A_p x|²) / |x|`: the length of what the expert would add, for an input of length one. With the thin
//! factorization `B_p = Q_p R_p` it is `|s_p R_p A_p x|`, so that a token costs one product with all experts' ranks, and
//! nothing of the output's width.

use crate::error::Result;
use crate::inner_products::inner_products;
use crate::library_stack::LibraryStack;
use crate::ordered_results::ordered_results;
use crate::stack::Stack;
use candle_core::{DType, Device, Tensor, bail};
use faer::Mat;
use lorakit_adapter::LowRank;
use lorakit_lora::{Outputs, Patch, Patches, SequenceBatch, Site};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// What of an expert's delta responds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResponseMeasure {
    /// All of it: `|s B A x| / |x|`.
    #[default]
    Energy,
    /// Its strongest direction alone, as Arrow's score: `|<x, v>| / |x|`.
    Arrow,
}

/// Measures the responses of a library's experts at every site that they touch.
#[derive(Debug)]
pub struct ResponseProbe(Vec<Option<Arc<SiteProbe>>>);

/// The experts of one site.
#[derive(Debug)]
struct SiteProbe {
    /// The matrix that multiplies an input, `[rows of all experts, in]`: an expert's response is the length of its part.
    rows: Tensor,
    /// Each expert's rows; empty if it has nothing here.
    parts: Vec<Range<usize>>,
}

/// The responses to the rows of one pass, by site: `[rows, experts]`, averaged over each row's tokens. Experts with nothing
/// at a site have zero there.
#[derive(Debug)]
pub struct ResponsePass(Vec<Option<Arc<SiteResponses>>>);

#[derive(Debug)]
struct SiteResponses {
    probe: Arc<SiteProbe>,
    responses: Mutex<Vec<f32>>,
}

impl ResponseProbe {
    /// Prepares the matrices of every site.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn new(experts: &LibraryStack, measure: ResponseMeasure) -> Result<Self> {
        let probe = |(index, site, stack): (usize, &Site, &Stack)| -> Result<_> {
            let probe = SiteProbe::new(experts, site, measure, stack.device())?;
            stack.device().synchronize()?;
            Ok((index, probe))
        };
        let made = ordered_results(experts.stacks().collect::<Vec<_>>().into_par_iter().map(probe))?;
        let mut by_site: Vec<Option<Arc<SiteProbe>>> = vec![None; experts.sites().len()];
        made.into_iter().for_each(|(index, probe)| by_site[index] = Some(Arc::new(probe)));
        Ok(Self(by_site))
    }

    /// Starts to record one pass.
    pub fn start(&self) -> ResponsePass {
        let seen = |probe: &Option<Arc<SiteProbe>>| {
            probe.clone().map(|probe| Arc::new(SiteResponses { probe, responses: Mutex::default() }))
        };
        ResponsePass(self.0.iter().map(seen).collect())
    }
}

impl ResponsePass {
    /// Patches that record and add nothing.
    pub fn patches(&self) -> Patches {
        Patches::new(self.0.iter().map(|seen| seen.clone().map(|seen| seen as Arc<dyn Patch>)).collect())
    }

    /// The responses at each touched site, `[rows, experts]`, with the site's index.
    pub fn responses(&self) -> Vec<(usize, Vec<f32>)> {
        let of = |(site, seen): (usize, &Option<Arc<SiteResponses>>)| {
            let responses = seen.as_ref()?.responses.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Some((site, responses))
        };
        self.0.iter().enumerate().filter_map(of).collect()
    }
}

impl SiteProbe {
    fn new(experts: &LibraryStack, site: &Site, measure: ResponseMeasure, device: &Device) -> Result<Self> {
        let (mut rows, mut parts) = (Vec::new(), Vec::new());
        for expert in 0..experts.len() {
            let start = rows.len() / site.input;
            for low_rank in site.projections.iter().filter_map(|p| experts.module(expert, &p.module)) {
                match measure {
                    ResponseMeasure::Energy => rows.extend(compact(low_rank)),
                    ResponseMeasure::Arrow => {
                        rows.extend(low_rank.top_singular_vector().into_iter().flat_map(|d| d.vector))
                    }
                }
            }
            parts.push(start..rows.len() / site.input);
        }
        let height = rows.len() / site.input;
        Ok(Self { rows: Tensor::from_vec(rows, (height, site.input), device)?, parts })
    }

    /// The responses to tokens `x`, `[tokens, in]`, as `[tokens, experts]`.
    fn responses(&self, x: &Tensor) -> candle_core::Result<Vec<f32>> {
        let x = x.detach().to_dtype(DType::F32)?.contiguous()?;
        let lengths = x.sqr()?.sum(1)?.sqrt()?.to_vec1::<f32>()?;
        let width = self.rows.dim(0)?;
        if width == 0 {
            return Ok(vec![0.0; lengths.len() * self.parts.len()]);
        }
        let products = inner_products(&x, &self.rows)?;
        let mut responses = Vec::with_capacity(lengths.len() * self.parts.len());
        for (products, length) in products.chunks_exact(width).zip(&lengths) {
            let length = length.max(f32::MIN_POSITIVE);
            responses.extend(
                self.parts
                    .iter()
                    .map(|part| products[part.clone()].iter().map(|value| value * value).sum::<f32>().sqrt() / length),
            );
        }
        Ok(responses)
    }
}

/// `s R A` with `B = Q R`, `[r, in]`, row by row: its product with an input has the length of that of `s B A`.
fn compact(low_rank: &LowRank) -> Vec<f32> {
    let (a, b) = (low_rank.a().values(), low_rank.b().values());
    let (rank, input) = (low_rank.rank(), low_rank.input());
    let b = Mat::from_fn(low_rank.output(), rank, |row, column| f64::from(b[row * rank + column]));
    let qr = b.qr();
    let r = qr.thin_R();
    let mut rows = vec![0.0; r.nrows() * input];
    for (i, row) in rows.chunks_exact_mut(input).enumerate() {
        for (k, a) in a.chunks_exact(input).enumerate().skip(i) {
            let factor = low_rank.scale() * r[(i, k)];
            row.iter_mut().zip(a).for_each(|(sum, value)| *sum += factor * f64::from(*value));
        }
    }
    rows.into_iter().map(|value| value as f32).collect()
}

impl Patch for SiteResponses {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, _: &mut Outputs) -> candle_core::Result<()> {
        let experts = self.probe.parts.len();
        let of_tokens = self.probe.responses(x)?;
        if of_tokens.len() != rows.tokens() * experts {
            bail!("{} rows of {} tokens, and {} tokens of input", rows.len(), rows.tokens(), x.dim(0)?);
        }
        let mut means = vec![0.0; rows.len() * experts];
        for (mean, row) in means.chunks_exact_mut(experts).zip(rows.iter()) {
            for token in of_tokens[row.start * experts..(row.start + row.len) * experts].chunks_exact(experts) {
                mean.iter_mut().zip(token).for_each(|(sum, value)| *sum += value);
            }
            mean.iter_mut().for_each(|sum| *sum /= row.len.max(1) as f32);
        }
        *self.responses.lock().unwrap_or_else(PoisonError::into_inner) = means;
        Ok(())
    }
}
