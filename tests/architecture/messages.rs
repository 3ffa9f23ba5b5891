//! The texts of error types: how they quote names.

/// Fields that hold a name, which stands in backticks.
const NAMES: [&str; 9] = ["name", "expert", "module", "task", "tensor", "site", "skill", "cluster", "choice"];

/// Fields that are shown as Rust writes them: shapes, numbers and types.
const VALUES: [&str; 6] = ["", "found", "expected", "shape", "norms", "dtype"];

/// The `#[error(...)]` attributes of a file that quote a name otherwise than in backticks, or not at all.
pub fn wrongly_quoted(text: &str) -> Vec<&str> {
    let attributes = text.split("#[error(").skip(1).filter_map(|rest| Some(rest.split_once(")]")?.0));
    attributes.filter(|attribute| attribute.contains("'{") || !names_are_quoted(attribute)).collect()
}

fn names_are_quoted(attribute: &str) -> bool {
    let mut placeholders = attribute.match_indices('{').filter_map(|(at, _)| {
        let inside = attribute[at + 1..].split_once('}')?.0;
        Some((at, inside))
    });
    placeholders.all(|(at, inside)| match inside.strip_suffix(":?") {
        Some(shown) => VALUES.contains(&shown),
        None => !NAMES.contains(&inside) || attribute[..at].matches('`').count() % 2 == 1,
    })
}

#[test]
fn names_are_found_wherever_they_are_not_in_backticks() {
    let quoted = "#[error(\"expert `{name}`: `train --{name}`, {found:?}\")]";
    assert!(wrongly_quoted(quoted).is_empty());
    for wrong in ["expert '{who}'", "expert {name}", "`{x}` {name}", "{method:?}"] {
        let attribute = format!("#[error(\"{wrong}\")]");
        assert_eq!(wrongly_quoted(&attribute).len(), 1, "{wrong}");
    }
}
