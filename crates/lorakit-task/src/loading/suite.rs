//! The generated sets of tasks, `suite:NAME`.

use crate::error::{Result, TaskError};
use crate::skills;
use crate::task::Task;

/// A generated set of tasks. The set of suites is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Skills on short strings, with known families: see [`skills`].
    Skills,
}

impl Suite {
    /// Every suite.
    pub const ALL: [Suite; 1] = [Suite::Skills];

    /// The name after `suite:`.
    pub fn name(self) -> &'static str {
        match self {
            Suite::Skills => "skills",
        }
    }

    /// The tasks that `suite:NAME` and what follows it, such as `/heldout`, stand for.
    pub(crate) fn load(self, rest: &str) -> Result<Vec<Task>> {
        match self {
            Suite::Skills => skills::load(rest),
        }
    }

    /// Splits what follows `suite:` into a suite and the rest.
    pub(crate) fn split_spec(spec: &str) -> Result<(Suite, &str)> {
        let name = &spec[..spec.find(['/', '@']).unwrap_or(spec.len())];
        let found = Suite::ALL.into_iter().find(|suite| suite.name() == name);
        let suite = found.ok_or_else(|| TaskError::UnknownName {
            what: "suite",
            name: name.to_string(),
            known: Suite::ALL.map(Suite::name).join(", "),
        })?;
        Ok((suite, &spec[name.len()..]))
    }
}
