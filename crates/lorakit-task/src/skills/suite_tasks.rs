//! The tasks of `suite:skills` with their rows, and which family each belongs to.

use crate::error::{Result, TaskError};
use crate::skills::skill_family::SkillFamily;
use crate::skills::skill_task::{SKILL_TASKS, SkillTask};
use crate::skills::suite_part::SuitePart;
use crate::skills::text_rng::TextRng;
use crate::task::Task;

/// The default seed of `suite:skills`.
pub const SEED: u64 = 0;

/// The number of rows of a task, of which about 320 are for training.
const ROWS: usize = 400;

/// The tasks of a part, in the order of [`SKILL_TASKS`], with rows drawn from `seed`.
pub fn tasks(seed: u64, part: SuitePart) -> Vec<Task> {
    SKILL_TASKS.iter().filter(|task| task.part() == part).map(|task| draw_task(seed, task)).collect()
}

/// The families of named tasks as numbers: the correct clustering of their experts. A composition belongs to the family of
/// its outer skill.
///
/// # Errors
/// If a name is not a task of the suite.
pub fn labels<'n>(names: impl IntoIterator<Item = &'n str>) -> Result<Vec<usize>> {
    let label = |name| match family_of(name) {
        Some(family) => Ok(family as usize),
        None => Err(TaskError::Spec(format!("`{name}` is not a task of suite:skills"))),
    };
    names.into_iter().map(label).collect()
}

/// The family of a task, that of the outer skill for a composition; None for a name that is not in the suite.
pub fn family_of(name: &str) -> Option<SkillFamily> {
    skill_task(name).map(|task| task.families()[0])
}

/// A task of the suite by its name.
pub fn skill_task(name: &str) -> Option<&'static SkillTask> {
    SKILL_TASKS.iter().find(|task| task.name == name)
}

/// The tasks of a `suite:skills` spec. `rest` is what follows: `/heldout`, `/all`, `/shift_up1`, or `@7/heldout` for the
/// same tasks with rows from another seed.
pub(crate) fn load(rest: &str) -> Result<Vec<Task>> {
    let (seed, place) = match rest.strip_prefix('@') {
        None => (SEED, rest),
        Some(seeded) => {
            let end = seeded.find('/').unwrap_or(seeded.len());
            match seeded[..end].parse() {
                Ok(seed) => (seed, &seeded[end..]),
                Err(_) => {
                    let found = &seeded[..end];
                    return Err(TaskError::Spec(format!(
                        "suite:skills@SEED: expected a whole number, found `{found}`"
                    )));
                }
            }
        }
    };
    let Some(name) = place.strip_prefix('/') else {
        if place.is_empty() {
            return Ok(tasks(seed, SuitePart::Training));
        }
        return Err(TaskError::Spec(format!("unknown suite `skills{rest}`; {}", usage())));
    };
    if name == "all" {
        return Ok(SuitePart::ALL.into_iter().flat_map(|part| tasks(seed, part)).collect());
    }
    if let Some(part) = SuitePart::ALL.into_iter().find(|part| part.name() == name) {
        return Ok(tasks(seed, part));
    }
    match skill_task(name) {
        Some(task) => Ok(vec![draw_task(seed, task)]),
        None => Err(TaskError::Spec(format!("suite:skills has no part or task `{name}`; {}", usage()))),
    }
}

fn usage() -> String {
    let names: Vec<&str> = SKILL_TASKS.iter().map(|task| task.name).collect();
    format!(
        "expected suite:skills (the training tasks), suite:skills/heldout, suite:skills/compositions, \
         suite:skills/all, or one of suite:skills/{{{}}}",
        names.join(",")
    )
}

