//! Settings of merges that apply an inner merge in another basis: which inner merge, its settings, and their own.

use crate::error::Result;
use crate::merge::consensus::SignElection;
use crate::merge::rank::Rank;
use crate::merge::shared_basis::Basis;
use crate::merge::task_vector_table::{Convention, MergeSpace, TaskVectorMethod};
use crate::merge::task_vectors::{TaskVectorSettings, TaskVectors};
use crate::merge::tucker::TuckerStop;
use crate::method_settings::{Settings, read_over, refused, text_of, typed_pairs};
use crate::settings_text::{Pairs, to_pairs};
use serde::{Deserialize, Serialize};

/// The default inner merge.
const DEFAULT: &str = "ties";

/// The merges that apply an inner merge. Their settings differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OuterMerge {
    Knots,
    CoreSpace,
    Ctm,
}

/// The settings of an outer merge; each has some of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct OuterSettings {
    pub basis: Basis,
    pub rank: Rank,
    pub beta: f64,
    pub stop: TuckerStop,
}

/// The settings of the inner merge and of the outer one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InnerSettings {
    /// The inner merge, by the key that [`OuterMerge::key`] says.
    inner: String,
    merge: String,
    convention: Convention,
    density: f64,
    gamma: f64,
    sign: SignElection,
    seed: u64,
    scale: f64,
    basis: Basis,
    rank: Rank,
    beta: f64,
    stop: TuckerStop,
}

impl OuterMerge {
    /// The key of the inner merge.
    fn key(self) -> &'static str {
        if self == Self::Ctm { "merge" } else { "inner" }
    }

    /// Whether the settings have `key`.
    fn has(self, inner: &TaskVectorMethod, key: &str) -> bool {
        match key {
            "inner" | "merge" => key == self.key(),
            "rank" => true,
            "basis" => self == Self::CoreSpace,
            "beta" | "stop" => self == Self::Ctm,
            _ => inner.has(key),
        }
    }

    /// The settings that it has together with an inner merge.
    fn shown(self, settings: &InnerSettings, inner: &TaskVectorMethod) -> Result<Pairs, String> {
        Ok(to_pairs(settings)?.into_iter().filter(|(key, _)| self.has(inner, key)).collect())
    }
}

impl OuterSettings {
    /// The settings at their defaults.
    pub(super) fn of(outer: OuterMerge) -> Self {
        let rank = if outer == OuterMerge::Ctm { Rank::Largest } else { Rank::Full };
        Self { basis: Basis::default(), rank, beta: 0.25, stop: TuckerStop::default() }
    }
}

impl InnerSettings {
    fn of(inner: &str, settings: &TaskVectorSettings, outer: OuterSettings) -> Self {
        let TaskVectorSettings { convention, density, gamma, sign, seed, scale, .. } = *settings;
        let OuterSettings { basis, rank, beta, stop } = outer;
        let [inner, merge] = [inner.to_owned(), inner.to_owned()];
        Self { inner, merge, convention, density, gamma, sign, seed, scale, basis, rank, beta, stop }
    }

    /// The settings of the inner merge. The rank is that of the outer merge.
    fn task_vectors(&self) -> TaskVectorSettings {
        let &Self { convention, density, gamma, sign, seed, scale, rank, .. } = self;
        TaskVectorSettings { convention, density, gamma, sign, seed, scale, rank }
    }
}

impl Settings for InnerSettings {
    fn validate(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.beta) {
            return Err(format!("beta={} must lie from 0 to 1", self.beta));
        }
        self.task_vectors().validate()
    }
}

/// The row of the table, applied to aligned deltas; the outer merge decides the rank.
fn method_of(inner: &str, convention: &str) -> Option<&'static TaskVectorMethod> {
    let names = [inner.to_owned(), format!("{inner}_svd")];
    let mut found = names.iter().filter_map(|name| TaskVectorMethod::find(name, Some(convention)));
    found.find(|row| row.space == MergeSpace::Deltas && row.convention != Convention::Paper)
}

/// Reads the inner merge and the settings of the merge `name`.
pub(super) fn read_inner(name: &str, outer: OuterMerge, typed: Option<&str>) -> Result<(TaskVectors, OuterSettings)> {
    let pairs = typed_pairs(typed);
    let value = |key: &str| pairs.iter().find(|(typed, _)| *typed == key).map(|(_, value)| *value);
    let (inner, convention) = (value(outer.key()).unwrap_or(DEFAULT), value("convention").unwrap_or("peft"));
    let found = method_of(inner, convention);
    let method = found.unwrap_or_else(TaskVectorMethod::ties_svd);
    let defaults = InnerSettings::of(DEFAULT, &method.defaults(), OuterSettings::of(outer));
    let settings = read_over(name, &defaults, |key| outer.has(method, key), typed)?;
    if found.is_none() {
        let key = outer.key();
        let problem = format!(
            "{key}={inner},convention={convention} is not known; {key} is task_arithmetic, ties, dare_linear, dare_ties or \
             magnitude_prune with convention=peft or mergekit, or breadcrumbs or breadcrumbs_ties with mergekit"
        );
        return Err(refused(name, outer.shown(&defaults, method), problem));
    }
    let inner = TaskVectors { method, settings: settings.task_vectors() };
    let InnerSettings { basis, rank, beta, stop, .. } = settings;
    Ok((inner, OuterSettings { basis, rank, beta, stop }))
}

/// The default settings, as they are typed.
pub(super) fn inner_defaults(outer: OuterMerge) -> String {
    let method = TaskVectorMethod::ties_svd();
    let settings = InnerSettings::of(DEFAULT, &method.defaults(), OuterSettings::of(outer));
    text_of(outer.shown(&settings, method))
}

/// The settings of an inner merge as they are typed, with those of the outer one.
pub(super) fn inner_text(outer: OuterMerge, inner: &TaskVectors, settings: OuterSettings) -> String {
    let name = inner.method.name.strip_suffix("_svd").unwrap_or(inner.method.name);
    text_of(outer.shown(&InnerSettings::of(name, &inner.settings, settings), inner.method))
}
