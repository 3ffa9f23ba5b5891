//! The fit of `evidence`: the experts' responses to prompts of their tasks, and the values of its `auto` settings, which are
//! chosen by the likelihood of the answers of validation rows that no expert was trained on.

use super::lowest_loss::of_lowest_loss;
use super::prompt_routing::BasePromptRouting;
use super::router_fit::{RouterFit, as_kind};
use super::training_rows::{BATCH_TOKENS, TrainingRow, TrainingRows, prompt_batches, tasks_and_experts};
use crate::error::{FitError, Result};
use lorakit_eval::{PatchedModel, PromptRouting, example_losses};
use lorakit_lora::{Patches, Sequence};
use lorakit_model::TokenPrecision;
use lorakit_route::prompt::evidence::leave_one_out::LeaveOneOut;
use lorakit_route::prompt::evidence::{FALLBACKS, Fallback, FallbackSetting, TEMPERATURES, Temperature};
use lorakit_route::{Evidence, ResponseProbe, Router, RouterContext, RouterState, TaskResponses};
use lorakit_task::Example;
use std::collections::BTreeMap;

/// The most experts that are left out in turn, evenly spread over the library: each takes passes over its rows.
const LEFT_OUT: usize = 32;

/// The fit of [`Evidence`].
pub struct EvidenceFit;

impl RouterFit for EvidenceFit {
    fn fit(&self, router: &dyn Router, rows: &TrainingRows) -> Option<Result<RouterState>> {
        as_kind(router).map(|evidence| fit(evidence, rows))
    }
}

/// What `auto` takes where no row is left that no expert was trained on: no answer speaks for anything.
const WITHOUT_ROWS: (f32, Fallback) = (0.1, Fallback::Base);

/// Fits the distribution of responses, and chooses the `auto` settings.
fn fit(evidence: &Evidence, rows: &TrainingRows) -> Result<RouterState> {
    let state = evidence.state(rows.experts(), &responses(evidence, rows)?)?;
    let (temperature, fallback) = match (evidence.temperature, evidence.fallback) {
        (Temperature::Fixed(temperature), FallbackSetting::Fixed(fallback)) => (temperature, fallback),
        _ => chosen(evidence, rows, &state)?,
    };
    Ok(Evidence::with_chosen(state, temperature, fallback)?)
}

/// The temperature and the fallback, of which one at least is chosen.
fn chosen(evidence: &Evidence, rows: &TrainingRows, state: &RouterState) -> Result<(f32, Fallback)> {
    let scored = rows.calibration()?;
    if scored.is_empty() {
        let (temperature, fallback) = WITHOUT_ROWS;
        let temperature = if let Temperature::Fixed(given) = evidence.temperature { given } else { temperature };
        let fallback = if let FallbackSetting::Fixed(given) = evidence.fallback { given } else { fallback };
        rows.warn(&format!(
            "evidence: no task has validation rows that no expert was trained on, by whose answers temperature and fallback \
             would be chosen; they are {}",
            evidence.fixed(temperature, fallback)
        ));
        return Ok((temperature, fallback));
    }
    let trial = Trial { rows, scored };
    let fallback = match evidence.fallback {
        FallbackSetting::Auto => trial.fallback(evidence)?,
        FallbackSetting::Fixed(given) => given,
    };
    let temperature = match evidence.temperature {
        Temperature::Auto => trial.temperature(evidence, fallback, state)?,
        Temperature::Fixed(given) => given,
    };
    rows.status(&format!("chosen on validation rows: {}", evidence.fixed(temperature, fallback)));
    Ok((temperature, fallback))
}

/// The responses of every expert to the prompts.
fn responses(evidence: &Evidence, rows: &TrainingRows) -> Result<TaskResponses> {
    let responses = ResponseProbe::new(rows.experts(), evidence.measure)?;
    let examples = rows.examples()?;
    let (tasks, experts) = tasks_and_experts(&examples)?;
    let mut prompts = TaskResponses { responses: Vec::new(), tasks, experts };
    for packed in prompt_batches(&examples) {
        let (pass, base) = (responses.start(), rows.base());
        base.hidden_states(packed.ids(), &base.plan(packed.sequences()), &pass.patches())?;
        for (at, (site, responses)) in pass.responses().into_iter().enumerate() {
            match prompts.responses.get_mut(at) {
                Some((_, before)) => before.extend(responses),
                None => prompts.responses.push((site, responses)),
            }
        }
    }
    Ok(prompts)
}

/// Rows whose answers decide between settings.
struct Trial<'a> {
    rows: &'a TrainingRows<'a>,
    scored: Vec<TrainingRow>,
}

impl Trial<'_> {
    /// The losses of `scored` under these patches.
    fn losses(&self, scored: &[Example], patches: &Patches, routing: &dyn PromptRouting) -> Result<Vec<f64>> {
        let (tokenizer, precision) = (self.rows.tokenizer(), TokenPrecision::Exact);
        let model = PatchedModel { base: self.rows.base(), tokenizer, patches, routing, precision };
        Ok(example_losses(&model, scored, BATCH_TOKENS, &mut |_| ())?)
    }

    /// The fallback of [`FALLBACKS`] under which, alone, the answers are likeliest where the rows' own expert is left out:
    /// fallbacks are for prompts that no expert fits.
    fn fallback(&self, evidence: &Evidence) -> Result<Fallback> {
        let experts = self.rows.experts();
        if experts.len() < 2 {
            return Ok(Fallback::Base);
        }
        let mut of_expert: BTreeMap<usize, Vec<Example>> = BTreeMap::new();
        for row in &self.scored {
            of_expert.entry(row.expert.ok_or(FitError::RowWithoutExpert)?).or_default().push(row.example.clone());
        }
        let without = LeaveOneOut::new(evidence, experts)?;
        let mut sums = FALLBACKS.map(|fallback| (0.0, fallback));
        for (own, scored) in of_expert.iter().step_by(of_expert.len().div_ceil(LEFT_OUT)) {
            for (sum, fallback) in &mut sums {
                let patches = without.patches(*fallback, *own)?;
                *sum += self.losses(scored, &patches, &Sequence::default())?.iter().sum::<f64>();
            }
        }
        Ok(of_lowest_loss(&sums, Fallback::Base))
    }

    /// The temperature under which the answers are likeliest.
    fn temperature(&self, evidence: &Evidence, fallback: Fallback, state: &RouterState) -> Result<f32> {
        let (experts, base) = (self.rows.experts(), self.rows.base());
        let fixed = |temperature| evidence.fixed(temperature, fallback);
        // The patches read the weights of their rows, and are the same for all temperatures.
        let patches = fixed(TEMPERATURES[0]).patches(experts, &RouterContext::default())?;
        let scored: Vec<Example> = self.scored.iter().map(|row| row.example.clone()).collect();
        let mut tried = Vec::new();
        for temperature in TEMPERATURES {
            let setting = RouterContext { state: Some(state), ..RouterContext::default() };
            let Some(router) = fixed(temperature).prompt_router(experts, &setting)? else { continue };
            let losses = self.losses(&scored, &patches, &BasePromptRouting { base, router })?;
            tried.push((losses.iter().sum::<f64>(), temperature));
        }
        Ok(of_lowest_loss(&tried, TEMPERATURES[0]))
    }
}
