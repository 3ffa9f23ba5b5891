//! Phi-1, 1.5 and 2, whose block is parallel: `x = norm h`, `h += dense(attention(qkv x)) + fc2(gelu(fc1 x))`.
//!
//! Sites: `qkv` | `dense` | `fc1` | `fc2`. `qkv` and `fc1` read the same input, yet are two sites: attention and MLP
//! each consume one of them, and side by side in one tensor each would have to pad its gradient to the other's width.

use crate::attention::heads::AttentionHeads;
use crate::config::Config;
use crate::layer::activation::Activation;
use crate::layer::context::LayerContext;
use crate::layer::linear::FusedLinear;
use crate::layer::norm::Norm;
use crate::weights::Weights;
use anyhow::Result;
use candle_core::Tensor;
use lorakit_lora::{Projection, Site};

/// Sites of one layer.
pub(crate) const SITES: usize = 4;

/// One layer.
pub(crate) struct Layer {
    heads: AttentionHeads,
    norm: Norm,
    qkv: FusedLinear,
    dense: FusedLinear,
    fc1: FusedLinear,
    fc2: FusedLinear,
}

/// The sites of layer `index`, in the order in which [`Layer::forward`] visits them.
pub(crate) fn sites(config: &Config, index: usize) -> [Site; SITES] {
    let (hidden, inner) = (config.hidden, config.intermediate);
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let site = |name, input, projections: &[(&str, usize)]| Site {
        layer: Some(index),
        name,
        input,
        projections: projections
            .iter()
            .map(|&(path, width)| Projection { module: format!("model.layers.{index}.{path}"), width })
            .collect(),
    };
    [
        site("qkv", hidden, &[("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)]),
        site("dense", queries, &[("self_attn.dense", hidden)]),
        site("fc1", hidden, &[("mlp.fc1", inner)]),
        site("fc2", inner, &[("mlp.fc2", hidden)]),
    ]
}

impl Layer {
    pub(crate) fn load(config: &Config, index: usize, heads: AttentionHeads, weights: &mut Weights) -> Result<Self> {
        let [qkv, dense, fc1, fc2] = sites(config, index);
        let mut linear = |site: &Site| -> Result<FusedLinear> {
            let projections = site.projections.iter().map(|p| weights.projection(&p.module, p.width, site.input, true));
            Ok(FusedLinear::new(projections.collect::<Result<_>>()?)?)
        };
        let (qkv, dense, fc1, fc2) = (linear(&qkv)?, linear(&dense)?, linear(&fc1)?, linear(&fc2)?);
        let mut vector = |part| weights.vector(&format!("model.layers.{index}.input_layernorm.{part}"), config.hidden);
        let norm = Norm::layer(vector("weight")?, vector("bias")?, config.epsilon);
        Ok(Self { heads, norm, qkv, dense, fc1, fc2 })
    }

    /// `h`, `[tokens, hidden]`, after this layer.
    pub(crate) fn forward(&self, h: &Tensor, flow: &mut LayerContext) -> candle_core::Result<Tensor> {
        let x = flow.norm(&self.norm, h)?;
        let qkv = flow.site(&self.qkv, &x)?;
        let attended = flow.attend(self.heads, &qkv)?;
        let attended = flow.site(&self.dense, &attended)?;
        let (h, x) = (flow.wanted(h)?, flow.wanted(&x)?);
        let fc1 = flow.site(&self.fc1, &x)?;
        let inner = flow.activation(Activation::GeluNew, &fc1)?;
        let h = flow.sum(&h, &attended)?;
        let fc2 = flow.site(&self.fc2, &inner)?;
        flow.sum(&h, &fc2)
    }
}
