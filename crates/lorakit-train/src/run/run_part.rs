//! Parts of a run, which processes train at once, on one machine or on several that share the library's folder.

use lorakit_lora::kernels::simd::SimdLevel;
use std::fmt;

/// One of several parts of a run: it has every `count`th pass, from the pass `index` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunPart {
    /// Its index, from 0.
    pub index: usize,
    /// The number of parts.
    pub count: usize,
}

impl RunPart {
    /// Whether a pass belongs to this part.
    pub fn has(&self, pass: usize) -> bool {
        part_of_pass(pass, self.count) == self.index
    }
}

impl fmt::Display for RunPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// The part, of `count`, that a pass belongs to.
pub(crate) fn part_of_pass(pass: usize, count: usize) -> usize {
    pass % count.max(1)
}

/// The vector instructions of this machine and process. Sums of other widths have other last bits, so parts that are to end
/// as one process would need machines of one kind.
pub(crate) fn vector_instructions() -> String {
    let (widest, current) = (SimdLevel::widest().name(), SimdLevel::current().name());
    // Matrix products use the widest, whatever LORAKIT_SIMD asks for.
    if widest == current { widest.to_owned() } else { format!("{current} ({widest} for products)") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pass_is_in_one_part() {
        let owners = |pass| (0..3).filter(|&index| RunPart { index, count: 3 }.has(pass)).collect::<Vec<_>>();
        assert_eq!((0..7).map(owners).collect::<Vec<_>>(), [[0], [1], [2], [0], [1], [2], [0]]);
    }
}
