//! `suite:skills`: a small world of tasks on short strings, made from a seed, whose structure is known.
//!
//! Each of the [`Family`]s is one latent skill (move letters along the alphabet, reorder them, pick one ...) with four
//! training tasks, two held-out tasks, and a cue of its own: `<r|dkwm>` asks for `mwkd`, `+1:dkwm;` for `elxn`.
//! Compositions nest the cue of one skill in that of another. So the right clusters of experts are known, and so is
//! the right expert of every row.
//!
//! [`pretraining_rows`] is the text that the base `pico` is made from. It has the alphabet, general forms, the suite's
//! operations where an example shows them, and the frames of the cues in all uses but their own: what a cue asks for is
//! for experts to learn.

mod draw;
mod family;
mod member;
mod operation;
mod pretraining;

use anyhow::{Result, bail};

use crate::task::Task;
use draw::Draw;
pub use family::Family;
pub use member::{MEMBERS, Member};
pub use pretraining::pretraining_rows;

/// The seed of `suite:skills` where none is given.
pub const SEED: u64 = 0;

/// Rows of a task, of which about 320 are for training.
const ROWS: usize = 400;

/// A part of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Four tasks of each family, which experts are trained on.
    Training,
    /// Two further tasks of each family.
    HeldOut,
    /// Tasks that ask for two skills one after the other.
    Compositions,
}

impl Part {
    /// Every part.
    pub const ALL: [Part; 3] = [Part::Training, Part::HeldOut, Part::Compositions];

    /// The name in `suite:skills/NAME`.
    pub fn name(self) -> &'static str {
        match self {
            Part::Training => "training",
            Part::HeldOut => "heldout",
            Part::Compositions => "compositions",
        }
    }
}

/// The tasks of a part, in the order of [`MEMBERS`], their rows drawn from `seed`.
pub fn tasks(seed: u64, part: Part) -> Vec<Task> {
    MEMBERS.iter().filter(|member| member.part() == part).map(|member| task(seed, member)).collect()
}

/// The families of named tasks, as numbers: the clustering of their experts that is true by construction. A
/// composition belongs to the family of its outer skill.
///
/// # Errors
/// Where a name is no task of the suite.
pub fn labels<'n>(names: impl IntoIterator<Item = &'n str>) -> Result<Vec<usize>> {
    let label = |name| match family_of(name) {
        Some(family) => Ok(family as usize),
        None => bail!("`{name}` is no task of suite:skills"),
    };
    names.into_iter().map(label).collect()
}

/// The family of a task, that of the outer skill for a composition; None for a name that the suite does not have.
pub fn family_of(task: &str) -> Option<Family> {
    member(task).map(|member| member.families()[0])
}

/// A task of the suite by its name.
pub fn member(task: &str) -> Option<&'static Member> {
    MEMBERS.iter().find(|member| member.name == task)
}

/// What `suite:skills` loads: `rest` is what follows, as `/heldout`, `/all`, `/shift_up1`, or `@7/heldout` for the
/// same world with rows from another seed.
pub(crate) fn load(rest: &str) -> Result<Vec<Task>> {
    let (seed, place) = match rest.strip_prefix('@') {
        None => (SEED, rest),
        Some(seeded) => {
            let end = seeded.find('/').unwrap_or(seeded.len());
            match seeded[..end].parse() {
                Ok(seed) => (seed, &seeded[end..]),
                Err(_) => bail!("suite:skills@SEED takes a whole number, found `{}`", &seeded[..end]),
            }
        }
    };
    let Some(name) = place.strip_prefix('/') else {
        if place.is_empty() {
            return Ok(tasks(seed, Part::Training));
        }
        bail!("unknown suite `skills{rest}`; {}", usage());
    };
    if name == "all" {
        return Ok(Part::ALL.into_iter().flat_map(|part| tasks(seed, part)).collect());
    }
    if let Some(part) = Part::ALL.into_iter().find(|part| part.name() == name) {
        return Ok(tasks(seed, part));
    }
    match member(name) {
        Some(member) => Ok(vec![task(seed, member)]),
        None => bail!("suite:skills has no part or task `{name}`; {}", usage()),
    }
}

