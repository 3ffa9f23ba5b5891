//! Weights in the 4 bits of bitsandbytes: NF4 (QLoRA, <https://arxiv.org/abs/2305.14314>, section 3) and FP4.
//!
//! The values of a matrix, row after row, are in blocks of usually 64, which may begin within a row. A value is
//! `code[its 4 bits] * scale[its block]`, computed in f32 and rounded to the type that was quantized. With double
//! quantization a scale is itself `nested_code[8 bits] * nested_scale[its block of scales] + offset`.

use crate::error::{ModelError, Result};
use crate::weights::four_bit_levels::FourBitLevels;
use crate::weights::half_precision::rounded;
use crate::weights::storage_dtype::StorageDtype;
use lorakit_format::mmap::FileBytes;
use lorakit_format::safetensors::{Dtype, SafetensorsFile, TensorEntry};
use serde::Deserialize;
use std::ops::Range;
use std::sync::Arc;

/// What follows a weight's name in those of the tensors that describe it.
pub(crate) const SUFFIXES: [&str; 6] = [ABSMAX, CODE, NESTED_ABSMAX, NESTED_CODE, STATES[0].0, STATES[1].0];

/// The tensors that hold the JSON of a quant state, with the type that they are for.
const STATES: [(&str, &str); 2] =
    [(".quant_state.bitsandbytes__nf4", "NF4"), (".quant_state.bitsandbytes__fp4", "FP4")];

const ABSMAX: &str = ".absmax";
const CODE: &str = ".quant_map";
const NESTED_ABSMAX: &str = ".nested_absmax";
const NESTED_CODE: &str = ".nested_quant_map";

/// The weight that a tensor of that name has the quant state of.
pub(crate) fn described_weight(name: &str) -> Option<&str> {
    STATES.iter().find_map(|(suffix, _)| name.strip_suffix(suffix))
}

/// A tensor with the file that it is in.
pub(crate) type FileTensor<'a> = (&'a SafetensorsFile, &'a TensorEntry);

/// A matrix in 4 bits. Cloning shares its values, which stay in their file.
#[derive(Clone)]
pub(crate) struct FourBitMatrix {
    /// Two values in a byte, the first in its upper half.
    packed: FileRange,
    scales: Scales,
    code: [f32; 16],
    /// Values of a block.
    block: usize,
    dtype: StorageDtype,
    shape: [usize; 2],
    type_name: &'static str,
}

/// Bytes of a mapped file.
type FileRange = (FileBytes, Range<usize>);

/// The scale of each block.
#[derive(Clone)]
enum Scales {
    /// As f32, at any address.
    Plain(FileRange),
    /// In 8 bits.
    Nested {
        packed: FileRange,
        code: Arc<[f32]>,
        scales: Arc<[f32]>,
        /// Scales of a block.
        block: usize,
        offset: f32,
    },
}

/// The JSON that describes a weight.
#[derive(Deserialize)]
struct QuantState {
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f32>,
}

/// The tensors of one weight.
struct Parts<'a, F> {
    name: &'a str,
    find: F,
    /// The file with its quant state, for messages.
    place: String,
}

