//! The losses in an expert's record.

use crate::run::expert_progress::ExpertProgress;
use serde::Serialize;

/// `losses` of expert.json. In f64, since JSON of f32 values has other digits.
#[derive(Serialize)]
pub(crate) struct LossHistory {
    train: Vec<f64>,
    grad_norm: Vec<f64>,
    validation: Vec<(usize, f64)>,
    best: Option<(usize, f64)>,
}

impl From<&ExpertProgress> for LossHistory {
    fn from(progress: &ExpertProgress) -> Self {
        let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect();
        let at_step = |&(step, loss): &(usize, f32)| (step, f64::from(loss));
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
