//! Where the experts of a site are within its stacked matrices.

use std::ops::Range;

/// The low-rank product of one expert for one projection, as ranges of the stacked matrices.
#[derive(Clone, Debug)]
pub struct StackBlock {
    /// Rows of the stacked A. Projections with a tied A share them.
    pub a: Range<usize>,
    /// Rows of the stacked, transposed B.
    pub b: Range<usize>,
    /// The projection's columns in the site's output.
    pub columns: Range<usize>,
    /// The scale `s`, as in alpha / r.
    pub scale: f32,
}

/// Each expert's blocks at one site; none where the expert does not adapt the site.
#[derive(Clone, Debug, Default)]
pub struct StackLayout(pub Vec<Vec<StackBlock>>);

impl StackLayout {
    /// The rows of the stacked A that an expert's blocks span.
    pub fn a_rows(&self, expert: usize) -> Range<usize> {
        self.span(expert, |block| &block.a)
    }

    /// The rows of the stacked B that an expert's blocks span.
    pub fn b_rows(&self, expert: usize) -> Range<usize> {
        self.span(expert, |block| &block.b)
    }

    fn span(&self, expert: usize, rows: fn(&StackBlock) -> &Range<usize>) -> Range<usize> {
        let rows = || self.0.get(expert).into_iter().flatten().map(rows);
        let start = rows().map(|r| r.start).min().unwrap_or(0);
        start..rows().map(|r| r.end).max().unwrap_or(start)
    }
}
