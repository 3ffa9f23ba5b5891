//! Rotary position embedding, in the half-split form of Hugging Face's models.

use crate::architecture::base_config::{AttentionKind, BaseConfig, QueryScale};
use crate::architecture::rope_config::{RopeConfig, RopeScaling};
use crate::lazy::get_or_try_init;
use candle_core::{Device, Result, Tensor};
use lorakit_lora::{Sequence, SequenceBatch};
use std::f64::consts::PI;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// The frequencies of a base's rotary embedding.
#[derive(Clone, Debug)]
pub struct RopeFrequencies {
    /// Those of rows up to the pretraining's length.
    inv_freq: Arc<[f32]>,
    /// What cosines and sines are multiplied with.
    attention_factor: f64,
    longer: LongerRows,
    /// The rotation of the first [`NEAR`] positions, made on first use.
    near: Arc<OnceLock<RopeTable>>,
}

/// Training rows over small bases are rarely longer. Cosines and sines computed for each batch took 3 % of its time there.
const NEAR: usize = 256;

/// How rows longer than those of the pretraining are rotated.
#[derive(Clone, Debug)]
enum LongerRows {
    /// As all others.
    Alike,
    /// All of them by other frequencies.
    Other { original: usize, inv_freq: Arc<[f32]> },
    /// Each length by frequencies of its own: those of a larger base.
    Dynamic { config: RopeConfig, factor: f64, original: usize },
}

/// The cosines and sines of one batch's tokens, shared by all layers.
#[derive(Clone, Debug)]
pub struct RopeTable {
    cosines: Arc<[f32]>,
    sines: Arc<[f32]>,
    /// Pairs of features that are rotated in each head.
    pairs: usize,
    /// The same on a device, made on first use.
    tensors: Arc<OnceLock<(Tensor, Tensor)>>,
}

impl RopeFrequencies {
    /// `1 / theta^(2 i / features)`, scaled as the config says.
    pub fn new(rope: &RopeConfig) -> Self {
        let collect = |of: &dyn Fn(usize, f64) -> f64| -> Arc<[f32]> {
            plain(rope, rope.theta).enumerate().map(|(i, f)| of(i, f) as f32).collect()
        };
        let alike = |inv_freq, attention_factor| Self {
            inv_freq,
            attention_factor,
            longer: LongerRows::Alike,
            near: Arc::default(),
        };
        match &rope.scaling {
            RopeScaling::None => alike(collect(&|_, f| f), 1.0),
            &RopeScaling::Linear { factor } => alike(collect(&|_, f| f / factor), 1.0),
            &RopeScaling::Llama3 { factor, low, high, original } => {
                alike(collect(&|_, f| llama3(f, [factor, low, high, original])), 1.0)
            }
            &RopeScaling::Yarn { factor, attention_factor, .. } => {
                let [low, high] = yarn_bounds(rope);
                let divided = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                alike(collect(&|i, f| f / factor * divided(i) + f * (1.0 - divided(i))), attention_factor)
            }
            RopeScaling::LongRope { short, long, original, attention_factor } => Self {
                inv_freq: collect(&|i, f| f / short[i]),
                attention_factor: *attention_factor,
                longer: LongerRows::Other { original: *original as usize, inv_freq: collect(&|i, f| f / long[i]) },
                near: Arc::default(),
            },
            &RopeScaling::Dynamic { factor, original } => Self {
                inv_freq: collect(&|_, f| f),
                attention_factor: 1.0,
                longer: LongerRows::Dynamic { config: rope.clone(), factor, original: original as usize },
                near: Arc::default(),
            },
        }
    }

    /// The frequencies of rows up to the pretraining's length, one for each pair of features.
    pub(crate) fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// Of layers that do not encode positions: nothing is rotated.
    pub fn none() -> Self {
        Self { inv_freq: Arc::new([]), attention_factor: 1.0, longer: LongerRows::Alike, near: Arc::default() }
    }

    /// The frequencies of rows of `length` tokens.
    fn of_length(&self, length: usize) -> Arc<[f32]> {
        match &self.longer {
            LongerRows::Other { original, inv_freq } if length > *original => inv_freq.clone(),
            LongerRows::Dynamic { config, factor, original } if length > *original => {
                let (features, stretch) = (config.features as f64, length as f64 / *original as f64);
                let growth = (factor * stretch - (factor - 1.0)).powf(features / (features - 2.0));
                plain(config, config.theta * growth).map(|f| f as f32).collect()
            }
            _ => self.inv_freq.clone(),
        }
    }

