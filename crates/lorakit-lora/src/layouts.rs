//! Where the experts of a site stand in its stacked matrices.

use std::ops::Range;

/// The low-rank product of one expert for one projection, as its place in the stacked matrices.
#[derive(Clone, Debug)]
pub struct Block {
    /// Rows of the stacked A. Projections whose A is tied name the same rows.
    pub a: Range<usize>,
    /// Rows of the stacked, transposed B.
    pub b: Range<usize>,
    /// Columns of the site's output that the projection fills.
    pub columns: Range<usize>,
    /// The scale `s`, as in alpha / r.
    pub scale: f32,
}

/// Each expert's blocks at one site; none where the expert does not touch the site.
#[derive(Clone, Debug, Default)]
pub struct Layouts(pub Vec<Vec<Block>>);

impl Layouts {
    /// The rows of the stacked A that an expert's blocks span.
    pub(crate) fn ranks(&self, expert: usize) -> Range<usize> {
        self.span(expert, |block| &block.a)
    }

    /// The rows of the stacked B that an expert's blocks span.
    pub(crate) fn ranks_b(&self, expert: usize) -> Range<usize> {
        self.span(expert, |block| &block.b)
    }

    fn span(&self, expert: usize, rows: fn(&Block) -> &Range<usize>) -> Range<usize> {
        let rows = || self.0.get(expert).into_iter().flatten().map(rows);
        let start = rows().map(|r| r.start).min().unwrap_or(0);
        start..rows().map(|r| r.end).max().unwrap_or(start)
    }
}
