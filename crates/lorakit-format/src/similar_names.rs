//! Suggestions for an unknown name, which is most often a misspelled one.

/// The most names that are suggested.
const SUGGESTED: usize = 3;

/// Those of `names` within a few typing errors of `name` in any case (Levenshtein distance), the nearest first. Names that
/// are errors throughout have nothing in common.
pub fn similar_names<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let length = name.chars().count();
    let most = (length / 3).max(2).min(length.saturating_sub(1));
    let name = name.to_lowercase();
    let distance = |known: &'a str| (strsim::levenshtein(&name, &known.to_lowercase()), known);
    let mut near: Vec<_> = names.into_iter().map(distance).filter(|(distance, _)| *distance <= most).collect();
    near.sort();
    near.into_iter().take(SUGGESTED).map(|(_, known)| known).collect()
}

/// ` (did you mean `NAME`?)` for an unknown name, or nothing: `known` lists the names with commas between them, each perhaps
/// with its settings in brackets.
pub fn did_you_mean(name: &str, known: &str) -> String {
    let names = known.split(", ").map(|known| known.split(['[', ':']).next().unwrap_or(known));
    let similar: Vec<String> = similar_names(name, names).iter().map(|known| format!("`{known}`")).collect();
    if similar.is_empty() { String::new() } else { format!(" (did you mean {}?)", similar.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_names_gives_a_suggestion() {
        assert_eq!(did_you_mean("arow", "base, arrow, random"), " (did you mean `arrow`?)");
        assert_eq!(did_you_mean("shard", "mean, shared[:NAME]"), " (did you mean `shared`?)");
        assert_eq!(did_you_mean("f1", "loss, acc, rouge_l"), "");
    }

    #[test]
    fn misspelled_names_are_found_and_others_are_not() {
        let names = ["boolq", "wiki_hop", "antonym", "Synonym"];
        assert_eq!(similar_names("bolq", names), ["boolq"]);
        assert_eq!(similar_names("synonim", names), ["Synonym"]);
        assert_eq!(similar_names("wikihop", names), ["wiki_hop"]);
        assert!(similar_names("translation", names).is_empty());
        let short = ["a", "b", "ch", "z"];
        assert_eq!(similar_names("zz", short), ["z"]);
        assert!(similar_names("y", short).is_empty());
    }
}
