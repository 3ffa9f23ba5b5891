//! One layer of a decoder or an encoder, built as its architecture's descriptor says.

use crate::architecture::base_config::BaseConfig;
use crate::architecture::descriptor::{
    BlockDescriptor, BranchNorms, CrossAttentionDescriptor, QkNormRows, SiteDescriptor,
};
use crate::attention::distance_bias::DistanceBias;
use crate::attention::heads::AttentionHeads;
use crate::error::Result;
use crate::layer::activation::Activation;
use crate::layer::layer_context::LayerContext;
use crate::layer::linear::FusedLinear;
use crate::layer::norm::{Norm, NormKind};
use crate::layer::qk_norm::QkNorm;
use crate::weights::weight_loader::WeightLoader;
use candle_core::Tensor;
use lorakit_lora::SiteRole;

/// One layer: attention and MLP with their norms. Its sites are those of [`BaseConfig::sites`], visited in that order.
pub(crate) struct TransformerLayer {
    /// The index of its first site among those of the base.
    first_site: usize,
    heads: AttentionHeads,
    /// The biases of its scores by distance, which all layers of its stack share.
    bias: Option<DistanceBias>,
    qk_norm: Option<QkNorm>,
    activation: Activation,
    /// What the outputs of attention and MLP are multiplied with.
    residual: f64,
    attention_input: FusedLinear,
    attention_output: FusedLinear,
    cross: Option<CrossBranch>,
    mlp_input: FusedLinear,
    mlp_output: FusedLinear,
    block: Block,
    /// The norm of an encoder's output, after its last layer.
    final_norm: Option<Norm>,
}

/// The attention to an encoder's output.
struct CrossBranch {
    heads: AttentionHeads,
    norm: Norm,
    queries: FusedLinear,
    keys_values: FusedLinear,
    output: FusedLinear,
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

impl TransformerLayer {
    /// Loads layer `index`.
    pub(crate) fn load(
        config: &BaseConfig,
        index: usize,
        heads: AttentionHeads,
        bias: Option<DistanceBias>,
        weights: &mut WeightLoader,
    ) -> Result<Self> {
        let (descriptor, layer) = (&config.descriptor, config.layer_descriptor(index));
        let mut linear = |role, site| load_linear(config, (index, role), site, weights);
        let attention_input = linear(SiteRole::AttentionInput, &layer.attention_input)?;
        let attention_output = linear(SiteRole::AttentionOutput, &layer.attention_output)?;
        let mlp_input = linear(SiteRole::MlpInput, &layer.mlp_input)?;
        let mlp_output = linear(SiteRole::MlpOutput, &layer.mlp_output)?;
        let cross = layer.cross_attention.map(|cross| CrossBranch::load(config, index, &cross, heads, weights));
        let cross = cross.transpose()?;
        let stack = config.layer_module(index);
        let module = |name: &str| format!("{stack}.{name}");
        let mut norm = |name: &str| load_norm(config, &module(name), config.hidden, weights);
        let mut branch = |norms: BranchNorms| -> Result<Branch> {
            Ok(Branch {
                before: norms.before.map(&mut norm).transpose()?,
                after: norms.after.map(&mut norm).transpose()?,
            })
        };
        let block = match layer.block {
            BlockDescriptor::Sequential { attention, mlp } => {
                Block::Sequential { attention: branch(attention)?, mlp: branch(mlp)? }
            }
            BlockDescriptor::Parallel { norm: name } => Block::Parallel { norm: norm(name)? },
        };
        let causal = !config.is_encoder_layer(index);
        let heads = AttentionHeads { window: config.layer_attention(index).window, causal, ..heads };
        let last_of_encoder = descriptor.encoder.filter(|_| !causal && !config.is_encoder_layer(index + 1));
        let final_norm = last_of_encoder.map(|encoder| load_norm(config, encoder.final_norm, config.hidden, weights));
        Ok(Self {
            first_site: (0..index).map(|before| config.layer_descriptor(before).sites().len()).sum(),
            heads,
            bias,
            qk_norm: load_qk_norm(config, heads, &module, weights)?,
            activation: descriptor.activation,
            residual: config.scales.residual,
            attention_input,
            attention_output,
            cross,
            mlp_input,
            mlp_output,
            block,
            final_norm: final_norm.transpose()?,
        })
    }

    /// The index of its first site among those of the base.
    pub(crate) fn first_site(&self) -> usize {
        self.first_site
    }

    /// Whether tokens of 8 bits are multiplied with any of its weights.
    pub(crate) fn has_integer_products(&self) -> bool {
        let own = [&self.attention_input, &self.attention_output, &self.mlp_input, &self.mlp_output];
        let cross = self.cross.iter().flat_map(|cross| [&cross.queries, &cross.keys_values, &cross.output]);
        own.into_iter().chain(cross).any(FusedLinear::has_integer_products)
    }

