//! What all layers of one forward share: the sequences, their rotary tables, and where their keys are.

use crate::attention::attention_layout::AttentionLayout;
use crate::attention::dispatch::{cached_attention, rotate, self_attention};
use crate::attention::heads::AttentionHeads;
use crate::attention::segment::AttentionSegment;
use crate::kv_cache::KvCache;
use crate::layer::rope::LayerRopes;
use crate::weights::token_precision::TokenPrecision;
use candle_core::{Result, Tensor};
use lorakit_lora::SequenceBatch;
use std::ops::Range;
use std::sync::Arc;

/// What all layers of one forward share.
#[derive(Clone)]
pub struct ForwardPlan {
    sequences: SequenceBatch,
    /// For each kind of attention.
    layouts: Vec<AttentionLayout>,
    /// The index of each layer's kind.
    of_layer: Arc<[usize]>,
    cache: Option<KvCache>,
    output: Option<OutputTokens>,
    precision: TokenPrecision,
}

/// The tokens that the output of a layer is wanted of.
#[derive(Clone)]
struct OutputTokens {
    layer: usize,
    /// Their indices among all tokens, ascending.
    indices: Tensor,
    sequences: SequenceBatch,
}

impl ForwardPlan {
    /// Packed sequences, each of which attends to itself.
    pub(crate) fn packed(sequences: SequenceBatch, ropes: &LayerRopes) -> Self {
        let segment = |tokens: Range<usize>| AttentionSegment { queries: tokens.clone(), keys: vec![tokens] };
        let segments = sequences.iter().map(|sequence| segment(sequence.tokens())).collect();
        Self::new(sequences, segments, None, ropes)
    }

    /// Sequences whose keys are in a cache: `keys[i]` are the slots of sequence `i`, those of its tokens here last.
    pub(crate) fn cached(
        sequences: SequenceBatch,
        keys: Vec<Vec<Range<usize>>>,
        cache: KvCache,
        ropes: &LayerRopes,
    ) -> Self {
        let segments = sequences.iter().zip(keys);
        let segments = segments.map(|(sequence, keys)| AttentionSegment { queries: sequence.tokens(), keys }).collect();
        Self::new(sequences, segments, Some(cache), ropes)
    }

    fn new(
        sequences: SequenceBatch,
        segments: Arc<[AttentionSegment]>,
        cache: Option<KvCache>,
        ropes: &LayerRopes,
    ) -> Self {
        let tables = ropes.of_batch(&sequences).into_iter();
        let layouts = tables.map(|table| AttentionLayout::new(table, segments.clone())).collect();
        Self {
            sequences,
            layouts,
            of_layer: ropes.of_layer.clone(),
            cache,
            output: None,
            precision: TokenPrecision::Exact,
        }
    }

    /// The same where the output of `layer` is wanted of some tokens alone: those at `indices`, ascending, which form
    /// these `sequences`. After that layer's attention only they are computed.
    pub(crate) fn with_output_tokens(self, layer: usize, indices: Tensor, sequences: SequenceBatch) -> Self {
        Self { output: Some(OutputTokens { layer, indices, sequences }), ..self }
    }

    /// The same where quantised weights are multiplied with tokens of this precision.
    pub(crate) fn with_precision(self, precision: TokenPrecision) -> Self {
        Self { precision, ..self }
    }

    /// The precision of the tokens that quantised weights are multiplied with.
    pub(crate) fn precision(&self) -> TokenPrecision {
        self.precision
    }

    fn output_of(&self, layer: usize) -> Option<&OutputTokens> {
        self.output.as_ref().filter(|output| output.layer == layer)
    }

    /// The indices of the tokens that the output of `layer` is wanted of, where it is not wanted of all.
    pub(crate) fn output_indices(&self, layer: usize) -> Option<&Tensor> {
        self.output_of(layer).map(|output| &output.indices)
    }

    /// The sequences that those tokens form.
    pub(crate) fn output_sequences(&self, layer: usize) -> &SequenceBatch {
        self.output_of(layer).map_or(&self.sequences, |output| &output.sequences)
    }

    /// How the attention of a layer sees the packed sequences.
    pub(crate) fn layout(&self, layer: usize) -> &AttentionLayout {
        &self.layouts[self.of_layer[layer]]
    }

    /// The sequences.
    pub fn sequences(&self) -> &SequenceBatch {
        &self.sequences
    }

    /// The attention of one layer: `qkv`, `[tokens, fused width]`, to `[tokens, queries * features]`.
    pub(crate) fn attend(&self, layer: usize, heads: AttentionHeads, qkv: &Tensor) -> Result<Tensor> {
        let layout = self.layout(layer);
        let Some(cache) = &self.cache else {
            return self_attention(qkv, heads, layout);
        };
        let qkv = rotate(qkv, heads, &layout.rope)?;
        cache.write(layer, &qkv, heads, &layout.segments)?;
        cached_attention(&qkv, &cache.keys[layer], &cache.values[layer], heads, layout)
    }
}
