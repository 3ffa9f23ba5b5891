//! `logits`: computes the logits of given token ids, from one safetensors file to another, without a tokenizer.

use crate::args::adapter_args::{self, AdapterArgs};
use crate::args::usage;
use crate::base::base_source::BaseSource;
use crate::command_context::CommandContext;
use crate::output::console::make_parent;
use anyhow::{Context as _, Result, bail, ensure};
use candle_core::DType;
use clap::Args;
use lorakit_fit::router::RoutedPatches;
use lorakit_lora::{Sequence, SequenceBatch};
use lorakit_model::Base;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Maximum number of tokens per forward pass, unless a single row has more.
const BATCH_TOKENS: usize = 2048;

/// The arguments of `logits`.
#[derive(Args, Debug)]
#[command(after_help = adapter_args::routers())]
pub struct LogitsArgs {
    /// Base model: a model folder, a GGUF file, hub:ORG/NAME[@REV], or pico
    #[arg(long, value_name = "B")]
    base: BaseSource,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// Input file with input_ids [batch, seq], i64 or u32
    #[arg(long, value_name = "FILE.safetensors")]
    input: PathBuf,
    /// Output file with logits [batch, seq, vocab], f32
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
}

/// Token ids `[batch, seq]`, row-major.
struct TokenIds {
    values: Vec<u32>,
    rows: usize,
    columns: usize,
}

/// Reads token ids and writes logits.
pub fn run(args: LogitsArgs, context: &CommandContext) -> Result<()> {
    args.adapter.ensure_usage()?;
    usage::ensure(!usage::is_same_file(&args.input, &args.out), || {
        format!("{}: --out would overwrite --input", args.out.display())
    })?;
    let place = args.base.resolve(context)?;
    let base = place.base(context)?;
    let ids = read(&args.input, base.config().vocabulary).with_context(|| args.input.display().to_string())?;
    let longest = base.config().max_positions;
    if ids.columns > longest {
        context.output.warn(format!("rows of {} tokens exceed the base's maximum of {longest}", ids.columns));
    }
    let routed = args.adapter.open(&base, &place, context)?;
    let logits = logits(&base, &routed, &ids)?;
    let shape = vec![ids.rows, ids.columns, base.config().vocabulary];
    let bytes: Vec<u8> = logits.iter().flat_map(|value| value.to_le_bytes()).collect();
    let file = safetensors::serialize([("logits", TensorView::new(Dtype::F32, shape.clone(), &bytes)?)], None)?;
    make_parent(&args.out)?;
    lorakit_format::atomic::write_file(&args.out, &file)?;
    context
        .output
        .result(&json!({ "out": args.out, "shape": shape }), || format!("{}: logits {shape:?}", args.out.display()))
}

/// The logits of all rows, `[batch, seq, vocab]` flattened.
fn logits(base: &Base, routed: &RoutedPatches, ids: &TokenIds) -> Result<Vec<f32>> {
    let together = (BATCH_TOKENS / ids.columns).max(1);
    let mut logits = Vec::with_capacity(ids.values.len() * base.config().vocabulary);
    for part in ids.values.chunks(together * ids.columns) {
        // Routers that decide by prompt see the whole row as the prompt.
        let prompts: Vec<&[u32]> = part.chunks(ids.columns).collect();
        let starts = (0..part.len()).step_by(ids.columns);
        let row = |(start, template): (usize, Sequence)| Sequence { start, len: ids.columns, ..template };
        let rows = SequenceBatch::new(
            starts.zip(routed.templates.route(&prompts).map_err(anyhow::Error::from_boxed)?).map(row),
        );
        logits.extend(base.logits(part, rows, &routed.patches)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(logits)
}

/// The tensor `input_ids` of a file, with every id checked against the vocabulary size.
fn read(path: &Path, vocabulary: usize) -> Result<TokenIds> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes).context("not a safetensors file")?;
    let tensor = file
        .tensor("input_ids")
        .ok()
        .with_context(|| format!("no tensor `input_ids`; it has {}", file.names().join(", ")))?;
    let &[rows, columns] = tensor.shape() else {
        bail!("`input_ids` has the shape {:?}; expected [batch, seq]", tensor.shape());
    };
    ensure!(rows > 0 && columns > 0, "`input_ids` has the shape [{rows}, {columns}]; expected at least one token");
    let wide: Vec<i64> = match tensor.dtype() {
        Dtype::I64 => tensor.data().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
        Dtype::U32 => tensor.data().as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes).into()).collect(),
        other => bail!("`input_ids` is {other:?}; expected i64 or u32"),
    };
    let id = |(at, &id): (usize, &i64)| {
        let id = u32::try_from(id).ok().filter(|&id| (id as usize) < vocabulary);
        id.with_context(|| {
            format!(
                "`input_ids` at [{}, {}] is {}; expected 0 to {}, the base's vocabulary",
                at / columns,
                at % columns,
                wide[at],
                vocabulary - 1
            )
        })
    };
    Ok(TokenIds { values: wide.iter().enumerate().map(id).collect::<Result<_>>()?, rows, columns })
}
