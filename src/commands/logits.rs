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
use lorakit_model::{Base, split_by_tokens};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Maximum number of tokens per forward pass, unless a single row has more.
const BATCH_TOKENS: usize = 2048;

/// The arguments of `logits`.
#[derive(Args, Debug)]
#[command(after_help = adapter_args::routers())]
pub struct LogitsArgs {
    /// Base model: a model folder, a GGUF file, hub:ORG/NAME[@REV][/FILE.gguf], or pico
    #[arg(long, value_name = "B")]
    base: BaseSource,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// Input file with input_ids [batch, seq], i64 or u32, and, where rows are padded on the right, attention_mask
    /// [batch, seq]; for an encoder-decoder also decoder_input_ids [batch, target]
    #[arg(long, value_name = "FILE.safetensors")]
    input: PathBuf,
    /// Output file with logits [batch, seq, vocab], f32
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
}

/// A row of token ids.
struct InputRow {
    /// Its tokens; of an encoder-decoder the source and then the decoder's. A decoder reads padding, too: no token before
    /// it sees it.
    tokens: Vec<u32>,
    /// The number of tokens that an encoder reads, the first ones; None for a decoder.
    source: Option<usize>,
    /// The number of tokens that routers that decide by prompt see, the first ones: of a decoder the row without padding, of
    /// an encoder-decoder the source and the decoder's first token.
    prompt: usize,
}

/// A tensor of token ids, `[batch, seq]`, row-major.
struct TokenIds {
    values: Vec<u32>,
    columns: usize,
}

/// Reads token ids and writes logits.
pub fn run(args: LogitsArgs, context: &CommandContext) -> Result<()> {
    args.adapter.ensure_usage()?;
    usage::ensure(!usage::is_same_file(&args.input, &args.out), || {
        format!("{}: --out would overwrite --input", args.out.display())
    })?;
    let resolved = args.base.resolve(context)?;
    let base = resolved.base(context)?;
    let rows = read(&args.input, &base).with_context(|| args.input.display().to_string())?;
    let (found, longest) = (rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0), base.config().max_positions);
    if found > longest {
        context.output.warn(format!("rows of {found} tokens exceed the base's maximum of {longest}"));
    }
    let routed = args.adapter.open(&base, &resolved, None, context)?;
    let logits = logits(&base, &routed, &rows)?;
    let vocabulary = base.config().vocabulary;
    let shape = vec![rows.len(), logits.len() / vocabulary / rows.len(), vocabulary];
    let bytes: Vec<u8> = logits.iter().flat_map(|value| value.to_le_bytes()).collect();
    let file = safetensors::serialize([("logits", TensorView::new(Dtype::F32, shape.clone(), &bytes)?)], None)?;
    make_parent(&args.out)?;
    lorakit_format::atomic::write_file(&args.out, &file)?;
    context
        .output
        .result(&json!({ "out": args.out, "shape": shape }), || format!("{}: logits {shape:?}", args.out.display()))
}

/// The logits of all rows, `[batch, seq, vocab]` flattened; of an encoder-decoder those after the decoder's tokens.
fn logits(base: &Base, routed: &RoutedPatches, rows: &[InputRow]) -> Result<Vec<f32>> {
    let mut logits = Vec::new();
    for range in split_by_tokens(rows.iter().map(|row| row.tokens.len()), BATCH_TOKENS) {
        let part = &rows[range];
        let prompts: Vec<&[u32]> = part.iter().map(|row| &row.tokens[..row.prompt]).collect();
        let templates = routed.templates.route(&prompts).map_err(anyhow::Error::from_boxed)?;
        let mut start = 0;
        let sequences = SequenceBatch::new(part.iter().zip(templates).map(|(row, template)| {
            let sequence = Sequence { start, len: row.tokens.len(), source: row.source, ..template };
            start += row.tokens.len();
            sequence
        }));
        let ids: Vec<u32> = part.iter().flat_map(|row| row.tokens.iter().copied()).collect();
        let all = base.logits(&ids, sequences.clone(), &routed.patches)?.to_dtype(DType::F32)?;
        for (row, sequence) in part.iter().zip(sequences.iter()) {
            let source = row.source.unwrap_or(0);
            let own = all.narrow(0, sequence.start + source, sequence.len - source)?;
            logits.extend(own.flatten_all()?.to_vec1::<f32>()?);
        }
    }
    Ok(logits)
}

/// The rows of a file, with every id checked against the base's vocabulary.
fn read(path: &Path, base: &Base) -> Result<Vec<InputRow>> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes).context("not a safetensors file")?;
    let vocabulary = base.config().vocabulary;
    let input = token_ids(&file, "input_ids", vocabulary)?;
    let lengths = lengths(&file, &input)?;
    if base.config().decoder_start().is_none() {
        let row = |(tokens, prompt): (&[u32], usize)| InputRow { tokens: tokens.to_vec(), source: None, prompt };
        return Ok(input.rows().zip(lengths).map(row).collect());
    }
    let decoder = token_ids(&file, "decoder_input_ids", vocabulary).context(
        "the base is an encoder-decoder: input_ids are the source, and decoder_input_ids what the decoder reads",
    )?;
    let (sources, targets) = (input.rows().len(), decoder.rows().len());
    ensure!(sources == targets, "`input_ids` has {sources} rows and `decoder_input_ids` {targets}; expected as many");
    let row = |((source, length), target): ((&[u32], usize), &[u32])| InputRow {
        tokens: [&source[..length], target].concat(),
        source: Some(length),
        prompt: length + 1,
    };
    Ok(input.rows().zip(lengths).zip(decoder.rows()).map(row).collect())
}

