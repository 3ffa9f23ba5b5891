//! The similarities of one set of experts in every space.

use serde::Serialize;

use crate::comparison_space::ComparisonSpace;
use crate::error::{ClusterError, Result};
use crate::expert_set::ExpertSet;
use crate::similarity::Similarity;

/// The similarities of one set of experts in every space in which they can be compared.
#[derive(Clone, Debug)]
pub struct SpaceSimilarities {
    available: Vec<(ComparisonSpace, Similarity)>,
    unavailable: Vec<UnavailableSpace>,
}

/// A space in which the experts cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnavailableSpace {
    /// The space.
    pub space: ComparisonSpace,
    /// The reason.
    pub reason: String,
}

impl SpaceSimilarities {
    /// Compares the experts in all spaces. Spaces that need equal ranks and modules, or the initial A, may be unavailable.
    ///
    /// # Errors
    /// If an expert cannot be opened or overflows.
    pub fn of(experts: &ExpertSet) -> Result<Self> {
        Self::of_spaces(experts, &ComparisonSpace::ALL, None)
    }

    /// As [`SpaceSimilarities::of`], in these spaces alone; the others are unavailable. `delta` is the similarity in
    /// [`ComparisonSpace::Delta`], if it is known.
    ///
    /// # Errors
    /// As [`SpaceSimilarities::of`].
    pub fn of_spaces(experts: &ExpertSet, wanted: &[ComparisonSpace], delta: Option<Similarity>) -> Result<Self> {
        let mut spaces = Self { available: Vec::new(), unavailable: Vec::new() };
        let mut delta = delta;
        for space in ComparisonSpace::ALL {
            let known = if space == ComparisonSpace::Delta { delta.take() } else { None };
            if known.is_none() && !wanted.contains(&space) {
                let reason = format!("not compared: {} experts would take long; --report compares them", experts.len());
                spaces.unavailable.push(UnavailableSpace { space, reason });
                continue;
            }
            match known.map_or_else(|| Similarity::of(experts, space), Ok) {
                Ok(similarity) => spaces.available.push((space, similarity)),
                Err(error @ (ClusterError::NotAligned { .. } | ClusterError::NoInitialA)) => {
                    spaces.unavailable.push(UnavailableSpace { space, reason: error.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(spaces)
    }

    /// The similarity in one space, if it is available, as [`ComparisonSpace::Delta`] always is if it was wanted.
    pub fn get(&self, space: ComparisonSpace) -> Option<&Similarity> {
        self.available.iter().find(|(other, _)| *other == space).map(|(_, similarity)| similarity)
    }

    /// The spaces that are available, with their similarities.
    pub fn available(&self) -> &[(ComparisonSpace, Similarity)] {
        &self.available
    }

    /// The other spaces.
    pub fn unavailable(&self) -> &[UnavailableSpace] {
        &self.unavailable
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::synthetic::{Synthetic, adapter};

    #[test]
    fn unavailable_spaces_have_a_reason() {
        let adapters =
            [2, 3, 2].iter().enumerate().map(|(at, rank)| (format!("e{at}"), adapter(at as u64, *rank, 1.0, true)));
        let spaces = SpaceSimilarities::of(&ExpertSet::in_memory(adapters).unwrap()).unwrap();
        assert!(spaces.get(ComparisonSpace::Delta).is_some() && spaces.get(ComparisonSpace::Parameters).is_none());
        assert!(spaces.unavailable.iter().all(|space| space.reason.contains("--space delta")), "{spaces:?}");
    }

    #[test]
    fn spaces_that_are_not_wanted_are_not_compared() {
        let experts = Synthetic::default().experts();
        let all = SpaceSimilarities::of(&experts).unwrap();
        let one = SpaceSimilarities::of_spaces(&experts, &[ComparisonSpace::Change], None).unwrap();
        assert_eq!(one.available(), [(ComparisonSpace::Change, all.get(ComparisonSpace::Change).unwrap().clone())]);
        let missing: Vec<ComparisonSpace> = one.unavailable().iter().map(|space| space.space).collect();
        assert_eq!(missing, [ComparisonSpace::Delta, ComparisonSpace::Parameters]);
    }
}
