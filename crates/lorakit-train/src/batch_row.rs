//! The rows of a training step, and their batches.

use lorakit_model::split_by_tokens;
use lorakit_task::Example;
use std::ops::Range;

/// A training row of a step.
pub(crate) struct BatchRow<'a> {
    pub(crate) expert: usize,
    /// Its index among the expert's training rows.
    pub(crate) index: usize,
    pub(crate) row: &'a Example,
    pub(crate) dropout_key: [u8; 32],
}

/// Splits the rows, in order, into batches of at most `tokens` tokens.
pub(crate) fn batches(rows: &[BatchRow], tokens: usize) -> Vec<Range<usize>> {
    split_by_tokens(rows.iter().map(|row| row.row.len()), tokens)
}

/// As [`batches`], each of one expert's rows alone.
pub(crate) fn batches_by_expert(rows: &[BatchRow], tokens: usize) -> Vec<Range<usize>> {
    let of = |own: Range<usize>| {
        let parts = batches(&rows[own.clone()], tokens).into_iter();
        parts.map(move |part| own.start + part.start..own.start + part.end)
    };
    equal_runs(rows.iter().map(|row| row.expert)).into_iter().flat_map(of).collect()
}

/// The ranges of equal neighbors.
pub(crate) fn equal_runs(experts: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let experts: Vec<usize> = experts.collect();
    let mut end = 0;
    let run = |equal: &[usize]| {
        end += equal.len();
        end - equal.len()..end
    };
    experts.chunk_by(|one, other| one == other).map(run).collect()
}
