//! The extensions of files, in lower or upper case.

/// A file's name without an extension, which is given with its dot; None if it has another.
pub(crate) fn strip_extension<'n>(name: &'n str, extension: &str) -> Option<&'n str> {
    let (stem, found) = name.split_at_checked(name.len().checked_sub(extension.len())?)?;
    found.eq_ignore_ascii_case(extension).then_some(stem)
}

/// Whether a file has an extension, compressed or not.
pub(crate) fn has_extension(name: &str, extension: &str) -> bool {
    strip_extension(strip_extension(name, ".gz").unwrap_or(name), extension).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_may_be_in_upper_case() {
        assert_eq!(strip_extension("Train.JSONL", ".jsonl"), Some("Train"));
        assert_eq!(strip_extension("train.jsonl", ".json"), None);
        assert_eq!(strip_extension("l", ".jsonl"), None);
        assert_eq!(strip_extension("ä.csv", "..csv"), None, "a cut within a character");
        assert!(has_extension("a.CSV.GZ", ".csv") && has_extension("a.Csv", ".csv") && !has_extension("a.gz", ".csv"));
    }
}
