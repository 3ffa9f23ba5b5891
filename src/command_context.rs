//! The context of a command: device, seed, output and interruption.

use crate::args::global_args::{DeviceChoice, Dtype, GlobalArgs};
use crate::args::usage::usage_error;
use crate::interrupt::Interrupt;
use crate::output::console::Output;
use crate::output::progress_bar::TrainingBars;
use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Device};
use lorakit_adapter::Library;
use lorakit_fit::{OpenLibrary, Reporter, TrainingHooks};
use lorakit_lora::kernels::simd::SimdLevel;
use lorakit_model::{Base, TokenPrecision};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The context of a command.
pub struct CommandContext {
    /// Results and messages.
    pub output: Output,
    /// The random seed.
    pub seed: u64,
    /// Ctrl-C and SIGTERM.
    pub interrupt: Interrupt,
    /// Whether warnings about adapters and about missing results are errors.
    pub strict: bool,
    /// The name of the base that adapters record, if one is given.
    pub base_name: Option<String>,
    /// The folder of the tokenizer of a base in GGUF, if one is given.
    pub tokenizer: Option<PathBuf>,
    choice: Option<DeviceChoice>,
    /// The chosen device, set up at first use.
    device: OnceLock<Device>,
    dtype: Option<Dtype>,
    exact: bool,
}

impl CommandContext {
    /// The context for these global options.
    pub fn new(global: &GlobalArgs) -> Result<Self> {
        SimdLevel::from_env().map_err(usage_error)?;
        Ok(Self {
            output: Output { json: global.json, quiet: global.quiet, verbose: global.verbose > 0 },
            seed: global.seed,
            interrupt: Interrupt::install()?,
            strict: global.strict,
            base_name: global.base_name.clone(),
            tokenizer: global.tokenizer.clone(),
            choice: global.device,
            device: OnceLock::new(),
            dtype: global.dtype,
            exact: global.exact,
        })
    }

    /// Prints a warning about an adapter; an error under `--strict`.
    pub fn warn(&self, text: impl std::fmt::Display) -> Result<()> {
        anyhow::ensure!(!self.strict, "{text} (an error under --strict)");
        self.output.warn(text);
        Ok(())
    }

    /// Warns of experts that were made for different bases, as far as their files say.
    pub fn warn_of_differing_bases(&self, library: &Library, experts: &[String]) -> Result<()> {
        library.differing_bases(experts)?.map_or(Ok(()), |text| self.warn_of_library(library, &text))
    }

    fn warn_of_library(&self, library: &Library, text: &str) -> Result<()> {
        self.warn(format!("{}: {text}", library.root().display()))
    }

    /// Says where a library was made over another form of the base, such as other quantized weights.
    pub fn note_other_form(&self, library: &Library, base: &Base) {
        if let Some(text) = library.base().and_then(|own| own.other_form(base.identity())) {
            self.output.warn(format!("the library {} {text}", library.root().display()));
        }
    }

    /// Opens a library over `base`: the experts `chosen`, or all if there are none.
    pub fn open_library(&self, root: &Path, base: &Base, chosen: &[String]) -> Result<OpenLibrary> {
        let opened = OpenLibrary::open(root, base, chosen)?;
        self.note_other_form(&opened.library, base);
        let experts = opened.experts.experts().iter().zip(&opened.records);
        let experts = experts.map(|(expert, record)| {
            (expert.name.as_str(), record.as_ref(), expert.adapter.metadata().base_model.as_deref())
        });
        if let Some(text) = opened.library.differing_bases_of(experts) {
            self.warn_of_library(&opened.library, &text)?;
        }
        Ok(opened)
    }

    /// The chosen device; by default CUDA if available, else the CPU.
    pub fn device(&self) -> Result<Device> {
        if let Some(device) = self.device.get() {
            return Ok(device.clone());
        }
        let device = self.chosen_device()?;
        Ok(self.device.get_or_init(|| device).clone())
    }

    fn chosen_device(&self) -> Result<Device> {
        match self.choice {
            Some(DeviceChoice::Cpu) => Ok(Device::Cpu),
            None if !candle_core::utils::cuda_is_available() => Ok(Device::Cpu),
            None => Ok(cuda_device(0).unwrap_or_else(|error| {
                self.output.warn(format!("no GPU can be used, falling back to the CPU: {error}"));
                Device::Cpu
            })),
            Some(DeviceChoice::Cuda(_)) if !candle_core::utils::cuda_is_available() => {
                bail!("--device cuda: this build has no CUDA support; build with --features cuda, or use --device cpu")
            }
            Some(DeviceChoice::Cuda(index)) => {
                cuda_device(index).with_context(|| format!("--device cuda:{index}: cannot be used"))
            }
        }
    }

    /// Options to open a base for exact comparison: [`CommandContext::base_options`], but in f32 on a GPU, where 16-bit weights
    /// are multiplied in 16 bits.
    pub fn exact_options(&self) -> Result<lorakit_model::BaseOptions> {
        let options = self.base_options()?;
        if options.device.is_cpu() {
            return Ok(options);
        }
        ensure!(
            options.dtype.is_none_or(|dtype| dtype == DType::F32),
            "--dtype: on a GPU this compares in f32, because 16-bit products differ by more than the tolerance; \
             omit it, or use --device cpu"
        );
        Ok(lorakit_model::BaseOptions { dtype: Some(DType::F32), ..options })
    }

    /// Options to open a base for inference.
    pub fn base_options(&self) -> Result<lorakit_model::BaseOptions> {
        let dtype = self.dtype.map(DType::from);
        Ok(lorakit_model::BaseOptions { device: self.device()?, dtype, ..lorakit_model::BaseOptions::default() })
    }

    /// Options to open a base that generates text for people: faster over quantized weights, unless `--exact` is given.
    pub fn decoding_options(&self) -> Result<lorakit_model::BaseOptions> {
        let decoding = if self.exact { TokenPrecision::Exact } else { TokenPrecision::EightBit };
        Ok(lorakit_model::BaseOptions { decoding, ..self.base_options()? })
    }
}

/// A GPU with one stream for all threads. `Device::new_cuda` gives each thread a stream of its own and orders none after
/// another, so that a thread could read a tensor that another one's kernels have not written yet.
fn cuda_device(index: usize) -> candle_core::Result<Device> {
    Device::new_cuda_with_stream(index)
}

impl Reporter for CommandContext {
    fn status(&self, text: &str) {
        self.output.status(text);
    }

    fn warn(&self, text: &str) {
        self.output.warn(text);
    }

    /// Until the hooks are dropped, the first Ctrl-C stops training at the end of its step.
    fn training(&self) -> TrainingHooks<'_> {
        let mut bars = TrainingBars::new(self.output);
        TrainingHooks { stop: Box::new(self.interrupt.hold()), on_event: Box::new(move |event| bars.on_event(event)) }
    }
}
