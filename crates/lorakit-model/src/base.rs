//! A base model: opened from a Hugging Face folder or a GGUF file, and what it says of itself.

use crate::architecture::base_config::BaseConfig;
use crate::attention::distance_bias::DistanceBias;
use crate::attention::heads::AttentionHeads;
use crate::base_fingerprint::base_identity;
use crate::error::{ModelError, Result};
use crate::kv_cache::KvCache;
use crate::layer::lm_head::LmHead;
use crate::layer::logit_scale::LogitScale;
use crate::layer::norm::Norm;
use crate::layer::rope::LayerRopes;
use crate::transformer_layer::{TransformerLayer, load_norm};
use crate::weights::checkpoint::{Checkpoint, WeightType};
use crate::weights::token_precision::TokenPrecision;
use crate::weights::weight::Weight;
use crate::weights::weight_loader::{BaseOptions, WeightLoader};
use candle_core::{DType, Device, Result as CandleResult, Var};
use lorakit_adapter::{BaseIdentity, BaseModule, ModuleKind, TaskType};
use lorakit_format::gguf::GgufShards;
use lorakit_format::mmap::FileBytes;
use lorakit_lora::{Projection, Site, SiteRole};
use std::path::Path;

/// A base model. Its weights are frozen unless it was opened to be trained.
pub struct Base {
    config: BaseConfig,
    identity: BaseIdentity,
    pub(crate) embedding: Weight,
    pub(crate) layers: Vec<TransformerLayer>,
    pub(crate) final_norm: Norm,
    lm_head: LmHead,
    heads: AttentionHeads,
    sites: Vec<Site>,
    pub(crate) ropes: LayerRopes,
    device: Device,
    dtype_override: Option<DType>,
    decoding: TokenPrecision,
    variables: Vec<(String, Var)>,
    parameters: u64,
    file_bytes: u64,
    weight_bytes: u64,
    weight_types: Vec<WeightType>,
}

impl Base {
    /// Opens a model folder: `config.json` with one or several safetensors files, which are memory-mapped.
    ///
    /// # Errors
    /// If the folder is not a supported model, or its weights are not those that its config describes.
    pub fn open(folder: &Path, options: &BaseOptions) -> Result<Self> {
        if !folder.is_dir() {
            return Err(ModelError::NotAFolder { path: folder.to_owned() });
        }
        let config = BaseConfig::read(folder)?;
        let name = folder.canonicalize().ok().and_then(|f| Some(f.file_name()?.to_string_lossy().into_owned()));
        Self::from_checkpoint(&name.unwrap_or_default(), config, &Checkpoint::open(folder)?, options)
    }

