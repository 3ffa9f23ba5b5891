//! The one slot: what may be put into a site, and what it may do there.

use crate::adapted_site::{AdaptedSite, Frozen};
use crate::rows::Rows;
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// What a site's frozen weights made of its input, open for a patch to add to.
pub struct Outputs {
    y: Tensor,
}

impl Outputs {
    /// Wraps what the frozen weights made, `[tokens, sum of widths]`.
    pub fn new(y: Tensor) -> Self {
        Self { y }
    }

    /// What stands there now, `[tokens, sum of widths]`.
    pub fn tensor(&self) -> &Tensor {
        &self.y
    }

    /// Adds `delta`, `[tokens, sum of widths]`.
    pub fn add(&mut self, delta: &Tensor) -> Result<()> {
        self.y = (&self.y + delta)?;
        Ok(())
    }

    /// Lets `op` add to the values where they stand, which is allowed only where nothing is differentiated.
    pub(crate) fn add_in_place(&mut self, op: impl FnOnce(&Tensor) -> Result<()>) -> Result<()> {
        op(&self.y)
    }

    /// The values with all that was added.
    pub fn into_tensor(self) -> Tensor {
        self.y
    }
}

/// A tenant of a site: a LoRA, a mixture of many, a batch in which each row has its own, a probe that only looks.
pub trait Patch: Send + Sync {
    /// Sees the site's input `x`, `[tokens, d]`, and whose tokens they are, and adds to the site's outputs.
    fn add(&self, x: &Tensor, rows: &Rows, out: &mut Outputs) -> Result<()>;

    /// The site of a CPU's `frozen` weights with what [`Patch::add`] adds for `rows`, where the patch trains it; none for
    /// all others.
    fn adapted(&self, _frozen: Arc<dyn Frozen>, _rows: &Rows) -> Result<Option<AdaptedSite>> {
        Ok(None)
    }
}

/// At most one patch for each site of a base, in the order of the base's sites.
#[derive(Clone, Default)]
pub struct Patches(Vec<Option<Arc<dyn Patch>>>);

impl Patches {
    /// No patch at any site: the base as it is.
    pub fn none() -> Self {
        Self::default()
    }

    /// The patches of all sites, in their order.
    pub fn new(by_site: Vec<Option<Arc<dyn Patch>>>) -> Self {
        Self(by_site)
    }

    /// The patch at a site.
    pub fn at(&self, site: usize) -> Option<&dyn Patch> {
        self.0.get(site).and_then(Option::as_deref)
    }

    /// Both this and `other` at every site, this first.
    pub fn with(self, other: Patches) -> Patches {
        let sites = self.0.len().max(other.0.len());
        let both = |site: usize| match (self.0.get(site).cloned().flatten(), other.0.get(site).cloned().flatten()) {
            (Some(a), Some(b)) => Some(Arc::new(Both(a, b)) as Arc<dyn Patch>),
            (a, b) => a.or(b),
        };
        Patches((0..sites).map(both).collect())
    }
}

/// Two patches at one site, one after the other.
struct Both(Arc<dyn Patch>, Arc<dyn Patch>);

impl Patch for Both {
    fn add(&self, x: &Tensor, rows: &Rows, out: &mut Outputs) -> Result<()> {
        self.0.add(x, rows, out)?;
        self.1.add(x, rows, out)
    }
}
