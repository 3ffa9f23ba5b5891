//! Many sequences decoded together, which share prefixes and take the slots of those that have ended, against each alone.

use crate::differences::difference_of_values;
use candle_core::Tensor;
use lorakit_lora::{Patches, Sequence, SequenceBatch};
use lorakit_model::sampling::greedy;
use lorakit_model::{Base, BaseOptions, CachedDecoder};
use std::path::Path;

/// The distance of two logits below which either may be the largest.
const TIE: f32 = 1e-4;

const ROWS: usize = 44;
const AT_A_TIME: usize = 33;
const LONGEST: usize = 24;

/// A row that is decoded, with the logits after each of its tokens from the end of its prompt on.
struct Row {
    sequence: usize,
    ids: Vec<u32>,
    prompt: usize,
    /// Its tokens in the end.
    length: usize,
    logits: Vec<Vec<f32>>,
}

impl Row {
    /// Begins a row; where another has read tokens that both begin with, by sharing them.
    fn begin(decoder: &mut CachedDecoder, rows: &[Row], number: usize) -> Self {
        let (ids, length) = (prompt(number), 13 + number * 5 % (LONGEST - 12));
        let common = |row: &Row| {
            let common = ids[..ids.len() - 1].iter().zip(&row.ids).take_while(|(a, b)| a == b).count();
            (common.min(decoder.tokens_in(row.sequence)), row.sequence)
        };
        let sequence = match rows.iter().map(common).max() {
            Some((shared, other)) if shared > 0 && decoder.can_share(LONGEST) => {
                decoder.branch_at(other, shared, length - shared).unwrap()
            }
            _ => decoder.open(length, Sequence::default()).unwrap(),
        };
        Self { sequence, prompt: ids.len(), ids, length, logits: Vec::new() }
    }
}

/// Prompts of 1 to 12 tokens; two of three begin alike.
fn prompt(number: usize) -> Vec<u32> {
    let token = |k: usize| {
        let own = if !number.is_multiple_of(3) && k < 6 { k * 5 } else { number * 7 + k * k * 3 };
        3 + (own % 25) as u32
    };
    (0..1 + number * 5 % 12).map(token).collect()
}

/// Decodes all rows greedily, some at a time, in a cache that has room for no more.
fn decoded(base: &Base) -> Vec<Row> {
    let none = Patches::none();
    let mut decoder = CachedDecoder::new(base, &none, AT_A_TIME * LONGEST).unwrap();
    let (mut rows, mut ended, mut begun) = (Vec::<Row>::new(), Vec::new(), 0);
    while ended.len() < ROWS {
        // One row a step at first, so that it has read what the others share.
        let count = if begun < 3 { 1 } else { AT_A_TIME - rows.len() };
        let until = (begun + count).min(ROWS);
        for number in begun..until {
            let row = Row::begin(&mut decoder, &rows, number);
            rows.push(row);
        }
        begun = until;
        let unread = |row: &Row| row.ids[decoder.tokens_in(row.sequence)..].to_vec();
        let unread: Vec<Vec<u32>> = rows.iter().map(unread).collect();
        let fed: Vec<(usize, &[u32])> = rows.iter().zip(&unread).map(|(row, ids)| (row.sequence, &ids[..])).collect();
        let logits = decoder.next_logits(&fed).unwrap().to_vec2::<f32>().unwrap();
        for (row, logits) in rows.iter_mut().zip(logits) {
            row.ids.push(greedy(&logits));
            row.logits.push(logits);
        }
        for row in rows.extract_if(.., |row| row.ids.len() == row.length) {
            decoder.close(row.sequence);
            ended.push(row);
        }
    }
    assert_eq!(decoder.free_slots(), AT_A_TIME * LONGEST, "slots are left taken");
    ended
}

/// The logits after each token of `ids` from `from` on, each as if the row ended there.
fn alone(base: &Base, ids: &[u32], from: usize) -> Vec<Vec<f32>> {
    let logits = |n: usize| base.logits(&ids[..n], SequenceBatch::packed([n]), &Patches::none()).unwrap();
    let rows = |logits: Tensor, start: usize, count: usize| logits.narrow(0, start, count).unwrap().to_vec2().unwrap();
    let last = ids.len() - 1;
    if CachedDecoder::new(base, &Patches::none(), 0).unwrap().can_share(LONGEST) {
        return rows(logits(last), from - 1, last + 1 - from);
    }
    (from..=last).flat_map(|n| rows(logits(n), n - 1, 1)).collect()
}

/// Asserts that the logits of rows in a batch are within `tolerance` of those of each alone. Returns how many tokens differ
/// from the most likely ones alone; in each case two are about as likely.
pub fn check(folder: &Path, tolerance: f32) -> usize {
    let base = Base::open(folder, &BaseOptions::default()).unwrap();
    let (mut ties, mut differences) = (0, Vec::new());
    for row in decoded(&base) {
        let alone = alone(&base, &row.ids, row.prompt);
        assert_eq!(alone.len(), row.logits.len());
        for ((together, alone), &token) in row.logits.iter().zip(&alone).zip(&row.ids[row.prompt..]) {
            differences.push(difference_of_values(together, alone));
            let best = greedy(alone);
            if best != token {
                let gap = alone[best as usize] - alone[token as usize];
                assert!(gap < TIE, "{}: token {token}, alone {best}, by {gap}", folder.display());
                ties += 1;
            }
        }
    }
    let largest = differences.into_iter().max_by(f32::total_cmp).unwrap();
    assert!(largest < tolerance, "{}: logits differ by {largest}", folder.display());
    ties
}

/// Tokens that each row reads alone.
const READ: usize = 5;
/// Tokens of a row in the end; the others are decoded beside other rows.
const WHOLE: usize = 11;

/// The logits, as bits, of the first `compared` of some rows that are decoded together.
fn decoded_bits(base: &Base, rows: usize, compared: usize) -> Vec<Vec<u32>> {
    let none = Patches::none();
    let mut decoder = CachedDecoder::new(base, &none, rows * WHOLE).unwrap();
    assert!(decoder.can_share(WHOLE), "longer rows are computed again, with many tokens");
    let mut begin = |row: usize| {
        let ids: Vec<u32> = (0..WHOLE).map(|k| 3 + ((row * 7 + row * k + k * k * 3) % 25) as u32).collect();
        let sequence = decoder.open(WHOLE, Sequence::default()).unwrap();
        decoder.next_logits(&[(sequence, &ids[..READ])]).unwrap();
        (sequence, ids)
    };
    let rows: Vec<(usize, Vec<u32>)> = (0..rows).map(&mut begin).collect();
    let step = |at: usize| -> Vec<u32> {
        let fed: Vec<(usize, &[u32])> = rows.iter().map(|(sequence, ids)| (*sequence, &ids[at..=at])).collect();
        let logits = decoder.next_logits(&fed).unwrap().to_vec2::<f32>().unwrap();
        logits[..compared].iter().flatten().map(|logit| logit.to_bits()).collect()
    };
    (READ..WHOLE).map(step).collect()
}

/// Asserts that the logits of a row are the same to the last bit, whatever is decoded beside it: up to 8 rows and from 9 to
/// 96, each of which a kernel of its own multiplies.
pub fn check_bits(folder: &Path) {
    let base = Base::open(folder, &BaseOptions::default()).unwrap();
    for (few, many) in [(1, 2), (1, 3), (1, 8), (9, 33)] {
        let (alone, beside) = (decoded_bits(&base, few, few), decoded_bits(&base, many, few));
        assert!(alone == beside, "{}: {few} rows are not as among {many}", folder.display());
    }
}
