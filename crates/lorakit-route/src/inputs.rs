//! A probe in the slot: what reaches each site, as means over rows.

use crate::error::{Result, RouteError};
use crate::experts::Experts;
use candle_core::{DType, Tensor, bail};
use lorakit_lora::{Outputs, Patch, Patches, SequenceBatch};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

/// What of a row counts for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pool {
    /// Its last token.
    #[default]
    Last,
    /// The mean of its tokens.
    Mean,
}

impl FromStr for Pool {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "last" => Ok(Self::Last),
            "mean" => Ok(Self::Mean),
            _ => Err("last or mean"),
        }
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Last => "last",
            Self::Mean => "mean",
        })
    }
}

/// Adds up the inputs of every site that the library touches, by the expert that each row names.
#[derive(Debug)]
pub struct Inputs(/* By site; none where no expert touches it. */ Vec<Option<Arc<SiteInputs>>>);

/// The sums of one site.
#[derive(Debug)]
struct SiteInputs {
    pool: Pool,
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

impl Inputs {
    /// Nothing seen yet, for the sites that `experts` touch.
    pub fn new(experts: &Experts, pool: Pool) -> Self {
        let mut sites = vec![None; experts.sites().len()];
        for (index, site, _) in experts.stacks() {
            let (experts, width) = (experts.len(), site.input);
            let sums = Mutex::new(Sums { values: vec![0.0; experts * width], rows: vec![0; experts] });
            sites[index] = Some(Arc::new(SiteInputs { pool, experts, width, sums }));
        }
        Self(sites)
    }

    /// Patches that look at what passes and add nothing. Rows that name no expert are not counted.
    pub fn patches(&self) -> Patches {
        Patches::new(self.0.iter().map(|site| site.clone().map(|site| site as Arc<dyn Patch>)).collect())
    }

    /// The mean input of a site over the rows of each expert, `[experts, in]`.
    ///
    /// # Errors
    /// Where an expert had no row.
    pub fn means(&self, site: usize, experts: &Experts) -> Result<Vec<f64>> {
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

impl Patch for SiteInputs {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, _: &mut Outputs) -> candle_core::Result<()> {
        let x = x.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        // One pass after the other and row by row: the sums do not depend on who ran beside whom.
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        for row in rows.iter().filter(|row| row.len > 0) {
            let Some(expert) = row.expert else { continue };
            if expert >= self.experts {
                bail!("a row belongs to expert {expert} of {}", self.experts);
            }
            let tokens = match self.pool {
                Pool::Last => row.tokens().end - 1..row.tokens().end,
                Pool::Mean => row.tokens(),
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
