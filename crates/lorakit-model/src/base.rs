//! A base: one of our two forms, opened from a Hugging Face folder, with one slot per site.

use crate::attention::heads::AttentionHeads;
use crate::checkpoint::{Bytes, Checkpoint};
use crate::config::{Config, Form};
use crate::fingerprint::canonical_text;
use crate::layer::context::LayerContext;
use crate::layer::lm_head::{HeadPatch, LmHead};
use crate::layer::norm::Norm;
use crate::layer::rope::RopeFrequencies;
use crate::layer::tape::Tape;
use crate::packed::Packed;
use crate::plan::{Cache, Plan};
use crate::weight::Weight;
use crate::weights::{Options, Weights};
use crate::{mistral, phi};
use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, Var, bail};
use lorakit_adapter::{BaseIdentity, BaseModule};
use lorakit_format::hash::hex;
use lorakit_lora::{Patches, SequenceBatch, Site};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::path::Path;

/// A base model, its weights frozen unless it was opened to be trained.
pub struct Base {
    config: Config,
    identity: BaseIdentity,
    embedding: Weight,
    layers: Vec<Layer>,
    norm: Norm,
    head: LmHead,
    heads: AttentionHeads,
    sites: Vec<Site>,
    frequencies: RopeFrequencies,
    device: Device,
    narrowed: Option<DType>,
    variables: Vec<(String, Var)>,
    parameters: u64,
    file_bytes: u64,
    weight_bytes: u64,
}

enum Layer {
    Mistral(mistral::Layer),
    Phi(phi::Layer),
}

impl Layer {
    fn forward(&self, h: &Tensor, flow: &mut LayerContext) -> candle_core::Result<Tensor> {
        match self {
            Self::Mistral(layer) => layer.forward(h, flow),
            Self::Phi(layer) => layer.forward(h, flow),
        }
    }

    fn sites(&self) -> usize {
        match self {
            Self::Mistral(_) => mistral::SITES,
            Self::Phi(_) => phi::SITES,
        }
    }
}

impl Base {
    /// Opens a model folder: config.json with one or many safetensors, memory-mapped.
    pub fn open(folder: &Path, options: &Options) -> Result<Self> {
        ensure!(
            folder.is_dir(),
            "{}: not a folder; a base is a Hugging Face model folder, hub:ORG/NAME, or pico",
            folder.display()
        );
        let config = Config::read(folder)?;
        let name = folder.canonicalize().ok().and_then(|f| Some(f.file_name()?.to_string_lossy().into_owned()));
        Self::of(&name.unwrap_or_default(), config, &Checkpoint::open(folder)?, options)
    }

    /// A base whose config and safetensors are in memory.
    pub fn from_bytes(name: &str, config: &str, weights: Bytes, options: &Options) -> Result<Self> {
        Self::of(name, Config::parse(config, name)?, &Checkpoint::from_bytes(name, weights)?, options)
    }

    /// A base of these weights, which may have been changed in memory; its fingerprint is that of their files.
    pub fn of(name: &str, config: Config, checkpoint: &Checkpoint, options: &Options) -> Result<Self> {
        let mut weights = Weights::new(checkpoint, options);
        let embedding = weights.matrix("model.embed_tokens.weight", config.vocabulary, config.hidden)?;
        let products = products(checkpoint, options)?;
        let heads = AttentionHeads {
            queries: config.heads,
            keys: config.kv_heads,
            features: config.head_dim,
            window: config.window,
            // Scores are larger than f16 reaches in some bases, and their gradients smaller.
            products: if products == DType::F16 { DType::F32 } else { products },
        };
        let (mut layers, mut sites) = (Vec::new(), Vec::new());
        for index in 0..config.layers {
            match config.form {
                Form::Mistral => {
                    layers.push(Layer::Mistral(mistral::Layer::load(&config, index, heads, &mut weights)?));
                    sites.extend(mistral::sites(&config, index));
                }
                Form::Phi => {
                    layers.push(Layer::Phi(phi::Layer::load(&config, index, heads, &mut weights)?));
                    sites.extend(phi::sites(&config, index));
                }
            }
        }
        let norm = match config.form {
            Form::Mistral => Norm::rms(weights.vector("model.norm.weight", config.hidden)?, config.epsilon),
            Form::Phi => Norm::layer(
                weights.vector("model.final_layernorm.weight", config.hidden)?,
                weights.vector("model.final_layernorm.bias", config.hidden)?,
                config.epsilon,
            ),
        };
        let head = match config.tied {
            true => embedding.clone(),
            false => weights.matrix("lm_head.weight", config.vocabulary, config.hidden)?,
        };
        let bias = match config.form {
            Form::Phi => Some(weights.vector("lm_head.bias", config.vocabulary)?),
            Form::Mistral => None,
        };
        Ok(Self {
            variables: weights.finish(config.tied)?,
            identity: identity(name, &config, checkpoint),
            head: LmHead::new(head, bias, config.vocabulary),
            frequencies: RopeFrequencies::new(&config.rope),
            device: options.device.clone(),
            narrowed: if options.device.is_cpu() { options.dtype } else { Some(products) }
                .filter(|&dtype| dtype != DType::F32),
            parameters: checkpoint.parameters(),
            file_bytes: checkpoint.bytes(),
            weight_bytes: weight_bytes(checkpoint, options),
            heads,
            config,
            embedding,
            layers,
            norm,
            sites,
        })
    }

