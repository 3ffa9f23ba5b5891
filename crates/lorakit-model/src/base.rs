//! A base model: opened from a Hugging Face folder or a GGUF file, run layer by layer, with a patch at each site.

use crate::architecture::base_config::BaseConfig;
use crate::attention::distance_bias::DistanceBias;
use crate::attention::heads::AttentionHeads;
use crate::base_fingerprint::base_identity;
use crate::error::{ModelError, Result};
use crate::forward_plan::ForwardPlan;
use crate::kv_cache::KvCache;
use crate::layer::layer_context::LayerContext;
use crate::layer::lm_head::{HeadPatch, LmHead};
use crate::layer::logit_scale::LogitScale;
use crate::layer::norm::Norm;
use crate::layer::rope::LayerRopes;
use crate::layer::tape::Tape;
use crate::source_target::SourceTarget;
use crate::token_batch::TokenBatch;
use crate::transformer_layer::{TransformerLayer, load_norm};
use crate::weights::checkpoint::{Checkpoint, WeightType};
use crate::weights::token_precision::TokenPrecision;
use crate::weights::weight::Weight;
use crate::weights::weight_loader::{BaseOptions, WeightLoader};
use candle_core::{DType, Device, Result as CandleResult, Tensor, Var, bail};
use lorakit_adapter::{BaseIdentity, BaseModule, ModuleKind, TaskType};
use lorakit_format::gguf::GgufShards;
use lorakit_format::mmap::FileBytes;
use lorakit_lora::{Outputs, Patches, Projection, SequenceBatch, Site, SiteRole};
use std::ops::Range;
use std::path::Path;

/// A base model. Its weights are frozen unless it was opened to be trained.
pub struct Base {
    config: BaseConfig,
    identity: BaseIdentity,
    embedding: Weight,
    layers: Vec<TransformerLayer>,
    final_norm: Norm,
    lm_head: LmHead,
    heads: AttentionHeads,
    sites: Vec<Site>,
    ropes: LayerRopes,
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
            false => weights.matrix(&weight_of(descriptor.lm_head), config.vocabulary, config.hidden)?,
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

    /// What all layers share in a forward of these sequences, packed one after another.
    pub fn plan(&self, sequences: SequenceBatch) -> ForwardPlan {
        match self.config.encoder {
            Some(encoder) => {
                let split = SourceTarget::packed(encoder.layers, &sequences);
                ForwardPlan::packed(sequences, &self.ropes).with_split(split)
            }
            None => ForwardPlan::packed(sequences, &self.ropes),
        }
    }

    /// The same for a batch whose last layer is only wanted where it predicts a target: its output is
    /// `[targets, hidden]`. For patches that look at one token at a time.
    pub fn plan_for_targets(&self, batch: &TokenBatch) -> CandleResult<ForwardPlan> {
        let plan = self.plan(batch.sequences());
        let Some(last) = self.layers.len().checked_sub(1) else { return Ok(plan) };
        let at: Vec<u32> = batch.targets().iter().map(|target| target.at).collect();
        let at = match plan.split() {
            Some(split) => split.target_indices(&at),
            None => at,
        };
        plan.with_output_tokens(last, &at, &self.device, batch.target_sequences())
    }

