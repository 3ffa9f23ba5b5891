//! A set of hashes in bounded space.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

/// Hexadecimal digits of a hash.
const DIGITS: usize = 12;
/// Hashes that a sketch keeps at most.
const MAX_HASHES: usize = 2048;

/// The lowest hashes of a set: which of another set's elements are in it, exactly for small sets and for a sample of large
/// ones (a bottom-k sketch).
///
/// An element's hash is the first 48 bits of its SHA-256, of which two sets of a million elements share 0.004 by chance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashSketch {
    hashes: BTreeSet<u64>,
}

impl HashSketch {
    /// The hash of an element.
    pub fn hash(element: &[u8]) -> u64 {
        Sha256::digest(element).iter().take(DIGITS / 2).fold(0, |hash, &byte| hash << 8 | u64::from(byte))
    }

    /// The sketch of a set of hashes.
    pub fn new(hashes: impl IntoIterator<Item = u64>) -> Self {
        let mut kept = BTreeSet::new();
        for hash in hashes {
            kept.insert(hash);
            if kept.len() > MAX_HASHES {
                kept.pop_last();
            }
        }
        Self { hashes: kept }
    }

    /// The sketch of a text of [`to_text`](Self::to_text); None for any other.
    pub fn of_text(text: &str) -> Option<Self> {
        let digits = text.as_bytes().chunks(DIGITS).map(std::str::from_utf8);
        let hash = |digits: Result<&str, _>| {
            digits.ok().filter(|digits| digits.len() == DIGITS).and_then(|digits| u64::from_str_radix(digits, 16).ok())
        };
        Some(Self { hashes: digits.map(hash).collect::<Option<_>>()? })
    }

    /// The hashes in ascending order, twelve hexadecimal digits each, without anything between them.
    pub fn to_text(&self) -> String {
        self.hashes.iter().map(|hash| format!("{hash:012x}")).collect()
    }

    /// How many of `hashes` are in the set, and how many could be compared: all of them unless the set is large.
    pub fn shared(&self, hashes: impl IntoIterator<Item = u64>) -> (usize, usize) {
        let last = if self.hashes.len() < MAX_HASHES { None } else { self.hashes.last() };
        let compared: Vec<u64> = hashes.into_iter().filter(|hash| last.is_none_or(|last| hash <= last)).collect();
        (compared.iter().filter(|hash| self.hashes.contains(hash)).count(), compared.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn hashes(range: std::ops::Range<u32>) -> Vec<u64> {
        range.map(|element| HashSketch::hash(&element.to_le_bytes())).collect()
    }

    #[test]
    fn a_small_set_is_compared_exactly_and_a_large_one_by_a_sample() {
        let small = HashSketch::new(hashes(0..100));
        assert_eq!(small.shared(hashes(90..120)), (10, 30));
        let large = HashSketch::new(hashes(0..20_000));
        let (shared, compared) = large.shared(hashes(15_000..25_000));
        assert!((850..1200).contains(&compared) && (shared * 2).abs_diff(compared) < 150, "{shared} of {compared}");
    }

    #[test]
    fn a_sketch_is_its_text() {
        // sha256sum of "abc": ba7816bf8f01cfea...
        let sketch = HashSketch::new([HashSketch::hash(b"abc"), 10]);
        assert_eq!(sketch.to_text(), "00000000000aba7816bf8f01");
        assert_eq!(HashSketch::of_text(&sketch.to_text()).unwrap(), sketch);
        assert_eq!(HashSketch::of_text("").unwrap(), HashSketch::default());
        assert!(HashSketch::of_text("00000000000").is_none() && HashSketch::of_text("zz0000000000").is_none());
    }
}
