//! Options that every subcommand takes.

use candle_core::DType;
use clap::{ArgAction, Args};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

/// Options that may stand before or after the subcommand.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Device [default: CUDA if available, else the CPU]
    #[arg(long, global = true, value_name = "cpu|cuda|cuda:N")]
    pub device: Option<DeviceChoice>,
    /// Data type of the base model's weights [default: f32 on the CPU, the checkpoint's on CUDA]
    #[arg(long, global = true, value_name = "TYPE")]
    pub dtype: Option<Dtype>,
    /// Generate over quantized weights in f32, as all else is computed, not with activations rounded to 8 bits; to score
    /// with rounded ones, see eval --quantize-activations
    #[arg(long, global = true)]
    pub exact: bool,
    /// Number of CPU threads [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = threads)]
    pub threads: Option<NonZeroUsize>,
    /// Random seed
    #[arg(long, global = true, value_name = "N", default_value_t = 0, value_parser = seed)]
    pub seed: u64,
    /// Print results as one JSON document
    #[arg(long, global = true)]
    pub json: bool,
    /// Suppress progress output
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Name of the base that adapters are to record, such as ORG/NAME [default: its name on the Hub, else the folder]
    #[arg(long, global = true, value_name = "NAME")]
    pub base_name: Option<String>,
    /// Folder with the tokenizer of a base in GGUF [default: the folder of the file, else the file itself]
    #[arg(long, global = true, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Treat warnings about adapters and about missing results as errors
    #[arg(long, global = true)]
    pub strict: bool,
    /// Print more details on stderr
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// Parses a seed.
fn seed(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "expected a whole number of at least 0")
}

/// Parses a number of threads; far more than a machine has would bring it to a standstill.
fn threads(text: &str) -> Result<NonZeroUsize, String> {
    const MOST: usize = 1024;
    let number = text.parse::<NonZeroUsize>().ok().filter(|number| number.get() <= MOST);
    number.ok_or_else(|| format!("expected a whole number from 1 to {MOST}"))
}

/// `--device` as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU.
    Cpu,
    /// A CUDA device, by its number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().map_err(|_| format!("`{text}` is not a device number"));
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", index)) => number(index).map(Self::Cuda),
            _ => Err("expected cpu, cuda or cuda:N".to_owned()),
        }
    }
}

/// `--dtype` as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => DType::F32,
            Dtype::Bf16 => DType::BF16,
            Dtype::F16 => DType::F16,
        }
    }
}