impl FourBitMatrix {
    /// The weight `name` of a checkpoint whose tensors `find` finds; None where it is not in 4 bits. Its tensors may be in
    /// several files.
    ///
    /// # Errors
    /// If a tensor is missing, or has another size or type than its quant state says.
    pub(crate) fn read<'a>(name: &str, find: impl Fn(&str) -> Option<FileTensor<'a>>) -> Result<Option<Self>> {
        let state = |(suffix, type_name): &(&str, &'static str)| Some((find(&format!("{name}{suffix}"))?, *type_name));
        let Some(((file, entry), type_name)) = STATES.iter().find_map(state) else { return Ok(None) };
        let parts = Parts { name, find, place: file.path().display().to_string() };
        let state = parts.state((file, entry))?;
        let &[rows, columns] = state.shape.as_slice() else {
            return Err(parts.error(format!("has the shape {:?} in its quant state; expected a matrix", state.shape)));
        };
        let values = rows.checked_mul(columns).filter(|&values| values > 0 && state.blocksize > 0);
        let values = values.ok_or_else(|| parts.error("is empty, or has empty blocks, in its quant state"))?;
        let code = parts.numbers(CODE, 16)?;
        Ok(Some(Self {
            packed: parts.bytes("", None, values.div_ceil(2))?,
            scales: parts.scales(&state, values.div_ceil(state.blocksize))?,
            code: std::array::from_fn(|level| code[level]),
            block: state.blocksize,
            dtype: parts.dtype(&state.dtype)?,
            shape: [rows, columns],
            type_name,
        }))
    }

    /// Rows and columns.
    pub(crate) fn shape(&self) -> &[usize; 2] {
        &self.shape
    }

    /// The name of its type: `NF4` or `FP4`.
    pub(crate) fn type_name(&self) -> &'static str {
        self.type_name
    }

    /// Values of a block, if blocks begin with rows and are no larger than those of GGML's.
    pub(crate) fn short_block(&self) -> Option<usize> {
        Some(self.block).filter(|&block| block <= 256 && self.shape[1].is_multiple_of(block))
    }

    /// The type that its values are rounded to.
    pub(crate) fn dtype(&self) -> StorageDtype {
        self.dtype
    }

    /// Size of its values and scales in the file.
    pub(crate) fn bytes(&self) -> usize {
        let of = |(_, range): &FileRange| range.len();
        match &self.scales {
            Scales::Plain(scales) => of(&self.packed) + of(scales),
            Scales::Nested { packed, scales, .. } => of(&self.packed) + of(packed) + 4 * scales.len(),
        }
    }

    /// Some of its values, counted row after row, as f32.
    pub(crate) fn widen(&self, values: Range<usize>, wide: &mut [f32]) {
        let packed = slice(&self.packed);
        let (mut at, mut rest) = (values.start, wide);
        while !rest.is_empty() {
            let block = at / self.block;
            let count = ((block + 1) * self.block - at).min(rest.len());
            let (own, others) = rest.split_at_mut(count);
            let scale = self.scales.get(block);
            let levels = FourBitLevels(rounded(self.code.map(|level| level * scale), self.dtype));
            unpack(packed, at, &levels, own);
            at += count;
            rest = others;
        }
    }
}

impl Scales {
    /// The scale of a block.
    fn get(&self, block: usize) -> f32 {
        match self {
            Self::Plain(scales) => {
                let bytes = &slice(scales)[4 * block..][..4];
                f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
            Self::Nested { packed, code, scales, block: nested, offset } => {
                code[usize::from(slice(packed)[block])] * scales[block / nested] + offset
            }
        }
    }
}

fn slice((bytes, range): &FileRange) -> &[u8] {
    &bytes[range.clone()]
}

/// The values from the one at `at`, by the level that each one's 4 bits stand for.
fn unpack(packed: &[u8], at: usize, levels: &FourBitLevels, values: &mut [f32]) {
    // A byte that begins before the first value has it in its lower half.
    let (first, values) = values.split_at_mut((at % 2).min(values.len()));
    first.iter_mut().for_each(|value| *value = levels.0[usize::from(packed[at / 2] & 15)]);
    levels.write_pairs(&packed[at.div_ceil(2)..][..values.len().div_ceil(2)], values);
}

impl<'a, F: Fn(&str) -> Option<FileTensor<'a>>> Parts<'_, F> {
    fn error(&self, reason: impl Into<String>) -> ModelError {
        ModelError::Tensor { place: self.place.clone(), tensor: self.name.to_owned(), reason: reason.into() }
    }

    /// The quant state.
    fn state(&self, (file, entry): FileTensor<'a>) -> Result<QuantState> {
        serde_json::from_slice(&file.bytes()[entry.bytes.clone()]).map_err(|source| ModelError::Json {
            file: format!("{}: the quant state of `{}`", self.place, self.name),
            expected: "expected bitsandbytes' JSON, with `blocksize`, `dtype` and `shape`",
            source,
        })
    }

