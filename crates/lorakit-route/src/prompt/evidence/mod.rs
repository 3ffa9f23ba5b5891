//! Evidence, a router of lorakit's own in which nothing is trained: under which of the tasks that the experts learned would
//! the library respond to a prompt as it does?
//!
//! The response of an expert `e` at a site to a token `x` is `|s B A x| / |x|` ([`crate::prompt::evidence::response`]),
//! averaged over the prompt's tokens under the base alone. By itself it says little: experts differ in size, and one may
//! respond most to prompts of other tasks. What is informative is the pattern in which all of them respond, at every site: a
//! few prompts of each task give its distribution, and `d_t²` is the distance of a new prompt from a task `t`
//! ([`crate::prompt::evidence::lda`]). A row is then served by the experts at the weights
//!
//! `p(e | prompt) = sum of p(t | prompt) over the tasks t of e`, `p(t | prompt) = softmax(-ln(d_t²) / temperature)`
//!
//! the `top_k` highest of them: if prompts tell tasks apart this is a choice, and if tasks share their inputs it is a
//! mixture. Ratios of distances count, as under densities with heavy tails: a prompt that is far from all tasks is not
//! assigned to the nearest with certainty. A confidence `c` falls from 1, where the nearest task is no further than that of
//! most reference prompts (only the share `near_tail` is further), to 0, where only the share `far_tail` is as far from all tasks.
//! The distances of the reference prompts are computed by cross-validation, except for the scale of responses. What
//! confidence leaves, `1 - c`, goes to the base, to all experts alike, or to all experts as Arrow weighs them, as `fallback`
//! says: no expert fits such a prompt. (Under `mixing=separate` every weight, and so the confidence, multiplies A and B each.)
//!
//! How sharp a choice should be, and the best fallback, differ between libraries: `auto` takes what makes the answers of a
//! few validation rows of each task likeliest, the temperature out of [`TEMPERATURES`], and the fallback where the task's own
//! expert is left out. No expert was trained on these rows: it knows the answers to its training rows, so that these would
//! speak for the surest choice. Nothing else sees an answer, and of a task that is evaluated only prompts are read.
//!
//! Cost: a pass of the base over the prompt, with one more product per site and token, of all experts' ranks.
//!
//! State: for each site `SITE` a matrix `SITE`, `[2, experts]`, of means and deviations; `whitening`, `[D, D]`, and `means`,
//! `[tasks, D]`, of patterns of D values; `experts`, `[1, tasks]`, the expert of each task; `distances`, `[1, prompts]`, from
//! each prompt to its nearest task, ascending; `chosen`, `[1, 2]`, what `auto` took: the temperature, and the index of the
//! fallback in [`FALLBACKS`].

mod fallback_setting;
pub mod lda;
pub mod leave_one_out;
mod posterior;
pub mod response;
mod temperature;

pub use fallback_setting::{FALLBACKS, Fallback, FallbackSetting};
pub use temperature::{TEMPERATURES, Temperature};

use crate::error::{Result, RouteError};
use crate::fixed::fallback::fallback;
use crate::fixed::row_weights::observed_row_weights;
use crate::library_stack::LibraryStack;
use crate::limit::Limit;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, at_least_one, defaults, read, write};
use crate::mixing::Mixing;
use crate::prompt::evidence::lda::{
    LinearDiscriminant, TaskResponses, held_out_distances, pattern, pattern_width, spread,
};
use crate::prompt::evidence::posterior::{Posterior, Reference, quantile};
use crate::prompt::evidence::response::{ResponseMeasure, ResponseProbe};
use crate::prompt::prompt_router::PromptRouter;
use crate::router::{Router, RouterContext};
use crate::router_state::RouterState;
use crate::token::arrow::Arrow;
use crate::training_data::TrainingData;
use lorakit_adapter::Matrix;
use lorakit_lora::Patches;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// The router `evidence`.
pub static EVIDENCE: MethodInfo<dyn Router> = MethodInfo {
    name: "evidence",
    aliases: &[],
    summary: "per row, the experts of tasks to whose prompts the library responds similarly; lorakit's own, \
              fitted without gradients",
    link: None,
    defaults: defaults::<Evidence>,
    parse: |name, typed| Ok(Arc::new(read::<Evidence>(name, typed)?)),
    version: 4,
};

