//! The descriptor of an architecture: everything in which it differs from others.

use crate::layer::activation::Activation;
use crate::layer::norm::NormKind;
use lorakit_lora::SiteRole;

/// What the layers of a base are made of. Module paths are those of Hugging Face's models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Descriptor {
    /// The name of its family in fingerprints, which must never change: architectures that compute the same share it.
    pub family: &'static str,
    /// The embedding's module.
    pub embedding: &'static str,
    /// The module that holds the layers: layer `i` is at `{layers}.{i}`.
    pub layers: &'static str,
    /// The module of the norm after the last layer.
    pub final_norm: &'static str,
    /// The LM head's module; where the head is tied its weight is the embedding's.
    pub lm_head: &'static str,
    /// What the names of tensors start with that such a checkpoint holds besides the text model.
    pub unused: &'static [&'static str],
    /// Whether the LM head has a bias.
    pub lm_head_bias: bool,
    /// The kind of all norms.
    pub norm: NormKind,
    /// The order of attention and MLP, with their norms.
    pub block: BlockDescriptor,
    /// The norms of queries and keys before they are rotated, if there are any.
    pub qk_norm: Option<QkNormDescriptor>,
    /// The activation between the MLP's sites.
    pub activation: Activation,
    /// The site that reads the attention's input: q, k and v, or one fused projection.
    pub attention_input: SiteDescriptor,
    /// The site that writes the attention's output.
    pub attention_output: SiteDescriptor,
    /// The site that reads the MLP's input: gate and up, or one projection.
    pub mlp_input: SiteDescriptor,
    /// The site that writes the MLP's output.
    pub mlp_output: SiteDescriptor,
    /// The encoder, whose layers come before these; none for a decoder alone.
    pub encoder: Option<&'static EncoderDescriptor>,
}

/// The encoder of an encoder-decoder, and how the decoder's layers read it. What is not said here is as in the decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EncoderDescriptor {
    /// The module that holds its layers.
    pub layers: &'static str,
    /// The module of the norm after its last layer.
    pub final_norm: &'static str,
    /// The order of attention and MLP, with their norms.
    pub block: BlockDescriptor,
    /// The site that reads the MLP's input.
    pub mlp_input: SiteDescriptor,
    /// The site that writes the MLP's output.
    pub mlp_output: SiteDescriptor,
    /// The attention of the decoder's layers to the encoder's output, between their attention and their MLP.
    pub cross_attention: CrossAttentionDescriptor,
    /// The module within the first layer of either stack that holds the biases of all its layers by distance.
    pub distance_bias: &'static str,
    /// Tensors that files may hold of the embedding, which both stacks share, a second time.
    pub embedding_copies: &'static [&'static str],
    /// Tensors that files may hold for nothing.
    pub unused: &'static [&'static str],
}

/// The attention of a decoder's layer to an encoder's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossAttentionDescriptor {
    /// The norm of what its queries read.
    pub norm: &'static str,
    /// The site that reads the queries' input.
    pub queries: SiteDescriptor,
    /// The site that reads the encoder's output: k and v.
    pub keys_values: SiteDescriptor,
    /// The site that writes its output.
    pub output: SiteDescriptor,
}

/// One layer of a base: of its decoder, or of its encoder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerDescriptor {
    /// The module that holds the stack's layers.
    pub(crate) layers: &'static str,
    pub(crate) block: BlockDescriptor,
    pub(crate) attention_input: SiteDescriptor,
    pub(crate) attention_output: SiteDescriptor,
    pub(crate) cross_attention: Option<CrossAttentionDescriptor>,
    pub(crate) mlp_input: SiteDescriptor,
    pub(crate) mlp_output: SiteDescriptor,
}

/// How attention and MLP follow each other in a layer. Norms are modules within the layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BlockDescriptor {
    /// `h += attention(h)`, then `h += mlp(h)`, each with its norms.
    Sequential {
        /// The norms of the attention.
        attention: BranchNorms,
        /// The norms of the MLP.
        mlp: BranchNorms,
    },
    /// `x = norm h`, `h += attention(x) + mlp(x)`.
    Parallel {
        /// The norm before both.
        norm: &'static str,
    },
}

