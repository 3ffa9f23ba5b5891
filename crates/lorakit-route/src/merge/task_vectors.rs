//! Merges of task vectors, value by value: what [`TASK_VECTOR_METHODS`](crate::merge::task_vector_table) lists.
//!
//! - linear: PEFT's `A = sum sign(w s) sqrt|w s| A_i`, `B = sum sqrt|w s| B_i`; the paper's `A = sum w A_i`,
//!   `B = sum w s B_i` (<https://arxiv.org/abs/2405.11157>); mergekit's `sum w D_i / sum w`;
//! - task arithmetic: `scale * sum w D_i` (<https://arxiv.org/abs/2212.04089>);
//! - TIES: trim by magnitude, elect each value's sign, average those that agree (<https://arxiv.org/abs/2306.01708>);
//! - DARE: drop at random, rescale, then as one of the above (<https://arxiv.org/abs/2311.03099>);
//! - breadcrumbs: drop the largest as well (<https://arxiv.org/abs/2312.06795>).

use crate::error::{Result, RouteError, listed};
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::consensus::{SignElection, divisor, merge_row};
use crate::merge::low_rank_product::{LowRankProduct, truncate};
use crate::merge::merge_method::MergeMethod;
use crate::merge::merge_report::{Merged, Retained};
use crate::merge::module::{Footprint, MergedModule, Module, ModuleExpert, each_module};
use crate::merge::rank::Rank;
use crate::merge::row_source::{ExpertMatrices, RowSource};
use crate::merge::task_vector_table::{
    Consensus, Convention, FactorWeights, MergeSpace, Scope, SignVote, Sparsify, TaskVectorMethod,
};
use crate::merge::value_mask::{SparsifyConfig, ValueMask, threshold};
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, read_over, refused, text_of, typed_pairs};
use crate::settings_text::{Pairs, to_pairs};
use faer::MatRef;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The merge `linear`.
pub static LINEAR: MethodInfo<dyn MergeMethod> = info(
    "linear",
    "A and B summed separately, with cross terms; mergekit: the mean of deltas",
    "https://arxiv.org/abs/2405.11157",
);
/// The merge `task_arithmetic`.
pub static TASK_ARITHMETIC: MethodInfo<dyn MergeMethod> =
    info("task_arithmetic", "a multiple of the weighted sum of deltas", "https://arxiv.org/abs/2212.04089");
/// The merge `ties`.
pub static TIES: MethodInfo<dyn MergeMethod> = info(
    "ties",
    "trim, elect signs, average values that agree: A and B separately; mergekit: deltas",
    "https://arxiv.org/abs/2306.01708",
);
/// The merge `ties_svd`.
pub static TIES_SVD: MethodInfo<dyn MergeMethod> =
    info("ties_svd", "TIES on the deltas, truncated to a rank", "https://arxiv.org/abs/2306.01708");
/// The merge `dare_linear`.
pub static DARE_LINEAR: MethodInfo<dyn MergeMethod> = info(
    "dare_linear",
    "drop at random, rescale, sum: A and B separately; mergekit, paper: deltas",
    "https://arxiv.org/abs/2311.03099",
);
/// The merge `dare_linear_svd`.
pub static DARE_LINEAR_SVD: MethodInfo<dyn MergeMethod> =
    info("dare_linear_svd", "the same on the deltas, truncated to a rank", "https://arxiv.org/abs/2311.03099");
/// The merge `dare_ties`.
pub static DARE_TIES: MethodInfo<dyn MergeMethod> = info(
    "dare_ties",
    "drop at random, rescale, then as TIES: A and B separately; mergekit, paper: deltas",
    "https://arxiv.org/abs/2311.03099",
);
/// The merge `dare_ties_svd`.
pub static DARE_TIES_SVD: MethodInfo<dyn MergeMethod> =
    info("dare_ties_svd", "the same on the deltas, truncated to a rank", "https://arxiv.org/abs/2311.03099");
