//! What every command is given: where to compute, the seed, how to speak to the user, and when to stop.

use crate::args::global_args::{DeviceChoice, Dtype, GlobalArgs};
use crate::interrupt::Interrupt;
use crate::output::console::Output;
use crate::output::progress_bar::TrainingBars;
use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Device};
use lorakit_fit::{Reporter, TrainingHooks};
use std::sync::OnceLock;

/// What every command is given.
pub struct Context {
    /// How results and notices reach the user.
    pub output: Output,
    /// The seed of everything random.
    pub seed: u64,
    /// Ctrl-C.
    pub interrupt: Interrupt,
    /// Whether notices about what is read are errors.
    pub strict: bool,
    choice: Option<DeviceChoice>,
    /// The device of the choice, once it was asked for: a card is set up but once.
    device: OnceLock<Device>,
    dtype: Option<Dtype>,
}

impl Context {
    /// The context that the global options describe.
    pub fn new(global: &GlobalArgs) -> Result<Self> {
        Ok(Self {
            output: Output { json: global.json, quiet: global.quiet, verbose: global.verbose > 0 },
            seed: global.seed,
            interrupt: Interrupt::install()?,
            strict: global.strict,
            choice: global.device,
            device: OnceLock::new(),
            dtype: global.dtype,
        })
    }

    /// Tells of what was accepted leniently; under --strict that is an error.
    pub fn warn(&self, text: impl std::fmt::Display) -> Result<()> {
        anyhow::ensure!(!self.strict, "{text} (an error under --strict)");
        self.output.warn(text);
        Ok(())
    }

    /// The device asked for; without one, CUDA where it is built in and present.
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
            None => Ok(Device::new_cuda(0).unwrap_or_else(|error| {
                self.output.warn(format!("no card can be used, so that the CPU computes: {error}"));
                Device::Cpu
            })),
            Some(DeviceChoice::Cuda(_)) if !candle_core::utils::cuda_is_available() => {
                bail!("--device cuda: this lorakit was built without CUDA; build it with --features cuda, or use cpu")
            }
            Some(DeviceChoice::Cuda(index)) => {
                Device::new_cuda(index).with_context(|| format!("--device cuda:{index}: the device cannot be used"))
            }
        }
    }

    /// How a base is opened whose weights are to be compared to the last digit: as [`Context::base_options`] says, but
    /// in f32 on a card, where 16 bits would be multiplied as such.
    pub fn exact_options(&self) -> Result<lorakit_model::BaseOptions> {
        let options = self.base_options()?;
        if options.device.is_cpu() {
            return Ok(options);
        }
        ensure!(
            options.dtype.is_none_or(|dtype| dtype == DType::F32),
            "--dtype: on a card this compares in f32, since products in 16 bits differ by more than what is looked for; \
             leave it out, or use --device cpu"
        );
        Ok(lorakit_model::BaseOptions { dtype: Some(DType::F32), ..options })
    }

    /// How a base is opened to be used, not trained.
    pub fn base_options(&self) -> Result<lorakit_model::BaseOptions> {
        Ok(lorakit_model::BaseOptions { device: self.device()?, dtype: self.dtype.map(DType::from), trainable: false })
    }
}

impl Reporter for Context {
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
