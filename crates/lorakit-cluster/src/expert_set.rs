//! The experts to cluster: their names, and how to open them.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use lorakit_adapter::{Adapter, Matrix};

use crate::error::{BoxError, ClusterError, Result};

type Open<'a> = Box<dyn Fn(&str) -> Result<Adapter, BoxError> + Send + Sync + 'a>;
type InitialA<'a> = Box<dyn Fn(&str) -> Result<Matrix, BoxError> + Send + Sync + 'a>;

/// Named adapters, each opened, and so read and checked, when it is first used.
///
/// A library may be larger than memory. So every pass uses a few experts at a time and releases their pages afterwards: an
/// adapter in a mapped file takes no memory between passes.
pub struct ExpertSet<'a> {
    names: Vec<String>,
    open: Open<'a>,
    opened: Vec<OnceLock<Adapter>>,
    initial_a: Option<InitialA<'a>>,
}

impl<'a> ExpertSet<'a> {
    /// The experts `names`, opened by `open`, which should map their files. They are sorted: no result depends on the order
    /// given.
    ///
    /// # Errors
    /// If a name is given twice, or there are fewer than two.
    pub fn new<E: Into<BoxError>>(
        names: impl IntoIterator<Item = String>,
        open: impl Fn(&str) -> Result<Adapter, E> + Send + Sync + 'a,
    ) -> Result<Self> {
        let names = sorted_names(names)?;
        let opened = names.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { names, open: Box::new(move |name| open(name).map_err(Into::into)), opened, initial_a: None })
    }

    /// Experts that are already in memory, or mapped.
    ///
    /// # Errors
    /// As [`ExpertSet::new`].
    pub fn in_memory(adapters: impl IntoIterator<Item = (String, Adapter)>) -> Result<ExpertSet<'static>> {
        let (names, adapters): (Vec<String>, Vec<Adapter>) = adapters.into_iter().unzip();
        let by_name: BTreeMap<String, Adapter> = names.iter().cloned().zip(adapters).collect();
        ExpertSet::new(names, move |name| {
            by_name.get(name).cloned().ok_or_else(|| BoxError::from("there is no expert of this name"))
        })
    }

    /// Adds what [`ComparisonSpace::Change`](crate::comparison_space::ComparisonSpace::Change) needs: `initial_a` gives the
    /// A of a module, `[r, in]`, from which the training of all these experts started.
    pub fn with_initial_a<E: Into<BoxError>>(
        mut self,
        initial_a: impl Fn(&str) -> Result<Matrix, E> + Send + Sync + 'a,
    ) -> Self {
        self.initial_a = Some(Box::new(move |module| initial_a(module).map_err(Into::into)));
        self
    }

    /// The names, sorted.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The number of experts, at least two.
    #[expect(clippy::len_without_is_empty, reason = "there are never fewer than two")]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether the common initial A is known.
    pub fn has_initial_a(&self) -> bool {
        self.initial_a.is_some()
    }

    /// Calls `with` on an expert, and returns its result.
    pub(crate) fn with_adapter<T>(&self, index: usize, with: impl FnOnce(&Adapter) -> T) -> Result<T> {
        let (name, opened) = (&self.names[index], &self.opened[index]);
        let adapter = match opened.get() {
            Some(adapter) => adapter,
            None => {
                let adapter =
                    (self.open)(name).map_err(|source| ClusterError::Expert { expert: name.clone(), source })?;
                opened.get_or_init(|| adapter)
            }
        };
        let result = with(adapter);
        adapter.release_pages();
        Ok(result)
    }

    /// The initial A of a module.
    pub(crate) fn initial_a(&self, module: &str) -> Result<Matrix> {
        let initial_a = self.initial_a.as_ref().ok_or(ClusterError::NoInitialA)?;
        initial_a(module).map_err(|source| ClusterError::InitialA { module: module.to_owned(), source })
    }
}

impl std::fmt::Debug for ExpertSet<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExpertSet").field("names", &self.names).field("has_initial_a", &self.has_initial_a()).finish()
    }
}

/// The names in order.
///
/// # Errors
/// If a name occurs twice, or there are fewer than two.
pub(crate) fn sorted_names(names: impl IntoIterator<Item = String>) -> Result<Vec<String>> {
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(ClusterError::DuplicateName(pair[0].clone()));
    }
    match names.len() {
        0 | 1 => Err(ClusterError::TooFewPoints(names.len())),
        _ => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn names_are_sorted_unique_and_at_least_two() {
        let names = |list: &[&str]| sorted_names(list.iter().map(|name| (*name).to_owned()));
        assert_eq!(names(&["b", "a"]).unwrap(), ["a", "b"]);
        assert!(matches!(names(&["a", "b", "a"]), Err(ClusterError::DuplicateName(name)) if name == "a"));
        assert!(matches!(names(&["a"]), Err(ClusterError::TooFewPoints(1))));
    }

    #[test]
    fn an_expert_is_opened_once() {
        let opened = std::sync::atomic::AtomicUsize::new(0);
        let open = |_: &str| {
            opened.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok::<_, BoxError>(Adapter::new(BTreeMap::new()))
        };
        let experts = ExpertSet::new(["a".to_owned(), "b".to_owned()], open).unwrap();
        for index in [0, 1, 0, 1, 0] {
            assert_eq!(experts.with_adapter(index, |adapter| adapter.modules().len()).unwrap(), 0);
        }
        assert_eq!(opened.load(std::sync::atomic::Ordering::Relaxed), 2);
    }

    #[test]
    fn an_expert_that_cannot_be_opened_is_named() {
        let experts = ExpertSet::new(["a".to_owned(), "b".to_owned()], |_| Err::<Adapter, _>("gone")).unwrap();
        let error = experts.with_adapter(1, |_| ()).unwrap_err();
        assert!(error.to_string().contains("`b`"));
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "gone");
    }
}