    /// The same base under another name, as that of the repository that its folder was fetched from.
    pub fn named(mut self, name: &str) -> Self {
        self.identity.name = name.to_string();
        self
    }

    /// The base's dimensions and constants.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What tells this base from others.
    pub fn identity(&self) -> &BaseIdentity {
        &self.identity
    }

    /// Every site, layer by layer; patches are given in this order.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// The device that it computes on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What tells its results from those of its file's values in f32: the type that its weights were given when it was
    /// opened, or that a device multiplies them in; none where it is neither.
    pub fn narrowed(&self) -> Option<DType> {
        self.narrowed
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Size of its weight files in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// What its weights take where it computes, in bytes: the size of its files, unless they were given another type.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Its own weights as variables, by name; none unless it was opened to be trained.
    pub fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    /// The matrix that makes logits.
    pub fn head(&self) -> &LmHead {
        &self.head
    }

    /// What all layers share for packed `rows`.
    pub fn plan(&self, rows: SequenceBatch) -> Plan {
        Plan::packed(rows, &self.frequencies)
    }

    /// The same for a batch of which the last layer's output is wanted where it predicts a target, and nowhere else:
    /// after that layer stand `[targets, hidden]`. For patches that look at one token at a time.
    pub fn plan_of_targets(&self, batch: &Packed) -> candle_core::Result<Plan> {
        let plan = Plan::packed(batch.rows(), &self.frequencies);
        let Some(last) = self.layers.len().checked_sub(1) else { return Ok(plan) };
        Ok(plan.wanting(last, batch.predicting_places(&self.device)?, batch.target_batch()))
    }

    /// What [`Base::plan`] is for rows whose keys stand in a cache; see [`crate::decode`].
    pub(crate) fn cached_plan(&self, rows: SequenceBatch, keys: Vec<Vec<Range<usize>>>, cache: Cache) -> Plan {
        Plan::cached(rows, keys, cache, &self.frequencies)
    }

    /// Room for `slots` tokens that were seen before.
    pub(crate) fn cache(&self, slots: usize) -> candle_core::Result<Cache> {
        Cache::new(self.layers.len(), slots, self.heads, &self.device)
    }

    /// The embeddings of `ids`: `[tokens, hidden]`, in f32 as all that follows from them.
    pub fn embed(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.config.vocabulary) {
            bail!("token {id} is outside the base's vocabulary of {}", self.config.vocabulary);
        }
        match &self.embedding {
            Weight::Tensor(weight) => {
                weight.index_select(&Tensor::from_slice(ids, ids.len(), &self.device)?, 0)?.to_dtype(DType::F32)
            }
            Weight::Mapped(weight) => {
                let d = self.config.hidden;
                let mut h = vec![0.0; ids.len() * d];
                ids.iter().zip(h.chunks_exact_mut(d)).for_each(|(&id, row)| weight.copy_row(id as usize, row));
                Tensor::from_vec(h, (ids.len(), d), &self.device)
            }
        }
    }

