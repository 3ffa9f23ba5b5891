//! The fit of `cm`: a forward pass over rows of each expert's tasks, with that expert applied.

use super::router_fit::{RouterFit, as_kind};
use super::training_rows::{TrainingRows, prompt_batches};
use crate::error::Result;
use lorakit_route::{Centroid, InputMeans, Router, RouterState, expert_per_row};

/// The fit of [`Centroid`].
pub struct CentroidFit;

impl RouterFit for CentroidFit {
    fn fit(&self, router: &dyn Router, rows: &TrainingRows) -> Option<Result<RouterState>> {
        as_kind(router).map(|centroid| fit(centroid, rows))
    }
}

/// Averages the inputs of each site over the prompts of each expert's rows.
fn fit(cm: &Centroid, rows: &TrainingRows) -> Result<RouterState> {
    let (base, experts) = (rows.base(), rows.experts());
    let inputs = InputMeans::new(experts, cm.pool);
    let patches = expert_per_row(experts)?.with(inputs.patches());
    for packed in prompt_batches(&rows.examples()?) {
        base.hidden_states(packed.ids(), &base.plan(packed.sequences()), &patches)?;
    }
    Ok(cm.state(experts, &inputs)?)
}
