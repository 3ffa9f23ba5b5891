//! LoGo: a prompt goes to the experts that answer it most strongly in the last block
//! (2025, <https://arxiv.org/abs/2511.07129>).
//!
//! With `h` the input of the last block's query projection at the prompt's last token, expert `e` adds `o_e = s B A h` there.
//! Its score is `|o_e|` (`measure=norm`), or `1 / (H + 1e-6)` with `H` the entropy of `softmax(o_e)` (`measure=entropy`).
//! The `top_k` experts of the highest scores serve the row at the weights `w_e = score_e / sum of scores`, the same at
//! every site and for all that is generated: `y = W x + sum_e w_e s_e B_e A_e x`. Nothing is fitted.
//!
//! The authors' code reads the residual before its norm as `h`, and probes with all adapters on for the first prompt and with
//! the choice of the one before for all others, so that results depend on the order of rows. Here `h` is the input of
//! the projection itself, under the base alone.
//!
//! An expert that adds nothing to this projection is no candidate, and equal scores go to the first name. A fused projection
//! of queries, keys and values is read as a whole; of an encoder-decoder it is the decoder's self-attention, at its start
//! token.
//!
//! Cost: a pass of the base over the prompt, and of each expert one product with one token.

use crate::error::{Result, RouteError};
use crate::fixed::row_weights::observed_row_weights;
use crate::library_stack::LibraryStack;
use crate::limit::Limit;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, defaults, read, write};
use crate::mixing::Mixing;
use crate::prompt::prompt_router::{PromptPass, PromptRouter};
use crate::router::{Router, RouterContext};
use candle_core::{DType, Device, Tensor};
use lorakit_adapter::LowRank;
use lorakit_lora::{Outputs, Patch, Patches, Projection, SequenceBatch, Site, SiteRole};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The router `logo`.
pub static LOGO: MethodInfo<dyn Router> = MethodInfo {
    name: "logo",
    aliases: &[],
    summary: "per row, the experts that add most to the last block's queries at the prompt's last token",
    link: Some("https://arxiv.org/abs/2511.07129"),
    defaults: defaults::<Logo>,
    parse: |name, typed| Ok(Arc::new(read::<Logo>(name, typed)?)),
    version: 1,
};

/// What of an expert's output at the probed projection is its score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputMeasure {
    /// Its length.
    #[default]
    Norm,
    /// The inverse of the entropy of its softmax.
    Entropy,
}

/// The router `logo`. The defaults are the authors'.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Logo {
    /// What an expert's score is.
    pub measure: OutputMeasure,
    /// The maximum number of experts of a row.
    pub top_k: Limit,
}

impl Default for Logo {
    fn default() -> Self {
        Self { measure: OutputMeasure::Norm, top_k: Limit(20) }
    }
}

impl Settings for Logo {}

impl fmt::Display for Logo {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, LOGO.name, self)
    }
}

impl Router for Logo {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &LOGO
    }

    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        observed_row_weights(experts, Mixing::Outputs, context.observer.clone())
    }

    /// # Errors
    /// If no expert changes the last block's query projection.
    fn prompt_router(&self, experts: &LibraryStack, _: &RouterContext) -> Result<Option<Arc<dyn PromptRouter>>> {
        let Some((site, projection)) = last_query(experts.sites()) else {
            return Err(RouteError::NoOutputs("q_proj".to_owned()));
        };
        let found = experts.stacks().find(|(index, _, _)| *index == site);
        let of = |expert: usize| Some((expert, experts.module(expert, &projection.module)?));
        let candidates: Vec<(usize, &LowRank)> =
            (0..experts.len()).filter_map(of).filter(|(_, low_rank)| low_rank.norm() > 0.0).collect();
        let (Some((_, _, stack)), false) = (found, candidates.is_empty()) else {
            return Err(RouteError::NoOutputs(projection.module.clone()));
        };
        let a: Vec<f32> = candidates.iter().flat_map(|(_, low_rank)| low_rank.a().values().into_owned()).collect();
        let input = candidates[0].1.input();
        let b = |(expert, low_rank): (usize, &LowRank)| -> Result<(usize, Tensor)> {
            let shape = (low_rank.output(), low_rank.rank());
            let b = Tensor::from_vec(low_rank.b().values().into_owned(), shape, stack.device())?;
            Ok((expert, (b * low_rank.scale())?.t()?.contiguous()?))
        };
        Ok(Some(Arc::new(QueryProbe(Arc::new(QueryExperts {
            logo: self.clone(),
            site,
            sites: experts.sites().len(),
            experts: experts.len(),
            a: Tensor::from_vec(a.clone(), (a.len() / input, input), stack.device())?,
            b: candidates.into_iter().map(b).collect::<Result<_>>()?,
        })))))
    }
}

/// The query projection of the last block that has attention, with the index of its site.
fn last_query(sites: &[Site]) -> Option<(usize, &Projection)> {
    let reads = |site: &Site| site.role == SiteRole::AttentionInput && site.layer.is_some();
    let last = sites.iter().filter(|site| reads(site)).filter_map(|site| site.layer).max()?;
    let (index, site) = sites.iter().enumerate().find(|(_, site)| reads(site) && site.layer == Some(last))?;
    let query = site.projections.iter().find(|projection| matches!(projection.name(), "q_proj" | "q"));
    Some((index, query.or(site.projections.first())?))
}

