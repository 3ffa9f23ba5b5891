//! One decoder layer, built as its architecture's descriptor says.

use crate::architecture::base_config::BaseConfig;
use crate::architecture::descriptor::BlockDescriptor;
use crate::attention::heads::AttentionHeads;
use crate::error::Result;
use crate::layer::activation::Activation;
use crate::layer::layer_context::LayerContext;
use crate::layer::linear::FusedLinear;
use crate::layer::norm::{Norm, NormKind};
use crate::weights::weight_loader::WeightLoader;
use candle_core::Tensor;
use lorakit_lora::Site;

/// One layer: attention and MLP with their norms. Its sites are those of [`BaseConfig::sites`], visited in that order.
pub(crate) struct DecoderLayer {
    heads: AttentionHeads,
    activation: Activation,
    attention_input: FusedLinear,
    attention_output: FusedLinear,
    mlp_input: FusedLinear,
    mlp_output: FusedLinear,
    block: Block,
}

/// The norms of a layer, which [`BlockDescriptor`] names.
enum Block {
    Sequential { attention_norm: Norm, mlp_norm: Norm },
    Parallel { norm: Norm },
}

impl DecoderLayer {
    /// Number of sites of a layer.
    pub(crate) const SITES: usize = 4;

    /// Loads layer `index`.
    pub(crate) fn load(
        config: &BaseConfig,
        index: usize,
        heads: AttentionHeads,
        weights: &mut WeightLoader,
    ) -> Result<Self> {
        let descriptor = &config.descriptor;
        let mut linear = |site: &Site, bias: bool| -> Result<FusedLinear> {
            let projections = site.projections.iter().map(|p| weights.linear(&p.module, p.width, site.input, bias));
            Ok(FusedLinear::new(projections.collect::<Result<_>>()?)?)
        };
        let [attention_input, attention_output, mlp_input, mlp_output] = config.sites(index);
        let attention_input = linear(&attention_input, descriptor.attention_input.bias)?;
        let attention_output = linear(&attention_output, descriptor.attention_output.bias)?;
        let mlp_input = linear(&mlp_input, descriptor.mlp_input.bias)?;
        let mlp_output = linear(&mlp_output, descriptor.mlp_output.bias)?;
        let mut norm = |name: &str| load_norm(config, &format!("{}.{index}.{name}", descriptor.layers), weights);
        let block = match descriptor.block {
            BlockDescriptor::Sequential { attention_norm, mlp_norm } => {
                Block::Sequential { attention_norm: norm(attention_norm)?, mlp_norm: norm(mlp_norm)? }
            }
            BlockDescriptor::Parallel { norm: name } => Block::Parallel { norm: norm(name)? },
        };
        let activation = descriptor.activation;
        Ok(Self { heads, activation, attention_input, attention_output, mlp_input, mlp_output, block })
    }

    /// `h`, `[tokens, hidden]`, after this layer.
    pub(crate) fn forward(&self, h: &Tensor, context: &mut LayerContext) -> candle_core::Result<Tensor> {
        match &self.block {
            Block::Sequential { attention_norm, mlp_norm } => {
                let x = context.norm(attention_norm, h)?;
                let attended = self.attention(&x, context)?;
                let h = context.output_tokens(h)?;
                let h = context.sum(&h, &attended)?;
                let x = context.norm(mlp_norm, &h)?;
                let inner = self.mlp_inner(&x, context)?;
                let y = context.site(&self.mlp_output, &inner)?;
                context.sum(&h, &y)
            }
            Block::Parallel { norm } => {
                let x = context.norm(norm, h)?;
                let attended = self.attention(&x, context)?;
                let (h, x) = (context.output_tokens(h)?, context.output_tokens(&x)?);
                let inner = self.mlp_inner(&x, context)?;
                let h = context.sum(&h, &attended)?;
                let y = context.site(&self.mlp_output, &inner)?;
                context.sum(&h, &y)
            }
        }
    }

    /// The attention of the normed `x`, `[tokens, hidden]`, of the tokens whose output is wanted.
    fn attention(&self, x: &Tensor, context: &mut LayerContext) -> candle_core::Result<Tensor> {
        let qkv = context.site(&self.attention_input, x)?;
        let attended = context.attend(self.heads, &qkv)?;
        context.site(&self.attention_output, &attended)
    }

    /// What the MLP's output projection reads, `[tokens, intermediate]`, of the normed `x`, `[tokens, hidden]`.
    fn mlp_inner(&self, x: &Tensor, context: &mut LayerContext) -> candle_core::Result<Tensor> {
        let x = context.site(&self.mlp_input, x)?;
        context.activation(self.activation, &x)
    }
}

/// Loads the norm `module`.
pub(crate) fn load_norm(config: &BaseConfig, module: &str, weights: &mut WeightLoader) -> Result<Norm> {
    let weight = weights.vector(&format!("{module}.weight"), config.hidden)?;
    Ok(match config.descriptor.norm {
        NormKind::Rms => Norm::rms(weight, config.epsilon),
        NormKind::Layer => {
            Norm::layer(weight, weights.vector(&format!("{module}.bias"), config.hidden)?, config.epsilon)
        }
    })
}