    /// Opens a model in GGUF: one file, or any of the files that it is split into, which are memory-mapped. Quantized
    /// weights stay so.
    ///
    /// # Errors
    /// If a file is damaged, its architecture is not supported, or its weights are not those that its metadata describes.
    pub fn open_gguf(path: &Path, options: &BaseOptions) -> Result<Self> {
        let shards = GgufShards::open(path)?;
        let config = BaseConfig::of_gguf(&shards)?;
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned());
        Self::from_checkpoint(&name.unwrap_or_default(), config, &Checkpoint::of_gguf(shards)?, options)
    }

    /// A base whose config and safetensors file are in memory.
    ///
    /// # Errors
    /// As [`Base::open`].
    pub fn from_bytes(name: &str, config: &str, weights: FileBytes, options: &BaseOptions) -> Result<Self> {
        let config = BaseConfig::parse(config, name)?;
        Self::from_checkpoint(name, config, &Checkpoint::from_bytes(name, weights)?, options)
    }

    /// A base of these weights, which may have been edited in memory; its fingerprint is that of their files.
    ///
    /// # Errors
    /// If the weights are not those that the config describes.
    pub fn from_checkpoint(
        name: &str,
        config: BaseConfig,
        checkpoint: &Checkpoint,
        options: &BaseOptions,
    ) -> Result<Self> {
        ensure_layers(&config, checkpoint)?;
        let config = checked_against(config, checkpoint)?;
        ensure_computes(&config, checkpoint, options)?;
        let mut weights = WeightLoader::new(checkpoint, options);
        weights.round(config.matrices())?;
        let descriptor = &config.descriptor;
        let weight_of = |module: &str| format!("{module}.weight");
        let embedding = weights.matrix(&weight_of(descriptor.embedding), config.vocabulary, config.hidden)?;
        let matmul_dtype = matmul_dtype(&config, checkpoint, options)?;
        let heads = attention_heads(&config, matmul_dtype);
        let [encoder_bias, bias] = distance_biases(&config, &mut weights)?;
        let bias_of = |index| if config.is_encoder_layer(index) { &encoder_bias } else { &bias };
        let load = |index| TransformerLayer::load(&config, index, heads, bias_of(index).clone(), &mut weights);
        let layers = (0..config.layers).map(load);
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let final_norm = load_norm(&config, descriptor.final_norm, config.hidden, &mut weights)?;
        let head = match config.tied {
            true => embedding.clone(),
            false => lm_head_weight(&config, checkpoint, &mut weights)?,
        };
        let head_bias = match descriptor.lm_head_bias {
            true => Some(weights.vector(&format!("{}.bias", descriptor.lm_head), config.vocabulary)?),
            false => None,
        };
        // A checkpoint may hold a tied head's weight a second time.
        let head_name = weight_of(descriptor.lm_head);
        let mut unused = descriptor.unused.to_vec();
        unused.extend(descriptor.encoder.map_or(&[][..], |encoder| encoder.unused));
        unused.extend(descriptor.embedding_copies());
        unused.extend(config.tied.then_some(head_name.as_str()));
        let (unused_values, unused_bytes) = checkpoint.size_of(&unused);
        Ok(Self {
            variables: weights.finish(&unused)?,
            identity: base_identity(name, &config, checkpoint),
            lm_head: LmHead::new(head, head_bias, config.vocabulary)
                .with_scale(LogitScale { multiplier: config.scales.logits, soft_cap: config.scales.logit_soft_cap }),
            ropes: LayerRopes::new(&config),
            sites: (0..config.layers).flat_map(|index| config.sites(index)).collect(),
            device: options.device.clone(),
            decoding: options.decoding,
            dtype_override: if options.device.is_cpu() { options.dtype } else { Some(matmul_dtype) }
                .filter(|&dtype| dtype != DType::F32),
            parameters: checkpoint.parameters() - unused_values,
            file_bytes: checkpoint.bytes(),
            weight_types: checkpoint.weight_types(),
            weight_bytes: weight_bytes(checkpoint, options, (unused_values, unused_bytes)),
            heads,
            config,
            embedding,
            layers,
            final_norm,
        })
    }

    /// The same base under another name; `on_hub` if it has that name on the Hub.
    pub fn with_name(mut self, name: &str, on_hub: bool) -> Self {
        self.identity.name = name.to_string();
        self.identity.on_hub = Some(on_hub);
        self
    }

    /// The base's dimensions, constants and architecture.
    pub fn config(&self) -> &BaseConfig {
        &self.config
    }

    /// What tells this base from others.
    pub fn identity(&self) -> &BaseIdentity {
        &self.identity
    }

    /// Every site of the layers, layer by layer; patches are given in this order.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// Every site that an adapter can change: those of the layers, then the embedding and the head. Those two are served,
    /// not trained.
    pub fn adaptable_sites(&self) -> Vec<Site> {
        self.sites.iter().cloned().chain(self.config.outer_sites()).collect()
    }

    /// The device that it computes on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The 16-bit type that its weights were rounded to when it was opened, or that a device multiplies them in; none
    /// where results are those of the file's values in f32.
    pub fn dtype_override(&self) -> Option<DType> {
        self.dtype_override
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

    /// The memory of its weights in bytes, where it computes: the size of its files, unless they have another type there.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// The types that its weights are stored in, the largest first.
    pub fn weight_types(&self) -> &[WeightType] {
        &self.weight_types
    }

    /// Its own weights as variables, by name; none unless it was opened to be trained.
    pub fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    /// The LM head, which makes logits of what [`Base::final_norm`] returns.
    pub fn lm_head(&self) -> &LmHead {
        &self.lm_head
    }

    /// The task for which PEFT wraps this base.
    pub fn task_type(&self) -> TaskType {
        match self.config.encoder {
            None => TaskType::CausalLm,
            Some(_) => TaskType::Seq2SeqLm,
        }
    }

    /// Every linear module of the layers: those that an adapter can be trained for.
    pub fn modules(&self) -> Vec<BaseModule> {
        modules_of(&self.sites)
    }

    /// Every module that an adapter can change, those of [`Base::adaptable_sites`].
    pub fn adaptable_modules(&self) -> Vec<BaseModule> {
        modules_of(&self.adaptable_sites())
    }

    /// Whether rows of these two lengths are rotated alike; in most bases all are.
    pub(crate) fn rotates_alike(&self, a: usize, b: usize) -> bool {
        self.ropes.are_alike(a, b)
    }

    /// The precision that tokens after a prompt are computed in.
    pub(crate) fn decoding(&self) -> TokenPrecision {
        self.decoding
    }

    /// Whether it has weights that tokens of 8 bits are multiplied with: quantized ones of most types of GGUF, on a CPU.
    pub fn has_integer_products(&self) -> bool {
        self.lm_head.has_integer_products() || self.layers.iter().any(TransformerLayer::has_integer_products)
    }

    /// The memory of a token's cached keys and values, in bytes.
    pub fn cache_bytes_per_token(&self) -> u64 {
        (self.cached_layers() * 2 * self.heads.key_width() * DType::F32.size_in_bytes()) as u64
    }

    /// Number of layers whose keys are cached: a token of a source has those of the decoder's attention to it.
    fn cached_layers(&self) -> usize {
        self.layers.len() - self.config.encoder.map_or(0, |encoder| encoder.layers)
    }

    /// An empty cache of `slots` tokens.
    pub(crate) fn kv_cache(&self, slots: usize) -> CandleResult<KvCache> {
        KvCache::new(self.cached_layers(), slots, self.heads, &self.device)
    }
}