/// The merge `magnitude_prune`.
pub static MAGNITUDE_PRUNE: MethodInfo<dyn MergeMethod> = info(
    "magnitude_prune",
    "keep the largest values, then sum: A and B separately; mergekit: deltas",
    "https://huggingface.co/docs/peft",
);
/// The merge `magnitude_prune_svd`.
pub static MAGNITUDE_PRUNE_SVD: MethodInfo<dyn MergeMethod> =
    info("magnitude_prune_svd", "the same on the deltas, truncated to a rank", "https://huggingface.co/docs/peft");
/// The merge `breadcrumbs`.
pub static BREADCRUMBS: MethodInfo<dyn MergeMethod> = info(
    "breadcrumbs",
    "drop the largest and the smallest of each delta, then sum",
    "https://arxiv.org/abs/2312.06795",
);
/// The merge `breadcrumbs_ties`.
pub static BREADCRUMBS_TIES: MethodInfo<dyn MergeMethod> = info(
    "breadcrumbs_ties",
    "drop the largest and the smallest, elect signs, sum values that agree",
    "https://arxiv.org/abs/2312.06795",
);

const fn info(name: &'static str, summary: &'static str, link: &'static str) -> MethodInfo<dyn MergeMethod> {
    MethodInfo {
        name,
        aliases: &[],
        summary,
        link: Some(link),
        defaults: |name| TaskVectorMethod::find(name, None).map_or_else(String::new, |row| row.text(&row.defaults())),
        parse: |name, typed| Ok(Arc::new(TaskVectors::read(name, typed)?)),
        version: 1,
    }
}

/// All of them, to look up the one for a row of the table.
static INFOS: [&MethodInfo<dyn MergeMethod>; 12] = [
    &LINEAR,
    &TASK_ARITHMETIC,
    &TIES,
    &TIES_SVD,
    &DARE_LINEAR,
    &DARE_LINEAR_SVD,
    &DARE_TIES,
    &DARE_TIES_SVD,
    &MAGNITUDE_PRUNE,
    &MAGNITUDE_PRUNE_SVD,
    &BREADCRUMBS,
    &BREADCRUMBS_TIES,
];

/// A merge that works value by value, with its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskVectors {
    info: &'static MethodInfo<dyn MergeMethod>,
    pub(super) method: &'static TaskVectorMethod,
    pub(super) settings: TaskVectorSettings,
}

/// The settings of all merges that work value by value; each has some of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskVectorSettings {
    /// The implementation that it follows.
    pub convention: Convention,
    /// The share of values that each expert keeps, in (0, 1].
    pub density: f64,
    /// The share of values that are dropped as outliers (breadcrumbs).
    pub gamma: f64,
    /// How a sign is elected (TIES).
    pub sign: SignElection,
    /// The seed of the random drops (DARE), combined with the names of module and expert.
    pub seed: u64,
    /// A factor of the result; the papers' lambda.
    pub scale: f64,
    /// The rank of the result, if deltas are merged.
    pub rank: Rank,
}

impl Settings for TaskVectorSettings {
    fn validate(&self) -> Result<(), String> {
        let Self { density, gamma, scale, .. } = *self;
        if !(density > 0.0 && density <= 1.0) {
            return Err(format!("density={density} must lie above 0 and up to 1"));
        }
        if !(0.0..1.0).contains(&gamma) {
            return Err(format!("gamma={gamma} must lie from 0 to below 1"));
        }
        if !scale.is_finite() {
            return Err(format!("scale={scale} must be a finite number"));
        }
        Ok(())
    }
}

impl TaskVectorMethod {
    /// The settings at their defaults.
    pub(super) fn defaults(&self) -> TaskVectorSettings {
        // A plain sum has low rank and is exact; the others have to be truncated.
        let rank = if self.is_plain_sum() { Rank::Full } else { Rank::Largest };
        let (convention, density, sign) = (self.convention, self.density, SignElection::default());
        TaskVectorSettings { convention, density, gamma: 0.01, sign, seed: 0, scale: 1.0, rank }
    }

