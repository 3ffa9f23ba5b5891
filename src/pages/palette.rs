//! Colors of categories.

/// Colors that can be told apart with color vision deficiencies too, on light and on dark.
pub const COLORS: [&str; 10] =
    ["#2e86ab", "#de8c3c", "#3f8f5f", "#b0413e", "#7a5ea8", "#8c6d46", "#c46a9e", "#5d6b7a", "#a3a13b", "#35a7a0"];

/// The color of a category by its number.
pub fn color(category: usize) -> &'static str {
    COLORS[category % COLORS.len()]
}
