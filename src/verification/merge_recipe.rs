//! What a merged folder should contain, by its record or as typed.

use crate::command_context::CommandContext;
use crate::selected_experts::selected_experts;
use anyhow::{Result, bail, ensure};
use lorakit_adapter::{Adapter, Library};
use lorakit_fit::{MergeRecord, pluralize, read_merge_record};
use lorakit_lora::Patches;
use lorakit_model::Base;
use lorakit_route::merge::{Coefficients, Concatenation, MergeMethod, PicoCalibration, parse_calibration, parse_merge};
use lorakit_route::{Expert, LibraryStack, Router, RouterContext, Uniform, single_expert};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Experts and weights as typed; both empty to use the folder's record.
pub struct TypedWeights<'a> {
    /// The experts' names.
    pub experts: &'a [String],
    /// A weight for each.
    pub weights: &'a [f64],
}

/// What a merged folder should contain.
pub struct MergeRecipe {
    /// The method and the experts.
    pub name: String,
    /// The merge, repeated.
    pub merged: Adapter,
    experts: Vec<Expert>,
    coefficients: Coefficients,
    merge: Arc<dyn MergeMethod>,
    calibration: Option<Arc<PicoCalibration>>,
}

impl MergeRecipe {
    /// The recipe of `folder`, repeated from the experts of `library` for `base`.
    pub fn of(
        folder: &Path,
        library: &Library,
        typed: &TypedWeights,
        base: &Base,
        context: &CommandContext,
    ) -> Result<Self> {
        let (record, experts) = match read_merge_record(folder)? {
            _ if !typed.weights.is_empty() => {
                let experts = selected_experts(library, typed.experts)?;
                ensure!(
                    experts.len() == typed.weights.len(),
                    "{} for {}: expected one each",
                    pluralize(typed.weights.len(), "weight"),
                    pluralize(experts.len(), "expert")
                );
                (MergeRecord::new(Concatenation.to_string(), library, &experts, typed.weights)?, experts)
            }
            Some(record) if typed.experts.is_empty() => {
                let experts = selected_experts(library, &record.names())?;
                (record, experts)
            }
            Some(_) => bail!("--experts needs --weights; without both, the folder's record is used"),
            None => {
                bail!("has no record of its merge; give --experts and --weights")
            }
        };
        for expert in &record.experts {
            if library.weights_sha256(&expert.name)? != expert.sha256 {
                context.output.warn(format!("expert `{}` has changed since the merge", expert.name));
            }
        }
        let coefficients = record.coefficients();
        let merge = parse_merge(&record.method)?;
        let calibration = record.calibration.as_deref().map(parse_calibration).transpose()?;
        let merged = match &calibration {
            Some(calibration) => calibration.merge(&*merge, &experts, &coefficients)?.adapter,
            None => merge.merge(&experts, &coefficients)?.adapter,
        };
        merged.check_against(&base.adaptable_modules())?;
        let name = format!("{} of {}", record.recipe(), record.names().join(", "));
        Ok(Self { name, experts, coefficients, merge, calibration, merged })
    }

    /// The unmerged side: for a plain sum, all experts with their weights, without any merge code; for any other method,
    /// the merged adapter.
    pub fn patches(&self, base: &Base) -> Result<Patches> {
        if self.calibration.is_some() || self.merge.info().name != Concatenation.info().name {
            return alone(&self.merged, base);
        }
        // Uniform routing gives each expert the weight 1/n.
        let n = self.experts.len() as f64;
        let scaled_expert = |(at, expert): (usize, &Expert)| {
            let modules = expert.adapter.modules().iter();
            let scaled: BTreeMap<_, _> = modules
                .map(|(path, update)| (path.clone(), update.scaled(n * self.coefficients.at(path)[at])))
                .collect();
            Expert::new(expert.name.clone(), Adapter::new(scaled))
        };
        let experts = self.experts.iter().enumerate().map(scaled_expert);
        let experts = LibraryStack::new(experts, &base.adaptable_sites(), base.device())?;
        Ok(Uniform::default().patches(&experts, &RouterContext::default())?)
    }
}

/// The patches of one adapter.
pub fn alone(adapter: &Adapter, base: &Base) -> Result<Patches> {
    let experts = [Expert::new("merged", adapter.clone())];
    Ok(single_expert(&LibraryStack::new(experts, &base.adaptable_sites(), base.device())?, 0)?)
}
