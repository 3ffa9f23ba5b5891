//! What is usual, for `evidence`: the experts' responses to a mix of prompts as the base reads them.

use super::Rows;
use anyhow::Result;
use lorakit_route::{Evidence, Learned, Responses};

/// Means and deviations of the responses to the prompts.
pub fn learn(evidence: &Evidence, rows: &Rows) -> Result<Learned> {
    let responses = Responses::new(rows.experts(), evidence.measure)?;
    let mut seen: Vec<(usize, Vec<f32>)> = Vec::new();
    for packed in rows.prompts()? {
        let (watch, base) = (responses.watch(), rows.base());
        base.hidden(packed.ids(), &base.plan(packed.rows()), &watch.patches())?;
        for (at, (site, responses)) in watch.responses().into_iter().enumerate() {
            match seen.get_mut(at) {
                Some((_, before)) => before.extend(responses),
                None => seen.push((site, responses)),
            }
        }
    }
    Ok(evidence.learned(rows.experts(), &seen)?)
}