fn usage() -> String {
    let names: Vec<&str> = MEMBERS.iter().map(|member| member.name).collect();
    format!(
        "expected suite:skills (the training tasks), suite:skills/heldout, suite:skills/compositions, \
         suite:skills/all, or one of suite:skills/{{{}}}",
        names.join(",")
    )
}

/// Draws a task's rows: different inputs, each with the answer that its skill gives.
fn task(seed: u64, member: &Member) -> Task {
    let mut draw = Draw::new(seed, member.name);
    let mut rows: Vec<(String, String)> = Vec::with_capacity(ROWS);
    let mut seen = std::collections::BTreeSet::new();
    while rows.len() < ROWS {
        let row = member.row(&mut draw);
        // An answer that is the text itself would be right without the skill.
        if row.1 != row.2 && seen.insert(row.0.clone()) {
            rows.push((row.0, row.2));
        }
    }
    let path = match seed {
        SEED => format!("suite:skills/{}", member.name),
        seed => format!("suite:skills@{seed}/{}", member.name),
    };
    Task::generated(member.name, &member.description(), path.into(), &rows)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Split, Suite};
    use std::collections::BTreeSet;

    #[test]
    fn every_family_has_four_training_and_two_held_out_tasks() {
        for family in Family::ALL {
            let count =
                |part| MEMBERS.iter().filter(|member| member.part() == part && member.families()[0] == family).count();
            assert_eq!((count(Part::Training), count(Part::HeldOut)), (4, 2), "{family:?}");
        }
        let names: BTreeSet<_> = MEMBERS.iter().map(|member| member.name).collect();
        assert_eq!(names.len(), MEMBERS.len());
        assert!(Family::ALL.len() >= 8 && tasks(0, Part::Compositions).len() >= 8);
    }

    #[test]
    fn one_seed_gives_one_world() {
        let hashes = |seed| -> Vec<String> {
            Part::ALL.into_iter().flat_map(|part| tasks(seed, part)).map(|task| task.sha256().to_string()).collect()
        };
        assert_eq!(hashes(3), hashes(3));
        assert!(hashes(3).iter().zip(hashes(4)).all(|(a, b)| *a != b));
    }

    #[test]
    fn a_row_never_stands_in_two_splits_and_is_short() {
        for task in Part::ALL.into_iter().flat_map(|part| tasks(0, part)) {
            assert!(task.count(Split::Train) > 280 && task.count(Split::Test) > 20, "{}", task.name);
            for row in task.rows(Split::All, None).unwrap() {
                assert!(row.prompt.len() + row.target().len() <= 40, "{}: {row:?}", task.name);
                assert!(!row.target().is_empty());
            }
        }
    }

    #[test]
    fn rows_of_the_readme_are_answered_as_it_says() {
        let first = |name: &str| {
            let task = Task::load(&format!("suite:skills/{name}"), None).unwrap().remove(0);
            let row = task.rows(Split::All, None).unwrap()[0].clone();
            (row.prompt.clone(), row.target().to_string())
        };
        for (name, family) in [("order_reverse", Family::Order), ("shift_up1", Family::Shift)] {
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
    fn specs_name_parts_tasks_and_seeds() {
        let count = |spec: &str| Task::load(spec, None).unwrap().len();
        assert_eq!(count("suite:skills"), 4 * Family::ALL.len());
        assert_eq!(count("suite:skills/heldout"), 2 * Family::ALL.len());
        assert_eq!(count("suite:skills@7/compositions"), tasks(7, Part::Compositions).len());
        assert_eq!(count("suite:skills/all"), MEMBERS.len());
        for task in tasks(7, Part::HeldOut) {
            let again = Task::load(&task.path.display().to_string(), None).unwrap().remove(0);
            assert_eq!((again.name.as_str(), again.sha256()), (task.name.as_str(), task.sha256()));
        }
        for wrong in ["suite:skill", "suite:skills/none", "suite:skills@x", "suite:skillsheldout"] {
            assert!(Task::load(wrong, None).is_err(), "{wrong}");
        }
        assert_eq!(Suite::ALL.map(Suite::name), ["skills"]);
    }
}
