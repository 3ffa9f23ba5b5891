//! The experts to be clustered: their names, and how to open one of them.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use lorakit_adapter::{Adapter, Matrix};

use crate::error::Cause;
use crate::{Error, Result};

type Open<'a> = Box<dyn Fn(&str) -> Result<Adapter, Cause> + Send + Sync + 'a>;
type Start<'a> = Box<dyn Fn(&str) -> Result<Matrix, Cause> + Send + Sync + 'a>;

/// Named adapters, each opened, and so read and checked, when it is first looked at.
///
/// A library of thousands of experts is larger than the memory that comparing them needs, so every pass looks at a few
/// at a time, and their weights are let go after: those of a mapped file take no memory between the passes.
pub struct Experts<'a> {
    names: Vec<String>,
    open: Open<'a>,
    opened: Vec<OnceLock<Adapter>>,
    start: Option<Start<'a>>,
}

impl<'a> Experts<'a> {
    /// The experts `names`, opened by `open`, which should map their files. They are kept sorted: no result depends on
    /// the order given.
    ///
    /// # Errors
    /// If a name is given twice, or there are fewer than two.
    pub fn new<E: Into<Cause>>(
        names: impl IntoIterator<Item = String>,
        open: impl Fn(&str) -> Result<Adapter, E> + Send + Sync + 'a,
    ) -> Result<Self> {
        let names = sorted(names)?;
        let opened = names.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { names, open: Box::new(move |name| open(name).map_err(Into::into)), opened, start: None })
    }

    /// Experts that are in memory, or mapped, already.
    ///
    /// # Errors
    /// As [`Experts::new`].
    pub fn in_memory(adapters: impl IntoIterator<Item = (String, Adapter)>) -> Result<Experts<'static>> {
        let (names, adapters): (Vec<String>, Vec<Adapter>) = adapters.into_iter().unzip();
        let by_name: BTreeMap<String, Adapter> = names.iter().cloned().zip(adapters).collect();
        Experts::new(names, move |name| {
            by_name.get(name).cloned().ok_or_else(|| Cause::from("there is no expert of this name"))
        })
    }

    /// Adds what [`Space::Change`](crate::Space::Change) needs: the A of a module, `[r, in]`, from which the
    /// training of all these experts started.
    pub fn with_start<E: Into<Cause>>(mut self, start: impl Fn(&str) -> Result<Matrix, E> + Send + Sync + 'a) -> Self {
        self.start = Some(Box::new(move |module| start(module).map_err(Into::into)));
        self
    }

    /// The names, sorted.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// How many there are; at least two.
    #[expect(clippy::len_without_is_empty, reason = "there are never fewer than two")]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether the common starting A is known, without which there is no change since then.
    pub fn has_start(&self) -> bool {
        self.start.is_some()
    }

    /// What `look` makes of an expert.
    pub(crate) fn look<T>(&self, index: usize, look: impl FnOnce(&Adapter) -> T) -> Result<T> {
        let (name, opened) = (&self.names[index], &self.opened[index]);
        let adapter = match opened.get() {
            Some(adapter) => adapter,
            None => {
                let adapter = (self.open)(name).map_err(|source| Error::Expert { expert: name.clone(), source })?;
                opened.get_or_init(|| adapter)
            }
        };
        let seen = look(adapter);
        adapter.release_pages();
        Ok(seen)
    }

    pub(crate) fn start(&self, module: &str) -> Result<Matrix> {
        let start = self.start.as_ref().ok_or(Error::NoStart)?;
        start(module).map_err(|source| Error::Start { module: module.to_owned(), source })
    }
}

impl std::fmt::Debug for Experts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Experts").field("names", &self.names).field("has_start", &self.has_start()).finish()
    }
}

/// The names in order, refused where one occurs twice or fewer than two exist.
pub(crate) fn sorted(names: impl IntoIterator<Item = String>) -> Result<Vec<String>> {
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::DuplicateExpert(pair[0].clone()));
    }
    match names.len() {
        0 | 1 => Err(Error::TooFewExperts(names.len())),
        _ => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn names_are_sorted_unique_and_at_least_two() {
        let names = |list: &[&str]| sorted(list.iter().map(|name| (*name).to_owned()));
        assert_eq!(names(&["b", "a"]).unwrap(), ["a", "b"]);
        assert!(matches!(names(&["a", "b", "a"]), Err(Error::DuplicateExpert(name)) if name == "a"));
        assert!(matches!(names(&["a"]), Err(Error::TooFewExperts(1))));
    }

    #[test]
    fn an_expert_is_opened_once_however_often_it_is_looked_at() {
        let opened = std::sync::atomic::AtomicUsize::new(0);
        let open = |_: &str| {
            opened.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok::<_, Cause>(Adapter::new(BTreeMap::new()))
        };
        let experts = Experts::new(["a".to_owned(), "b".to_owned()], open).unwrap();
        for index in [0, 1, 0, 1, 0] {
            assert_eq!(experts.look(index, |adapter| adapter.modules().len()).unwrap(), 0);
        }
        assert_eq!(opened.load(std::sync::atomic::Ordering::Relaxed), 2);
    }

    #[test]
    fn a_source_that_fails_is_blamed_on_its_expert() {
        let experts = Experts::new(["a".to_owned(), "b".to_owned()], |_| Err::<Adapter, _>("gone")).unwrap();
        let error = experts.look(1, |_| ()).unwrap_err();
        assert!(error.to_string().contains("`b`"));
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "gone");
    }
}
