//! `--part`: which of several parts of a command's work to do.

use crate::args::usage::usage_error;
use anyhow::Result;
use lorakit_train::RunPart;
use std::ops::Range;
use std::str::FromStr;

/// The variables in which schedulers put the index of an array's task: Slurm, HyperQueue and Kubernetes.
const INDEX_VARIABLES: [&str; 3] = ["SLURM_ARRAY_TASK_ID", "HQ_TASK_ID", "JOB_COMPLETION_INDEX"];

/// A part as typed: `I/N`, with I from 0, or `auto/N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartArg {
    /// The index; none: that of the scheduler.
    index: Option<usize>,
    count: usize,
}

impl FromStr for PartArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected I/N with I from 0 to N-1, such as 3/8, or auto/N";
        let (index, count) = text.split_once('/').ok_or(EXPECTED)?;
        let count = count.parse().ok().filter(|count| *count > 0).ok_or(EXPECTED)?;
        let index = match index {
            "auto" => None,
            index => Some(index.parse().ok().filter(|index| *index < count).ok_or(EXPECTED)?),
        };
        Ok(Self { index, count })
    }
}

impl PartArg {
    /// The part, with the scheduler's index for `auto`.
    pub fn part(&self) -> Result<RunPart> {
        self.with_index(|name| std::env::var(name).ok())
    }

    /// As [`PartArg::part`], with the environment's variables by name.
    fn with_index(&self, variable: impl Fn(&str) -> Option<String>) -> Result<RunPart> {
        let count = self.count;
        if let Some(index) = self.index {
            return Ok(RunPart { index, count });
        }
        let found = INDEX_VARIABLES.iter().find_map(|name| Some((*name, variable(name)?)));
        let Some((name, text)) = found else {
            let names = INDEX_VARIABLES.join(", ");
            return Err(usage_error(format!("--part auto/{count}: none of {names} is set; give --part I/{count}")));
        };
        let index = text.parse().ok().filter(|index| *index < count).ok_or_else(|| {
            usage_error(format!(
                "--part auto/{count}: {name} is `{text}`; expected 0 to {}, as by --array=0-{0}",
                count - 1
            ))
        })?;
        Ok(RunPart { index, count })
    }
}

/// The part's share of `items` items in order: of neighbors, since these share what they need.
pub fn share_of(part: RunPart, items: usize) -> Range<usize> {
    let start = |index: usize| index * items / part.count;
    start(part.index)..start(part.index + 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parts_are_typed_or_the_schedulers() {
        let part = |text: &str, set: &[(&str, &str)]| -> Result<RunPart, String> {
            let of = |name: &str| set.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
            text.parse::<PartArg>()?.with_index(of).map_err(|error| error.to_string())
        };
        assert_eq!(part("3/8", &[("HQ_TASK_ID", "5")]).unwrap(), RunPart { index: 3, count: 8 });
        assert_eq!(part("auto/8", &[("HQ_TASK_ID", "5")]).unwrap(), RunPart { index: 5, count: 8 });
        for wrong in ["8/8", "-1/8", "1/0", "auto", "x/2", "1/2/3"] {
            assert!(part(wrong, &[]).unwrap_err().contains("auto/N"), "{wrong}");
        }
        assert!(part("auto/2", &[]).unwrap_err().contains("SLURM_ARRAY_TASK_ID"));
        let error = part("auto/2", &[("SLURM_ARRAY_TASK_ID", "2")]).unwrap_err();
        assert!(error.contains("--array=0-1") && error.contains("`2`"), "{error}");
    }

    #[test]
    fn shares_are_disjoint_and_complete() {
        for items in [0, 1, 5, 8, 17] {
            let shares = (0..8).flat_map(|index| share_of(RunPart { index, count: 8 }, items));
            assert_eq!(shares.collect::<Vec<_>>(), (0..items).collect::<Vec<_>>());
        }
    }
}
