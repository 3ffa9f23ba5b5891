//! A table and its claims as Markdown.

use crate::output::text_table::ABSENT;
use crate::paper_table::table_claims::{GainUnit, JudgedClaim, units};
use crate::paper_table::table_scores::TableScores;
use crate::paper_table::table_spec::{RowSpec, TableSpec};
use lorakit_eval::{PairedDifference, Score};
use lorakit_fit::pluralize;

/// A number that the paper does not state, or that could not be verified.
const NOT_AVAILABLE: &str = "not available";

/// How the table of claims is read.
const CLAIM_NOTE: &str = "± of a gain is the standard error of the bootstrap; the interval is wider than twice that, as \
                          Student's is for few tasks or families.";

/// The heading, the table, its note, and a table of the claims.
pub fn markdown(spec: &TableSpec, scores: &TableScores, claims: &[JudgedClaim]) -> String {
    let mut parts = vec![format!("## {}", one_line(&spec.title)), table(spec, scores)];
    parts.push(format!("± is the standard error over {}. {}", scores.error_over(), spec.note.trim()).trim().to_owned());
    if !claims.is_empty() {
        parts.push(claim_table(claims));
        parts.push(CLAIM_NOTE.to_owned());
    }
    parts.join("\n\n") + "\n"
}

fn table(spec: &TableSpec, scores: &TableScores) -> String {
    let columns = scores.columns();
    let sees = spec.rows.iter().any(|row| !row.sees.is_empty());
    let mut header = vec![String::new()];
    header.extend(sees.then(|| "sees".to_owned()));
    header.extend(columns.iter().map(|column| scores.shown(*column).0.to_owned()));
    header.extend(spec.papers.iter().map(|paper| format!("the paper's, {paper}")));
    let line = |(at, row): (usize, &RowSpec)| {
        let mut cells = vec![row.label.clone()];
        cells.extend(sees.then(|| row.sees.clone()));
        cells.extend(columns.iter().map(|column| cell(scores.cell(at, *column), scores.shown(*column).1.digits)));
        let paper =
            |paper: &String| row.paper.get(paper).map_or(NOT_AVAILABLE.to_owned(), |value| format!("{value:.1}"));
        cells.extend(spec.papers.iter().map(paper));
        cells
    };
    lines(&header, grouped(&spec.rows).into_iter().map(|at| line((at, &spec.rows[at]))))
}

/// The order in which rows are shown: of those with the same results, the ones that see the same stand together, so that
/// routers which know more are not read as better ones.
fn grouped(rows: &[RowSpec]) -> Vec<usize> {
    let of_results = |row: &RowSpec| rows.iter().position(|other| other.results == row.results);
    let of_sight =
        |row: &RowSpec| rows.iter().position(|other| (&other.results, &other.sees) == (&row.results, &row.sees));
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|at| (of_results(&rows[*at]), of_sight(&rows[*at])));
    order
}

fn claim_table(claims: &[JudgedClaim]) -> String {
    let by_families = claims.iter().filter_map(|claim| claim.gain).any(|gain| gain.families.is_some());
    let units: Vec<String> = units(claims).into_iter().map(|unit| format!("{}s", unit.name())).collect();
    let counts = if by_families { "drawn".to_owned() } else { format!("{}, seeds", units.join(" or ")) };
    let header = ["claim", "gain", "95 % interval", &counts, "verdict"].map(str::to_owned);
    let line = |claim: &JudgedClaim| {
        let what = format!("{} ({} over {}: {})", claim.text, claim.better, claim.worse, claim.column);
        let Some(gain) = &claim.gain else {
            return vec![what, ABSENT.to_owned(), ABSENT.to_owned(), ABSENT.to_owned(), "not scored".to_owned()];
        };
        let ([low, high], digits) = (gain.interval, claim.digits);
        vec![
            what,
            format!("{:+.digits$} ±{:.digits$}", gain.mean, gain.stderr),
            format!("{low:+.digits$} to {high:+.digits$}"),
            drawn(gain, claim.unit),
            claim.verdict.map_or(ABSENT.to_owned(), |verdict| format!("**{verdict}**")),
        ]
    };
    lines(&header, claims.iter().map(line))
}

/// How many tasks or columns and seeds the bootstrap drew, and in how many families where it drew those.
fn drawn(gain: &PairedDifference, unit: GainUnit) -> String {
    let Some(families) = gain.families else { return format!("{}, {}", gain.tasks, gain.seeds) };
    let families = if families == 1 { "1 family".to_owned() } else { format!("{families} families") };
    format!("{families} of {}, {}", pluralize(gain.tasks, unit.name()), pluralize(gain.seeds, "seed"))
}

fn lines(header: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let line =
        |cells: &[String]| format!("| {} |", cells.iter().map(|cell| escaped(cell)).collect::<Vec<_>>().join(" | "));
    let rule = format!("|{}", "---|".repeat(header.len()));
    [line(header), rule].into_iter().chain(rows.map(|row| line(&row))).collect::<Vec<_>>().join("\n")
}

/// A cell whose text neither begins another cell nor ends its row.
fn escaped(cell: &str) -> String {
    one_line(cell).replace('\\', "\\\\").replace('|', "\\|")
}

fn one_line(text: &str) -> String {
    text.trim_end().replace(['\n', '\r'], " ")
}

/// A score with its standard error.
pub fn cell(score: Option<Score>, digits: usize) -> String {
    match score {
        None => ABSENT.to_owned(),
        Some(Score { value, stderr: None }) => format!("{value:.digits$}"),
        Some(Score { value, stderr: Some(error) }) => format!("{value:.digits$} ±{error:.digits$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paper_table::table_spec::RunAggregation;
    use std::collections::BTreeMap;

    #[test]
    fn rows_that_see_the_same_stand_together() {
        let row = |results: &str, sees: &str| RowSpec {
            label: String::new(),
            sees: sees.to_owned(),
            results: results.into(),
            at: None,
            router: String::new(),
            aggregation: RunAggregation::default(),
            x: None,
            series: String::new(),
            paper: BTreeMap::new(),
        };
        let rows = [
            row("private", "weights"),
            row("private", "prompts"),
            row("private", "weights"),
            row("mbc", "prompts"),
            row("mbc", "weights"),
            row("mbc", "prompts"),
        ];
        assert_eq!(grouped(&rows), [0, 2, 1, 3, 5, 4]);
    }
}
