//! Settings of merges that apply an inner merge in another basis: which inner merge, and its settings.

use crate::error::Result;
use crate::merge::consensus::SignElection;
use crate::merge::rank::Rank;
use crate::merge::shared_basis::Basis;
use crate::merge::task_vector_table::{Convention, MergeSpace, TaskVectorMethod};
use crate::merge::task_vectors::{TaskVectorSettings, TaskVectors};
use crate::method_settings::{Settings, read_over, refused, text_of, typed_pairs};
use crate::settings_text::{Pairs, to_pairs};
use serde::{Deserialize, Serialize};

/// The default inner merge.
const DEFAULT: &str = "ties";

/// The settings of the inner merge, of the basis and of the rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InnerSettings {
    inner: String,
    convention: Convention,
    density: f64,
    gamma: f64,
    sign: SignElection,
    seed: u64,
    scale: f64,
    basis: Basis,
    rank: Rank,
}

impl InnerSettings {
    fn of(inner: &str, settings: &TaskVectorSettings, basis: Basis, rank: Rank) -> Self {
        let TaskVectorSettings { convention, density, gamma, sign, seed, scale, .. } = *settings;
        Self { inner: inner.to_owned(), convention, density, gamma, sign, seed, scale, basis, rank }
    }

    /// The settings of the inner merge. The rank is that of the outer merge.
    fn task_vectors(&self) -> TaskVectorSettings {
        let &Self { convention, density, gamma, sign, seed, scale, rank, .. } = self;
        TaskVectorSettings { convention, density, gamma, sign, seed, scale, rank }
    }
}

impl Settings for InnerSettings {
    fn validate(&self) -> Result<(), String> {
        self.task_vectors().validate()
    }
}

/// The row of the table, applied to aligned deltas; the outer merge decides the rank.
fn method_of(inner: &str, convention: &str) -> Option<&'static TaskVectorMethod> {
    let names = [inner.to_owned(), format!("{inner}_svd")];
    let mut found = names.iter().filter_map(|name| TaskVectorMethod::find(name, Some(convention)));
    found.find(|row| row.space == MergeSpace::Deltas && row.convention != Convention::Paper)
}

/// Whether the settings have `key`.
fn has(method: &TaskVectorMethod, has_basis: bool, key: &str) -> bool {
    match key {
        "inner" | "rank" => true,
        "basis" => has_basis,
        _ => method.has(key),
    }
}

/// Reads the inner merge, the basis and the rank of the merge `name`; the basis can be set only if `has_basis`.
pub(super) fn read_inner(name: &str, has_basis: bool, typed: Option<&str>) -> Result<(TaskVectors, Basis, Rank)> {
    let pairs = typed_pairs(typed);
    let value = |key: &str| pairs.iter().find(|(typed, _)| *typed == key).map(|(_, value)| *value);
    let (inner, convention) = (value("inner").unwrap_or(DEFAULT), value("convention").unwrap_or("peft"));
    let method = method_of(inner, convention).unwrap_or_else(TaskVectorMethod::ties_svd);
    let defaults = InnerSettings::of(DEFAULT, &method.defaults(), Basis::default(), Rank::Full);
    let settings = read_over(name, &defaults, |key| has(method, has_basis, key), typed)?;
    if method_of(&settings.inner, convention).is_none() {
        let problem = format!(
            "inner={inner},convention={convention} is not known; inner is task_arithmetic, ties, dare_linear, dare_ties or \
             magnitude_prune with convention=peft or mergekit, or breadcrumbs or breadcrumbs_ties with mergekit"
        );
        return Err(refused(name, shown(&defaults, method, has_basis), problem));
    }
    let inner = TaskVectors { method, settings: settings.task_vectors() };
    Ok((inner, settings.basis, settings.rank))
}

/// The settings that the inner merge and the outer merge have.
fn shown(settings: &InnerSettings, method: &TaskVectorMethod, has_basis: bool) -> Result<Pairs, String> {
    Ok(to_pairs(settings)?.into_iter().filter(|(key, _)| has(method, has_basis, key)).collect())
}

/// The default settings, as they are typed.
pub(super) fn inner_defaults(has_basis: bool) -> String {
    let method = TaskVectorMethod::ties_svd();
    let settings = InnerSettings::of(DEFAULT, &method.defaults(), Basis::default(), Rank::Full);
    text_of(shown(&settings, method, has_basis))
}

/// The settings of an inner merge as they are typed, with the basis if there is one.
pub(super) fn inner_text(inner: &TaskVectors, basis: Option<Basis>, rank: Rank) -> String {
    let name = inner.method.name.strip_suffix("_svd").unwrap_or(inner.method.name);
    let settings = InnerSettings::of(name, &inner.settings, basis.unwrap_or_default(), rank);
    text_of(shown(&settings, inner.method, basis.is_some()))
}