    /// `h`, `[tokens, hidden]`, after this layer.
    pub(crate) fn forward(&self, h: &Tensor, context: &mut LayerContext) -> candle_core::Result<Tensor> {
        let own = context.layer_input(h)?;
        let memory = self.cross.as_ref().map(|_| context.memory(h)).transpose()?;
        if own.dim(0)? == 0 {
            // A source alone, whose keys and values later tokens of the target read.
            if let (Some(cross), Some(memory)) = (&self.cross, &memory) {
                context.skip_sites(CrossBranch::SITES_BEFORE_MEMORY);
                context.keys_values(&cross.keys_values, memory)?;
            }
            return Ok(h.clone());
        }
        let y = self.block(&own, memory.as_ref(), context)?;
        let y = match &self.final_norm {
            Some(norm) => context.norm(norm, &y)?,
            None => y,
        };
        context.layer_output(h, y)
    }

    /// `h`, the rows that this layer changes, after it.
    fn block(&self, h: &Tensor, memory: Option<&Tensor>, context: &mut LayerContext) -> candle_core::Result<Tensor> {
        match &self.block {
            Block::Sequential { attention, mlp } => {
                let x = attention.input(h, context)?;
                let attended = self.attention(&x, context)?;
                let attended = attention.output(attended, context)?;
                let h = context.output_tokens(h)?;
                let h = context.sum(&h, &attended, self.residual)?;
                let h = match (&self.cross, memory) {
                    (Some(cross), Some(memory)) => cross.forward(&h, memory, context)?,
                    _ => h,
                };
                let x = mlp.input(&h, context)?;
                let inner = self.mlp_inner(&x, context)?;
                let y = context.site(&self.mlp_output, &inner)?;
                let y = mlp.output(y, context)?;
                context.sum(&h, &y, self.residual)
            }
            Block::Parallel { norm } => {
                let x = context.norm(norm, h)?;
                let attended = self.attention(&x, context)?;
                let (h, x) = (context.output_tokens(h)?, context.output_tokens(&x)?);
                let inner = self.mlp_inner(&x, context)?;
                let h = context.sum(&h, &attended, 1.0)?;
                let y = context.site(&self.mlp_output, &inner)?;
                context.sum(&h, &y, 1.0)
            }
        }
    }

    /// The attention of the normed `x`, `[tokens, hidden]`, of the tokens whose output is wanted.
    fn attention(&self, x: &Tensor, context: &mut LayerContext) -> candle_core::Result<Tensor> {
        let mut qkv = context.site(&self.attention_input, x)?;
        if let Some(norm) = &self.qk_norm {
            qkv = context.qk_norm(norm, self.heads, &qkv)?;
        }
        let attended = context.attend(self.heads, self.bias.as_ref(), &qkv)?;
        context.site(&self.attention_output, &attended)
    }

    /// What the MLP's output projection reads, `[tokens, intermediate]`, of the normed `x`, `[tokens, hidden]`.
    fn mlp_inner(&self, x: &Tensor, context: &mut LayerContext) -> candle_core::Result<Tensor> {
        let x = context.site(&self.mlp_input, x)?;
        context.activation(self.activation, &x)
    }
}

impl CrossBranch {
    /// The sites of a layer before that of keys and values: those of its attention, and that of the queries.
    const SITES_BEFORE_MEMORY: usize = 3;

    /// Loads that of layer `index`.
    fn load(
        config: &BaseConfig,
        index: usize,
        cross: &CrossAttentionDescriptor,
        heads: AttentionHeads,
        weights: &mut WeightLoader,
    ) -> Result<Self> {
        let mut linear = |role, site| load_linear(config, (index, role), site, weights);
        let queries = linear(SiteRole::AttentionInput, &cross.queries)?;
        let keys_values = linear(SiteRole::AttentionInput, &cross.keys_values)?;
        let output = linear(SiteRole::AttentionOutput, &cross.output)?;
        let norm = format!("{}.{}", config.layer_module(index), cross.norm);
        let norm = load_norm(config, &norm, config.hidden, weights)?;
        Ok(Self { heads: AttentionHeads { causal: false, ..heads }, norm, queries, keys_values, output })
    }

    /// `h`, `[target tokens, hidden]`, with the attention to the encoder's output `memory`, `[source tokens, hidden]`.
    fn forward(&self, h: &Tensor, memory: &Tensor, context: &mut LayerContext) -> candle_core::Result<Tensor> {
        let x = context.norm(&self.norm, h)?;
        let q = context.site(&self.queries, &x)?;
        let kv = context.keys_values(&self.keys_values, memory)?;
        let attended = context.attend_across(self.heads, &q, kv.as_ref())?;
        let attended = context.site(&self.output, &attended)?;
        context.sum(h, &attended, 1.0)
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

    /// What attention or MLP adds to the residual stream, of its output.
    fn output(&self, y: Tensor, context: &mut LayerContext) -> candle_core::Result<Tensor> {
        match &self.after {
            Some(norm) => context.norm(norm, &y),
            None => Ok(y),
        }
    }
}

/// Loads the projections of a site of layer `index`.
fn load_linear(
    config: &BaseConfig,
    (index, role): (usize, SiteRole),
    descriptor: &SiteDescriptor,
    weights: &mut WeightLoader,
) -> Result<FusedLinear> {
    let (site, bias) = (config.site(index, role, descriptor), descriptor.bias);
    let projections = site.projections.iter().map(|p| weights.linear(&p.module, p.width, site.input, bias));
    Ok(FusedLinear::new(projections.collect::<Result<_>>()?)?)
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
