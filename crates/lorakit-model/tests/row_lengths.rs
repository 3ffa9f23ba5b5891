//! A base that rotates long rows in another way: what counts is the length of the whole row, its last target included,
//! however the row is packed, cached or shared.
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/differences/mod.rs"]
mod differences;

use candle_core::{D, Result, Tensor, bail};
use differences::difference_of_values;
use lorakit_lora::{Outputs, Patch, Patches, Sequence, SequenceBatch};
use lorakit_model::{Base, BaseOptions, CachedDecoder, TokenBatch, TokenPrecision};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The length of the pretraining of the fixture.
const ORIGINAL: usize = 14;

fn base() -> Base {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/peft/phi3/base");
    Base::open(&folder, &BaseOptions::default()).unwrap()
}

fn ids(count: usize) -> Vec<u32> {
    (0..count).map(|i| 3 + (i * i * 5 % 28) as u32).collect()
}

/// The losses of the tokens from `from` on, where the whole row is read at once.
fn whole(base: &Base, row: &[u32], from: usize) -> Vec<f32> {
    let logits = base.logits(row, SequenceBatch::packed([row.len()]), &Patches::none()).unwrap();
    let log = candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap().to_vec2::<f32>().unwrap();
    (from..row.len()).map(|t| -log[t - 1][row[t] as usize]).collect()
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    let difference = difference_of_values(found, expected);
    assert!(difference < 1e-4, "{what}: {difference}");
}

#[test]
fn packed_rows_are_rotated_by_their_own_lengths() {
    let base = base();
    let rows = [ORIGINAL, ORIGINAL + 1, 5, 20].map(ids);
    let mut batch = TokenBatch::default();
    rows.iter().for_each(|row| batch.push(&row[..3], &row[3..], None));
    let together: Vec<f32> = base.nll(&batch, &Patches::none()).unwrap().to_vec1().unwrap();
    let expected: Vec<f32> = rows.iter().flat_map(|row| whole(&base, row, 3)).collect();
    assert_close("packed", &together, &expected);
    // Of the second row as many tokens are read as of the first, and are rotated in another way.
    let second = whole(&base, &rows[1][..ORIGINAL], 3);
    assert!(second[0] != whole(&base, &rows[1], 3)[0], "the length makes no difference");
}

/// One branch stays within the length of the pretraining, one does not, and one does by its declared length alone.
#[test]
fn branches_of_a_shared_prefix_are_rotated_by_their_own_lengths() {
    let (base, none) = (base(), Patches::none());
    for first in [ORIGINAL, ORIGINAL + 6] {
        let mut decoder = CachedDecoder::new(&base, &none, 60).unwrap();
        let prefix = decoder.open(4, Sequence { whole: Some(first), ..Sequence::default() }).unwrap();
        decoder.forward(&[(prefix, &ids(4))], TokenPrecision::Exact).unwrap();
        let rows = [first, ORIGINAL + 1, ORIGINAL - 2].map(ids);
        let branches = rows.each_ref().map(|row| {
            let branch = decoder.branch(prefix, row.len() - 5).unwrap();
            decoder.declare_length(branch, row.len());
            (branch, &row[4..row.len() - 1])
        });
        let h = decoder.forward(&branches, TokenPrecision::Exact).unwrap();
        let targets: Vec<u32> = rows.iter().flat_map(|row| row[5..].to_vec()).collect();
        let nll: Vec<f32> = base.lm_head().nll(&h, &targets, None).unwrap().to_vec1().unwrap();
        let expected: Vec<f32> = rows.iter().flat_map(|row| whole(&base, row, 5)).collect();
        assert_close(&format!("branches, the first of {first}"), &nll, &expected);
    }
}

/// A sequence that others share is computed again in slots of its own.
#[test]
fn a_shared_sequence_that_grows_leaves_its_branches_alone() {
    let (base, none, row) = (base(), Patches::none(), ids(ORIGINAL + 2));
    let mut decoder = CachedDecoder::new(&base, &none, 40).unwrap();
    let parent = decoder.open(row.len(), Sequence::default()).unwrap();
    decoder.forward(&[(parent, &row[..10])], TokenPrecision::Exact).unwrap();
    let branch = decoder.branch(parent, 3).unwrap();
    let last = |n: usize| {
        let logits = base.logits(&row[..n], SequenceBatch::packed([n]), &none).unwrap();
        logits.narrow(0, n - 1, 1).unwrap().squeeze(0).unwrap().to_vec1::<f32>().unwrap()
    };
    let values = |logits: Tensor| logits.squeeze(0).unwrap().to_vec1::<f32>().unwrap();
    assert_close("parent", &values(decoder.next_logits(&[(parent, &row[10..])]).unwrap()), &last(row.len()));
    assert_close("branch", &values(decoder.next_logits(&[(branch, &row[10..12])]).unwrap()), &last(12));
}

/// Adds nothing, and fails when it is asked to.
#[derive(Default)]
struct FailingPatch(AtomicBool);

impl Patch for FailingPatch {
    fn add(&self, _: &Tensor, _: &SequenceBatch, _: &mut Outputs) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("as if there were no memory");
        }
        Ok(())
    }
}

/// A call that fails after the first layers have written their keys, one that reads the row again among them.
#[test]
fn a_failed_call_leaves_sequences_as_they_were() {
    let (base, patch) = (base(), Arc::new(FailingPatch::default()));
    let mut sites: Vec<Option<Arc<dyn Patch>>> = vec![None; base.sites().len()];
    *sites.last_mut().unwrap() = Some(patch.clone());
    let (patches, row) = (Patches::new(sites), ids(ORIGINAL + 4));
    let values = |logits: Tensor| logits.squeeze(0).unwrap().to_vec1::<f32>().unwrap();
    let next = |failing: &[usize]| {
        let mut decoder = CachedDecoder::new(&base, &patches, 60).unwrap();
        let parent = decoder.open(row.len(), Sequence::default()).unwrap();
        let mut all = Vec::new();
        for (start, end) in [(0, 9), (9, 10), (10, 12), (12, ORIGINAL + 2)] {
            for &more in failing {
                patch.0.store(true, Ordering::Relaxed);
                let longer = &row[start..row.len().min(end + more)];
                decoder.next_logits(&[(parent, longer)]).unwrap_err();
                decoder.forward(&[(parent, longer)], TokenPrecision::Exact).unwrap_err();
                patch.0.store(false, Ordering::Relaxed);
                assert_eq!(decoder.tokens_in(parent), start);
            }
            all.push(values(decoder.next_logits(&[(parent, &row[start..end])]).unwrap()));
        }
        all
    };
    let expected = next(&[]);
    assert_eq!(next(&[0]), expected);
    for (found, expected) in next(&[6]).iter().zip(&expected) {
        assert_close("after longer ones", found, expected);
    }
}
