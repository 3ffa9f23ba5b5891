//! Suggestions for an unknown name, which is most often a misspelled one.

/// The most names that are suggested.
const SUGGESTED: usize = 3;

/// Those of `names` within a few typing errors of `name` in any case (Levenshtein distance), the nearest first. Names that
/// are errors throughout have nothing in common.
pub(crate) fn similar_names<'a>(name: &str, names: &'a [String]) -> Vec<&'a String> {
    let length = name.chars().count();
    let most = (length / 3).max(2).min(length.saturating_sub(1));
    let name = name.to_lowercase();
    let distance = |known: &'a String| (strsim::levenshtein(&name, &known.to_lowercase()), known);
    let mut near: Vec<_> = names.iter().map(distance).filter(|(distance, _)| *distance <= most).collect();
    near.sort();
    near.into_iter().take(SUGGESTED).map(|(_, known)| known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelled_names_are_found_and_others_are_not() {
        let names = ["boolq", "wiki_hop", "antonym", "Synonym"].map(str::to_owned);
        assert_eq!(similar_names("bolq", &names), ["boolq"]);
        assert_eq!(similar_names("synonim", &names), ["Synonym"]);
        assert_eq!(similar_names("wikihop", &names), ["wiki_hop"]);
        assert!(similar_names("translation", &names).is_empty());
        let short = ["a", "b", "ch", "z"].map(str::to_owned);
        assert_eq!(similar_names("zz", &short), ["z"]);
        assert!(similar_names("y", &short).is_empty());
    }
}
