//! Mistral 7B and, the same form, Llama 1 to 3: `h += o(attention(qkv(norm h)))`, `h += down(swiglu(gate,up(norm h)))`.
//!
//! Sites: `qkv` | `o` | `gate_up` | `down`.

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
    attention_norm: Norm,
    qkv: FusedLinear,
    o: FusedLinear,
    mlp_norm: Norm,
    gate_up: FusedLinear,
    down: FusedLinear,
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
        site("o", queries, &[("self_attn.o_proj", hidden)]),
        site("gate_up", hidden, &[("mlp.gate_proj", inner), ("mlp.up_proj", inner)]),
        site("down", inner, &[("mlp.down_proj", hidden)]),
    ]
}

impl Layer {
    pub(crate) fn load(config: &Config, index: usize, heads: AttentionHeads, weights: &mut Weights) -> Result<Self> {
        let [qkv, o, gate_up, down] = sites(config, index);
        let mut linear = |site: &Site, bias| -> Result<FusedLinear> {
            let projections = site.projections.iter().map(|p| weights.projection(&p.module, p.width, site.input, bias));
            Ok(FusedLinear::new(projections.collect::<Result<_>>()?)?)
        };
        let (attention_bias, mlp_bias) = (config.attention_bias, config.mlp_bias);
        let (qkv, o) = (linear(&qkv, attention_bias)?, linear(&o, attention_bias)?);
        let (gate_up, down) = (linear(&gate_up, mlp_bias)?, linear(&down, mlp_bias)?);
        let mut norm = |name| -> Result<Norm> {
            Ok(Norm::rms(
                weights.vector(&format!("model.layers.{index}.{name}.weight"), config.hidden)?,
                config.epsilon,
            ))
        };
        let (attention_norm, mlp_norm) = (norm("input_layernorm")?, norm("post_attention_layernorm")?);
        Ok(Self { heads, attention_norm, qkv, o, mlp_norm, gate_up, down })
    }

    /// `h`, `[tokens, hidden]`, after this layer.
    pub(crate) fn forward(&self, h: &Tensor, flow: &mut LayerContext) -> candle_core::Result<Tensor> {
        let x = flow.norm(&self.attention_norm, h)?;
        let qkv = flow.site(&self.qkv, &x)?;
        let attended = flow.attend(self.heads, &qkv)?;
        let attended = flow.site(&self.o, &attended)?;
        let h = flow.wanted(h)?;
        let h = flow.sum(&h, &attended)?;
        let x = flow.norm(&self.mlp_norm, &h)?;
        let gate_up = flow.site(&self.gate_up, &x)?;
        let inner = flow.activation(Activation::SwiGlu, &gate_up)?;
        let down = flow.site(&self.down, &inner)?;
        flow.sum(&h, &down)
    }
}