    /// The type of that name in a quant state.
    fn dtype(&self, name: &str) -> Result<StorageDtype> {
        match name {
            "float32" => Ok(StorageDtype::F32),
            "float16" => Ok(StorageDtype::F16),
            "bfloat16" => Ok(StorageDtype::BF16),
            _ => Err(self.error(format!("was `{name}` by its quant state; expected float32, float16 or bfloat16"))),
        }
    }

    /// The bytes of the tensor with a suffix, of this type, or of any: packed values may be stored as another type.
    fn bytes(&self, suffix: &str, dtype: Option<Dtype>, expected: usize) -> Result<FileRange> {
        let Some((file, entry)) = (self.find)(&format!("{}{suffix}", self.name)) else {
            return Err(self.error(format!("is in 4 bits, but there is no `{}{suffix}`", self.name)));
        };
        if dtype.is_some_and(|dtype| dtype != entry.dtype) || entry.bytes.len() != expected {
            let (found, length) = (entry.dtype, entry.bytes.len());
            let of = dtype.map_or_else(String::new, |dtype| format!(" of {dtype:?}"));
            return Err(self.error(format!(
                "has a `{}{suffix}` of {length} bytes of {found:?}; its quant state asks for {expected} bytes{of}",
                self.name
            )));
        }
        Ok((file.bytes().clone(), entry.bytes.clone()))
    }

