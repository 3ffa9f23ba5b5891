//! Merges that apply an inner merge in another basis: which inner merge, its settings, and their own.

use crate::error::Result;
use crate::merge::consensus::SignElection;
use crate::merge::task_vector_table::{Convention, MergeSpace, TaskVectorMethod};
use crate::merge::task_vectors::{TaskVectorSettings, TaskVectors};
use crate::method_settings::{Settings, read_pairs, refused, text_of, typed_by_key};
use crate::settings_text::{Pairs, from_pairs, to_pairs};
use serde::{Deserialize, Serialize};

/// The default inner merge.
const DEFAULT: &str = "ties";

/// Which inner merge, with its settings. Those of the merge that applies it follow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InnerMergeSettings {
    inner: String,
    convention: Convention,
    density: f64,
    gamma: f64,
    sign: SignElection,
    seed: u64,
    scale: f64,
}

impl InnerMergeSettings {
    fn of(inner: &str, settings: &TaskVectorSettings) -> Self {
        let TaskVectorSettings { convention, density, gamma, sign, seed, scale, .. } = *settings;
        Self { inner: inner.to_owned(), convention, density, gamma, sign, seed, scale }
    }

    /// The settings of the inner merge. The merge that applies it decides the rank.
    fn task_vectors(&self, method: &TaskVectorMethod) -> TaskVectorSettings {
        let &Self { convention, density, gamma, sign, seed, scale, .. } = self;
        TaskVectorSettings { convention, density, gamma, sign, seed, scale, ..method.defaults() }
    }

    /// All settings, those of the merge that applies it last, and the number of the inner merge's.
    fn with_own(&self, own: &impl Serialize) -> Result<(Pairs, usize), String> {
        let mut pairs = to_pairs(self)?;
        let count = pairs.len();
        pairs.extend(to_pairs(own)?);
        Ok((pairs, count))
    }

    /// The settings that a merge with settings of its `own` has together with the inner merge `method`.
    fn shown(&self, method: &TaskVectorMethod, own: &impl Serialize) -> Result<Pairs, String> {
        let (pairs, count) = self.with_own(own)?;
        let shown = pairs.into_iter().enumerate().filter(|(index, (key, _))| *index >= count || method.has(key));
        Ok(shown.map(|(_, pair)| pair).collect())
    }
}

/// The row of the table, applied to aligned deltas; the outer merge decides the rank.
fn method_of(inner: &str, convention: &str) -> Option<&'static TaskVectorMethod> {
    let names = [inner.to_owned(), format!("{inner}_svd")];
    let mut found = names.iter().filter_map(|name| TaskVectorMethod::find(name, Some(convention)));
    found.find(|row| row.space == MergeSpace::Deltas && row.convention != Convention::Paper)
}

/// Reads the inner merge and the merge's own settings, those of the merge `name`.
pub(super) fn read_inner<S: Settings + Default>(name: &str, typed: Option<&str>) -> Result<(TaskVectors, S)> {
    let typed = typed_by_key::<S>(typed);
    let value = |key: &str| typed.iter().find(|(typed, _)| *typed == key).map(|(_, value)| *value);
    let (inner, convention) = (value("inner").unwrap_or(DEFAULT), value("convention").unwrap_or("peft"));
    let found = method_of(inner, convention);
    let method = found.unwrap_or_else(TaskVectorMethod::ties_svd);
    let (defaults, own) = (InnerMergeSettings::of(DEFAULT, &method.defaults()), S::default());
    let known = defaults.shown(method, &own);
    let has = |key: &str| known.as_ref().is_ok_and(|known| known.iter().any(|(known, _)| *known == key));
    let all = defaults.with_own(&own);
    let count = all.as_ref().map_or(0, |(_, count)| *count);
    let (settings, own) = read_pairs(name, all.map(|(pairs, _)| pairs), has, typed, |mut pairs| {
        let own: S = from_pairs(pairs.split_off(count))?;
        let settings = from_pairs::<InnerMergeSettings>(pairs)?.task_vectors(method);
        own.validate()?;
        settings.validate()?;
        Ok((settings, own))
    })?;
    if found.is_none() {
        let problem = format!(
            "inner={inner},convention={convention} is not known; inner is task_arithmetic, ties, dare_linear, dare_ties or \
             magnitude_prune with convention=peft or mergekit, or breadcrumbs or breadcrumbs_ties with mergekit"
        );
        return Err(refused(name, known, problem));
    }
    Ok((TaskVectors::new(method, settings)?, own))
}

/// The default settings, as they are typed.
pub(super) fn inner_defaults<S: Settings + Default>() -> String {
    let method = TaskVectorMethod::ties_svd();
    text_of(InnerMergeSettings::of(DEFAULT, &method.defaults()).shown(method, &S::default()))
}

/// The settings of an inner merge as they are typed, with the `own` ones of the merge that applies it.
pub(super) fn inner_text(inner: &TaskVectors, own: &impl Serialize) -> String {
    let name = inner.method.name.strip_suffix("_svd").unwrap_or(inner.method.name);
    text_of(InnerMergeSettings::of(name, &inner.settings).shown(inner.method, own))
}
