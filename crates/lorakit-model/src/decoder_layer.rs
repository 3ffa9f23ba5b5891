//! One decoder layer, built as its architecture's descriptor says.

use crate::architecture::base_config::BaseConfig;
use crate::architecture::descriptor::{BlockDescriptor, BranchNorms, QkNormRows};
use crate::attention::heads::AttentionHeads;
use crate::error::Result;
use crate::layer::activation::Activation;
use crate::layer::layer_context::LayerContext;
use crate::layer::linear::FusedLinear;
use crate::layer::norm::{Norm, NormKind};
use crate::layer::qk_norm::QkNorm;
use crate::weights::weight_loader::WeightLoader;
use candle_core::Tensor;
use lorakit_lora::Site;

/// One layer: attention and MLP with their norms. Its sites are those of [`BaseConfig::sites`], visited in that order.
pub(crate) struct DecoderLayer {
    heads: AttentionHeads,
    qk_norm: Option<QkNorm>,
    activation: Activation,
    /// What the outputs of attention and MLP are multiplied with.
    residual: f64,
    attention_input: FusedLinear,
    attention_output: FusedLinear,
    mlp_input: FusedLinear,
    mlp_output: FusedLinear,
    block: Block,
}

/// The norms of a layer, which [`BlockDescriptor`] names.
enum Block {
    Sequential { attention: Branch, mlp: Branch },
    Parallel { norm: Norm },
}

/// The norms around attention or MLP.
struct Branch {
    before: Option<Norm>,
    after: Option<Norm>,
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
        let module = |name: &str| format!("{}.{index}.{name}", descriptor.layers);
        let mut norm = |name: &str| load_norm(config, &module(name), config.hidden, weights);
        let mut branch = |norms: BranchNorms| -> Result<Branch> {
            Ok(Branch {
                before: norms.before.map(&mut norm).transpose()?,
                after: norms.after.map(&mut norm).transpose()?,
            })
        };
        let block = match descriptor.block {
            BlockDescriptor::Sequential { attention, mlp } => {
                Block::Sequential { attention: branch(attention)?, mlp: branch(mlp)? }
            }
            BlockDescriptor::Parallel { norm: name } => Block::Parallel { norm: norm(name)? },
        };
        let (activation, residual) = (descriptor.activation, config.scales.residual);
        let heads = AttentionHeads { window: config.layer_attention(index).window, ..heads };
        let qk_norm = load_qk_norm(config, heads, &module, weights)?;
        Ok(Self {
            heads,
            qk_norm,
            activation,
            residual,
            attention_input,
            attention_output,
            mlp_input,
            mlp_output,
            block,
        })
    }

    /// `h`, `[tokens, hidden]`, after this layer.
    pub(crate) fn forward(&self, h: &Tensor, context: &mut LayerContext) -> candle_core::Result<Tensor> {
        match &self.block {
            Block::Sequential { attention, mlp } => {
                let x = attention.input(h, context)?;
                let attended = self.attention(&x, context)?;
                let attended = self.branch_output(attention, attended, context)?;
                let h = context.output_tokens(h)?;
                let h = context.sum(&h, &attended)?;
                let x = mlp.input(&h, context)?;
                let inner = self.mlp_inner(&x, context)?;
                let y = context.site(&self.mlp_output, &inner)?;
                let y = self.branch_output(mlp, y, context)?;
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

    /// What attention or MLP adds to the residual stream, of its output.
    fn branch_output(&self, branch: &Branch, y: Tensor, context: &mut LayerContext) -> candle_core::Result<Tensor> {
        let y = match &branch.after {
            Some(norm) => context.norm(norm, &y)?,
            None => y,
        };
        context.scaled(&y, self.residual)
    }

    /// The attention of the normed `x`, `[tokens, hidden]`, of the tokens whose output is wanted.
    fn attention(&self, x: &Tensor, context: &mut LayerContext) -> candle_core::Result<Tensor> {
        let mut qkv = context.site(&self.attention_input, x)?;
        if let Some(norm) = &self.qk_norm {
            qkv = context.qk_norm(norm, self.heads, &qkv)?;
        }
        let attended = context.attend(self.heads, &qkv)?;
        context.site(&self.attention_output, &attended)
    }

    /// What the MLP's output projection reads, `[tokens, intermediate]`, of the normed `x`, `[tokens, hidden]`.
    fn mlp_inner(&self, x: &Tensor, context: &mut LayerContext) -> candle_core::Result<Tensor> {
        let x = context.site(&self.mlp_input, x)?;
        context.activation(self.activation, &x)
    }
}

impl Branch {
    /// What attention or MLP reads of the residual stream.
    fn input(&self, h: &Tensor, context: &mut LayerContext) -> candle_core::Result<Tensor> {
        match &self.before {
            Some(norm) => context.norm(norm, h),
            None => Ok(h.clone()),
        }
    }
}

/// Loads the norm `module` of `width` features.
pub(crate) fn load_norm(config: &BaseConfig, module: &str, width: usize, weights: &mut WeightLoader) -> Result<Norm> {
    let weight = weights.vector(&format!("{module}.weight"), width)?;
    Ok(match config.descriptor.norm {
        NormKind::Rms => Norm::rms(weight, config.epsilon),
        NormKind::RmsPlusOne => Norm::rms_plus_one(weight, config.epsilon)?,
        NormKind::Layer => Norm::layer(weight, weights.vector(&format!("{module}.bias"), width)?, config.epsilon),
    })
}

/// Loads the norms of queries and keys, if the architecture has them.
fn load_qk_norm(
    config: &BaseConfig,
    heads: AttentionHeads,
    module: &dyn Fn(&str) -> String,
    weights: &mut WeightLoader,
) -> Result<Option<QkNorm>> {
    let Some(norms) = config.descriptor.qk_norm else { return Ok(None) };
    let [queries, keys] = match norms.rows {
        QkNormRows::Heads => [heads.features; 2],
        QkNormRows::Tokens => [heads.queries * heads.features, heads.key_width()],
    };
    Ok(Some(QkNorm {
        queries: load_norm(config, &module(norms.queries), queries, weights)?,
        keys: load_norm(config, &module(norms.keys), keys, weights)?,
    }))
}
