//! Text tables, and the format of their cells.

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, LineStyle, Table, TableStyle, Width};
use unicode_width::UnicodeWidthStr;

/// A table with a line under its header; columns of numbers are right-aligned, long texts are wrapped between words. On a
/// terminal that is too narrow even so, a list of rows with a line per cell.
pub fn table<C: Into<String>>(
    header: impl IntoIterator<Item = C>,
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    table_within(header.into_iter().map(Into::into).collect(), rows.into_iter().collect(), terminal_width())
}

/// The table for a terminal of `width` columns; none: it may be of any width.
fn table_within(header: Vec<String>, rows: Vec<Vec<String>>, width: Option<u16>) -> String {
    let columns: Vec<ColumnLayout> =
        (0..header.len()).map(|index| ColumnLayout::new(&header[index], index, &rows)).collect();
    let narrowest = columns.iter().map(|column| column.narrowest + PADDING).sum::<usize>();
    if width.is_some_and(|width| narrowest > usize::from(width)) {
        return list(&header, &rows);
    }
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─')));
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    table.set_header(header);
    table.add_rows(rows);
    for (own, column) in columns.iter().zip(table.column_iter_mut()) {
        if own.is_number {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let narrowest = own.narrowest + PADDING;
        let [lower, upper] =
            [narrowest, narrowest.max(WIDEST_TEXT)].map(|width| Width::Fixed(width.try_into().unwrap_or(u16::MAX)));
        column.set_constraint(ColumnConstraint::Boundaries { lower, upper });
    }
    table.trim_fmt()
}

/// A column before it is laid out.
struct ColumnLayout {
    is_number: bool,
    /// The width without which a word or a number would be broken.
    narrowest: usize,
}

impl ColumnLayout {
    fn new(header: &str, index: usize, rows: &[Vec<String>]) -> Self {
        let cells = || rows.iter().filter_map(|row| row.get(index));
        let is_number = cells().all(|cell| is_number(cell));
        let longest = |text: &str| text.split_whitespace().map(columns_of).max().unwrap_or(0);
        // The spaces in `0.5 ±0.1` and `3 of 10` are no places to break a line at.
        let of_cell = |cell: &String| if is_number { columns_of(cell) } else { longest(cell) };
        Self { is_number, narrowest: cells().map(of_cell).chain([longest(header)]).max().unwrap_or(0).max(1) }
    }
}

/// The columns of a terminal that a text takes: two for each character of East Asian scripts.
fn columns_of(text: &str) -> usize {
    text.width()
}

/// The rows one below the other, each cell after its header.
fn list(header: &[String], rows: &[Vec<String>]) -> String {
    let line = |(name, cell): (&String, &String)| match (name.as_str(), cell.as_str()) {
        (_, "") => None,
        ("", cell) => Some(cell.to_owned()),
        (name, cell) => Some(format!("{name}: {cell}")),
    };
    let row = |row: &Vec<String>| header.iter().zip(row).filter_map(line).collect::<Vec<_>>().join("\n");
    rows.iter().map(row).collect::<Vec<_>>().join("\n\n")
}

/// The width of the terminal that stdout is, or the one that COLUMNS asks for; none where the output goes elsewhere.
fn terminal_width() -> Option<u16> {
    let asked = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    asked.or_else(|| terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| width.0))
}

/// The spaces on both sides of a cell, which count to its column's width.
const PADDING: usize = 2;

/// Characters per line of a text cell.
const WIDEST_TEXT: usize = 72;

fn is_number(cell: &str) -> bool {
    cell == ABSENT || cell.replacen(" of ", " ", 1).chars().all(|c| c.is_ascii_digit() || "+-.e %±KMGiB".contains(c))
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

/// A number with `digits` decimals, in scientific notation where these would show nothing of it, or it would be very long.
pub fn magnitude(value: f64, digits: usize) -> String {
    match value == 0.0 || (1e-4..1e6).contains(&value.abs()) {
        true => format!("{value:.digits$}"),
        false => format!("{value:.digits$e}"),
    }
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
    fn very_large_and_very_small_numbers_are_scientific() {
        let found = [0.0, 1e-4, -12.5, 999_999.0, 1e38, -1e-30].map(|value| magnitude(value, 4));
        assert_eq!(found, ["0.0000", "0.0001", "-12.5000", "999999.0000", "1.0000e38", "-1.0000e-30"]);
        let rows = [vec!["a".to_owned(), magnitude(1e38, 4)], vec!["b".to_owned(), magnitude(0.5, 4)]];
        assert!(table(["name", "weight"], rows).lines().any(|line| line.ends_with("    0.5000")), "right-aligned");
    }

    #[test]
    fn long_texts_are_wrapped() {
        let text = table(["name", "members"], [vec!["a".to_owned(), "member ".repeat(40)]]);
        assert!(text.lines().all(|line| line.chars().count() < 100), "{text}");
    }

    #[test]
    fn words_are_whole_on_a_narrow_terminal() {
        let header = ["merged", "difference", "without rounding", "adapter's effect", ""].map(str::to_owned);
        let row =
            ["cat of shift_up1, join_dot and others", "4.2e-2", "1.6e-5", "0.5 ±0.1", "too far"].map(str::to_owned);
        for width in [60, 50, 40, 20] {
            let text = table_within(header.to_vec(), vec![row.to_vec()], Some(width));
            let fits = text.lines().all(|line| columns_of(line) <= width.into());
            assert!(fits || width < 50, "{width}:\n{text}");
            for word in header.iter().chain(&row).flat_map(|cell| cell.split_whitespace()) {
                assert!(text.contains(word), "{width}, {word}:\n{text}");
            }
            assert!(text.contains("0.5 ±0.1"), "{text}");
        }
        let narrow = table_within(header.to_vec(), vec![row.to_vec()], Some(20));
        assert!(narrow.contains("difference: 4.2e-2\n") && narrow.ends_with("too far"), "{narrow}");
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!((bytes(12).as_str(), bytes(1536).as_str(), bytes(5 << 30).as_str()), ("12 B", "1.5 KiB", "5.0 GiB"));
    }
}
