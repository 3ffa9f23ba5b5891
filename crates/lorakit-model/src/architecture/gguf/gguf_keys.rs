//! Reading the metadata of a GGUF file; errors name the file and the key.

use crate::error::{ModelError, Result};
use lorakit_format::gguf::{GgmlType, GgufShards, GgufValue};

/// The metadata of an architecture, whose keys start with its name.
pub(crate) struct GgufKeys<'a> {
    shards: &'a GgufShards,
    architecture: &'a str,
}

impl<'a> GgufKeys<'a> {
    /// The metadata of the file's architecture.
    ///
    /// # Errors
    /// If the file does not name one.
    pub(crate) fn new(shards: &'a GgufShards) -> Result<Self> {
        let name = shards.metadata().get("general.architecture").and_then(GgufValue::as_text);
        let architecture =
            name.ok_or_else(|| shards.first().error("key `general.architecture` is missing; expected a model"))?;
        Ok(Self { shards, architecture })
    }

    /// `general.architecture`.
    pub(crate) fn architecture(&self) -> &'a str {
        self.architecture
    }

    /// The path of the file, for messages.
    pub(crate) fn file(&self) -> String {
        self.shards.first().path().display().to_string()
    }

    /// An error about a key of the architecture.
    pub(crate) fn error(&self, key: &str, reason: &str) -> ModelError {
        self.shards.first().error(format!("key `{}.{key}` {reason}", self.architecture)).into()
    }

    /// The value of a key whose full name is given.
    pub(crate) fn global(&self, key: &str) -> Option<&'a GgufValue> {
        self.shards.metadata().get(key)
    }

    /// The value of a key of the architecture; where it is a list with an item for each layer, the one that all have.
    fn get(&self, key: &str) -> Result<Option<&'a GgufValue>> {
        match self.global(&format!("{}.{key}", self.architecture)) {
            Some(GgufValue::Array(values)) => match values.as_slice() {
                [first, others @ ..] if others.iter().all(|other| other == first) => Ok(Some(first)),
                [] => Err(self.error(key, "is an empty list")),
                _ => Err(self.error(key, "differs between layers, which is not supported")),
            },
            value => Ok(value),
        }
    }

    /// The items of a list; none where the value is absent or something else.
    pub(crate) fn list(&self, key: &str) -> Option<&'a [GgufValue]> {
        self.global(&format!("{}.{key}", self.architecture))?.as_array()
    }

    /// A whole number, zero included.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key)? else { return Ok(None) };
        match value.as_u64() {
            Some(count) if count < 1 << 32 => Ok(Some(count as usize)),
            _ => Err(self.error(key, &format!("is {value:?}, expected a whole number"))),
        }
    }

    /// A whole number that must be there.
    pub(crate) fn required(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A finite number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key)? else { return Ok(None) };
        match value.as_f64().or_else(|| value.as_u64().map(|count| count as f64)) {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(self.error(key, &format!("is {value:?}, expected a number"))),
        }
    }

    /// True or false.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key)? else { return Ok(None) };
        let flag = value.as_bool().ok_or_else(|| self.error(key, &format!("is {value:?}, expected true or false")))?;
        Ok(Some(flag))
    }

    /// A text; none where the value is something else.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        Ok(self.get(key)?.and_then(GgufValue::as_text))
    }

    /// Fails where only a part of each head is rotated.
    pub(crate) fn ensure_rotates_whole_heads(&self) -> Result<()> {
        let rotated = self.count("rope.dimension_count")?.filter(|&features| features > 0);
        let whole = match self.count("attention.key_length")? {
            Some(features) => features,
            None => self.required("embedding_length")? / self.required("attention.head_count")?.max(1),
        };
        match rotated {
            Some(features) if features != whole => {
                Err(self
                    .error("rope.dimension_count", &format!("is {features}, expected the {whole} features of a head")))
            }
            _ => Ok(()),
        }
    }

    /// How many tensors there are.
    pub(crate) fn tensors(&self) -> usize {
        self.shards.tensors().count()
    }

    /// Whether the file has a tensor.
    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.shards.tensors().any(|(known, ..)| known == name)
    }

    /// The number of rows of a tensor.
    pub(crate) fn rows(&self, name: &str) -> Option<usize> {
        self.shards.tensors().find(|(known, ..)| *known == name)?.2.shape.first().copied()
    }

    /// The values of a vector in F32, if the file has it.
    ///
    /// # Errors
    /// If it has another number of values or another type.
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Option<Vec<f64>>> {
        let Some((_, file, entry)) = self.shards.tensors().find(|(known, ..)| *known == name) else { return Ok(None) };
        if entry.dtype != GgmlType::F32 || entry.shape != [length] {
            let reason = format!("is {} with shape {:?}, expected F32 with shape [{length}]", entry.dtype, entry.shape);
            return Err(ModelError::Tensor {
                place: file.path().display().to_string(),
                tensor: name.to_owned(),
                reason,
            });
        }
        let (values, _) = file.bytes()[entry.bytes.clone()].as_chunks::<4>();
        Ok(Some(values.iter().map(|&bytes| f32::from_le_bytes(bytes).into()).collect()))
    }
}