    /// `h`, `[tokens, hidden]`, after layer `index`.
    pub fn layer(&self, index: usize, h: &Tensor, plan: &Plan, patches: &Patches) -> candle_core::Result<Tensor> {
        self.layers[index].forward(h, &mut self.flow(index, plan, patches))
    }

    /// The same outside candle's graph, with the way back, which asks for the gradient of `h` where that is `wanted`.
    /// For a frozen base on a CPU, and patches with a [site op](lorakit_lora::Patch::site_op).
    pub fn taped_layer(
        &self,
        index: usize,
        h: &Tensor,
        wanted: bool,
        plan: &Plan,
        patches: &Patches,
    ) -> candle_core::Result<(Tensor, Tape)> {
        let mut tape = Tape::new(h, wanted);
        let y = self.layers[index].forward(h, &mut self.flow(index, plan, patches).on(&mut tape))?;
        Ok((y, tape))
    }

    fn flow<'a>(&self, index: usize, plan: &'a Plan, patches: &'a Patches) -> LayerContext<'a> {
        LayerContext::new(index, index * self.layers[index].sites(), plan, patches)
    }

    /// The last norm, after which [`Base::head`] makes logits.
    pub fn last_norm(&self, h: &Tensor) -> candle_core::Result<Tensor> {
        self.norm.forward(h)
    }

    /// `ids` through all layers, before the last norm: `[tokens, hidden]`. To be read and not differentiated: of a layer
    /// whose patches are variables no graph is kept when the next one begins.
    pub fn hidden(&self, ids: &[u32], plan: &Plan, patches: &Patches) -> candle_core::Result<Tensor> {
        let layer = |h: Tensor, index| Ok(self.layer(index, &h, plan, patches)?.detach());
        (0..self.layers.len()).try_fold(self.embed(ids)?.detach(), layer)
    }

    /// The logits of every token, `[tokens, vocabulary]`, to be read and not differentiated.
    pub fn logits(&self, ids: &[u32], rows: SequenceBatch, patches: &Patches) -> candle_core::Result<Tensor> {
        let h = self.hidden(ids, &self.plan(rows.clone()), patches)?;
        self.head.logits(&self.last_norm(&h)?, HeadPatch::of(patches, &rows))
    }

    /// Every module that an adapter may be made for.
    pub fn modules(&self) -> Vec<BaseModule> {
        let of = |site: &Site| {
            site.projections
                .iter()
                .map(|p| BaseModule { path: p.module.clone(), input: site.input, output: p.width })
                .collect::<Vec<_>>()
        };
        self.sites.iter().flat_map(of).collect()
    }
}

/// What matrices are multiplied in: f32 on a CPU and where they train, else their own type, the narrowest of the first
/// layer's and the embedding's.
fn products(checkpoint: &Checkpoint, options: &Options) -> Result<DType> {
    if options.device.is_cpu() || options.trainable {
        return Ok(DType::F32);
    }
    let own = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"].map(str::to_owned);
    options.dtype.map_or_else(|| Ok(checkpoint.narrowest(&own.into())?.dtype()), Ok)
}

/// What weights take that are opened so, in bytes.
fn weight_bytes(checkpoint: &Checkpoint, options: &Options) -> u64 {
    let of = |dtype: DType| checkpoint.parameters() * dtype.size_in_bytes() as u64;
    match options.dtype {
        _ if options.trainable => of(DType::F32),
        // On a CPU f32 is what matrices are read as, and not what they are kept in.
        Some(dtype) if !options.device.is_cpu() || dtype != DType::F32 => of(dtype),
        _ => checkpoint.bytes(),
    }
}

fn identity(name: &str, config: &Config, checkpoint: &Checkpoint) -> BaseIdentity {
    let dimensions = [
        ("vocabulary", config.vocabulary),
        ("hidden", config.hidden),
        ("intermediate", config.intermediate),
        ("layers", config.layers),
        ("heads", config.heads),
        ("kv_heads", config.kv_heads),
        ("head_dim", config.head_dim),
    ];
    let mut hash = Sha256::new();
    hash.update(canonical_text(config));
    hash.update(checkpoint.sampled_hash());
    BaseIdentity {
        name: name.to_string(),
        architecture: config.model_type.clone(),
        dimensions: dimensions.into_iter().map(|(k, v)| (k.to_string(), v as u64)).collect(),
        fingerprint: hex(&hash.finalize()),
    }
}