/// The modules of some sites.
fn modules_of(sites: &[Site]) -> Vec<BaseModule> {
    let modules = sites.iter().flat_map(|site| site.projections.iter().map(move |projection| (site, projection)));
    let module = |(site, projection): (&Site, &Projection)| BaseModule {
        path: projection.module.clone(),
        input: site.input,
        output: projection.width,
        kind: match site.role {
            SiteRole::Embedding => ModuleKind::Embedding,
            SiteRole::LmHead => ModuleKind::LmHead,
            _ => ModuleKind::Linear,
        },
    };
    modules.map(module).collect()
}

/// The heads of all layers, each of which has its own window.
fn attention_heads(config: &BaseConfig, matmul_dtype: DType) -> AttentionHeads {
    AttentionHeads {
        queries: config.heads,
        keys: config.kv_heads,
        features: config.head_dim,
        window: None,
        scale: config.scales.attention,
        soft_cap: config.scales.attention_soft_cap,
        causal: true,
        // In some bases scores are larger than f16 can hold, and their gradients smaller.
        products: if matmul_dtype == DType::F16 { DType::F32 } else { matmul_dtype },
    }
}

/// Fails where there are fewer tensors than layers, each of which has some: what follows makes names for all of them.
fn ensure_layers(config: &BaseConfig, checkpoint: &Checkpoint) -> Result<()> {
    let (layers, tensors) = (config.layers, checkpoint.names().count());
    if layers <= tensors {
        return Ok(());
    }
    let reason = format!(
        "config.json asks for {layers} layers, but there are {tensors} tensors; config.json and weights may be of different \
         models"
    );
    Err(ModelError::Checkpoint { place: checkpoint.place(), reason })
}

/// Fails where a base needs what is missing on its device.
fn ensure_computes(config: &BaseConfig, checkpoint: &Checkpoint, options: &BaseOptions) -> Result<()> {
    if config.encoder.is_none() || options.device.is_cpu() {
        return Ok(());
    }
    let reason = format!("bases of architecture `{}` compute on a CPU only; use --device cpu", config.model_type);
    Err(ModelError::Checkpoint { place: checkpoint.place(), reason })
}

