//! Rotary position embedding, in the half-split form of Hugging Face's models.

use crate::architecture::base_config::{RopeConfig, RopeScaling};
use crate::lazy::get_or_try_init;
use candle_core::{Device, Result, Tensor};
use std::f64::consts::PI;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// The frequencies of a base's rotary embedding.
#[derive(Clone, Debug)]
pub struct RopeFrequencies {
    inverse: Arc<[f32]>,
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
        let pairs = rope.features / 2;
        let plain = (0..pairs).map(|i| rope.theta.powf(-(2.0 * i as f64) / rope.features as f64));
        Self { inverse: plain.map(|f| scaled(f, &rope.scaling) as f32).collect() }
    }

    /// The rotation of tokens at `positions`. Angles are computed in f32, as in transformers: at far positions their rounding
    /// matters, and the base was trained with it.
    pub fn angles(&self, positions: &[u32]) -> RopeTable {
        let angle = |&p: &u32| self.inverse.iter().map(move |f| f64::from(p as f32 * f));
        RopeTable {
            cosines: positions.iter().flat_map(angle).map(|a| a.cos() as f32).collect(),
            sines: positions.iter().flat_map(angle).map(|a| a.sin() as f32).collect(),
            pairs: self.inverse.len(),
            tensors: Arc::default(),
        }
    }
}

/// One frequency under the config's scaling. Llama 3.1 divides low frequencies, keeps high ones, and blends in between.
fn scaled(frequency: f64, scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low, high, original } => {
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
    }
}

impl RopeTable {
    /// Rotates one head of one token in place.
    pub fn rotate(&self, token: usize, head: &mut [f32]) {
        self.apply(token, head, 1.0);
    }

    /// The inverse rotation, which is also the backward of [`RopeTable::rotate`].
    pub fn rotate_back(&self, token: usize, head: &mut [f32]) {
        self.apply(token, head, -1.0);
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
