//! What all layers of one forward share: the sequences, their rotary tables, and where their keys are.

use crate::attention::attention_layout::AttentionLayout;
use crate::attention::dispatch::{
    attend_cached, biased_attention, cached_attention, cross_attention, rotate, self_attention,
};
use crate::attention::distance_bias::DistanceBias;
use crate::attention::heads::AttentionHeads;
use crate::attention::segment::AttentionSegment;
use crate::kv_cache::KvCache;
use crate::layer::rope::LayerRopes;
use crate::source_target::SourceTarget;
use crate::weights::token_precision::TokenPrecision;
use candle_core::{Device, Result, Tensor, bail};
use lorakit_lora::SequenceBatch;
use std::ops::Range;
use std::sync::Arc;

/// What all layers of one forward share.
#[derive(Clone)]
pub struct ForwardPlan {
    sequences: SequenceBatch,
    /// The rows of an encoder-decoder, whose layers' attention it lays out.
    split: Option<Arc<SourceTarget>>,
    /// For each kind of attention.
    layouts: Vec<AttentionLayout>,
    /// The index of each layer's kind.
    of_layer: Arc<[usize]>,
    cache: Option<KvCache>,
    output: Option<OutputTokens>,
    precision: TokenPrecision,
    /// What the queries of each token are multiplied by, where that is not one.
    query_scales: Option<Arc<[f32]>>,
}