/// The router `evidence`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Evidence {
    /// The maximum number of experts of a row.
    pub top_k: Limit,
    /// The divisor of the logarithms of squared distances before the softmax.
    pub temperature: Temperature,
    /// The share of reference prompts that are so far from every task that no expert fits.
    pub far_tail: f64,
    /// The share of reference prompts that are too far from every task for the experts to have their full weight.
    pub near_tail: f64,
    /// What serves a prompt that no expert fits.
    pub fallback: FallbackSetting,
    /// What of an expert's delta responds.
    pub measure: ResponseMeasure,
    /// The maximum number of reference prompts of each task.
    pub rows: Limit,
    /// The maximum number of validation rows of each task by whose answers `auto` chooses.
    pub calibration_rows: usize,
    /// How the chosen experts' deltas are combined.
    pub mixing: Mixing,
}

impl Default for Evidence {
    fn default() -> Self {
        Self {
            top_k: Limit::ALL,
            temperature: Temperature::Auto,
            far_tail: 0.02,
            near_tail: 0.2,
            fallback: FallbackSetting::Auto,
            measure: ResponseMeasure::Energy,
            rows: Limit(16),
            calibration_rows: 4,
            mixing: Mixing::Outputs,
        }
    }
}

impl Settings for Evidence {
    fn validate(&self) -> Result<(), String> {
        let Self { far_tail, near_tail, calibration_rows, .. } = *self;
        at_least_one("calibration_rows", calibration_rows)?;
        if 0.0 <= far_tail && far_tail <= near_tail && near_tail <= 1.0 {
            return Ok(());
        }
        Err(format!("far_tail={far_tail},near_tail={near_tail} must be shares, 0 <= far_tail <= near_tail <= 1"))
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, EVIDENCE.name, self)
    }
}

impl Router for Evidence {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &EVIDENCE
    }

    fn mixing(&self) -> Mixing {
        self.mixing
    }

    /// The patches of a library: rows have their weights, and what these leave goes to the fallback.
    ///
    /// # Errors
    /// Under separate mixing, if ranks differ at a projection; under `fallback=auto`, if the state is missing.
    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        let weighted = observed_row_weights(experts, self.mixing, context.observer.clone())?;
        Ok(match self.chosen_fallback(context)? {
            Fallback::Arrow => {
                let arrow = self.arrow().patches(experts, &RouterContext::default())?;
                weighted.with(fallback(arrow))
            }
            Fallback::Base | Fallback::Uniform => weighted,
        })
    }

    /// # Errors
    /// If the state is missing, or was fitted to another library.
    fn prompt_router(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Option<Arc<dyn PromptRouter>>> {
        let (n, state) = (experts.len(), context.state_of(self)?);
        let columns = |name: &str| state.matrices().get(name).map_or(0, Matrix::cols);
        let temperature = match self.temperature {
            Temperature::Auto => chosen(state)?.0,
            Temperature::Fixed(temperature) => temperature,
        };
        let sites: Vec<Vec<f32>> =
            experts.stacks().map(|(_, site, _)| state.values(&site.key(), (2, n))).collect::<Result<_>>()?;
        let (width, tasks) = (pattern_width(sites.len(), n), columns("experts"));
        let distances = state.values("distances", (1, columns("distances")))?;
        let experts_of_tasks: Vec<usize> =
            state.values("experts", (1, tasks))?.into_iter().map(|expert| expert as usize).collect();
        if experts_of_tasks.iter().any(|expert| *expert >= n) {
            return Err(RouteError::StateExperts(n));
        }
        Ok(Some(Arc::new(Posterior {
            responses: ResponseProbe::new(experts, self.measure)?,
            reference: Arc::new(Reference {
                top_k: self.top_k.0,
                temperature,
                uniform: self.chosen_fallback(context)? == Fallback::Uniform,
                experts: n,
                sites,
                discriminant: LinearDiscriminant {
                    whitening: state.values("whitening", (width, width))?,
                    means: state.values("means", (tasks, width))?,
                    width,
                },
                experts_of_tasks,
                far: quantile(&distances, 1.0 - self.far_tail),
                near: quantile(&distances, 1.0 - self.near_tail),
            }),
        })))
    }

    fn training_data(&self) -> Option<TrainingData> {
        let rows = self.rows.0;
        Some(if self.is_fixed() {
            TrainingData::ExpertTasks { rows }
        } else {
            TrainingData::CalibratedExpertTasks { rows, calibration_rows: self.calibration_rows }
        })
    }
}

impl Evidence {
    /// Whether `auto` has nothing to choose.
    fn is_fixed(&self) -> bool {
        self.temperature != Temperature::Auto && self.fallback != FallbackSetting::Auto
    }

