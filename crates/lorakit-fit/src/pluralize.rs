//! Numbers of things in messages.

/// `1 row`, `2 rows`.
pub fn pluralize(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