/// The tokens for which a layer's output is computed.
#[derive(Clone)]
struct OutputTokens {
    layer: usize,
    /// Their indices among all tokens, ascending.
    indices: Tensor,
    /// Whether each token is one of them; None in an encoder-decoder.
    wanted: Option<Arc<[bool]>>,
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
            query_scales: ropes.query_scales(&sequences),
            sequences,
            split: None,
            layouts,
            of_layer: ropes.of_layer.clone(),
            cache,
            output: None,
            precision: TokenPrecision::Exact,
        }
    }

    /// The same for an encoder-decoder, whose rows are split so.
    pub(crate) fn with_split(self, split: SourceTarget) -> Self {
        Self { split: Some(Arc::new(split)), ..self }
    }

    /// The rows of an encoder-decoder, split into source and target.
    pub(crate) fn split(&self) -> Option<&SourceTarget> {
        self.split.as_deref()
    }

    /// The same where the output of `layer` is computed for some tokens alone: those at `indices`, ascending, which form
    /// these `sequences`. After that layer's attention only they are computed.
    pub(crate) fn with_output_tokens(
        self,
        layer: usize,
        indices: &[u32],
        device: &Device,
        sequences: SequenceBatch,
    ) -> Result<Self> {
        let wanted = self.split.is_none().then(|| {
            let mut wanted = vec![false; self.sequences.tokens()];
            indices.iter().for_each(|&index| wanted[index as usize] = true);
            wanted.into()
        });
        let indices = Tensor::from_slice(indices, indices.len(), device)?;
        Ok(Self { output: Some(OutputTokens { layer, indices, wanted, sequences }), ..self })
    }

    /// The same where quantized weights are multiplied with tokens of this precision.
    pub(crate) fn with_precision(self, precision: TokenPrecision) -> Self {
        Self { precision, ..self }
    }

    /// The precision of the tokens that quantized weights are multiplied with.
    pub(crate) fn precision(&self) -> TokenPrecision {
        self.precision
    }

    fn output_of(&self, layer: usize) -> Option<&OutputTokens> {
        self.output.as_ref().filter(|output| output.layer == layer)
    }

    /// The indices of the tokens for which the output of `layer` is computed, if not for all: of an encoder-decoder, among
    /// those of targets.
    pub(crate) fn output_indices(&self, layer: usize) -> Option<&Tensor> {
        self.output_of(layer).map(|output| &output.indices)
    }

    /// Whether the output of each token of `layer` is wanted, where it is not wanted of all.
    pub(crate) fn wanted_tokens(&self, layer: usize) -> Option<Arc<[bool]>> {
        self.output_of(layer)?.wanted.clone()
    }

    /// The sequences that those tokens form.
    pub(crate) fn output_sequences(&self, layer: usize) -> &SequenceBatch {
        self.output_of(layer).map_or_else(|| self.sequences_of(layer), |output| &output.sequences)
    }

    /// The sequences of the tokens that a layer changes.
    pub(crate) fn sequences_of(&self, layer: usize) -> &SequenceBatch {
        self.split().map_or(&self.sequences, |split| &split.stack(layer).sequences)
    }

    /// How the attention of a layer sees the packed sequences.
    pub(crate) fn layout(&self, layer: usize) -> &AttentionLayout {
        match self.split() {
            Some(split) => &split.stack(layer).layout,
            None => &self.layouts[self.of_layer[layer]],
        }
    }

    /// What the queries of each token are multiplied by, where that is not one.
    pub(crate) fn query_scales(&self) -> Option<&Arc<[f32]>> {
        self.query_scales.as_ref()
    }

    /// The sequences.
    pub fn sequences(&self) -> &SequenceBatch {
        &self.sequences
    }

    /// The attention of one layer: `qkv`, `[tokens, fused width]`, to `[tokens, queries * features]`.
    pub(crate) fn attend(
        &self,
        layer: usize,
        heads: AttentionHeads,
        bias: Option<&DistanceBias>,
        qkv: &Tensor,
    ) -> Result<Tensor> {
        let layout = self.layout(layer);
        let table = bias.map(DistanceBias::table).transpose()?;
        let Some((cache, index)) = self.cache_of(layer) else {
            return match &table {
                Some(table) => biased_attention(qkv, table, heads, layout),
                None => self_attention(qkv, heads, layout),
            };
        };
        let qkv = if layout.rope.is_empty() { qkv.clone() } else { rotate(qkv, heads, &layout.rope)? };
        cache.write(index, (&qkv, heads.queries * heads.features), &layout.segments)?;
        let cached = [&cache.keys[index], &cache.values[index]];
        match &table {
            Some(_) => attend_cached(&qkv, cached, table.as_ref(), heads, &layout.segments),
            None => cached_attention(&qkv, cached[0], cached[1], heads, layout),
        }
    }

    /// The attention of one layer's queries, `[target tokens, queries * features]`, to the encoder's output, of whose tokens
    /// here `kv` are the keys and values, `[source tokens, 2 keys * features]`.
    pub(crate) fn attend_across(
        &self,
        layer: usize,
        heads: AttentionHeads,
        q: &Tensor,
        kv: Option<&Tensor>,
    ) -> Result<Tensor> {
        let segments = self.across()?;
        match (self.cache_of(layer), kv) {
            (Some((cache, index)), _) => {
                attend_cached(q, [&cache.keys[index], &cache.values[index]], None, heads, segments)
            }
            (None, Some(kv)) => cross_attention(q, kv, heads, segments),
            (None, None) => bail!("a target was given without its source"),
        }
    }

    /// The target tokens with the keys that they see of the encoder's output.
    ///
    /// # Errors
    /// If there is no encoder, or a row has a target but no source.
    pub(crate) fn across(&self) -> Result<&Arc<[AttentionSegment]>> {
        let Some(split) = self.split() else { bail!("cross-attention in a base without an encoder") };
        let has_source = |row: &AttentionSegment| row.queries.is_empty() || row.keys.iter().any(|run| !run.is_empty());
        match split.across.iter().position(|row| !has_source(row)) {
            Some(row) => bail!("row {row} of an encoder-decoder has a target but no source"),
            None => Ok(&split.across),
        }
    }

    /// Writes the keys and values of source tokens, `[source tokens, 2 keys * features]`, to the cache, if there is one.
    pub(crate) fn cache_memory(&self, layer: usize, kv: &Tensor) -> Result<()> {
        match (self.cache_of(layer), self.split()) {
            (Some((cache, index)), Some(split)) => cache.write(index, (kv, 0), &split.memory_slots),
            _ => Ok(()),
        }
    }

    /// The cache, if this layer has one, and the layer's index in it: an encoder needs none.
    fn cache_of(&self, layer: usize) -> Option<(&KvCache, usize)> {
        let before = self.split().map_or(0, |split| split.encoder_layers);
        Some((self.cache.as_ref()?, layer.checked_sub(before)?))
    }
}
