//! The fit of `retrieve`: mean hidden states of the base over the prompts of each task.

use super::router_fit::{RouterFit, as_kind};
use super::training_rows::{TrainingRows, prompt_batches, tasks_and_experts};
use crate::error::Result;
use lorakit_route::prompt::task_predictor::mean_hidden;
use lorakit_route::{Retrieve, Router, RouterState};

/// The fit of [`Retrieve`].
pub struct RetrieveFit;

impl RouterFit for RetrieveFit {
    fn fit(&self, router: &dyn Router, rows: &TrainingRows) -> Option<Result<RouterState>> {
        as_kind(router).map(|_: &Retrieve| fit(rows))
    }
}

/// Embeds the prompts, in the order of the rows.
fn fit(rows: &TrainingRows) -> Result<RouterState> {
    let examples = rows.examples()?;
    let (tasks, experts_of_tasks) = tasks_and_experts(&examples)?;
    let (base, mut embeddings) = (rows.base(), Vec::with_capacity(tasks.len()));
    for packed in prompt_batches(&examples) {
        let hidden = base.hidden_states(packed.ids(), &base.plan(packed.sequences()), &Default::default())?;
        let of_batch = mean_hidden(&packed.sequences(), &hidden)?;
        embeddings.extend(of_batch.chunks_exact(hidden.dim(1)?).map(<[f32]>::to_vec));
    }
    Ok(Retrieve::state(rows.experts(), &embeddings, &tasks, &experts_of_tasks)?)
}
