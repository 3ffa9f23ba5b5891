//! Warnings: returned to the caller as values, never printed here.

use std::fmt;

use serde::Serialize;

/// Something that was accepted although a strict caller may want to refuse it, such as an unknown key or a missing
/// prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The key or tensor that it is about.
    pub subject: String,
    /// What was found, and how it was taken.
    pub text: String,
}

impl Warning {
    pub(crate) fn new(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { subject: subject.into(), text: text.into() }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.text)
    }
}
