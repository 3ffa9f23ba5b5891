//! What may be put into a site, and what it may do there.

use crate::frozen_linear::FrozenLinear;
use crate::kernels::op::Op;
use crate::sequence_batch::SequenceBatch;
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// The outputs of a site's frozen weights, open for a patch to add to.
pub struct Outputs {
    y: Tensor,
}

impl Outputs {
    /// Wraps the outputs of the frozen weights, `[tokens, sum of widths]`.
    pub fn new(y: Tensor) -> Self {
        Self { y }
    }

    /// The current values, `[tokens, sum of widths]`.
    pub fn tensor(&self) -> &Tensor {
        &self.y
    }

    /// Adds `delta`, `[tokens, sum of widths]`.
    pub fn add(&mut self, delta: &Tensor) -> Result<()> {
        self.y = (&self.y + delta)?;
        Ok(())
    }

    /// Lets `op` add to the values in place, which is correct only where nothing is differentiated.
    pub(crate) fn add_in_place(&mut self, op: impl FnOnce(&Tensor) -> Result<()>) -> Result<()> {
        op(&self.y)
    }

    /// The values with all that was added.
    pub fn into_tensor(self) -> Tensor {
        self.y
    }
}

/// The rest of a patch's work, once it has read a site's input: adding to the outputs.
pub type Addition<'a> = Box<dyn FnOnce(&mut Outputs) -> Result<()> + Send + 'a>;

/// A forward hook of a site: a LoRA, a mixture of many, a batch in which each sequence has its own, a probe that only
/// records.
pub trait Patch: Send + Sync {
    /// Reads the site's input `x`, `[tokens, in]`, whose tokens are those of `batch`, and adds to the site's outputs.
    fn add(&self, x: &Tensor, batch: &SequenceBatch, out: &mut Outputs) -> Result<()>;

    /// The part of [`Patch::add`] that needs the input alone, which can be done while the frozen weights are multiplied; it
    /// returns the rest. A patch that has no such part does all in the rest.
    fn begin<'a>(&'a self, x: &'a Tensor, batch: &'a SequenceBatch) -> Result<Addition<'a>> {
        Ok(Box::new(move |out| self.add(x, batch, out)))
    }

    /// The site of a CPU's `frozen` weights with what [`Patch::add`] adds for `batch`, as one op outside candle's graph
    /// whose backward leaves the gradients of the patch's own parameters with the patch. None for patches that do not
    /// train so.
    fn site_op(&self, _frozen: Arc<dyn FrozenLinear>, _batch: &SequenceBatch) -> Result<Option<Box<dyn Op<1>>>> {
        Ok(None)
    }
}

/// A patch of the embedding, which reads rows of a table by token id where other patches read features: a LoRA's A is
/// such a table, and the rest of the LoRA is a patch that reads the row in place of `x`.
#[derive(Clone)]
pub struct EmbeddingPatch {
    /// The table, `[vocabulary, features]`.
    pub table: Tensor,
    /// Reads `[tokens, features]`, and adds to the embeddings.
    pub patch: Arc<dyn Patch>,
}

impl EmbeddingPatch {
    /// Adds to the embeddings of `ids`, whose tokens are those of `batch`.
    ///
    /// # Errors
    /// If an id is outside the table, or as [`Patch::add`].
    pub fn add(&self, ids: &[u32], batch: &SequenceBatch, out: &mut Outputs) -> Result<()> {
        let ids = Tensor::from_slice(ids, ids.len(), self.table.device())?;
        self.patch.add(&self.table.index_select(&ids, 0)?, batch, out)
    }
}

/// At most one patch per site of a base's layers, in the order of those sites, with those of its embedding and its head.
#[derive(Clone, Default)]
pub struct Patches {
    sites: Vec<Option<Arc<dyn Patch>>>,
    embedding: Vec<EmbeddingPatch>,
    head: Option<Arc<dyn Patch>>,
}

impl Patches {
    /// No patch at any site: the base as it is.
    pub fn none() -> Self {
        Self::default()
    }

    /// The patches of the layers' sites, in their order.
    pub fn new(sites: Vec<Option<Arc<dyn Patch>>>) -> Self {
        Self { sites, ..Self::default() }
    }

    /// The same with this patch of the embedding, in place of any that it has.
    pub fn with_embedding(self, patch: EmbeddingPatch) -> Self {
        Self { embedding: vec![patch], ..self }
    }

    /// The same with this patch of the head, in place of any that it has. It reads hidden states after the final norm and
    /// adds to logits. It is called per chunk of the tokens whose logits are wanted, with their sequences.
    pub fn with_head(self, patch: Arc<dyn Patch>) -> Self {
        Self { head: Some(patch), ..self }
    }

    /// The patch at a site.
    pub fn at(&self, site: usize) -> Option<&dyn Patch> {
        self.sites.get(site).and_then(Option::as_deref)
    }

    /// The patches of the embedding, one after the other.
    pub fn embedding(&self) -> &[EmbeddingPatch] {
        &self.embedding
    }

    /// The patch of the head.
    pub fn head(&self) -> Option<&dyn Patch> {
        self.head.as_deref()
    }

    /// Each patch replaced by what `make` makes of it.
    pub fn map(self, make: impl Fn(Arc<dyn Patch>) -> Arc<dyn Patch>) -> Self {
        Self {
            sites: self.sites.into_iter().map(|patch| patch.map(&make)).collect(),
            embedding: self
                .embedding
                .into_iter()
                .map(|EmbeddingPatch { table, patch }| EmbeddingPatch { table, patch: make(patch) })
                .collect(),
            head: self.head.map(&make),
        }
    }

    /// At every site this patch, then that of `other`.
    pub fn with(self, other: Patches) -> Patches {
        let chain = |a: Option<Arc<dyn Patch>>, b: Option<Arc<dyn Patch>>| match (a, b) {
            (Some(a), Some(b)) => Some(Arc::new(Chain(a, b)) as Arc<dyn Patch>),
            (a, b) => a.or(b),
        };
        let at = |patches: &Patches, site: usize| patches.sites.get(site).cloned().flatten();
        let sites = (0..self.sites.len().max(other.sites.len())).map(|site| chain(at(&self, site), at(&other, site)));
        Patches {
            sites: sites.collect(),
            embedding: self.embedding.iter().chain(&other.embedding).cloned().collect(),
            head: chain(self.head.clone(), other.head.clone()),
        }
    }
}

/// Two patches at one site, one after the other.
struct Chain(Arc<dyn Patch>, Arc<dyn Patch>);

impl Patch for Chain {
    fn add(&self, x: &Tensor, batch: &SequenceBatch, out: &mut Outputs) -> Result<()> {
        self.0.add(x, batch, out)?;
        self.1.add(x, batch, out)
    }
}
