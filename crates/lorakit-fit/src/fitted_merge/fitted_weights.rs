//! Weights of a library's experts that were fitted to rows.

use lorakit_adapter::Matrix;
use lorakit_route::{HeldOutLosses, LibraryStack};
use serde_json::{Value, json};

/// Fitted weights, and what is known of them.
#[derive(Clone, Debug)]
pub struct FittedWeights {
    /// `[groups, experts]`, as [`lorakit_route::FittedMerge::merge`] and the router of that name read them.
    pub weights: Matrix,
    /// The name of each row of the weights.
    pub groups: Vec<String>,
    /// The losses of rows that were held out of the fit.
    pub held_out: Option<HeldOutLosses>,
    /// How often the rows were evaluated, or the step after which the weights were best.
    pub effort: usize,
}

impl FittedWeights {
    /// Weights and losses, as records and `--json` have them.
    pub fn document(&self, experts: &LibraryStack) -> Value {
        let row = |weights: &[f32]| -> Value {
            experts.names().iter().zip(weights).map(|(name, weight)| (name.clone(), json!(weight))).collect()
        };
        let values = self.weights.values();
        let groups: serde_json::Map<String, Value> =
            self.groups.iter().cloned().zip(values.chunks(experts.len()).map(row)).collect();
        let held_out = self.held_out.map(|h| json!({ "base": h.base, "fitted": h.fitted, "stderr": h.stderr }));
        json!({ "weights": groups, "held_out_loss": held_out, "effort": self.effort })
    }

    /// The largest weights and the losses in one line.
    pub fn summary(&self, experts: &LibraryStack) -> String {
        let values = self.weights.values();
        let mean = |expert: usize| {
            values.iter().skip(expert).step_by(experts.len()).sum::<f32>() / self.groups.len().max(1) as f32
        };
        let mut used: Vec<(f32, &String)> =
            experts.names().iter().enumerate().map(|(e, name)| (mean(e), name)).filter(|(w, _)| *w != 0.0).collect();
        used.sort_by(|a, b| b.0.abs().total_cmp(&a.0.abs()));
        let shown: Vec<String> = used.iter().take(4).map(|(weight, name)| format!("{weight:.2} {name}")).collect();
        let more =
            if used.len() > shown.len() { format!(" and {} more", used.len() - shown.len()) } else { String::new() };
        let weights = if shown.is_empty() { "no expert".to_owned() } else { format!("{}{more}", shown.join(" + ")) };
        match self.held_out {
            Some(HeldOutLosses { base, fitted, stderr }) => {
                let error = stderr.map_or_else(String::new, |error| format!(" (±{error:.3})"));
                format!("{weights}; loss of held-out rows {fitted:.3}, with the base alone {base:.3}{error}")
            }
            None => format!("{weights}; no rows were held out"),
        }
    }
}
