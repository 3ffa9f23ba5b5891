//! Experts whose A's started from different random values.
//!
//! Training hardly changes an A, so that A's of one seed are alike whatever the tasks, and those of two seeds are as good as
//! orthogonal. Experts of one seed can be compared by their values, and their A's and B's added up; those of several cannot.

use crate::reporter::Reporter;
use lorakit_adapter::ExpertRecord;

/// Says that A's of experts with these records did not start from the same random values, where some record a seed that
/// others do not. Experts that all lack a record of it may have had one; nothing is said of them.
pub fn differing_initial_seeds<'a>(
    experts: impl IntoIterator<Item = (&'a str, Option<&'a ExpertRecord>)>,
) -> Option<String> {
    let seeded = experts.into_iter().map(|(name, record)| (name, record.and_then(|record| record.initial_seed)));
    let seeded: Vec<(&str, Option<u64>)> = seeded.collect();
    let (first, seed) = seeded.iter().find_map(|(name, seed)| Some((*name, (*seed)?)))?;
    let others: Vec<_> = seeded.iter().filter(|(_, other)| *other != Some(seed)).collect();
    let (other, of_other) = others.first()?;
    let of_other = of_other.map_or("an unrecorded seed".to_owned(), |seed| format!("seed {seed}"));
    let all = match others.len() {
        1 => String::new(),
        count => format!("; {count} experts differ from `{first}`"),
    };
    Some(format!("expert `{first}` was initialized with seed {seed}, `{other}` with {of_other}{all}"))
}

/// Warns that `what` sums A's, and B's, of experts that did not start from the same A, if the records say so.
pub fn warn_of_separate_mixing<'a>(
    what: &str,
    experts: impl IntoIterator<Item = (&'a str, Option<&'a ExpertRecord>)>,
    reporter: &dyn Reporter,
) {
    if let Some(differing) = differing_initial_seeds(experts) {
        reporter.warn(&format!("{what} sums A and B separately, which requires a common initial A: {differing}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_seeds_that_differ_are_told() {
        let record = |initial_seed| ExpertRecord { initial_seed, ..ExpertRecord::default() };
        let (zero, one, none) = (record(Some(0)), record(Some(1)), record(None));
        let told = |records: &[Option<&ExpertRecord>]| {
            let named = ["a", "b", "c"].into_iter().zip(records.iter().copied());
            differing_initial_seeds(named)
        };
        assert_eq!(told(&[Some(&zero), Some(&zero)]), None);
        assert_eq!(told(&[Some(&none), None]), None);
        let of = |other: &str| Some(format!("expert `a` was initialized with seed 0, `b` with {other}"));
        assert_eq!(told(&[Some(&zero), Some(&one)]), of("seed 1"));
        assert_eq!(told(&[Some(&zero), None, Some(&one)]), of("an unrecorded seed; 2 experts differ from `a`"));
        let second = "expert `b` was initialized with seed 0, `a` with an unrecorded seed";
        assert_eq!(told(&[Some(&none), Some(&zero)]), Some(second.to_owned()));
    }
}
