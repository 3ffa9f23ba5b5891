//! What a batch holds that is differentiated on tapes, counted tensor by tensor.
//!
//! A step of a tape keeps its input: a norm, an activation, the attention, a site with adapters (which keeps its dropout
//! mask too). A site without adapters keeps nothing. The backward frees the values of a step when it has run, so that the
//! most is held near the end of the last layer or of the one before it, or while the loss is computed.

use crate::train_config::TrainConfig;
use lorakit_lora::{Projection, Site, SiteRole};
use lorakit_model::Base;
use lorakit_model::architecture::{BlockDescriptor, BranchNorms};

/// The tokens of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchTokens {
    /// All.
    pub(crate) all: u64,
    /// Those that predict a target: the last layer's MLP and the head compute no others.
    pub(crate) targets: u64,
}

/// Bytes per token that a layer's tape keeps.
#[derive(Clone, Copy, Default)]
struct LayerBytes {
    /// Until the attention, of all tokens.
    before: u64,
    /// From there, of the tokens whose output is wanted.
    after: u64,
}

/// The bytes that tapes hold per token, layer by layer.
pub(crate) struct TapeMemory {
    layers: Vec<LayerBytes>,
    /// The residual stream.
    hidden: u64,
    /// What the backward of an MLP and of an attention make beside what is kept.
    mlp_backward: u64,
    attention_backward: u64,
    recomputed: bool,
}

/// Bytes of a value.
const VALUE: u64 = 4;

impl TapeMemory {
    /// Of adapters over `base` with these settings.
    pub(crate) fn new(base: &Base, config: &TrainConfig) -> Self {
        let c = base.config();
        let adapted = adapted_sites(base, config);
        let first = base.sites().iter().zip(&adapted).find(|(_, adapted)| **adapted).and_then(|(site, _)| site.layer);
        let layer = |index: usize| {
            let sites = base.sites().iter().zip(&adapted).filter(|(site, _)| site.layer == Some(index));
            LayerTape {
                base,
                sites: sites.map(|(site, adapted)| (site, *adapted)).collect(),
                drops: config.dropout > 0.0,
            }
        };
        let hidden = VALUE * c.hidden as u64;
        let (queries, qkv) = ((c.heads * c.head_dim) as u64, ((c.heads + 2 * c.kv_heads) * c.head_dim) as u64);
        let layers = (0..base.layers()).map(|index| match first {
            Some(first) if index >= first => layer(index).bytes(),
            // Below the first adapter nothing is differentiated.
            _ => LayerBytes { before: hidden, after: 0 },
        });
        let of_mlp = |index: usize| layer(index).mlp_backward();
        Self {
            layers: layers.collect(),
            hidden,
            mlp_backward: hidden + VALUE * (0..base.layers()).map(of_mlp).max().unwrap_or(0),
            // The gradients of q, k and v, once by head and once by token.
            attention_backward: hidden + VALUE * (queries + 2 * qkv),
            recomputed: config.gradient_checkpointing,
        }
    }

    /// Fragmentation by a forward whose activations are recomputed: its tapes were freed between the inputs that stay, and
    /// those of the backward do not fit into that memory. Counted as one layer's tape; 0.6, 1.5 and 1.7 of one over three
    /// bases of 10 to 270 million parameters.
    pub(crate) fn recompute_fragmentation(&self, tokens: BatchTokens) -> u64 {
        let layers = self.layers.iter().map(|layer| (layer.before + layer.after) * tokens.all);
        if self.recomputed { layers.max().unwrap_or(0) } else { 0 }
    }

    /// The most that a batch of `tokens` holds at a time in its layers.
    pub(crate) fn peak(&self, tokens: BatchTokens) -> u64 {
        let BatchTokens { all, targets } = tokens;
        let wanted = |index: usize| if index + 1 == self.layers.len() { targets } else { all };
        let own = |index: usize| {
            let LayerBytes { before, after } = self.layers[index];
            let after = after * wanted(index);
            (before * all, after)
        };
        let kept = |index: usize| if self.recomputed { self.hidden * all } else { own(index).0 + own(index).1 };
        let outputs = self.hidden * targets;
        let mut held: u64 = (0..self.layers.len()).map(kept).sum::<u64>() + outputs;
        // The normed states, and the gradients of the loss by them and by the states.
        let mut peak = held + 3 * self.hidden * targets;
        for index in (0..self.layers.len()).rev() {
            let (before, after) = own(index);
            held -= kept(index);
            peak = peak.max(held + before + after + self.mlp_backward * wanted(index));
            peak = peak.max(held + before + self.attention_backward * all);
        }
        peak
    }
}

