//! Colours of categories.

/// Colours that can be told apart with colour vision deficiencies too, on light and on dark.
pub const COLOURS: [&str; 10] =
    ["#2e86ab", "#de8c3c", "#3f8f5f", "#b0413e", "#7a5ea8", "#8c6d46", "#c46a9e", "#5d6b7a", "#a3a13b", "#35a7a0"];

/// The colour of a category by its number.
pub fn colour(category: usize) -> &'static str {
    COLOURS[category % COLOURS.len()]
}
