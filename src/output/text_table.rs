//! Text tables, and the format of their cells.

use comfy_table::{CellAlignment, ColumnConstraint, LineStyle, Table, TableStyle, Width};

/// A table with a line under its header; columns of numbers are right-aligned, long texts are wrapped.
pub fn table<C: Into<String>>(
    header: impl IntoIterator<Item = C>,
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let rows: Vec<Vec<String>> = rows.into_iter().collect();
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─')));
    table.set_header(header.into_iter().map(Into::into).collect::<Vec<String>>());
    table.add_rows(rows.clone());
    for (index, column) in table.column_iter_mut().enumerate() {
        if rows.iter().filter_map(|row| row.get(index)).all(|cell| is_number(cell)) {
            column.set_cell_alignment(CellAlignment::Right);
        } else {
            column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(WIDEST_TEXT)));
        }
    }
    table.trim_fmt()
}

/// Characters per line of a text cell.
const WIDEST_TEXT: u16 = 72;

fn is_number(cell: &str) -> bool {
    cell == ABSENT || cell.chars().all(|c| c.is_ascii_digit() || "+-.e %±KMGiB".contains(c))
}

/// The cell of an absent value.
pub const ABSENT: &str = "–";

/// An entry of `--help`: what is typed, and a description on the next line.
pub fn help_entry(typed: &str, what: &str) -> String {
    format!("  {typed}\n      {what}")
}

/// A number with `digits` decimals, or [`ABSENT`].
pub fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| ABSENT.to_owned(), |value| format!("{value:.digits$}"))
}

/// A size in bytes with a binary unit.
pub fn bytes(count: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| count >= 1 << shift) {
        Some((unit, shift)) => format!("{:.1} {unit}", count as f64 / f64::from(1u32 << shift)),
        None => format!("{count} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_right_aligned() {
        let rows = [vec!["a".to_owned(), "1.50".to_owned()], vec!["bcd".to_owned(), ABSENT.to_owned()]];
        let text = table(["name", "loss"], rows);
        assert!(text.lines().any(|line| line.contains(" bcd      –")), "{text}");
    }

    #[test]
    fn long_texts_are_wrapped() {
        let text = table(["name", "members"], [vec!["a".to_owned(), "member ".repeat(40)]]);
        assert!(text.lines().all(|line| line.chars().count() < 100), "{text}");
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!((bytes(12).as_str(), bytes(1536).as_str(), bytes(5 << 30).as_str()), ("12 B", "1.5 KiB", "5.0 GiB"));
    }
}