    /// Whether the merge has the setting `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        match key {
            "density" => self.sparsify != Sparsify::None,
            "gamma" => self.sparsify == Sparsify::Outliers,
            "sign" => self.elects(),
            "seed" => self.is_random(),
            "rank" => self.space == MergeSpace::Deltas,
            _ => true,
        }
    }

    /// The settings that the merge has.
    fn shown(&self, settings: &TaskVectorSettings) -> Result<Pairs, String> {
        Ok(to_pairs(settings)?.into_iter().filter(|(key, _)| self.has(key)).collect())
    }

    /// The settings that the merge has, as they are typed.
    fn text(&self, settings: &TaskVectorSettings) -> String {
        text_of(self.shown(settings))
    }
}

impl fmt::Display for TaskVectors {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.method.name, self.method.text(&self.settings))
    }
}

impl MergeMethod for TaskVectors {
    fn info(&self) -> &'static MethodInfo<dyn MergeMethod> {
        self.info
    }

    fn merge(&self, experts: &[Expert], coefficients: &Coefficients) -> Result<Merged> {
        if let Some(linear) = self.linear_of_one(experts.len()) {
            return linear.merge(experts, coefficients);
        }
        let thresholds = self.thresholds(experts);
        each_module(experts, coefficients, self.footprint(), |module| self.merge_module(module, &thresholds))
    }

    fn mixes_separately(&self) -> bool {
        matches!(self.method.space, MergeSpace::Factors { .. })
    }

    fn warning(&self, experts: usize) -> Option<String> {
        if self.linear_of_one(experts).is_none() {
            return self.nothing_dropped(self);
        }
        let TaskVectorSettings { density, rank, .. } = self.settings;
        let sparsifies = self.method.has("density") && density < 1.0;
        let truncates = self.method.has("rank") && matches!(rank, Rank::Of(_));
        let others = TaskVectorMethod::conventions(self.method.name).filter(|other| *other != Convention::Peft);
        (sparsifies || truncates).then(|| {
            format!(
                "{self}: one expert is merged linearly, as in PEFT, whatever the method: nothing is dropped or truncated, and \
                 only `scale` has an effect; other conventions of the method: {}",
                listed(others)
            )
        })
    }

    fn changed_factor(&self) -> Option<(&'static str, f64)> {
        let scale = self.settings.scale;
        (scale != self.method.defaults().scale).then_some(("scale", scale))
    }

    fn counts_weight_zero(&self) -> bool {
        matches!(self.method.consensus, Consensus::Elected(SignVote::Plain, _))
    }

    fn averages(&self) -> bool {
        self.method.averages
    }
}

/// The error of a merge that the table does not have.
fn unknown(name: &str) -> RouteError {
    RouteError::UnknownMethod { kind: "merge", name: name.to_owned(), known: listed::<&str>([]) }
}

/// For each expert, the magnitude threshold common to all its matrices, if there is one.
type Thresholds = Vec<Option<f32>>;

impl TaskVectors {
    /// `linear:convention=paper`: the weighted sum of the A's, and that of the scaled B's.
    pub(crate) fn linear_of_paper() -> Self {
        let method = TaskVectorMethod::linear_of_paper();
        Self { info: &LINEAR, method, settings: method.defaults() }
    }

    /// The merge of a row of the table.
    pub(super) fn new(method: &'static TaskVectorMethod, settings: TaskVectorSettings) -> Result<Self> {
        let info = INFOS.iter().find(|info| info.name == method.name).ok_or_else(|| unknown(method.name))?;
        Ok(Self { info, method, settings })
    }

    /// What this merge is of a single expert, where that is something else: PEFT merges one adapter linearly, whatever
    /// the method, so that nothing is trimmed or dropped.
    fn linear_of_one(&self, experts: usize) -> Option<Self> {
        let method = TaskVectorMethod::linear_of_peft();
        let one = experts == 1 && self.settings.convention == Convention::Peft && self.method != method;
        let settings = TaskVectorSettings { scale: self.settings.scale, ..method.defaults() };
        one.then_some(Self { info: &LINEAR, method, settings })
    }