    /// What [`Base::plan`] is for sequences whose keys are in a cache; see [`crate::cached_decoder`]. `sources` are the
    /// numbers of their tokens that an encoder reads.
    pub(crate) fn cached_plan(
        &self,
        sequences: SequenceBatch,
        (keys, sources): (Vec<Vec<Range<usize>>>, &[usize]),
        cache: KvCache,
    ) -> ForwardPlan {
        match self.config.encoder {
            Some(encoder) => {
                let split = SourceTarget::cached(encoder.layers, &sequences, (&keys, sources));
                ForwardPlan::cached(sequences, keys, cache, &self.ropes).with_split(split)
            }
            None => ForwardPlan::cached(sequences, keys, cache, &self.ropes),
        }
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

    /// The embeddings of `ids`: `[tokens, hidden]`, in f32 like everything computed from them.
    pub fn embed(&self, ids: &[u32]) -> CandleResult<Tensor> {
        self.embed_patched(ids, &SequenceBatch::default(), &Patches::none())
    }

    /// The same for tokens of `sequences`, with the patches of the embedding, which add to the rows of its weight.
    pub fn embed_patched(&self, ids: &[u32], sequences: &SequenceBatch, patches: &Patches) -> CandleResult<Tensor> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.config.vocabulary) {
            bail!("token {id} is outside the base's vocabulary of {}", self.config.vocabulary);
        }
        let h = match &self.embedding {
            Weight::Tensor(weight) => {
                weight.index_select(&Tensor::from_slice(ids, ids.len(), &self.device)?, 0)?.to_dtype(DType::F32)?
            }
            Weight::Mapped(weight) => {
                let d = self.config.hidden;
                let mut h = vec![0.0; ids.len() * d];
                ids.iter().zip(h.chunks_exact_mut(d)).for_each(|(&id, row)| weight.copy_row(id as usize, row));
                Tensor::from_vec(h, (ids.len(), d), &self.device)?
            }
        };
        let mut out = Outputs::new(h);
        patches.embedding().iter().try_for_each(|patch| patch.add(ids, sequences, &mut out))?;
        let h = out.into_tensor();
        if self.config.scales.embedding == 1.0 { Ok(h) } else { h * self.config.scales.embedding }
    }

    /// `h`, `[tokens, hidden]`, after layer `index`, in candle's graph.
    pub fn layer(&self, index: usize, h: &Tensor, plan: &ForwardPlan, patches: &Patches) -> CandleResult<Tensor> {
        self.layers[index].forward(h, &mut LayerContext::new(index, self.layers[index].first_site(), plan, patches))
    }

    /// A forward whose layers are recorded on tapes instead of in candle's graph: for a frozen base on the CPU, and
    /// patches with a [site op](lorakit_lora::Patch::site_op).
    pub fn taped<'a>(&'a self, plan: &'a ForwardPlan, patches: &'a Patches) -> TapedForward<'a> {
        TapedForward { base: self, plan, patches }
    }

    /// The norm after the last layer.
    pub fn final_norm(&self, h: &Tensor) -> CandleResult<Tensor> {
        self.final_norm.forward(h)
    }

    /// `ids` through all layers, before the final norm: `[tokens, hidden]`. Not differentiable: a layer's graph is dropped
    /// before the next layer.
    pub fn hidden_states(&self, ids: &[u32], plan: &ForwardPlan, patches: &Patches) -> CandleResult<Tensor> {
        let layer = |h: Tensor, index| Ok(self.layer(index, &h, plan, patches)?.detach());
        (0..self.layers.len()).try_fold(self.embed_patched(ids, plan.sequences(), patches)?.detach(), layer)
    }

    /// The logits of every token, `[tokens, vocabulary]`. Not differentiable.
    pub fn logits(&self, ids: &[u32], sequences: SequenceBatch, patches: &Patches) -> CandleResult<Tensor> {
        let h = self.hidden_states(ids, &self.plan(sequences.clone()), patches)?;
        self.lm_head.logits(&self.final_norm(&h)?, HeadPatch::of(patches, &sequences))
    }

    /// The negative log-likelihood of every target, `[targets]`, in nats. Not differentiable.
    pub fn nll(&self, batch: &TokenBatch, patches: &Patches) -> CandleResult<Tensor> {
        self.nll_at(batch, patches, TokenPrecision::Exact)
    }

    /// The same where all tokens have this precision.
    pub(crate) fn nll_at(
        &self,
        batch: &TokenBatch,
        patches: &Patches,
        precision: TokenPrecision,
    ) -> CandleResult<Tensor> {
        let plan = self.plan(batch.sequences()).with_precision(precision);
        let h = self.hidden_states(batch.ids(), &plan, patches)?;
        self.nll_of(&batch.target_states(&h)?, (batch, patches), precision)
    }

    /// The same for patches that look at one token at a time: after the attention of the last layer, only the tokens that
    /// predict targets are computed.
    pub fn nll_by_token(&self, batch: &TokenBatch, patches: &Patches) -> CandleResult<Tensor> {
        let h = self.hidden_states(batch.ids(), &self.plan_for_targets(batch)?, patches)?;
        self.nll_of(&h, (batch, patches), TokenPrecision::Exact)
    }

    /// The negative log-likelihood of the targets that `h`, `[targets, hidden]`, predicts.
    fn nll_of(
        &self,
        h: &Tensor,
        (batch, patches): (&TokenBatch, &Patches),
        precision: TokenPrecision,
    ) -> CandleResult<Tensor> {
        let sequences = batch.target_sequences();
        let patch = HeadPatch::of(patches, &sequences);
        self.lm_head.nll_at(&self.final_norm(h)?, &batch.target_ids(), patch, precision)
    }
}

/// The layers of a forward, each recorded on a tape; see [`Base::taped`].
pub struct TapedForward<'a> {
    base: &'a Base,
    plan: &'a ForwardPlan,
    patches: &'a Patches,
}

impl TapedForward<'_> {
    /// `h`, `[tokens, hidden]`, after layer `index`, with the tape of its backward; `needs_gradient` says whether the
    /// backward is to return the gradient of `h`.
    pub fn layer(&self, index: usize, h: &Tensor, needs_gradient: bool) -> CandleResult<(Tensor, Tape)> {
        let mut tape = Tape::new(h, needs_gradient);
        let context = LayerContext::new(index, self.base.layers[index].first_site(), self.plan, self.patches);
        let y = self.base.layers[index].forward(h, &mut context.on(&mut tape))?;
        Ok((y, tape))
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