/// The norms around attention or MLP: `norm(f(norm x))`, where each may be absent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BranchNorms {
    /// The norm of what it reads.
    pub before: Option<&'static str>,
    /// The norm of what it writes, before that is added to the residual stream.
    pub after: Option<&'static str>,
}

impl BranchNorms {
    /// A norm before.
    pub const fn before(norm: &'static str) -> Self {
        Self { before: Some(norm), after: None }
    }
}

/// The norms of queries and keys. They are modules within the layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkNormDescriptor {
    /// The norm of queries.
    pub queries: &'static str,
    /// The norm of keys.
    pub keys: &'static str,
    /// What is one row of these norms.
    pub rows: QkNormRows,
}

/// What a norm of queries or keys divides by the std of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNormRows {
    /// Each head by itself; all heads share the norm's weight.
    Heads,
    /// All heads of a token together.
    Tokens,
}

/// A site of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SiteDescriptor {
    /// The site's name, as in `qkv`. Adapters' keys and draws do not depend on it.
    pub name: &'static str,
    /// Its projections, in the order of their outputs.
    pub projections: &'static [ProjectionDescriptor],
    /// Whether its projections have biases.
    pub bias: bool,
}

/// A projection of a site. A fused module of a checkpoint, such as `qkv_proj`, is one projection with several outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProjectionDescriptor {
    /// The module within the layer, as in `self_attn.q_proj`.
    pub module: &'static str,
    /// What it writes, in order.
    pub outputs: &'static [Features],
}

/// What a projection writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Features {
    /// Queries of all heads.
    Queries,
    /// Keys of all key heads.
    Keys,
    /// Values of all key heads.
    Values,
    /// The MLP's inner features: those that pass the activation, or those that it gates.
    Inner,
    /// The residual stream's features.
    Hidden,
}

impl Descriptor {
    /// The sites of a layer with their roles, in the order in which a layer with this block visits them.
    pub fn sites(&self) -> Vec<(SiteRole, SiteDescriptor)> {
        self.layer().sites()
    }

    /// Tensors that files may hold of the embedding a second time, other than the head's.
    pub fn embedding_copies(&self) -> &'static [&'static str] {
        self.encoder.map(|encoder| encoder.embedding_copies).unwrap_or_default()
    }

    /// A layer of the decoder.
    pub(crate) fn layer(&self) -> LayerDescriptor {
        LayerDescriptor {
            layers: self.layers,
            block: self.block,
            attention_input: self.attention_input,
            attention_output: self.attention_output,
            cross_attention: self.encoder.map(|encoder| encoder.cross_attention),
            mlp_input: self.mlp_input,
            mlp_output: self.mlp_output,
        }
    }

    /// A layer of the encoder, if there is one.
    pub(crate) fn encoder_layer(&self) -> Option<LayerDescriptor> {
        self.encoder.map(|encoder| LayerDescriptor {
            layers: encoder.layers,
            block: encoder.block,
            cross_attention: None,
            mlp_input: encoder.mlp_input,
            mlp_output: encoder.mlp_output,
            ..self.layer()
        })
    }

    /// The same with biases of the attention's and the MLP's projections, as a config asks for them.
    pub(crate) fn with_biases(self, attention: bool, mlp: bool) -> Self {
        let with = |site: SiteDescriptor, bias| SiteDescriptor { bias, ..site };
        Self {
            attention_input: with(self.attention_input, attention),
            attention_output: with(self.attention_output, attention),
            mlp_input: with(self.mlp_input, mlp),
            mlp_output: with(self.mlp_output, mlp),
            ..self
        }
    }
}

impl LayerDescriptor {
    /// The sites with their roles, in the order in which the layer visits them.
    pub(crate) fn sites(&self) -> Vec<(SiteRole, SiteDescriptor)> {
        let mut sites =
            vec![(SiteRole::AttentionInput, self.attention_input), (SiteRole::AttentionOutput, self.attention_output)];
        if let Some(cross) = self.cross_attention {
            sites.extend([
                (SiteRole::AttentionInput, cross.queries),
                (SiteRole::AttentionInput, cross.keys_values),
                (SiteRole::AttentionOutput, cross.output),
            ]);
        }
        sites.extend([(SiteRole::MlpInput, self.mlp_input), (SiteRole::MlpOutput, self.mlp_output)]);
        sites
    }
}
