//! An adapter of an embedding that the head follows, where the base ties the two (`ensure_weight_tying`).
//!
//! PEFT gives the head the embedding's matrices, transposed and exchanged. It saves them twice, but loads a file without
//! those of the head alike.

use crate::adapter::Adapter;
use crate::error::Result;
use crate::low_rank::LowRank;
use crate::warning::Warning;

/// The key of the configuration, and the subject of its warning.
const KEY: &str = "ensure_weight_tying";

impl Adapter {
    /// The same adapter, whose head follows its embedding over a base that ties them, with a warning of that if it adapts
    /// an embedding.
    pub(crate) fn with_pending_tied_head(mut self) -> Self {
        if self.metadata().embeddings.is_empty() {
            return self;
        }
        let text = "the file holds no LoRA of lm_head; over a base whose head is tied to the embedding, --base B derives it \
                    from that of the embedding, as PEFT does";
        self.ties_head = true;
        self.with_warning(Warning::new(KEY, text))
    }

    /// The same adapter over a base with this embedding and head: where they are `tied` and the adapter's are to be too, with
    /// the head's update, which is the embedding's transposed.
    ///
    /// # Errors
    /// If the factors do not fit each other; those of a valid adapter do.
    pub fn with_tied_head(mut self, embedding: &str, head: &str, tied: bool) -> Result<Self> {
        let ties = std::mem::take(&mut self.ties_head);
        let Some(update) = self.modules().get(embedding).filter(|_| ties) else { return Ok(self) };
        if !tied {
            return Ok(self.without_warning(KEY));
        }
        let update = LowRank::new(update.b().transposed(), update.a().transposed(), update.scale())?;
        let text = format!("the file holds no LoRA of `{head}`; it was derived from that of `{embedding}`, as in PEFT");
        Ok(self.with_module(head, update).with_warning_replaced(&Warning::new(KEY, text)))
    }
}
