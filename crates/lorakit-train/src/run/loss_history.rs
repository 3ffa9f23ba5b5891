//! The losses in an expert's record.

use crate::run::expert_progress::ExpertProgress;
use lorakit_adapter::ExpertRecord;
use serde::{Deserialize, Serialize};

/// `losses` of a trained expert's record. In f64, since JSON of f32 values has other digits; JSON has null for NaN.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LossHistory {
    /// The loss of every step.
    pub train: Vec<Option<f64>>,
    /// The gradient norm of every step, before clipping.
    pub grad_norm: Vec<Option<f64>>,
    /// Steps and their validation losses.
    pub validation: Vec<(usize, Option<f64>)>,
    /// The step with the lowest validation loss, and that loss.
    pub best: Option<(usize, Option<f64>)>,
}

impl LossHistory {
    /// The history in a record; `None` if the record has no losses.
    pub fn of(record: &ExpertRecord) -> Option<Self> {
        record.losses.read().ok()
    }

    /// The step with the lowest validation loss in a record, and that loss.
    pub fn best_of(record: &ExpertRecord) -> Option<(usize, f64)> {
        record.losses.field("best").ok().flatten()
    }
}

impl From<&ExpertProgress> for LossHistory {
    fn from(progress: &ExpertProgress) -> Self {
        let wide = |values: &[f32]| values.iter().map(|&value| Some(f64::from(value))).collect();
        let at_step = |&(step, loss): &(usize, f32)| (step, Some(f64::from(loss)));
        Self {
            train: wide(&progress.losses),
            grad_norm: wide(&progress.norms),
            validation: progress.validation.iter().map(at_step).collect(),
            best: progress.best.as_ref().map(at_step),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_record_s_text_is_fixed() {
        let progress = ExpertProgress {
            losses: vec![0.1, 2.0],
            norms: vec![0.25, f32::NAN],
            validation: vec![(2, 0.3)],
            ..ExpertProgress::default()
        };
        let text = serde_json::to_value(LossHistory::from(&progress)).unwrap().to_string();
        let expected = r#"{"train":[0.10000000149011612,2.0],"grad_norm":[0.25,null],"validation":[[2,0.30000001192092896]],"best":null}"#;
        assert_eq!(text, expected);
    }
}