/// How many tokens of each row of `input_ids` are no padding: those that `attention_mask` marks, all without one.
fn lengths(file: &SafeTensors, input: &TokenIds) -> Result<Vec<usize>> {
    if file.tensor("attention_mask").is_err() {
        return Ok(vec![input.columns; input.rows().len()]);
    }
    let mask = token_ids(file, "attention_mask", 2)?;
    ensure!(
        (mask.values.len(), mask.columns) == (input.values.len(), input.columns),
        "`attention_mask` has the shape [{}, {}]; expected that of `input_ids`, [{}, {}]",
        mask.rows().len(),
        mask.columns,
        input.rows().len(),
        input.columns
    );
    let length = |(number, row): (usize, &[u32])| {
        let length = row.iter().take_while(|&&is_read| is_read == 1).count();
        ensure!(
            length > 0 && row[length..].iter().all(|&is_read| is_read == 0),
            "row {number} of `attention_mask` is {row:?}; expected ones, then zeros: pad on the right"
        );
        Ok(length)
    };
    mask.rows().enumerate().map(length).collect()
}

impl TokenIds {
    fn rows(&self) -> std::slice::ChunksExact<'_, u32> {
        self.values.chunks_exact(self.columns)
    }
}

/// A tensor of ids from 0 to `vocabulary - 1`.
fn token_ids(file: &SafeTensors, name: &str, vocabulary: usize) -> Result<TokenIds> {
    let tensor =
        file.tensor(name).ok().with_context(|| format!("no tensor `{name}`; it has {}", file.names().join(", ")))?;
    let &[rows, columns] = tensor.shape() else {
        bail!("`{name}` has the shape {:?}; expected [batch, seq]", tensor.shape());
    };
    ensure!(rows > 0 && columns > 0, "`{name}` has the shape [{rows}, {columns}]; expected at least one token");
    let wide: Vec<i64> = match tensor.dtype() {
        Dtype::I64 => tensor.data().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
        Dtype::U32 => tensor.data().as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes).into()).collect(),
        other => bail!("`{name}` is {other:?}; expected i64 or u32"),
    };
    let id = |(at, &id): (usize, &i64)| {
        let id = u32::try_from(id).ok().filter(|&id| (id as usize) < vocabulary);
        id.with_context(|| {
            format!(
                "`{name}` at [{}, {}] is {}; expected 0 to {}{}",
                at / columns,
                at % columns,
                wide[at],
                vocabulary - 1,
                if name == "attention_mask" { "" } else { ", the base's vocabulary" }
            )
        })
    };
    Ok(TokenIds { values: wide.iter().enumerate().map(id).collect::<Result<_>>()?, columns })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use lorakit_model::BaseOptions;

    /// The rows of a file with a mask, for a decoder.
    fn rows(mask: [[i64; 4]; 2]) -> Result<Vec<InputRow>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft/llama/base");
        let base = Base::open(&folder, &BaseOptions::default())?;
        let bytes =
            |rows: [[i64; 4]; 2]| rows.as_flattened().iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
        let (ids, mask) = (bytes([[3, 4, 5, 6], [7, 8, 0, 0]]), bytes(mask));
        let views = [("input_ids", &ids), ("attention_mask", &mask)];
        let views = views.map(|(name, bytes)| (name, TensorView::new(Dtype::I64, vec![2, 4], bytes).unwrap()));
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), safetensors::serialize(views, None)?)?;
        read(file.path(), &base)
    }

    #[test]
    fn routers_of_a_decoder_see_no_padding() {
        let rows = rows([[1, 1, 1, 1], [1, 1, 0, 0]]).unwrap();
        assert_eq!(rows.iter().map(|row| (row.prompt, row.tokens.len())).collect::<Vec<_>>(), [(4, 4), (2, 4)]);
    }

    #[test]
    fn prompts_of_padded_rows_are_routed_without_padding() {
        struct SeenLengths(std::sync::Mutex<Vec<usize>>);
        impl lorakit_eval::PromptRouting for &SeenLengths {
            fn route(&self, prompts: &[&[u32]]) -> Result<Vec<Sequence>, lorakit_eval::RoutingError> {
                self.0.lock().unwrap().extend(prompts.iter().map(|prompt| prompt.len()));
                Ok(vec![Sequence::default(); prompts.len()])
            }
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft/llama/base");
        let base = Base::open(&folder, &BaseOptions::default()).unwrap();
        let seen = SeenLengths(std::sync::Mutex::default());
        let routed = RoutedPatches { patches: lorakit_lora::Patches::none(), templates: Box::new(&seen) };
        logits(&base, &routed, &rows([[1, 1, 1, 1], [1, 1, 0, 0]]).unwrap()).unwrap();
        assert_eq!(*seen.0.lock().unwrap(), [4, 2]);
    }

    #[test]
    fn padding_that_is_not_on_the_right_is_refused() {
        for mask in [[0, 0, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]] {
            let message = rows([[1, 1, 1, 1], mask]).err().unwrap().to_string();
            assert!(
                message.starts_with("row 1 of `attention_mask`") && message.contains("pad on the right"),
                "{message}"
            );
        }
    }
}
