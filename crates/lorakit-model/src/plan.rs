//! What all layers of one forward share: whose tokens are whose, their angles, and where their keys stand.

use crate::attention::attention_layout::AttentionLayout;
use crate::attention::dispatch::{cached_attention, rotate, self_attention};
use crate::attention::heads::AttentionHeads;
use crate::attention::segment::AttentionSegment;
use crate::layer::rope::RopeFrequencies;
use candle_core::{DType, Device, Result, Tensor};
use lorakit_lora::SequenceBatch;
use std::ops::Range;

/// Keys and values of tokens that were seen before, for every layer: `[slots, keys * features]` each.
#[derive(Clone)]
pub struct Cache {
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
}

impl Cache {
    /// Room for `slots` tokens.
    pub fn new(layers: usize, slots: usize, heads: AttentionHeads, device: &Device) -> Result<Self> {
        let room = || {
            (0..layers)
                .map(|_| Tensor::zeros((slots, heads.key_width()), DType::F32, device))
                .collect::<Result<Vec<_>>>()
        };
        Ok(Self { keys: room()?, values: room()? })
    }
}

/// The shared part of one forward.
#[derive(Clone)]
pub struct Plan {
    rows: SequenceBatch,
    layout: AttentionLayout,
    cache: Option<Cache>,
    wanted: Option<Wanted>,
}

/// The tokens that the output of a layer is wanted of.
#[derive(Clone)]
struct Wanted {
    layer: usize,
    /// Their places among all tokens.
    at: Tensor,
    rows: SequenceBatch,
}

impl Plan {
    /// Rows that attend to themselves only.
    pub(crate) fn packed(rows: SequenceBatch, frequencies: &RopeFrequencies) -> Self {
        let segments =
            rows.iter().map(|row| AttentionSegment { queries: row.tokens(), keys: vec![row.tokens()] }).collect();
        let layout = AttentionLayout::new(frequencies.angles(&rows.positions()), segments);
        Self { rows, layout, cache: None, wanted: None }
    }

    /// Rows whose keys stand in a cache: `keys[i]` are the slots of row `i`, those of its tokens here last.
    pub(crate) fn cached(
        rows: SequenceBatch,
        keys: Vec<Vec<Range<usize>>>,
        cache: Cache,
        frequencies: &RopeFrequencies,
    ) -> Self {
        let segments =
            rows.iter().zip(keys).map(|(row, keys)| AttentionSegment { queries: row.tokens(), keys }).collect();
        let layout = AttentionLayout::new(frequencies.angles(&rows.positions()), segments);
        Self { rows, layout, cache: Some(cache), wanted: None }
    }

    /// The same, where the output of `layer` is wanted of some tokens alone: those `at` these places, ascending, whose
    /// `rows` they are. What comes after the layer's attention is made of them alone.
    pub(crate) fn wanting(self, layer: usize, at: Tensor, rows: SequenceBatch) -> Self {
        Self { wanted: Some(Wanted { layer, at, rows }), ..self }
    }

    fn wanted_of(&self, layer: usize) -> Option<&Wanted> {
        self.wanted.as_ref().filter(|wanted| wanted.layer == layer)
    }

    /// The places of the tokens that the output of `layer` is wanted of, where it is not wanted of all.
    pub(crate) fn wanted_places(&self, layer: usize) -> Option<&Tensor> {
        self.wanted_of(layer).map(|wanted| &wanted.at)
    }

    /// Whose those tokens are.
    pub(crate) fn wanted_rows(&self, layer: usize) -> &SequenceBatch {
        self.wanted_of(layer).map_or(&self.rows, |wanted| &wanted.rows)
    }

    /// Where the tokens of packed rows stand.
    pub(crate) fn layout(&self) -> &AttentionLayout {
        &self.layout
    }

    /// Whose tokens are whose.
    pub fn rows(&self) -> &SequenceBatch {
        &self.rows
    }

    /// The attention of one layer: `qkv`, `[tokens, fused width]`, to `[tokens, queries * features]`.
    pub(crate) fn attend(&self, layer: usize, heads: AttentionHeads, qkv: &Tensor) -> Result<Tensor> {
        let Some(cache) = &self.cache else {
            return self_attention(qkv, heads, &self.layout);
        };
        let qkv = rotate(qkv, heads, &self.layout.rope)?;
        let (first_key, width) = (heads.queries * heads.features, heads.key_width());
        let (keys, values) = (qkv.narrow(1, first_key, width)?, qkv.narrow(1, first_key + width, width)?);
        for segment in self.layout.segments.iter() {
            let n = segment.queries.len();
            let Some(last) = segment.keys.last() else { continue };
            let own = |of: &Tensor| of.narrow(0, segment.queries.start, n)?.contiguous();
            cache.keys[layer].slice_set(&own(&keys)?, 0, last.end - n)?;
            cache.values[layer].slice_set(&own(&values)?, 0, last.end - n)?;
        }
        cached_attention(&qkv, &cache.keys[layer], &cache.values[layer], heads, &self.layout)
    }
}
