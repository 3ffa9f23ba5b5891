//! Reports a merge as JSON, and as tables.

use crate::output::text_table::{magnitude, number, table};
use anyhow::Result;
use lorakit_fit::pluralize;
use lorakit_fit::{FitRecord, MergeRecord, MergedExpert};
use lorakit_model::Rounding;
use lorakit_route::Expert;
use lorakit_route::merge::{Merged, ModuleReport};
use serde::Serialize;
use std::path::Path;

/// A merge that was made.
pub struct MergeReport<'a> {
    /// The output folder.
    pub out: &'a Path,
    /// What was merged, and how.
    pub record: &'a MergeRecord,
    /// The experts, in the record's order.
    pub experts: &'a [Expert],
    /// The result.
    pub merged: &'a Merged,
    /// The rounding error of a merge into the base.
    pub rounding: Option<Rounding>,
}

/// Norm and approximation error over all modules.
struct Totals {
    norm: f64,
    retained: f64,
    error: f64,
}

impl Totals {
    /// A module's `retained` is a fraction of its squared norm, so squared norms are summed.
    fn of(merged: &Merged) -> Self {
        let (mut inside, mut outside) = (0.0, 0.0);
        for (update, ModuleReport { retained, .. }) in merged.adapter.modules().values().zip(&merged.report) {
            let squared = update.norm().powi(2);
            inside += squared;
            if *retained > 0.0 {
                outside += squared * (1.0 - retained) / retained;
            }
        }
        let all = inside + outside;
        let (retained, error) = if all > 0.0 { (inside / all, (outside / all).sqrt()) } else { (1.0, 0.0) };
        Self { norm: inside.sqrt(), retained, error }
    }
}

/// The JSON document of `merge`.
#[derive(Serialize)]
pub struct MergeDocument<'a> {
    out: &'a Path,
    kind: &'static str,
    method: &'a str,
    calibration: Option<&'a str>,
    fit: Option<&'a FitRecord>,
    experts: Vec<ExpertDocument<'a>>,
    norm: f64,
    parameters: usize,
    rank: RankRange,
    retained: f64,
    error: f64,
    /// The rounding error of a merge into the base, relative to `norm`.
    rounding: Option<f64>,
    modules: Vec<ModuleDocument<'a>>,
}

#[derive(Serialize)]
struct ExpertDocument<'a> {
    name: &'a str,
    weight: f64,
    norm: f64,
    cosine: f64,
}

#[derive(Serialize)]
struct RankRange {
    least: Option<usize>,
    most: Option<usize>,
}

#[derive(Serialize)]
struct ModuleDocument<'a> {
    module: &'a str,
    rank: usize,
    norm: f64,
    retained: f64,
    error: f64,
}

impl<'a> MergeReport<'a> {
    /// The document, with what each expert and module contributes.
    pub fn document(&self) -> Result<MergeDocument<'a>> {
        let Totals { norm, retained, error } = Totals::of(self.merged);
        let adapter = &self.merged.adapter;
        let mut experts = Vec::new();
        for (expert, MergedExpert { name, weight, .. }) in self.experts.iter().zip(&self.record.experts) {
            let (norm, cosine) = (expert.adapter.norm(), adapter.cosine(&expert.adapter)?);
            experts.push(ExpertDocument { name, weight: *weight, norm, cosine });
        }
        let mut modules = Vec::new();
        for (update, module) in adapter.modules().values().zip(&self.merged.report) {
            let (rank, norm) = (module.rank, update.norm());
            modules.push(ModuleDocument {
                module: &module.module,
                rank,
                norm,
                retained: module.retained,
                error: module.error,
            });
        }
        let ranks = self.merged.report.iter().map(|module| module.rank);
        Ok(MergeDocument {
            out: self.out,
            kind: if self.rounding.is_some() { "model" } else { "adapter" },
            method: &self.record.method,
            calibration: self.record.calibration.as_deref(),
            fit: self.record.fit.as_ref(),
            experts,
            norm,
            parameters: adapter.parameters(),
            rank: RankRange { least: ranks.clone().min(), most: ranks.max() },
            retained,
            error,
            rounding: self.rounding.map(|rounding| rounding.squared.sqrt() / norm.max(f64::MIN_POSITIVE)),
            modules,
        })
    }
}

impl MergeDocument<'_> {
    /// The report as text, with all modules if `verbose`.
    pub fn text(&self, verbose: bool) -> String {
        let float = |value: f64, digits: usize| number(Some(value), digits);
        let experts = self.experts.iter();
        let experts = experts.map(|expert| {
            vec![
                expert.name.to_owned(),
                magnitude(expert.weight, 4),
                magnitude(expert.norm, 4),
                float(expert.cosine, 4),
            ]
        });
        let mut tables = table(["expert", "weight", "norm", "cosine with merged"], experts);
        if verbose {
            let modules = self.modules.iter().map(|module| {
                let numbers = [magnitude(module.norm, 4), float(module.retained, 6), float(module.error, 6)];
                [module.module.to_owned(), module.rank.to_string()].into_iter().chain(numbers).collect()
            });
            tables = format!("{tables}\n\n{}", table(["module", "rank", "norm", "retained", "error"], modules));
        }
        let ranks = match (self.rank.least, self.rank.most) {
            (Some(least), Some(most)) if least != most => format!("ranks {least} to {most}"),
            (_, most) => format!("rank {}", most.unwrap_or_default()),
        };
        // Without truncation there is nothing to say: it would read as if the merge itself were exact.
        let kept = match self.modules.iter().any(|module| module.retained < 1.0) {
            true => format!(
                "; of the squared norm of the method's result, {:.2} % is retained at this rank, with an error of {:.4}",
                100.0 * self.retained,
                self.error
            ),
            false => String::new(),
        };
        let out = self.out.display();
        let end = match self.rounding {
            None => format!("The PEFT adapter is in {out}"),
            Some(0.0) => format!("The model is in {out}"),
            Some(lost) => {
                let percent = 100.0 * lost;
                format!(
                    "The model is in {out}; rounding to the base's data type moved the change by {percent:.2} % of its norm"
                )
            }
        };
        let method = match (self.fit, self.calibration) {
            (Some(fit), _) => format!("{}, as {}", fit.merge, self.method),
            (None, Some(calibration)) => format!("{} calibrated by {calibration}", self.method),
            (None, None) => self.method.to_owned(),
        };
        let (modules, norm) = (pluralize(self.modules.len(), "module"), magnitude(self.norm, 4));
        format!("{tables}\n\n{method}: {modules}, {ranks}, norm {norm}{kept}\n{end}")
    }
}
