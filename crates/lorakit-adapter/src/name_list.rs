//! Lists of names in messages.

use std::fmt::Display;

/// How many names a message lists, so that they do not drown the rest.
const LISTED: usize = 6;

/// The names, quoted and separated by commas; of many, the first ones and how many more there are.
pub(crate) fn quote_names<T: Display>(names: &[T]) -> String {
    let shown: Vec<_> = names.iter().take(LISTED).map(|name| format!("`{name}`")).collect();
    let more = names.len() - shown.len();
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