/// Whether each of the base's sites has adapters.
pub(crate) fn adapted_sites(base: &Base, config: &TrainConfig) -> Vec<bool> {
    let targets = config.targets(base);
    // An invalid pattern is reported where the modules are chosen.
    let is_target = |projection: &Projection| match &targets {
        Ok(targets) => targets.matches(&projection.module).unwrap_or(true),
        Err(_) => true,
    };
    base.sites().iter().map(|site| site.projections.iter().any(is_target)).collect()
}

/// One layer with its sites, and whether each has adapters.
struct LayerTape<'a> {
    base: &'a Base,
    sites: Vec<(&'a Site, bool)>,
    drops: bool,
}

impl LayerTape<'_> {
    /// What its tape keeps.
    fn bytes(&self) -> LayerBytes {
        let c = self.base.config();
        let hidden = c.hidden as u64;
        let qkv = self.output(SiteRole::AttentionInput);
        // Queries and keys are normed into a copy.
        let copies = if c.descriptor.qk_norm.is_some() { 2 } else { 1 };
        let [queries, inner] = [SiteRole::AttentionOutput, SiteRole::MlpOutput].map(|role| self.kept_input(role));
        let [attention_input, mlp_input] =
            [SiteRole::AttentionInput, SiteRole::MlpInput].map(|role| self.kept_input(role));
        let gate = self.output(SiteRole::MlpInput);
        let count = |norm: Option<&str>| u64::from(norm.is_some());
        let (before, after) = match c.descriptor.block {
            BlockDescriptor::Sequential { attention, mlp } => {
                // Without a norm before it, a branch reads the residual stream itself, which is kept as the layer's input.
                let normed = attention_input * count(attention.before);
                let residual = if mlp.before.is_some() { hidden + mlp_input } else { mlp_input };
                let norms = |norms: BranchNorms| hidden * count(norms.after);
                (normed, residual + norms(attention) + norms(mlp) + self.stack_rows() * hidden)
            }
            BlockDescriptor::Parallel { .. } => (attention_input.max(mlp_input), 0),
        };
        LayerBytes {
            before: VALUE * (hidden + before + copies * qkv) + self.mask(SiteRole::AttentionInput),
            after: VALUE * (queries + after + gate + inner)
                + [SiteRole::AttentionOutput, SiteRole::MlpInput, SiteRole::MlpOutput]
                    .map(|role| self.mask(role))
                    .iter()
                    .sum::<u64>(),
        }
    }

    /// Values per token that the backward of the MLP makes, beside the gradient of the residual stream: those of the
    /// activation's output and input, or, of an adapted site after it, of the site's input, its dropped copy, and the
    /// adapters' part of the gradient before and after the mask.
    fn mlp_backward(&self) -> u64 {
        let (site, adapted) = self.site(SiteRole::MlpOutput);
        let inner = site.map_or(0, |site| site.input as u64);
        let of_site = if adapted && self.drops { 4 * inner } else { inner };
        of_site.max(inner + self.output(SiteRole::MlpInput))
    }

    /// Copies of the residual stream that a layer of an encoder-decoder keeps: the rows of its stack, before and after it, and
    /// between its two attentions.
    fn stack_rows(&self) -> u64 {
        if self.base.config().encoder.is_some() { 3 } else { 0 }
    }

    fn site(&self, role: SiteRole) -> (Option<&Site>, bool) {
        match self.sites.iter().find(|(site, _)| site.role == role) {
            Some((site, adapted)) => (Some(site), *adapted),
            None => (None, false),
        }
    }

    /// The outputs of the sites of a role: cross-attention has sites of the same roles.
    fn output(&self, role: SiteRole) -> u64 {
        self.sites.iter().filter(|(site, _)| site.role == role).map(|(site, _)| site.output() as u64).sum()
    }

    /// The inputs of those with adapters, which their steps keep.
    fn kept_input(&self, role: SiteRole) -> u64 {
        let kept = self.sites.iter().filter(|(site, adapted)| site.role == role && *adapted);
        kept.map(|(site, _)| site.input as u64).sum()
    }

    /// The mask of a dropped input takes one byte per value.
    fn mask(&self, role: SiteRole) -> u64 {
        if self.drops { self.kept_input(role) } else { 0 }
    }
}