    /// Whether rows of these two lengths are rotated by the same frequencies.
    pub(crate) fn are_alike(&self, a: usize, b: usize) -> bool {
        match &self.longer {
            LongerRows::Alike => true,
            LongerRows::Other { original, .. } => (a > *original) == (b > *original),
            LongerRows::Dynamic { original, .. } => a.max(*original) == b.max(*original),
        }
    }

    /// The rotation of tokens at `positions` of rows no longer than the pretraining's. Angles are computed in f32, as in
    /// transformers: at far positions their rounding matters, and the base was trained with it.
    pub fn angles(&self, positions: &[u32]) -> RopeTable {
        let table = |positions: &mut dyn Iterator<Item = u32>| {
            self.table(
                positions.flat_map(|position| angles(position, &self.inv_freq)).collect::<Vec<f64>>().into_iter(),
            )
        };
        // The rows of a batch have positions in common.
        match positions.iter().max() {
            Some(&last) if (last as usize) < NEAR => {
                self.near.get_or_init(|| table(&mut (0..NEAR as u32))).rows(positions)
            }
            Some(&last) if (last as usize) < positions.len() / 2 => table(&mut (0..=last)).rows(positions),
            _ => table(&mut positions.iter().copied()),
        }
    }

    /// The rotation of the tokens of a batch, each row by the frequencies of its length.
    pub(crate) fn of_batch(&self, batch: &SequenceBatch) -> RopeTable {
        if matches!(self.longer, LongerRows::Alike) {
            return self.angles(&batch.positions());
        }
        let of_row = |row: &Sequence| {
            let (inv_freq, positions) = (self.of_length(row.whole_len()), row.position..row.position + row.len);
            positions
                .flat_map(|position| angles(position as u32, &inv_freq).collect::<Vec<f64>>())
                .collect::<Vec<f64>>()
        };
        let rows: Vec<f64> = batch.iter().flat_map(of_row).collect();
        self.table(rows.into_iter())
    }

    fn table(&self, angles: impl Iterator<Item = f64> + Clone) -> RopeTable {
        RopeTable {
            cosines: angles.clone().map(|a| (a.cos() * self.attention_factor) as f32).collect(),
            sines: angles.map(|a| (a.sin() * self.attention_factor) as f32).collect(),
            pairs: self.inv_freq.len(),
            tensors: Arc::default(),
        }
    }
}

/// The unscaled frequencies of a base `theta`.
fn plain(rope: &RopeConfig, theta: f64) -> impl Iterator<Item = f64> {
    let features = rope.features;
    (0..features / 2).map(move |i| theta.powf(-(2.0 * i as f64) / features as f64))
}

/// The angles at a position, one for each frequency.
fn angles(position: u32, inv_freq: &[f32]) -> impl Iterator<Item = f64> + Clone {
    inv_freq.iter().map(move |f| f64::from(position as f32 * f))
}

/// Llama 3.1 divides low frequencies, keeps high ones, and blends in between.
fn llama3(frequency: f64, [factor, low, high, original]: [f64; 4]) -> f64 {
    let wavelength = 2.0 * PI / frequency;
    if wavelength < original / high {
        frequency
    } else if wavelength > original / low {
        frequency / factor
    } else {
        let blend = (original / wavelength - low) / (high - low);
        (1.0 - blend) * frequency / factor + blend * frequency
    }
}

/// The indices of the frequencies between which Yarn blends: those that make `fast` and `slow` rotations over the
/// pretraining's positions.
fn yarn_bounds(rope: &RopeConfig) -> [f64; 2] {
    let RopeScaling::Yarn { fast, slow, original, truncate, .. } = rope.scaling else { return [0.0, 1.0] };
    let features = rope.features as f64;
    let index = |rotations: f64| features * (original / (rotations * 2.0 * PI)).ln() / (2.0 * rope.theta.ln());
    let (low, high) = (index(fast), index(slow));
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(features - 1.0));
    // A step where both are one.
    [low, if low == high { high + 0.001 } else { high }]
}

/// The frequencies of all layers.
#[derive(Clone, Debug)]
pub(crate) struct LayerRopes {
    /// Of each kind of attention.
    kinds: Vec<RopeFrequencies>,
    /// The index of each layer's kind.
    pub(crate) of_layer: Arc<[usize]>,
    /// What queries of all layers are multiplied by for their position.
    queries: Option<QueryScale>,
}