    /// The f32 values of the tensor with a suffix.
    fn numbers(&self, suffix: &str, count: usize) -> Result<Vec<f32>> {
        let bytes = self.bytes(suffix, Some(Dtype::F32), 4 * count)?;
        Ok(slice(&bytes).chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// The scales of `blocks` blocks.
    fn scales(&self, state: &QuantState, blocks: usize) -> Result<Scales> {
        let Some(block) = state.nested_blocksize else {
            return Ok(Scales::Plain(self.bytes(ABSMAX, Some(Dtype::F32), 4 * blocks)?));
        };
        if block == 0 || state.nested_dtype.as_ref().is_some_and(|dtype| dtype != "float32") {
            return Err(self.error("has nested scales that are not float32, or in empty blocks, in its quant state"));
        }
        Ok(Scales::Nested {
            packed: self.bytes(ABSMAX, Some(Dtype::U8), blocks)?,
            code: self.numbers(NESTED_CODE, 256)?.into(),
            scales: self.numbers(NESTED_ABSMAX, blocks.div_ceil(block))?.into(),
            block,
            offset: state.nested_offset.unwrap_or(0.0),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::weights::mmap_matrix::MmapMatrix;
    use lorakit_format::safetensors::{View, write_file};
    use lorakit_lora::kernels::gemm::{Destination, MatrixRef};
    use std::borrow::Cow;
    use std::collections::{BTreeMap, HashMap};

    struct Stored(Dtype, Vec<usize>, Vec<u8>);

    impl View for Stored {
        fn dtype(&self) -> Dtype {
            self.0
        }
        fn shape(&self) -> &[usize] {
            &self.1
        }
        fn data(&self) -> Cow<'_, [u8]> {
            Cow::Borrowed(&self.2)
        }
        fn data_len(&self) -> usize {
            self.2.len()
        }
    }

    fn f32s(values: &[f32]) -> Stored {
        Stored(Dtype::F32, vec![values.len()], values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn u8s(values: Vec<u8>) -> Stored {
        Stored(Dtype::U8, vec![values.len()], values)
    }

    const SHAPE: [usize; 2] = [5, 7];
    const BLOCK: usize = 8;

    /// A matrix of 5 x 7 values in blocks of 8, so that blocks begin within rows and values end within a byte.
    fn tensors(dtype: &str, nested: bool) -> BTreeMap<String, Stored> {
        let mut state = serde_json::json!({
            "quant_type": "nf4", "blocksize": BLOCK, "dtype": dtype, "shape": SHAPE,
        });
        let mut tensors = BTreeMap::new();
        if nested {
            state["nested_blocksize"] = 2.into();
            state["nested_dtype"] = "float32".into();
            state["nested_offset"] = 0.7.into();
            tensors.insert(ABSMAX, u8s(vec![0, 255, 7, 130, 60]));
            tensors.insert(NESTED_ABSMAX, f32s(&[0.3, 0.11, 2.0]));
            tensors.insert(NESTED_CODE, f32s(&(0..256).map(|level| level as f32 / 301.0).collect::<Vec<_>>()));
        } else {
            tensors.insert(ABSMAX, f32s(&[0.3, 0.9, 1.7, 0.01, 3.3]));
        }
        tensors.insert(CODE, f32s(&code()));
        tensors.insert("", u8s((0..18).map(|at| (at * 37 + 11) as u8).collect()));
        tensors.insert(STATES[0].0, u8s(state.to_string().into_bytes()));
        tensors.into_iter().map(|(suffix, tensor)| (format!("w{suffix}"), tensor)).collect()
    }

    fn code() -> [f32; 16] {
        std::array::from_fn(|level| (level as f32 - 7.0) / 9.0)
    }

    fn read(tensors: BTreeMap<String, Stored>) -> Result<Option<FourBitMatrix>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        write_file(&path, tensors, HashMap::new()).unwrap();
        let file = SafetensorsFile::open(&path).unwrap();
        FourBitMatrix::read("w", |name| Some((&file, file.tensors().get(name)?)))
    }

    #[test]
    fn any_range_of_values_is_its_code_times_its_scale_rounded() {
        for (dtype, nested) in [("float32", false), ("bfloat16", true), ("float16", true)] {
            let matrix = read(tensors(dtype, nested)).unwrap().unwrap();
            assert_eq!(matrix.shape(), &SHAPE);
            let scale = |block: usize| match nested {
                false => [0.3, 0.9, 1.7, 0.01, 3.3][block],
                true => {
                    let eight = [0.0, 255.0, 7.0, 130.0, 60.0][block] / 301.0f32;
                    eight * [0.3, 0.11, 2.0][block / 2] + 0.7
                }
            };
            let expected: Vec<f32> = (0..35)
                .map(|at| {
                    let byte = ((at / 2) * 37 + 11) as u8;
                    let bits = if at % 2 == 0 { byte >> 4 } else { byte & 15 };
                    rounded([code()[usize::from(bits)] * scale(at / BLOCK)], matrix.dtype())[0]
                })
                .collect();
            for start in 0..35 {
                for end in start..=35 {
                    let mut wide = vec![f32::NAN; end - start];
                    matrix.widen(start..end, &mut wide);
                    assert_eq!(wide, expected[start..end], "{dtype} {start}..{end}");
                }
            }
        }
    }

    #[test]
    fn products_are_those_of_its_values() {
        let matrix = MmapMatrix::of_four_bits(read(tensors("bfloat16", true)).unwrap().unwrap());
        let plain = MmapMatrix::from_values(matrix.values().into_owned(), SHAPE[0], SHAPE[1]).unwrap();
        let numbers = |count: usize| (0..count).map(|at| ((at * 7) % 17) as f32 - 8.0).collect::<Vec<_>>();
        let [rows, columns] = SHAPE;
        for tokens in [1, 3, 40] {
            let products = |matrix: &MmapMatrix| {
                let (mut y, mut dx) = (vec![0.0; tokens * rows], vec![0.0; tokens * columns]);
                matrix.forward(&numbers(tokens * columns), &mut y, rows, 0..rows);
                let dy = numbers(tokens * rows);
                matrix.backward(MatrixRef::new(&dy, tokens, rows, rows), &mut dx, Destination::Overwrite);
                [y, dx].concat()
            };
            let largest = products(&plain).iter().fold(0.0f32, |most, value| most.max(value.abs()));
            for (found, expected) in products(&matrix).iter().zip(products(&plain)) {
                assert!((found - expected).abs() <= 1e-6 * largest, "{tokens}: {found} {expected}");
            }
        }
    }

    /// Whole numbers, whose sums are exact in any order, in more rows and columns than are dequantized at a time.
    #[test]
    fn products_of_blocks_within_rows_are_those_of_its_values() {
        let (shape, tokens) = ([300, 192], 40);
        let [rows, columns] = shape;
        let owned = |bytes: Vec<u8>| (FileBytes::Owned(bytes.into()), 0..rows * columns / 2);
        let ones = vec![1f32.to_le_bytes(); rows * columns / 64].into_flattened();
        let matrix = FourBitMatrix {
            packed: owned((0..rows * columns / 2).map(|at| (at * 37 + 11) as u8).collect()),
            scales: Scales::Plain((FileBytes::Owned(ones.into()), 0..rows * columns / 16)),
            code: std::array::from_fn(|level| level as f32 - 7.0),
            block: 64,
            dtype: StorageDtype::BF16,
            shape,
            type_name: "NF4",
        };
        assert_eq!(matrix.short_block(), Some(64));
        let matrix = MmapMatrix::of_four_bits(matrix);
        let plain = MmapMatrix::from_values(matrix.values().into_owned(), rows, columns).unwrap();
        let dy: Vec<f32> = (0..tokens * rows).map(|at| ((at * 7) % 17) as f32 - 8.0).collect();
        let gradient = |matrix: &MmapMatrix| {
            let mut dx = vec![9.0; tokens * columns];
            matrix.backward(MatrixRef::new(&dy, tokens, rows, rows), &mut dx, Destination::Overwrite);
            dx
        };
        assert_eq!(gradient(&matrix), gradient(&plain));
    }

    #[test]
    fn tensors_that_do_not_belong_together_are_refused() {
        let error = |change: &dyn Fn(&mut BTreeMap<String, Stored>)| {
            let mut tensors = tensors("bfloat16", true);
            change(&mut tensors);
            let error = read(tensors).err().unwrap();
            format!("{:#}", anyhow::Error::from(error))
        };
        let put = |suffix: &'static str, tensor: fn() -> Stored| {
            move |tensors: &mut BTreeMap<String, Stored>| drop(tensors.insert(format!("w{suffix}"), tensor()))
        };
        let missing = error(&|tensors| drop(tensors.remove("w.nested_absmax")));
        assert!(
            missing.contains("w.safetensors: tensor `w` is in 4 bits") && missing.contains("w.nested_absmax"),
            "{missing}"
        );
        assert!(
            error(&put(ABSMAX, || u8s(vec![1]))).contains("`w.absmax` of 1 bytes of U8; its quant state asks for 5")
        );
        assert!(error(&put(CODE, || u8s(vec![1; 64]))).contains("asks for 64 bytes of F32"));
        assert!(error(&put("", || u8s(vec![1; 17]))).contains("asks for 18 bytes"));
        assert!(error(&put(STATES[0].0, || u8s(b"{}".to_vec()))).contains("quant state of `w`"));
        let state = |text: &str| {
            let text = text.to_owned();
            error(&move |tensors| drop(tensors.insert(format!("w{}", STATES[0].0), u8s(text.clone().into_bytes()))))
        };
        assert!(state(r#"{"blocksize": 0, "dtype": "float32", "shape": [5, 7]}"#).contains("empty"));
        assert!(state(r#"{"blocksize": 8, "dtype": "float32", "shape": [35]}"#).contains("expected a matrix"));
        let huge = format!(r#"{{"blocksize": 8, "dtype": "float32", "shape": [{0}, {0}]}}"#, u64::MAX);
        assert!(state(&huge).contains("empty"));
        assert!(
            state(r#"{"blocksize": 8, "dtype": "int8", "shape": [5, 7], "nested_blocksize": 2}"#).contains("`int8`")
        );
        let mut plain = tensors("bfloat16", true);
        plain.remove(&format!("w{}", STATES[0].0));
        assert!(read(plain).unwrap().is_none());
    }
}
