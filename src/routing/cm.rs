//! The centroids of `cm`: one pass over rows of each expert's tasks, the expert at work.

use super::Rows;
use anyhow::Result;
use lorakit_model::Packed;
use lorakit_route::{Cm, Inputs, Learned, expert};

/// Tokens that one forward holds at most, unless a row alone has more.
const BATCH_TOKENS: usize = 2048;

/// The centroids, from the prompts of the rows.
pub fn learn(cm: &Cm, rows: &Rows) -> Result<Learned> {
    let (base, experts) = (rows.base(), rows.experts());
    let inputs = Inputs::new(experts, cm.pool);
    let patches = expert::by_row(experts)?.with(inputs.patches());
    let pass = |packed: &Packed| base.hidden(packed.ids(), &base.plan(packed.rows()), &patches).map(drop);
    let mut packed = Packed::default();
    for (expert, example) in rows.examples()? {
        if !packed.is_empty() && packed.ids().len() + example.prompt.len() > BATCH_TOKENS {
            pass(&std::mem::take(&mut packed))?;
        }
        packed.push(&example.prompt, &[], expert);
    }
    pass(&packed)?;
    Ok(cm.learned(experts, &inputs)?)
}