impl LayerRopes {
    pub(crate) fn new(config: &BaseConfig) -> Self {
        let frequencies =
            |kind: &AttentionKind| kind.rope.as_ref().map_or_else(RopeFrequencies::none, RopeFrequencies::new);
        Self {
            kinds: config.attention.iter().map(frequencies).collect(),
            of_layer: config.attention_of_layer.as_slice().into(),
            queries: config.scales.query_scale,
        }
    }

    /// What the queries of the tokens of a batch are multiplied by; none where all factors are one.
    pub(crate) fn query_scales(&self, batch: &SequenceBatch) -> Option<Arc<[f32]>> {
        let scale = self.queries?;
        let factors: Arc<[f32]> = batch.positions().into_iter().map(|position| scale.at(position)).collect();
        factors.iter().any(|&factor| factor != 1.0).then_some(factors)
    }

    /// The rotation of the tokens of a batch, for each kind of attention.
    pub(crate) fn of_batch(&self, batch: &SequenceBatch) -> Vec<RopeTable> {
        self.kinds.iter().map(|frequencies| frequencies.of_batch(batch)).collect()
    }

    /// Whether rows of these two lengths are rotated by the same frequencies in all layers.
    pub(crate) fn are_alike(&self, a: usize, b: usize) -> bool {
        self.kinds.iter().all(|frequencies| frequencies.are_alike(a, b))
    }
}

impl RopeTable {
    /// The table whose rows are some of these.
    fn rows(&self, rows: &[u32]) -> Self {
        let of = |values: &[f32]| {
            let mut all = Vec::with_capacity(rows.len() * self.pairs);
            rows.iter().for_each(|&row| all.extend_from_slice(&values[row as usize * self.pairs..][..self.pairs]));
            all.into()
        };
        Self { cosines: of(&self.cosines), sines: of(&self.sines), pairs: self.pairs, tensors: Arc::default() }
    }

    /// Rotates one head of one token in place.
    pub fn rotate(&self, token: usize, head: &mut [f32]) {
        self.apply(token, head, 1.0);
    }

    /// The backward of [`RopeTable::rotate`]: the transposed map, which is the inverse unless a scaling has a factor.
    pub fn rotate_back(&self, token: usize, head: &mut [f32]) {
        self.apply(token, head, -1.0);
    }

    /// Whether it rotates nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.pairs == 0
    }

    /// The cosines and sines as tensors, `[tokens, 1, pairs]` each, on the device of the first call.
    pub(crate) fn tensors(&self, device: &Device) -> Result<&(Tensor, Tensor)> {
        let tensor =
            |values: &[f32]| Tensor::from_slice(values, (values.len() / self.pairs.max(1), 1, self.pairs), device);
        get_or_try_init(&self.tensors, || Ok((tensor(&self.cosines)?, tensor(&self.sines)?)))
    }

    /// The cosines and sines of some tokens, `[tokens, pairs]` each, and the number of pairs.
    pub(crate) fn of(&self, tokens: Range<usize>) -> (&[f32], &[f32], usize) {
        let at = tokens.start * self.pairs..tokens.end * self.pairs;
        (&self.cosines[at.clone()], &self.sines[at], self.pairs)
    }

    fn apply(&self, token: usize, head: &mut [f32], direction: f32) {
        let at = token * self.pairs..(token + 1) * self.pairs;
        let (first, rest) = head.split_at_mut(self.pairs);
        let pairs = first.iter_mut().zip(&mut rest[..self.pairs]);
        for ((x, y), (c, s)) in pairs.zip(self.cosines[at.clone()].iter().zip(&self.sines[at])) {
            let s = s * direction;
            (*x, *y) = (*x * c - *y * s, *y * c + *x * s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_that_rows_have_in_common_are_rotated_as_those_of_a_row_alone() {
        let config = RopeConfig { theta: 10_000.0, features: 8, scaling: RopeScaling::None };
        let frequencies = RopeFrequencies::new(&config);
        let alone =
            |position: u32| frequencies.table(angles(position, frequencies.inv_freq()).collect::<Vec<_>>().into_iter());
        // Of near positions, which are computed once; and of farther ones that rows have in common.
        for last in [20, NEAR as u32 + 20] {
            let rows: Vec<u32> = (0..5).flat_map(|row| 2 * row..last).collect();
            let together = frequencies.angles(&rows);
            for (token, &position) in rows.iter().enumerate() {
                assert_eq!(together.of(token..token + 1), alone(position).of(0..1), "position {position} of {last}");
            }
        }
        assert_eq!(frequencies.angles(&[NEAR as u32 + 44]).of(0..1), alone(NEAR as u32 + 44).of(0..1));
        assert_eq!(frequencies.angles(&[]).of(0..0), (&[][..], &[][..], 4));
    }
}
