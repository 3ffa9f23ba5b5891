//! Names like one that is not there: most unknown names are misspelt.

/// How many names are proposed.
const PROPOSED: usize = 3;

/// Those of `names` that a few typing errors make of `name`, the nearest first.
pub(crate) fn nearest<'a>(name: &str, names: &'a [String]) -> Vec<&'a String> {
    let most = (name.chars().count() / 3).max(2);
    let distance = |known: &'a String| (distance(name, known), known);
    let mut near: Vec<_> = names.iter().map(distance).filter(|(distance, _)| *distance <= most).collect();
    near.sort();
    near.into_iter().take(PROPOSED).map(|(_, known)| known).collect()
}

/// The number of characters to be put in, left out or replaced (Levenshtein), whatever their case.
fn distance(left: &str, right: &str) -> usize {
    let [left, right] = [left, right].map(|text| text.to_lowercase().chars().collect::<Vec<_>>());
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, letter) in left.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (column, other) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_names_are_found_and_others_are_not() {
        let names = ["boolq", "wiki_hop", "antonym", "Synonym"].map(str::to_owned);
        assert_eq!(nearest("bolq", &names), ["boolq"]);
        assert_eq!(nearest("synonim", &names), ["Synonym"]);
        assert_eq!(nearest("wikihop", &names), ["wiki_hop"]);
        assert!(nearest("translation", &names).is_empty());
    }

    #[test]
    fn the_distance_counts_single_changes() {
        for (left, right, count) in
            [("", "abc", 3), ("abc", "abc", 0), ("abc", "axc", 1), ("abc", "bc", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(left, right), count, "{left}, {right}");
        }
    }
}