    /// Reads the settings of the merge of that name.
    fn read(name: &str, typed: Option<&str>) -> Result<Self> {
        let default = TaskVectorMethod::find(name, None).ok_or_else(|| unknown(name))?;
        let convention = typed_pairs(typed).into_iter().find(|(key, _)| *key == "convention");
        let asked = convention.and_then(|(_, convention)| TaskVectorMethod::find(name, Some(convention)));
        let method = asked.unwrap_or(default);
        let settings = read_over(name, &method.defaults(), |key| method.has(key), typed)?;
        if settings.convention != method.convention {
            let known = listed(TaskVectorMethod::conventions(name));
            let problem = format!("convention={} has no {name} (there is: {known})", settings.convention);
            return Err(refused(name, method.shown(&method.defaults()), problem));
        }
        Self::new(method, settings)
    }

    /// Its settings.
    pub fn settings(&self) -> &TaskVectorSettings {
        &self.settings
    }

    /// Whether an expert of weight zero has a part in the result of this merge in a basis that all experts decide: in another
    /// basis, other values are dropped and other signs elected.
    pub(super) fn depends_on_basis(&self) -> bool {
        let drops = self.method.has("density") && self.settings.density < 1.0;
        drops || self.method.elects()
    }

    /// A warning that nothing is dropped, which is mergekit's default, for this merge or an `outer` one that applies it.
    pub(super) fn nothing_dropped(&self, outer: &dyn fmt::Display) -> Option<String> {
        let TaskVectorSettings { convention, density, gamma, .. } = self.settings;
        let drops = convention == Convention::Mergekit && self.method.has("density");
        (drops && density >= 1.0).then(|| {
            let outliers = if self.method.has("gamma") { format!(", whatever gamma={gamma}") } else { String::new() };
            format!("{outer}: nothing is dropped at density=1, mergekit's default{outliers}; set density below 1")
        })
    }

    fn footprint(&self) -> Footprint {
        let dense = self.method.space == MergeSpace::Deltas && !self.method.is_plain_sum();
        if dense { Footprint::Dense } else { Footprint::LowRank }
    }

    fn sparsify_config(&self) -> SparsifyConfig {
        let TaskVectorSettings { density, gamma, seed, .. } = self.settings;
        SparsifyConfig { density, gamma, seed }
    }

    /// The thresholds, for merges that trim all matrices of an expert together.
    fn thresholds(&self, experts: &[Expert]) -> Thresholds {
        if self.method.sparsify != Sparsify::Magnitude(Scope::Expert) || self.settings.density >= 1.0 {
            return vec![None; experts.len()];
        }
        let of = |expert: &Expert| {
            let updates = expert.adapter.modules().values();
            let matrices: Vec<RowSource> = match self.method.space {
                MergeSpace::Deltas => updates.map(RowSource::delta).collect(),
                MergeSpace::Factors { .. } => {
                    updates.flat_map(|update| [RowSource::matrix(update.a()), RowSource::matrix(update.b())]).collect()
                }
            };
            threshold(&matrices, self.settings.density)
        };
        experts.par_iter().map(of).collect()
    }

    fn merge_module(&self, module: &Module, thresholds: &Thresholds) -> Result<MergedModule> {
        let rank = self.settings.rank;
        match self.method.space {
            MergeSpace::Factors { weights, any_ranks } => {
                let rank = module.equal_rank(self.method.name, any_ranks)?;
                self.merge_factors(module, rank, weights, thresholds)
            }
            MergeSpace::Deltas if self.method.is_plain_sum() => {
                LowRankProduct::sum(module, self.plain_factor(module.total_weight)).truncated(module, rank)
            }
            MergeSpace::Deltas => {
                let sources = module.parts.iter().map(|part| RowSource::delta(part.update)).collect();
                let deltas = ExpertMatrices { name: "delta", sources };
                let merged = self.merge_values(module, deltas, |part| part.weight, thresholds);
                let delta = MatRef::from_row_major_slice(&merged, module.output, module.input);
                truncate(module, delta, rank)
            }
        }
    }

    fn plain_factor(&self, total_weight: f64) -> f64 {
        match self.method.consensus {
            Consensus::Mean => self.settings.scale / divisor(total_weight),
            _ => self.settings.scale,
        }
    }