    /// The state of reference prompts, without what `auto` takes: see [`Evidence::with_chosen`].
    ///
    /// # Errors
    /// If no task has two prompts, or a response is not finite.
    pub fn state(&self, experts: &LibraryStack, prompts: &TaskResponses) -> Result<RouterState> {
        let n = experts.len();
        if !prompts.folds().contains(&1) {
            return Err(RouteError::FewPrompts(prompts.tasks.len()));
        }
        if prompts.responses.iter().any(|(_, values)| values.iter().any(|value| !value.is_finite())) {
            return Err(RouteError::NotFinite);
        }
        let spreads: Vec<Vec<f32>> = prompts.responses.iter().map(|(_, values)| spread(values, n)).collect();
        let mut patterns = Vec::new();
        for row in 0..prompts.tasks.len() {
            patterns.extend(pattern(row, n, &prompts.responses, &spreads)?);
        }
        let LinearDiscriminant { whitening, means, width } = LinearDiscriminant::of(&patterns, &prompts.tasks)?;
        let known: BTreeSet<usize> = prompts.tasks.iter().copied().collect();
        let sites = experts.stacks().map(|(_, site, _)| site.key()).zip(spreads.into_iter().map(|spread| (2, spread)));
        let rest = [
            ("whitening", (width, whitening)),
            ("means", (known.len(), means)),
            ("experts", (1, known.into_iter().map(|task| prompts.experts[task] as f32).collect())),
            ("distances", (1, held_out_distances(&patterns, prompts)?)),
        ];
        let rest = rest.map(|(name, matrix)| (name.to_owned(), matrix));
        let matrix = |(name, (rows, values)): (String, (usize, Vec<f32>))| {
            Ok((name, Matrix::new(rows, values.len() / rows.max(1), values)?))
        };
        Ok(RouterState::new(sites.chain(rest).map(matrix).collect::<Result<Vec<_>>>()?))
    }

    /// The same settings with nothing left to choose.
    pub fn fixed(&self, temperature: f32, fallback: Fallback) -> Self {
        let (temperature, fallback) = (Temperature::Fixed(temperature), FallbackSetting::Fixed(fallback));
        Self { temperature, fallback, ..self.clone() }
    }

    /// The state with what `auto` took.
    ///
    /// # Errors
    /// If the temperature is not finite.
    pub fn with_chosen(state: RouterState, temperature: f32, fallback: Fallback) -> Result<RouterState> {
        let chosen = Matrix::new(1, 2, vec![temperature, f32::from(fallback.index())])?;
        let before = state.matrices().iter().map(|(name, matrix)| (name.clone(), matrix.clone()));
        Ok(RouterState::new(before.chain([("chosen".to_owned(), chosen)])))
    }

    /// Arrow over all experts, which serves what no expert fits under [`Fallback::Arrow`].
    pub fn arrow(&self) -> Arrow {
        Arrow { top_k: Limit::ALL, mixing: self.mixing, ..Arrow::default() }
    }

    /// The fallback, with `auto` resolved.
    fn chosen_fallback(&self, context: &RouterContext) -> Result<Fallback> {
        match self.fallback {
            FallbackSetting::Auto => Ok(chosen(context.state_of(self)?)?.1),
            FallbackSetting::Fixed(fallback) => Ok(fallback),
        }
    }
}

/// What `auto` took.
fn chosen(state: &RouterState) -> Result<(f32, Fallback)> {
    let values = state.matrix("chosen", (1, 2))?.values();
    let fallback = FALLBACKS.into_iter().find(|fallback| f32::from(fallback.index()) == values[1]);
    Ok((values[0], fallback.ok_or(RouteError::StateFallback(values[1]))?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_auto_took_is_read_as_it_was_written() {
        for (index, fallback) in FALLBACKS.into_iter().enumerate() {
            let state = Evidence::with_chosen(RouterState::default(), 0.1, fallback).unwrap();
            assert_eq!(state.matrix("chosen", (1, 2)).unwrap().values().as_ref(), [0.1, index as f32]);
            assert_eq!(chosen(&state).unwrap(), (0.1, fallback));
        }
        let unknown = Matrix::new(1, 2, vec![0.1, 3.0]).unwrap();
        let state = RouterState::new([("chosen".to_owned(), unknown)]);
        assert!(matches!(chosen(&state), Err(RouteError::StateFallback(3.0))));
    }
}
