//! Labels that fit into a margin.

/// Characters of the longest label.
const LONGEST: usize = 32;

/// A name cut to a length that fits a margin.
pub fn shortened(name: &str) -> String {
    if name.chars().count() <= LONGEST {
        return name.to_owned();
    }
    let start: String = name.chars().take(LONGEST - 1).collect();
    format!("{start}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_cut_at_characters() {
        assert_eq!(shortened(&"é".repeat(40)).chars().count(), LONGEST);
        assert_eq!(shortened("boolq"), "boolq");
    }
}