    fn merge_factors(
        &self,
        module: &Module,
        rank: usize,
        weights: FactorWeights,
        thresholds: &Thresholds,
    ) -> Result<MergedModule> {
        let scaled = |part: &ModuleExpert| part.weight * part.update.scale();
        let weight_of_a = |part: &ModuleExpert| match weights {
            FactorWeights::Root => scaled(part).abs().sqrt().copysign(scaled(part)),
            FactorWeights::Both => part.weight,
        };
        let weight_of_b = |part: &ModuleExpert| match weights {
            FactorWeights::Root => scaled(part).abs().sqrt(),
            FactorWeights::Both => scaled(part),
        };
        let a = module.parts.iter().map(|part| RowSource::matrix(part.update.a())).collect();
        let b = module.parts.iter().map(|part| RowSource::matrix(part.update.b())).collect();
        let a = self.merge_values(module, ExpertMatrices { name: "A", sources: a }, weight_of_a, thresholds);
        // The scale belongs to the delta and so to one of the factors; it was applied to A.
        let unscaled = Self { settings: TaskVectorSettings { scale: 1.0, ..self.settings }, ..*self };
        let b = unscaled.merge_values(module, ExpertMatrices { name: "B", sources: b }, weight_of_b, thresholds);
        let single = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
        Ok(MergedModule { update: module.update(rank, single(a), single(b))?, retained: Retained::ALL })
    }

    /// Merges the experts' matrices, all of one shape, value by value; row-major.
    pub(super) fn merge_values(
        &self,
        module: &Module,
        matrices: ExpertMatrices,
        weight: impl Fn(&ModuleExpert) -> f64,
        thresholds: &[Option<f32>],
    ) -> Vec<f64> {
        let ExpertMatrices { name: matrix, sources: values } = matrices;
        let mask = |(part, values): (&ModuleExpert, &RowSource)| {
            let threshold = thresholds.get(part.expert).copied().flatten();
            let name = [module.path, part.name, matrix];
            ValueMask::of(self.method, self.sparsify_config(), values, name, threshold)
        };
        let mut masks: Vec<ValueMask> = module.parts.iter().zip(&values).map(mask).collect();
        let weights: Vec<f64> = module.parts.iter().map(weight).collect();
        let (rows, columns) = (values[0].rows(), values[0].columns());
        let mut buffers = vec![vec![0f64; columns]; values.len()];
        let mut merged = vec![0f64; rows * columns];
        for (row, out) in merged.chunks_exact_mut(columns).enumerate() {
            for ((values, mask), buffer) in values.iter().zip(&mut masks).zip(&mut buffers) {
                values.row(row, buffer);
                mask.apply(row, buffer);
            }
            merge_row(self.method.consensus, self.settings.sign, (&weights, module.total_weight), &buffers, out);
            out.iter_mut().for_each(|value| *value *= self.settings.scale);
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::merge::task_vector_table::TASK_VECTOR_METHODS;

    #[test]
    fn every_row_of_the_table_is_read_under_its_own_name() {
        for row in TASK_VECTOR_METHODS {
            let merge = TaskVectors::read(row.name, Some(&format!("convention={}", row.convention))).unwrap();
            assert_eq!((merge.info().name, merge.method), (row.name, row));
        }
    }

    #[test]
    fn weights_of_1_are_natural_where_agreeing_experts_are_averaged() {
        let averages = |typed: &str| {
            let (name, settings) = typed.split_once(':').unwrap_or((typed, ""));
            TaskVectors::read(name, Some(settings).filter(|settings| !settings.is_empty())).unwrap().averages()
        };
        for typed in
            ["task_arithmetic", "task_arithmetic:convention=peft", "linear:convention=mergekit", "ties", "dare_ties"]
        {
            assert!(averages(typed), "{typed}");
        }
        for typed in ["linear", "linear:convention=paper", "dare_linear", "breadcrumbs", "breadcrumbs_ties"] {
            assert!(!averages(typed), "{typed}");
        }
    }
}
