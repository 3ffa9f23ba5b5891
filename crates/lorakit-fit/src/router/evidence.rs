//! The fit of `evidence`: the experts' responses to prompts of their tasks, and the values of its `auto` settings, which are
//! chosen by the likelihood of the answers of some of these rows.

use super::lowest_loss::of_lowest_loss;
use super::prompt_routing::BasePromptRouting;
use super::router_fit::{RouterFit, as_kind};
use super::training_rows::TrainingRows;
use crate::error::{FitError, Result};
use lorakit_eval::{PatchedModel, PromptRouting, example_losses};
use lorakit_lora::{Patches, Sequence};
use lorakit_route::prompt::evidence::{FALLBACKS, Fallback, TEMPERATURES, Temperature};
use lorakit_route::{Evidence, ResponseProbe, Router, RouterContext, RouterState, TaskResponses, Uniform};
use lorakit_task::Example;

/// Tokens of a forward pass at most, unless a single row has more.
const BATCH_TOKENS: usize = 2048;

/// The fit of [`Evidence`].
pub struct EvidenceFit;

impl RouterFit for EvidenceFit {
    fn fit(&self, router: &dyn Router, rows: &TrainingRows) -> Option<Result<RouterState>> {
        as_kind(router).map(|evidence| fit(evidence, rows))
    }
}

/// Fits the distribution of responses, and chooses the `auto` settings.
fn fit(evidence: &Evidence, rows: &TrainingRows) -> Result<RouterState> {
    let prompts = responses(evidence, rows)?;
    // The settings must suit unseen prompts: one fold is scored by what is fitted to the others.
    let held_out = 0;
    let examples = rows.examples()?.into_iter().zip(prompts.folds());
    let scored: Vec<Example> = examples.filter(|(_, fold)| *fold == held_out).map(|(row, _)| row.example).collect();
    let trial = Trial { rows, scored };
    let fallback = match evidence.otherwise {
        Fallback::Auto => trial.fallback(evidence)?,
        given => given,
    };
    let temperature = match evidence.temperature {
        Temperature::Auto => {
            trial.temperature(evidence, fallback, &evidence.state(rows.experts(), &prompts.without(held_out))?)?
        }
        Temperature::Fixed(given) => given,
    };
    let state = evidence.state(rows.experts(), &prompts)?;
    Ok(Evidence::with_chosen(state, temperature, fallback)?)
}

/// The responses of every expert to the prompts.
fn responses(evidence: &Evidence, rows: &TrainingRows) -> Result<TaskResponses> {
    let responses = ResponseProbe::new(rows.experts(), evidence.measure)?;
    let mut prompts = TaskResponses::default();
    for row in rows.examples()? {
        prompts.experts.resize(row.task + 1, row.expert.ok_or(FitError::RowWithoutExpert)?);
        prompts.tasks.push(row.task);
    }
    for packed in rows.prompts()? {
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
    scored: Vec<Example>,
}

impl Trial<'_> {
    /// The mean loss of the rows under these patches.
    fn loss(&self, patches: &Patches, routing: &dyn PromptRouting) -> Result<f64> {
        let tokenizer = self.rows.tokenizer()?;
        let model = PatchedModel { base: self.rows.base(), tokenizer: &tokenizer, patches, routing };
        let losses = example_losses(&model, &self.scored, BATCH_TOKENS, &mut |_| ())?;
        Ok(losses.iter().sum::<f64>() / losses.len() as f64)
    }

    /// The fallback of [`FALLBACKS`] under which, alone, the answers are likeliest.
    fn fallback(&self, evidence: &Evidence) -> Result<Fallback> {
        let experts = self.rows.experts();
        let mut tried = Vec::new();
        for fallback in FALLBACKS {
            let patches = match fallback {
                Fallback::Auto | Fallback::Base => Patches::none(),
                Fallback::Uniform => {
                    let uniform = Uniform { mixing: evidence.mixing, ..Uniform::default() };
                    uniform.patches(experts, &RouterContext::default())?
                }
                Fallback::Arrow => evidence.arrow().patches(experts, &RouterContext::default())?,
            };
            tried.push((self.loss(&patches, &Sequence::default())?, fallback));
        }
        Ok(of_lowest_loss(&tried, Fallback::Base))
    }

    /// The temperature under which the answers are likeliest.
    fn temperature(&self, evidence: &Evidence, fallback: Fallback, state: &RouterState) -> Result<f32> {
        let (experts, base) = (self.rows.experts(), self.rows.base());
        let fixed = |temperature| evidence.fixed(temperature, fallback);
        // The patches read the weights of their rows, and are the same for all temperatures.
        let patches = fixed(TEMPERATURES[0]).patches(experts, &RouterContext::default())?;
        let mut tried = Vec::new();
        for temperature in TEMPERATURES {
            let setting = RouterContext { state: Some(state), ..RouterContext::default() };
            let Some(router) = fixed(temperature).prompt_router(experts, &setting)? else { continue };
            tried.push((self.loss(&patches, &BasePromptRouting { base, router })?, temperature));
        }
        Ok(of_lowest_loss(&tried, TEMPERATURES[0]))
    }
}
