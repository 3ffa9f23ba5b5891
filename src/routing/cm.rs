//! The centroids of `cm`: one pass over rows of each expert's tasks, the expert at work.

use super::Rows;
use anyhow::Result;
use lorakit_route::{Cm, Inputs, Learned, expert};

/// The centroids, from the prompts of the rows.
pub fn learn(cm: &Cm, rows: &Rows) -> Result<Learned> {
    let (base, experts) = (rows.base(), rows.experts());
    let inputs = Inputs::new(experts, cm.pool);
    let patches = expert::by_row(experts)?.with(inputs.patches());
    for packed in rows.prompts()? {
        base.hidden(packed.ids(), &base.plan(packed.rows()), &patches)?;
    }
    Ok(cm.learned(experts, &inputs)?)
}
