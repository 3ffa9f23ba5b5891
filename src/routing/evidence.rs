//! What is usual, for `evidence`: the experts' responses to prompts of their tasks, as the base reads them; and what its `auto`
//! settings take, by the likelihood of some of the same rows' answers.

use super::Rows;
use super::by_prompt::ByPrompt;
use anyhow::{Context as _, Result};
use lorakit_eval::{PatchedModel, PromptRouting, example_losses};
use lorakit_lora::{Patches, Row};
use lorakit_route::evidence::{OTHERWISE, Otherwise, TEMPERATURES, Temperature};
use lorakit_route::{Evidence, Learned, Responses, TaskResponses, Uniform};
use lorakit_task::Example;

/// Tokens that one forward holds at most, unless a row alone has more.
const BATCH_TOKENS: usize = 2048;

/// What the prompts say is usual, and what is chosen by the answers.
pub fn learn(evidence: &Evidence, rows: &Rows) -> Result<Learned> {
    let prompts = responses(evidence, rows)?;
    // What is chosen must serve prompts that were not seen: one part is judged by what the others say.
    let judged = 0;
    let examples = rows.examples()?.into_iter().zip(prompts.folds());
    let scored: Vec<Example> = examples.filter(|(_, fold)| *fold == judged).map(|(row, _)| row.example).collect();
    let trial = Trial { rows, scored };
    let otherwise = match evidence.otherwise {
        Otherwise::Auto => trial.otherwise(evidence)?,
        given => given,
    };
    let temperature = match evidence.temperature {
        Temperature::Auto => {
            trial.temperature(evidence, otherwise, &evidence.learned(rows.experts(), &prompts.without(judged))?)?
        }
        Temperature::Fixed(given) => given,
    };
    let learned = evidence.learned(rows.experts(), &prompts)?;
    Ok(Evidence::with_chosen(learned, temperature, otherwise)?)
}

/// What every expert responds to the prompts.
fn responses(evidence: &Evidence, rows: &Rows) -> Result<TaskResponses> {
    let responses = Responses::new(rows.experts(), evidence.measure)?;
    let mut prompts = TaskResponses::default();
    for row in rows.examples()? {
        prompts.experts.resize(row.task + 1, row.expert.context("a row has no expert")?);
        prompts.tasks.push(row.task);
    }
    for packed in rows.prompts()? {
        let (watch, base) = (responses.watch(), rows.base());
        base.hidden(packed.ids(), &base.plan(packed.rows()), &watch.patches())?;
        for (at, (site, responses)) in watch.responses().into_iter().enumerate() {
            match prompts.responses.get_mut(at) {
                Some((_, before)) => before.extend(responses),
                None => prompts.responses.push((site, responses)),
            }
        }
    }
    Ok(prompts)
}

/// Rows whose answers judge settings.
struct Trial<'a> {
    rows: &'a Rows<'a>,
    scored: Vec<Example>,
}

impl Trial<'_> {
    /// The mean loss of the rows under patches.
    fn loss(&self, patches: &Patches, routing: &dyn PromptRouting) -> Result<f64> {
        let vocabulary = self.rows.vocabulary()?;
        let model = PatchedModel { base: self.rows.base(), vocabulary: &vocabulary, patches, routing };
        let losses = example_losses(&model, &self.scored, BATCH_TOKENS, &mut |_| ())?;
        Ok(losses.iter().sum::<f64>() / losses.len() as f64)
    }

    /// What of [`OTHERWISE`] makes the answers likeliest, alone.
    fn otherwise(&self, evidence: &Evidence) -> Result<Otherwise> {
        let experts = self.rows.experts();
        let mut tried = Vec::new();
        for otherwise in OTHERWISE {
            let patches = match otherwise {
                Otherwise::Auto | Otherwise::Base => Patches::none(),
                Otherwise::Uniform => Uniform { mixing: evidence.mixing }.patches(experts)?,
                Otherwise::Arrow => evidence.arrow().patches(experts, None)?,
            };
            tried.push((self.loss(&patches, &Row::default())?, otherwise));
        }
        let best = tried.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).context("nothing to try")?;
        Ok(best.1)
    }

    /// The temperature under which the answers are likeliest.
    fn temperature(&self, evidence: &Evidence, otherwise: Otherwise, learned: &Learned) -> Result<f32> {
        let (experts, base) = (self.rows.experts(), self.rows.base());
        let fixed = |temperature| evidence.fixed(temperature, otherwise);
        // Patches read the weights that a temperature makes, and are themselves the same for all.
        let patches = fixed(TEMPERATURES[0]).patches(experts, None, None)?;
        let mut tried = Vec::new();
        for temperature in TEMPERATURES {
            let rule = fixed(temperature).rule(experts, learned)?;
            tried.push((self.loss(&patches, &ByPrompt { base, rule })?, temperature));
        }
        let best = tried.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).context("no temperature to try")?;
        Ok(best.1)
    }
}
