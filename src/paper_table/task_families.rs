//! Families of tasks: those that are alike, such as three translations, whose differences say little more than one's.

use anyhow::{Context as _, Result, bail};
use fancy_regex::Regex;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The families that a table names, each by a pattern of its tasks' names.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct FamilyPatterns {
    patterns: Vec<Regex>,
}

/// The family of each task, by the number of its pattern; a task that no pattern matches is in none.
#[derive(Debug, Default)]
pub struct TaskFamilies(BTreeMap<String, usize>);

impl TryFrom<Vec<String>> for FamilyPatterns {
    type Error = anyhow::Error;

    fn try_from(patterns: Vec<String>) -> Result<Self> {
        let compiled = |pattern: &String| {
            Regex::new(pattern).with_context(|| format!("families: `{pattern}` is not a regular expression"))
        };
        Ok(Self { patterns: patterns.iter().map(compiled).collect::<Result<_>>()? })
    }
}

impl FamilyPatterns {
    /// The patterns, in order.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter().map(Regex::as_str)
    }

    /// The family of each of `tasks`. A pattern may match none of them, since one table serves several sets of tasks.
    ///
    /// # Errors
    /// If a task is in two families.
    pub fn of_tasks<'a>(&self, tasks: impl IntoIterator<Item = &'a str>) -> Result<TaskFamilies> {
        let mut families = BTreeMap::new();
        for task in tasks {
            for (family, pattern) in self.patterns.iter().enumerate() {
                let matches = pattern.is_match(task);
                if !matches.with_context(|| format!("families: `{pattern}` on the task `{task}`"))? {
                    continue;
                }
                if let Some(first) = families.insert(task.to_owned(), family).filter(|first| *first != family) {
                    let first = &self.patterns[first];
                    bail!("families: the task `{task}` is in two: `{first}` and `{pattern}`; expected at most one");
                }
            }
        }
        Ok(TaskFamilies(families))
    }
}

impl TaskFamilies {
    /// The tasks of a family, sorted.
    pub fn tasks(&self, family: usize) -> Vec<&str> {
        self.0.iter().filter(|(_, of)| **of == family).map(|(task, _)| task.as_str()).collect()
    }

    /// Groups values by the family of their task, in the order of each family's first task; a task in no family is
    /// its own.
    pub fn group<T>(&self, by_task: impl IntoIterator<Item = (String, T)>) -> Vec<Vec<T>> {
        let (mut groups, mut of_family): (Vec<Vec<T>>, BTreeMap<usize, usize>) = Default::default();
        for (task, value) in by_task {
            let group =
                self.0.get(&task).map_or(groups.len(), |family| *of_family.entry(*family).or_insert(groups.len()));
            match groups.get_mut(group) {
                Some(group) => group.push(value),
                None => groups.push(vec![value]),
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn families(patterns: &[&str]) -> Result<FamilyPatterns> {
        patterns.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>().try_into()
    }

    #[test]
    fn tasks_are_grouped_by_the_patterns_that_match_their_names() {
        let families = families(&["^to_", "letter|length", "unused"]).unwrap();
        let tasks = ["first_letter", "sum", "to_de", "to_fr", "word_length"];
        let of_tasks = families.of_tasks(tasks).unwrap();
        let groups = of_tasks.group(tasks.map(|task| (task.to_owned(), task)));
        assert_eq!(groups, [vec!["first_letter", "word_length"], vec!["sum"], vec!["to_de", "to_fr"]]);
        assert_eq!(of_tasks.tasks(0), ["to_de", "to_fr"]);
        assert!(of_tasks.tasks(2).is_empty());
        assert_eq!(TaskFamilies::default().group(tasks.map(|task| (task.to_owned(), task))).len(), 5);
    }

    #[test]
    fn a_task_in_two_families_and_what_is_no_pattern_are_refused() {
        let both = families(&["capital", "^country"]).unwrap();
        let error = both.of_tasks(["sum", "country-capital"]).unwrap_err().to_string();
        assert!(error.contains("`country-capital` is in two: `capital` and `^country`"), "{error}");
        // The same task in several columns is one.
        assert_eq!(both.of_tasks(["capital", "capital"]).unwrap().tasks(0), ["capital"]);
        let error = families(&["(sum"]).unwrap_err().to_string();
        assert!(error.contains("`(sum` is not a regular expression"), "{error}");
    }
}
