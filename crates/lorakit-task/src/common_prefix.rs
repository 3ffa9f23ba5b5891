//! What two texts begin with alike.

/// The length in bytes of the longest common prefix, in whole characters.
pub(crate) fn common_prefix(one: &str, other: &str) -> usize {
    let alike = one.chars().zip(other.chars()).take_while(|(a, b)| a == b);
    alike.map(|(letter, _)| letter.len_utf8()).sum()
}
