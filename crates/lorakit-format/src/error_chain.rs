//! An error with its sources in one line.

use std::error::Error;

/// The messages of an error and its sources, separated by colons.
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| (*error).source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FormatError;

    #[test]
    fn the_sources_follow_the_error() {
        let source = std::io::Error::other("no space");
        assert_eq!(error_chain(&source), "no space");
        let error = FormatError::Io { path: "a/b".into(), action: "written", source };
        assert_eq!(error_chain(&error), format!("{error}: no space"));
    }
}