/// The candidates at the probed projection.
struct QueryExperts {
    logo: Logo,
    site: usize,
    /// Number of sites of the base.
    sites: usize,
    /// Number of experts of the library.
    experts: usize,
    /// The candidates' A's, `[sum of ranks, in]`.
    a: Tensor,
    /// Each candidate with its `s B'`, `[rank, out]`.
    b: Vec<(usize, Tensor)>,
}

struct QueryProbe(Arc<QueryExperts>);

impl PromptRouter for QueryProbe {
    fn start(&self) -> Box<dyn PromptPass> {
        Box::new(QueryPass { experts: self.0.clone(), last_tokens: Arc::default() })
    }
}

/// One pass: records the input at each row's last token.
struct QueryPass {
    experts: Arc<QueryExperts>,
    last_tokens: Arc<LastTokens>,
}

/// `[rows, in]`, without rows that have no token.
#[derive(Default)]
struct LastTokens(Mutex<Option<Tensor>>);

impl Patch for LastTokens {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, _: &mut Outputs) -> candle_core::Result<()> {
        let last = rows.iter().filter(|row| row.len > 0).map(|row| (row.tokens().end - 1) as u32);
        let last: Vec<u32> = last.collect();
        let x = match last.is_empty() {
            // A GPU launches no kernel of no elements.
            true => Tensor::zeros((0, x.dim(1)?), DType::F32, &Device::Cpu)?,
            false => x.detach().index_select(&Tensor::from_slice(&last, last.len(), x.device())?, 0)?,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(x.to_dtype(DType::F32)?);
        Ok(())
    }
}

impl PromptPass for QueryPass {
    fn patches(&self) -> Patches {
        let probe = |site| (site == self.experts.site).then(|| self.last_tokens.clone() as Arc<dyn Patch>);
        Patches::new((0..self.experts.sites).map(probe).collect())
    }

    fn weights(&self, rows: &SequenceBatch, _: &Tensor) -> Result<Vec<Arc<[f32]>>> {
        let recorded = self.last_tokens.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let h = recorded.ok_or(RouteError::OtherRows)?;
        if h.dim(0)? != rows.iter().filter(|row| row.len > 0).count() {
            return Err(RouteError::OtherRows);
        }
        let mut weights = self.experts.weights(&h)?.into_iter();
        let none = || vec![0.0; self.experts.experts].into();
        let of = |len: usize| if len > 0 { weights.next() } else { None };
        Ok(rows.iter().map(|row| row.len).map(of).map(|weights| weights.unwrap_or_else(none)).collect())
    }
}

impl QueryExperts {
    /// The weights of all experts by the inputs `h`, `[rows, in]`.
    fn weights(&self, h: &Tensor) -> Result<Vec<Arc<[f32]>>> {
        let rows = h.dim(0)?;
        if rows == 0 {
            return Ok(Vec::new());
        }
        let z = h.matmul(&self.a.t()?)?;
        let (mut start, mut scores) = (0, vec![Vec::with_capacity(self.b.len()); rows]);
        for (_, b) in &self.b {
            let (rank, output) = b.dims2()?;
            let outputs = z.narrow(1, start, rank)?.contiguous()?.matmul(b)?.flatten_all()?.to_vec1::<f32>()?;
            start += rank;
            let of_rows = outputs.chunks_exact(output).map(|output| self.logo.measure.score(output));
            scores.iter_mut().zip(of_rows).for_each(|(scores, score)| scores.push(score));
        }
        Ok(scores.iter().map(|scores| self.shares(scores)).collect())
    }

    /// The highest scores of the candidates as shares of their sum; zero for all others.
    fn shares(&self, scores: &[f64]) -> Arc<[f32]> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        order.truncate(self.logo.top_k.0);
        let total: f64 = order.iter().map(|candidate| scores[*candidate]).sum();
        let mut weights = vec![0.0; self.experts];
        // If nobody answers, nobody serves.
        for candidate in order.into_iter().filter(|_| total != 0.0) {
            weights[self.b[candidate].0] = (scores[candidate] / total) as f32;
        }
        weights.into()
    }
}

impl OutputMeasure {
    /// The score of an expert's output.
    fn score(self, output: &[f32]) -> f64 {
        let output = || output.iter().map(|value| f64::from(*value));
        match self {
            Self::Norm => output().map(|value| value * value).sum::<f64>().sqrt(),
            Self::Entropy => {
                let highest = output().fold(f64::NEG_INFINITY, f64::max);
                let terms = output().map(|value| (value - highest, (value - highest).exp()));
                let (total, weighted) = terms.fold((0.0, 0.0), |(t, w), (log, term)| (t + term, w + log * term));
                1.0 / (f64::ln(total) - weighted / total + 1e-6)
            }
        }
    }
}