/// Draws a task's rows: distinct inputs, each with the answer of its skill.
fn draw_task(seed: u64, task: &SkillTask) -> Task {
    let mut rng = TextRng::new(seed, task.name);
    let mut rows: Vec<(String, String)> = Vec::with_capacity(ROWS);
    let mut seen = std::collections::BTreeSet::new();
    while rows.len() < ROWS {
        let row = task.row(&mut rng);
        // An answer equal to the text would be right without the skill.
        if row.1 != row.2 && seen.insert(row.0.clone()) {
            rows.push((row.0, row.2));
        }
    }
    let path = match seed {
        SEED => format!("suite:skills/{}", task.name),
        seed => format!("suite:skills@{seed}/{}", task.name),
    };
    Task::generated(task.name, &task.description(), path.into(), &rows)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::loading::suite::Suite;
    use crate::split::Split;
    use std::collections::BTreeSet;

    #[test]
    fn every_family_has_four_training_and_two_held_out_tasks() {
        for family in SkillFamily::ALL {
            let count =
                |part| SKILL_TASKS.iter().filter(|task| task.part() == part && task.families()[0] == family).count();
            assert_eq!((count(SuitePart::Training), count(SuitePart::HeldOut)), (4, 2), "{family:?}");
        }
        let names: BTreeSet<_> = SKILL_TASKS.iter().map(|task| task.name).collect();
        assert_eq!(names.len(), SKILL_TASKS.len());
        assert!(SkillFamily::ALL.len() >= 8 && tasks(0, SuitePart::Compositions).len() >= 8);
    }

    #[test]
    fn the_rows_are_the_same_in_every_version() {
        // The hashes of lorakit 0.1.0's first rows, on which libraries were trained.
        let hash = |part, index: usize| tasks(0, part)[index].sha256().to_string();
        assert_eq!(hash(SuitePart::Training, 0), "2c4d2216e649fb0e86ffc9865bfc6939f037bd35ebe350122b5515a6a7e12173");
        assert_eq!(hash(SuitePart::HeldOut, 15), "34a119a1d8f84f117fb630b3bd8a84f73bc1452a9c69ac7c297e8945db325d56");
        assert_eq!(
            hash(SuitePart::Compositions, 9),
            "6d67a17ebab60fc8c03e75370fd79bab75dd3519e947bf9421bbdcd01e8facc5"
        );
        assert_eq!(
            tasks(7, SuitePart::Training)[31].sha256(),
            "e277aba46ad56a52c54aac3592eee5116a352fff33d7235a1d1c184101a06f1e"
        );
    }

    #[test]
    fn the_rows_depend_on_the_seed_alone() {
        let hashes = |seed| -> Vec<String> {
            SuitePart::ALL
                .into_iter()
                .flat_map(|part| tasks(seed, part))
                .map(|task| task.sha256().to_string())
                .collect()
        };
        assert_eq!(hashes(3), hashes(3));
        assert!(hashes(3).iter().zip(hashes(4)).all(|(a, b)| *a != b));
    }

    #[test]
    fn every_split_has_rows_and_they_are_short() {
        for task in SuitePart::ALL.into_iter().flat_map(|part| tasks(0, part)) {
            assert!(task.count(Split::Train) > 280 && task.count(Split::Test) > 20, "{}", task.name);
            for row in task.rows(Split::All, None).unwrap() {
                assert!(row.prompt.len() + row.target().len() <= 40, "{}: {row:?}", task.name);
                assert!(!row.target().is_empty());
            }
        }
    }

    #[test]
    fn answers_are_those_of_the_skill() {
        let first = |name: &str| {
            let task = Task::load(&format!("suite:skills/{name}"), None).unwrap().remove(0);
            let row = task.rows(Split::All, None).unwrap()[0].clone();
            (row.prompt.clone(), row.target().to_string())
        };
        for (name, family) in [("order_reverse", SkillFamily::Order), ("shift_up1", SkillFamily::Shift)] {
            let (prompt, target) = first(name);
            let text: String = prompt.chars().filter(char::is_ascii_lowercase).collect();
            assert_eq!(family_of(name), Some(family));
            let expected: String = match name {
                "order_reverse" => text.trim_start_matches('r').chars().rev().collect(),
                _ => text.chars().map(|c| if c == 'z' { 'a' } else { (c as u8 + 1) as char }).collect(),
            };
            assert!(target.ends_with(&expected) || target == expected, "{prompt} {target} {expected}");
        }
    }

    #[test]
    fn specs_give_parts_tasks_and_seeds() {
        let count = |spec: &str| Task::load(spec, None).unwrap().len();
        assert_eq!(count("suite:skills"), 4 * SkillFamily::ALL.len());
        assert_eq!(count("suite:skills/heldout"), 2 * SkillFamily::ALL.len());
        assert_eq!(count("suite:skills@7/compositions"), tasks(7, SuitePart::Compositions).len());
        assert_eq!(count("suite:skills/all"), SKILL_TASKS.len());
        for task in tasks(7, SuitePart::HeldOut) {
            let again = Task::load(&task.path.display().to_string(), None).unwrap().remove(0);
            assert_eq!((again.name.as_str(), again.sha256()), (task.name.as_str(), task.sha256()));
        }
        for wrong in ["suite:skill", "suite:skills/none", "suite:skills@x", "suite:skillsheldout"] {
            assert!(Task::load(wrong, None).is_err(), "{wrong}");
        }
        assert_eq!(Suite::ALL.map(Suite::name), ["skills"]);
    }
}
