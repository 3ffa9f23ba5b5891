//! Where a grouped product reads the rows of A and B that its layout names.

use crate::factor_rows::ExpertFactors;
use crate::stack_layout::StackBlock;
use std::ops::Range;

/// The matrices that the blocks of a layout are ranges of.
#[derive(Clone, Copy)]
pub(crate) enum FactorSource<'a> {
    /// Those of all experts, stacked: A's rows are as long as the site's input, B's as its output.
    Stacked { a: &'a [f32], b: &'a [f32] },
    /// Each expert's own: its blocks share the matrix of A, and each has a B as wide as its columns.
    Unstacked(&'a [Vec<ExpertFactors>]),
}

impl<'a> FactorSource<'a> {
    /// Rows of A, `input` values each, that blocks of an expert have.
    pub(crate) fn a(self, expert: usize, rows: &Range<usize>, input: usize) -> &'a [f32] {
        let a = match self {
            Self::Stacked { a, .. } => a,
            Self::Unstacked(experts) => experts[expert].first().map_or(&[][..], |factors| factors.a.values()),
        };
        &a[rows.start * input..rows.end * input]
    }

    /// The rows of B of the block at `index` among an expert's, from a column of the site's `output` on, and the distance
    /// between two rows.
    pub(crate) fn b(
        self,
        (expert, index): (usize, usize),
        block: &StackBlock,
        column: usize,
        output: usize,
    ) -> (&'a [f32], usize) {
        match self {
            Self::Stacked { b, .. } => (&b[block.b.start * output + column..], output),
            Self::Unstacked(experts) => {
                (&experts[expert][index].b.values()[column - block.columns.start..], block.columns.len())
            }
        }
    }
}