/// The weight of a head that is not tied to the embedding.
fn lm_head_weight(config: &BaseConfig, checkpoint: &Checkpoint, weights: &mut WeightLoader) -> Result<Weight> {
    let name = format!("{}.weight", config.descriptor.lm_head);
    if checkpoint.find(&name).is_none() {
        let reason = "is missing: there is one weight for the embedding and the LM head, and config.json does not tie \
                      them; AutoModelForCausalLM saves both, AutoModel does not";
        return Err(ModelError::Tensor { place: checkpoint.place(), tensor: name, reason: reason.to_owned() });
    }
    weights.matrix(&name, config.vocabulary, config.hidden)
}

/// The biases by distance of an encoder's layers and of those after it, if there are any.
fn distance_biases(config: &BaseConfig, weights: &mut WeightLoader) -> Result<[Option<DistanceBias>; 2]> {
    let (Some(encoder), Some(descriptor)) = (config.encoder, config.descriptor.encoder) else {
        return Ok([None, None]);
    };
    let mut bias = |first: usize, causal| -> Result<Option<DistanceBias>> {
        let name = format!("{}.{}.weight", config.layer_module(first), descriptor.distance_bias);
        let weight = weights.table(&name, encoder.buckets.count, config.heads)?;
        Ok(Some(DistanceBias::new(weight, encoder.buckets, causal)?))
    };
    Ok([bias(0, false)?, bias(encoder.layers, true)?])
}

/// The type that matrices are multiplied in: f32 on a CPU and where they train, else the one asked for, else the narrower
/// of the types of the embedding and the first layer's first projection.
fn matmul_dtype(config: &BaseConfig, checkpoint: &Checkpoint, options: &BaseOptions) -> Result<DType> {
    if options.device.is_cpu() || options.trainable {
        return Ok(DType::F32);
    }
    if let Some(dtype) = options.dtype {
        return Ok(dtype);
    }
    let sites = config.sites(0);
    let projections = sites.iter().flat_map(|site| &site.projections);
    let first = projections.map(|projection| projection.module.as_str()).take(1);
    let names = first.chain([config.descriptor.embedding]).map(|module| format!("{module}.weight")).collect();
    Ok(checkpoint.narrowest_dtype(&names)?.to_candle())
}

/// The config, where the checkpoint shows what it leaves open.
fn checked_against(mut config: BaseConfig, checkpoint: &Checkpoint) -> Result<BaseConfig> {
    let descriptor = config.descriptor;
    let [embedding, head] = [descriptor.embedding, descriptor.lm_head].map(|module| format!("{module}.weight"));
    let shape = [config.vocabulary, config.hidden];
    let differs = |name: &str| checkpoint.differ([embedding.as_str(), name], &shape);
    for copy in descriptor.embedding_copies() {
        if differs(copy)? {
            let reason = format!(
                "differs from `{embedding}`; lorakit reads models with one embedding for both stacks. If an earlier version of \
                 lorakit wrote an adapter into this model, write it again with this version, or delete `{copy}`, which is \
                 then the embedding of before"
            );
            return Err(ModelError::Tensor { place: checkpoint.place(), tensor: (*copy).to_owned(), reason });
        }
    }
    if config.tied && differs(&head)? {
        config.tied = false;
        config.warnings.push(format!(
            "{}: config.json ties the LM head to the embedding, but `{head}` differs from `{embedding}`; both are used, as \
             in transformers 5",
            checkpoint.place()
        ));
    }
    let (values, _) = checkpoint.size_of(descriptor.unused);
    if values > 0 {
        config.warnings.push(format!("{}: only the text model is used", checkpoint.place()));
    }
    Ok(config)
}

/// The memory of a checkpoint's weights when opened with these options, in bytes, less `unused` values and bytes.
fn weight_bytes(checkpoint: &Checkpoint, options: &BaseOptions, unused: (u64, u64)) -> u64 {
    let of = |dtype: DType| (checkpoint.parameters() - unused.0) * dtype.size_in_bytes() as u64;
    match options.dtype {
        _ if options.trainable => of(DType::F32),
        // On a CPU, f32 is what matrices are widened to inside products, not what they are stored in.
        Some(dtype) if !options.device.is_cpu() || dtype != DType::F32 => of(dtype),
        _ => checkpoint.weight_bytes() - unused.1,
    }
}
