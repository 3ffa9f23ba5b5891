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
    /// In how many of the modules of the first each of the others has its A, or more.
    pub modules: usize,
    /// The number of its modules.
    pub total: usize,
}

impl SharedA {
    /// The groups of named adapters whose A's have the same values as those of the group's first adapter, in at least half of
    /// its modules and in the first of them, by path: only adapters that agree there are compared at all. The groups are in
    /// the order of their first names. A zero A is shared with nobody.
    pub fn groups(adapters: &[(&str, &Adapter)]) -> Vec<Self> {
        // One module tells most apart; the others are read only where it does not.
        let mut by_first: BTreeMap<(&str, String), Vec<(&str, &Adapter)>> = BTreeMap::new();
        for &(name, adapter) in adapters {
            if let Some((path, update)) = adapter.modules().first_key_value() {
                by_first.entry((path, key(update.a()))).or_default().push((name, adapter));
            }
        }
        let alike = by_first.into_values().filter(|members| members.len() > 1);
        let mut groups: Vec<Self> = alike.flat_map(|members| Self::among(&members)).collect();
        groups.sort_by(|one, other| one.names.cmp(&other.names));
        groups
    }

    /// The groups among adapters whose first modules agree.
    fn among(members: &[(&str, &Adapter)]) -> Vec<Self> {
        let mut groups: Vec<(BTreeMap<&str, String>, Self)> = Vec::new();
        for (name, adapter) in members {
            let keys = keys(adapter);
            let shared =
                |first: &BTreeMap<&str, String>| first.iter().filter(|(path, a)| keys.get(*path) == Some(a)).count();
            let found = groups.iter_mut().find_map(|(first, group)| {
                let modules = shared(first);
                (2 * modules >= group.total).then_some((group, modules))
            });
            match found {
                Some((group, modules)) => {
                    group.names.push((*name).to_owned());
                    group.modules = group.modules.min(modules);
                }
                None => {
                    let total = adapter.modules().len();
                    groups.push((keys, Self { names: vec![(*name).to_owned()], modules: total, total }));
                }
            }
        }
        groups.into_iter().map(|(_, group)| group).filter(|group| group.names.len() > 1).collect()
    }
}

/// The hashes of the A's that are not zero, by module.
fn keys(adapter: &Adapter) -> BTreeMap<&str, String> {
    let nonzero = adapter.modules().iter().filter(|(_, update)| update.a().values().iter().any(|value| *value != 0.0));
    nonzero.map(|(path, update)| (path.as_str(), key(update.a()))).collect()
}

/// The hash of a matrix's shape and values.
fn key(matrix: &Matrix) -> String {
    let shape = [matrix.rows(), matrix.cols()].into_iter().flat_map(usize::to_le_bytes);
    let bytes: Vec<u8> = shape.chain(matrix.values().iter().flat_map(|value| value.to_le_bytes())).collect();
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

    /// The first module's A alone makes no group, nor does it break one up.
    #[test]
    fn an_adapter_with_another_a_in_most_modules_hides_no_group() {
        let with = |values: [f32; 4]| {
            let update = |a: f32| {
                let a = Matrix::new(1, 2, vec![a, 1.0]).unwrap();
                LowRank::new(a, Matrix::new(1, 1, vec![1.0]).unwrap(), 1.0).unwrap()
            };
            Adapter::new(values.into_iter().enumerate().map(|(at, a)| (format!("m.{at}"), update(a))).collect())
        };
        let all = [with([1.0; 4]), with([1.0, 2.0, 3.0, 4.0]), with([1.0; 4]), with([1.0, 1.0, 1.0, 9.0])];
        let named: Vec<(&str, &Adapter)> = ["a", "b", "c", "d"].into_iter().zip(&all).collect();
        let group = |names: &[&str], modules| SharedA {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            modules,
            total: 4,
        };
        assert_eq!(SharedA::groups(&named), [group(&["a", "c", "d"], 3)]);
        assert_eq!(SharedA::groups(&named[..3]), [group(&["a", "c"], 4)]);
        assert_eq!(SharedA::groups(&named[..2]), []);
    }
}
