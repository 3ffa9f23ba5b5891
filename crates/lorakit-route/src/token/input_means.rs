//! A probe that records the mean input of each site over rows.

use crate::error::{Result, RouteError};
use crate::library_stack::LibraryStack;
use candle_core::{DType, Tensor, bail};
use lorakit_lora::{Outputs, Patch, Patches, SequenceBatch};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};

/// The tokens of a row whose mean stands for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Its last token.
    #[default]
    Last,
    /// The mean of its tokens.
    Mean,
}

/// Adds up the inputs of every site that the library touches, by the expert that each row names.
#[derive(Debug)]
pub struct InputMeans(/* By site; none if no expert touches it. */ Vec<Option<Arc<SiteMeans>>>);

/// The sums of one site.
#[derive(Debug)]
struct SiteMeans {
    pool: Pooling,
    experts: usize,
    width: usize,
    sums: Mutex<Sums>,
}

#[derive(Debug)]
struct Sums {
    /// `[experts, in]`.
    values: Vec<f64>,
    /// Rows of each expert.
    rows: Vec<u64>,
}

impl InputMeans {
    /// An empty record for the sites that `experts` touch.
    pub fn new(experts: &LibraryStack, pool: Pooling) -> Self {
        let mut sites = vec![None; experts.sites().len()];
        for (index, site, _) in experts.stacks() {
            let (experts, width) = (experts.len(), site.input);
            let sums = Mutex::new(Sums { values: vec![0.0; experts * width], rows: vec![0; experts] });
            sites[index] = Some(Arc::new(SiteMeans { pool, experts, width, sums }));
        }
        Self(sites)
    }

    /// Patches that record their input and add nothing. Rows that name no expert are not counted.
    pub fn patches(&self) -> Patches {
        Patches::new(self.0.iter().map(|site| site.clone().map(|site| site as Arc<dyn Patch>)).collect())
    }

    /// The mean input of a site over the rows of each expert, `[experts, in]`.
    ///
    /// # Errors
    /// If an expert had no row.
    pub fn means(&self, site: usize, experts: &LibraryStack) -> Result<Vec<f64>> {
        let Some(site) = self.0.get(site).and_then(Option::as_ref) else { return Ok(Vec::new()) };
        let sums = site.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(expert) = sums.rows.iter().position(|rows| *rows == 0) {
            return Err(RouteError::NoRows(experts.names()[expert].clone()));
        }
        let mut means = sums.values.clone();
        for (mean, rows) in means.chunks_exact_mut(site.width).zip(&sums.rows) {
            mean.iter_mut().for_each(|sum| *sum /= *rows as f64);
        }
        Ok(means)
    }
}

impl Patch for SiteMeans {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, _: &mut Outputs) -> candle_core::Result<()> {
        let x = x.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        // One pass after the other and row by row: the sums do not depend on which rows ran together.
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        for row in rows.iter().filter(|row| row.len > 0) {
            let Some(expert) = row.expert else { continue };
            if expert >= self.experts {
                bail!("a row belongs to expert {expert} of {}", self.experts);
            }
            let tokens = match self.pool {
                Pooling::Last => row.tokens().end - 1..row.tokens().end,
                Pooling::Mean => row.tokens(),
            };
            let (width, share) = (self.width, 1.0 / tokens.len() as f64);
            let sum = &mut sums.values[expert * width..][..width];
            for token in x[tokens.start * width..tokens.end * width].chunks_exact(width) {
                sum.iter_mut().zip(token).for_each(|(sum, value)| *sum += share * f64::from(*value));
            }
            sums.rows[expert] += 1;
        }
        Ok(())
    }
}
