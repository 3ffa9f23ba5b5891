//! Text tables, and the format of their cells.

use comfy_table::{CellAlignment, ColumnConstraint, LineStyle, Table, TableStyle, Width};

/// A table with a line under its header; columns of numbers stand to the right, long texts are wrapped.
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

/// Characters in a line of a cell that is no number.
const WIDEST_TEXT: u16 = 72;

fn is_number(cell: &str) -> bool {
    cell == ABSENT || cell.chars().all(|c| c.is_ascii_digit() || "+-.e %±KMGiB".contains(c))
}

/// What stands where there is no value.
pub const ABSENT: &str = "–";

/// A line of `--help` that is as long as it needs to be: what is typed, and below it what that does.
pub fn help_entry(typed: &str, what: &str) -> String {
    format!("  {typed}\n      {what}")
}

/// A value with `digits` behind the point, or the sign of none.
pub fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| ABSENT.to_owned(), |value| format!("{value:.digits$}"))
}

/// Bytes in the unit that suits them.
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
    fn columns_of_numbers_stand_to_the_right() {
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
    fn sizes_are_told_in_the_unit_that_suits_them() {
        assert_eq!((bytes(12).as_str(), bytes(1536).as_str(), bytes(5 << 30).as_str()), ("12 B", "1.5 KiB", "5.0 GiB"));
    }
}
