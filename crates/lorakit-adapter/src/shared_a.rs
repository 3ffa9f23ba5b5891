//! Adapters that have the same A, as trainers leave it that freeze or share it: what such adapters learned is in B alone,
//! and a comparison of their A's finds the common start and not the task.

use std::collections::BTreeMap;

use lorakit_format::hash::sha256;

use crate::adapter::Adapter;
use crate::matrix::Matrix;

/// Adapters whose A's have the same values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedA {
    /// Their names, at least two.
    pub names: Vec<String>,
    /// In how many of the modules of the first they do.
    pub modules: usize,
    /// The number of its modules.
    pub total: usize,
}

impl SharedA {
    /// The groups of named adapters whose A's have the same values in at least half of their modules, in the order of
    /// their first names. A zero A is shared with nobody.
    pub fn groups(adapters: &[(&str, &Adapter)]) -> Vec<Self> {
        // One module tells most apart; the others are read only where it does not.
        let mut by_first: BTreeMap<(&str, String), Vec<(&str, &Adapter)>> = BTreeMap::new();
        for &(name, adapter) in adapters {
            if let Some((path, update)) = adapter.modules().first_key_value() {
                by_first.entry((path, key(update.a()))).or_default().push((name, adapter));
            }
        }
        let mut groups: Vec<Self> = by_first.into_values().filter_map(|members| Self::of(&members)).collect();
        groups.sort_by(|one, other| one.names.cmp(&other.names));
        groups
    }

    fn of(members: &[(&str, &Adapter)]) -> Option<Self> {
        let (_, first) = members.first().filter(|_| members.len() > 1)?;
        let is_shared = |path: &str, a: &Matrix| {
            let same = |(_, other): &(&str, &Adapter)| other.modules().get(path).is_some_and(|update| update.a() == a);
            a.values().iter().any(|value| *value != 0.0) && members.iter().all(same)
        };
        let modules = first.modules().iter().filter(|(path, update)| is_shared(path, update.a())).count();
        let names = members.iter().map(|(name, _)| (*name).to_owned()).collect();
        let total = first.modules().len();
        (2 * modules >= total).then_some(Self { names, modules, total })
    }
}

/// The hash of a matrix's values.
fn key(matrix: &Matrix) -> String {
    let bytes: Vec<u8> = matrix.values().iter().flat_map(|value| value.to_le_bytes()).collect();
    sha256(&bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::low_rank::LowRank;

    fn adapter(a: f32, b: f32) -> Adapter {
        let update = |seed: f32| {
            let a = Matrix::new(1, 2, vec![a, a * seed]).unwrap();
            LowRank::new(a, Matrix::new(1, 1, vec![b]).unwrap(), 1.0).unwrap()
        };
        Adapter::new([("m.0".to_owned(), update(1.0)), ("m.1".to_owned(), update(2.0))].into())
    }

    #[test]
    fn adapters_of_one_a_are_grouped_by_its_values() {
        let all = [
            adapter(1.0, 1.0),
            adapter(2.0, 1.0),
            adapter(1.0, 3.0),
            adapter(3.0, 0.0),
            adapter(0.0, 1.0),
            adapter(0.0, 2.0),
        ];
        let names = ["a", "b", "c", "d", "e", "f"];
        let named: Vec<(&str, &Adapter)> = names.into_iter().zip(&all).collect();
        let shared = SharedA { names: vec!["a".to_owned(), "c".to_owned()], modules: 2, total: 2 };
        assert_eq!(SharedA::groups(&named), [shared]);
        assert_eq!(SharedA::groups(&named[..2]), []);
    }
}
