//! Whose tokens are whose: rows of different lengths stand packed in one `[tokens, d]`, and padding does not exist.

use std::ops::Range;
use std::sync::Arc;

/// One row (a prompt, or a prompt with its answer) among the packed tokens.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Where its tokens start among the packed tokens.
    pub start: usize,
    /// How many tokens it has here.
    pub len: usize,
    /// Position, within the whole sequence, of its first token here; more than zero where a cache holds what came before.
    pub position: usize,
    /// The one expert that the row belongs to, where a batch mixes rows of several.
    pub expert: Option<usize>,
    /// The row's weight for every expert of a library, where a router decides by rows.
    pub weights: Option<Arc<[f32]>>,
}

impl Row {
    /// The row's tokens among the packed tokens.
    pub fn tokens(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// The rows of a batch, in the order of their tokens.
#[derive(Clone, Debug, Default)]
pub struct Rows(Vec<Row>);

impl Rows {
    /// Rows that stand one behind the other and start at position zero, from their lengths.
    pub fn packed(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut start = 0;
        Self::new(lengths.into_iter().map(|len| {
            let row = Row { start, len, ..Row::default() };
            start += len;
            row
        }))
    }

    /// Rows as given; the caller sees to it that they stand one behind the other.
    pub fn new(rows: impl IntoIterator<Item = Row>) -> Self {
        Self(rows.into_iter().collect())
    }

    /// Number of tokens of all rows.
    pub fn tokens(&self) -> usize {
        self.0.last().map_or(0, |row| row.start + row.len)
    }

    /// The rows in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Row> {
        self.0.iter()
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The position, within its sequence, of every token.
    pub fn positions(&self) -> Vec<u32> {
        self.iter().flat_map(|row| (row.position..row.position + row.len).map(|p| p as u32)).collect()
    }
}
