//! Patches that compute what an adapter of full rank computes, to compare with what it was converted to.

use crate::conversion::weight_change::{BaseWeights, WeightChange, dora_gains};
use crate::error::Result;
use candle_core::{DType, Device, Tensor};
use lorakit_adapter::DenseAdapter;
use lorakit_lora::{EmbeddingPatch, Outputs, Patch, Patches, SequenceBatch, Site, SiteRole};
use lorakit_model::Base;
use lorakit_route::{Expert, LibraryStack, single_expert};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The patches of an adapter over `base`: its LoRA, the gains of its DoRA, and the changes by its copies.
pub(super) fn exact_patches(adapter: &DenseAdapter, base: &Base, weights: &BaseWeights) -> Result<Patches> {
    let (sites, device) = (base.adaptable_sites(), base.device());
    let lora =
        single_expert(&LibraryStack::new([Expert::new("adapter", adapter.low_rank().clone())], &sites, device)?, 0)?;
    let changes: BTreeMap<&str, WeightChange> = WeightChange::all(adapter, weights.config).into_iter().collect();
    let (mut by_site, mut patches) = (vec![None; base.sites().len()], Patches::none());
    for (index, site) in sites.iter().enumerate() {
        let place = match site.role {
            SiteRole::Embedding => PatchLocation::Embedding,
            SiteRole::LmHead => PatchLocation::Head,
            _ => PatchLocation::Layer(index),
        };
        let exact = ExactPatch {
            lora: (lora.clone(), place),
            gain: Gain::of(site, &changes, weights, device)?,
            copies: copied(site, &changes, weights, device)?,
        };
        match place {
            PatchLocation::Layer(index) => by_site[index] = Some(Arc::new(exact) as Arc<dyn Patch>),
            PatchLocation::Head => patches = patches.with_head(Arc::new(exact)),
            PatchLocation::Embedding => {
                if let Some(patch) = embedding_patch(exact, &lora, device)? {
                    patches = patches.with_embedding(patch);
                }
            }
        }
    }
    Ok(Patches::new(by_site).with(patches))
}

/// Where in the base a patch is.
#[derive(Clone, Copy)]
enum PatchLocation {
    Layer(usize),
    Embedding,
    Head,
}

/// The LoRA, gains and copies of a site.
struct ExactPatch {
    lora: (Patches, PatchLocation),
    gain: Option<Gain>,
    /// The change of the site's weights, `[in, out]`.
    copies: Option<Tensor>,
}

/// DoRA's factor of each output, and the bias that it does not scale, both `[1, out]`.
struct Gain {
    less_one: Tensor,
    bias: Tensor,
}

impl Gain {
    fn of(
        site: &Site,
        changes: &BTreeMap<&str, WeightChange>,
        weights: &BaseWeights,
        device: &Device,
    ) -> Result<Option<Self>> {
        let (mut less_one, mut biases, mut any) = (Vec::new(), Vec::new(), false);
        for projection in &site.projections {
            let module = weights.module(&projection.module)?;
            match changes.get(projection.module.as_str()) {
                Some(WeightChange::Dora { update, magnitude }) => {
                    let gains = dora_gains(module, &weights.weight(module)?, update, magnitude)?;
                    less_one.extend(gains.into_iter().map(|gain| (gain - 1.0) as f32));
                    biases.extend(weights.bias(module)?.unwrap_or_else(|| vec![0.0; projection.width]));
                    any = true;
                }
                _ => {
                    less_one.extend(vec![0.0; projection.width]);
                    biases.extend(vec![0.0; projection.width]);
                }
            }
        }
        let row = |values: Vec<f32>| Tensor::from_vec(values, (1, site.output()), device);
        Ok(if any { Some(Self { less_one: row(less_one)?, bias: row(biases)? }) } else { None })
    }
}

/// The change of a site's weights by copies and rows of tokens, `[in, out]`, if there are any.
fn copied(
    site: &Site,
    changes: &BTreeMap<&str, WeightChange>,
    weights: &BaseWeights,
    device: &Device,
) -> Result<Option<Tensor>> {
    let (mut columns, mut any) = (Vec::new(), false);
    for projection in &site.projections {
        let shape = (projection.width, site.input);
        columns.push(match changes.get(projection.module.as_str()) {
            Some(copy @ (WeightChange::Copy(_) | WeightChange::Tokens(_))) => {
                any = true;
                let change = weights.change(&projection.module, copy)?;
                Tensor::from_vec(change.into_iter().map(|value| value as f32).collect(), shape, device)?
            }
            _ => Tensor::zeros(shape, DType::F32, device)?,
        });
    }
    Ok(if any { Some(Tensor::cat(&columns, 0)?.t()?.contiguous()?) } else { None })
}

impl Patch for ExactPatch {
    fn add(&self, x: &Tensor, batch: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        let y = out.tensor().clone();
        // Apart from the outputs, which a patch may change in place.
        let mut delta = Outputs::new(y.zeros_like()?);
        let (lora, place) = &self.lora;
        match place {
            PatchLocation::Layer(site) => lora.at(*site).map(|patch| patch.add(x, batch, &mut delta)),
            PatchLocation::Head => lora.head().map(|patch| patch.add(x, batch, &mut delta)),
            PatchLocation::Embedding => {
                lora.embedding().first().map(|embedding| embedding.patch.add(x, batch, &mut delta))
            }
        }
        .transpose()?;
        let delta = delta.into_tensor();
        if let Some(Gain { less_one, bias }) = &self.gain {
            let scaled = (y.broadcast_sub(bias)? + &delta)?;
            out.add(&scaled.broadcast_mul(less_one)?)?;
        }
        if let Some(copies) = &self.copies {
            out.add(&x.to_dtype(DType::F32)?.matmul(copies)?)?;
        }
        out.add(&delta)
    }
}

/// The patch of an embedding, of which the LoRA or the change by a copy is the table.
fn embedding_patch(exact: ExactPatch, lora: &Patches, device: &Device) -> Result<Option<EmbeddingPatch>> {
    let ExactPatch { lora: at, gain, copies } = exact;
    if let Some(table) = copies {
        let copies = Some(Tensor::eye(table.dim(1)?, DType::F32, device)?);
        return Ok(Some(EmbeddingPatch { table, patch: Arc::new(ExactPatch { lora: at, gain, copies }) }));
    }
    let patch = Arc::new(ExactPatch { lora: at, gain, copies: None });
    Ok(lora.embedding().first().map(|embedding| EmbeddingPatch { table: embedding.table.clone(), patch }))
}
