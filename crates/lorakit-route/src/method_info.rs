//! What a method says of itself: its name, settings and summary stand at the method, once.

use crate::error::{Result, RouteError, listed};
use std::fmt;
use std::sync::Arc;

/// A method of the kind `M`, as `dyn Router`: what is typed for it, what is said of it, and how it is read.
pub struct MethodInfo<M: ?Sized + 'static> {
    /// The name that is typed.
    pub name: &'static str,
    /// Other names that are read as this one.
    pub aliases: &'static [&'static str],
    /// What it does, in one line.
    pub summary: &'static str,
    /// The address of its source, as of a paper.
    pub link: Option<&'static str>,
    /// Given its name: its settings with their defaults, as they are typed; empty if it has none.
    pub defaults: fn(&str) -> String,
    /// Reads it from its name and what is typed after the colon, if anything.
    pub parse: fn(&str, Option<&str>) -> Result<Arc<M>>,
    /// The version of the fitting algorithm. Raise it whenever a fit gives a different result for the same rows: state
    /// cached on disk is then fitted again.
    pub version: u32,
}

impl<M: ?Sized> MethodInfo<M> {
    /// The name with all settings at their defaults, as it can be typed.
    pub fn usage(&self) -> String {
        match (self.defaults)(self.name) {
            defaults if defaults.is_empty() => self.name.to_owned(),
            defaults => format!("{}:{defaults}", self.name),
        }
    }

    /// The summary, with the link if there is one.
    pub fn description(&self) -> String {
        match self.link {
            Some(link) => format!("{} ({link})", self.summary),
            None => self.summary.to_owned(),
        }
    }
}

/// Methods of a kind differ in name.
impl<M: ?Sized> PartialEq for MethodInfo<M> {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl<M: ?Sized> fmt::Debug for MethodInfo<M> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "MethodInfo({})", self.name)
    }
}

impl<M: ?Sized> fmt::Display for MethodInfo<M> {
    /// One line for a user: name, settings with their defaults, what it does, and its source.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}  {}", self.usage(), self.description())
    }
}

/// Reads a method of `methods` from `NAME` or `NAME:KEY=VALUE,...`; `kind` is what it is called in errors.
///
/// # Errors
/// An unknown name, or settings that the method refuses.
pub(crate) fn parse<M: ?Sized>(kind: &'static str, methods: &[&MethodInfo<M>], typed: &str) -> Result<Arc<M>> {
    let (name, settings) = match typed.split_once(':') {
        Some((name, settings)) => (name, Some(settings)),
        None => (typed, None),
    };
    let Some(method) = methods.iter().find(|method| method.name == name || method.aliases.contains(&name)) else {
        let known = listed(methods.iter().map(|method| method.name));
        return Err(RouteError::UnknownMethod { kind, name: name.to_owned(), known });
    };
    (method.parse)(method.name, settings)
}

/// The defaults of a method that has no settings.
pub(crate) fn no_settings(_: &str) -> String {
    String::new()
}
