//! Weights of a library's experts, fitted to rows: the one place where LoraHub and CAT meet a model.

use anyhow::{Context as _, Result, ensure};
use candle_core::Tensor;
use lorakit_adapter::Matrix;
use lorakit_lora::{Patches, Row};
use lorakit_model::{Base, Packed};
use lorakit_route::cat::Per;
use lorakit_route::{Cat, Composition, Experts, Gates, HeldOut, LoraHub, RowLoss, RowLosses, by_row_weights};
use lorakit_task::{Example, Split, Task, Tokenizer};
use lorakit_train::batch_indices;
use lorakit_train::{
    FitRow, Gradients, LrSchedule, ParameterGroup, TokenLoss, TrainConfig, example_losses, minimize, split_by_tokens,
};
use serde_json::{Value, json};
use std::sync::Arc;

/// What weights are fitted over.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// The base.
    pub base: &'a Base,
    /// The experts to be weighed.
    pub experts: &'a Experts,
    /// The seed of the order of rows.
    pub seed: u64,
}

/// Weights with what is known of them.
pub struct Fitted {
    /// `[groups, experts]`, as [`Composition::merge`] and the router of that name read them.
    pub weights: Matrix,
    /// What each row of the weights is of.
    pub groups: Vec<String>,
    /// What rows say that were left out of the fit.
    pub held_out: Option<HeldOut>,
    /// How often the rows were evaluated, or the steps that were taken until the weights were best.
    pub effort: usize,
}

/// Rows that CAT leaves out of its fit: one of so many.
const LEFT_OUT: usize = 5;
/// Rows of a step of CAT.
const BATCH: usize = 16;
/// How often CAT looks at the rows that it left out.
const CHECKS: usize = 10;

/// The rows that weights are fitted to: the first of each task's train split, as many as the composition takes.
///
/// # Errors
/// Where a task has no such rows, or one cannot be tokenised.
pub fn rows(composition: &Composition, tasks: &[Task], base: &Base, vocabulary: &Tokenizer) -> Result<Vec<Example>> {
    let mut examples = Vec::new();
    for task in tasks {
        for row in task.rows(Split::Train, Some(composition.rows()))? {
            let example = Example::encode(row, vocabulary, base.config().max_positions);
            examples.push(example.with_context(|| format!("task `{}` ({})", task.name, task.path.display()))?);
        }
    }
    Ok(examples)
}

/// Fits weights to the rows; the same rows in the same order give the same weights.
///
/// # Errors
/// Where there is no row, the experts cannot be mixed so, or a loss is no number.
pub fn fit_weights(composition: &Composition, ground: Ground, rows: &[Example]) -> Result<Fitted> {
    ensure!(!rows.is_empty(), "there are no rows to fit weights to");
    composition.check(ground.experts)?;
    match composition {
        Composition::LoraHub(hub) => lorahub(hub, ground, rows),
        Composition::Cat(cat) => self::cat(cat, ground, rows),
    }
}

impl Fitted {
    /// What is known of the weights, for records and `--json`.
    pub fn document(&self, experts: &Experts) -> Value {
        let row = |weights: &[f32]| -> Value {
            experts.names().iter().zip(weights).map(|(name, weight)| (name.clone(), json!(weight))).collect()
        };
        let values = self.weights.values();
        let groups: serde_json::Map<String, Value> =
            self.groups.iter().cloned().zip(values.chunks(experts.len()).map(row)).collect();
        let held_out = self.held_out.map(|h| json!({ "base": h.base, "fitted": h.fitted, "stderr": h.stderr }));
        json!({ "weights": groups, "held_out_loss": held_out, "effort": self.effort })
    }

    /// The same for a line of text.
    pub fn told(&self, experts: &Experts) -> String {
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
            Some(HeldOut { base, fitted, stderr }) => {
                format!("{weights}; loss of left-out rows {fitted:.3}, of the base {base:.3} (±{stderr:.3})")
            }
            None => format!("{weights}; no rows were left out to check this by"),
        }
    }
}

fn lorahub(hub: &LoraHub, ground: Ground, rows: &[Example]) -> Result<Fitted> {
    let patches = by_row_weights(ground.experts, hub.mixing())?;
    let loss = TokenLoss::new(ground.base, &TrainConfig::default());
    let found = hub.find(ground.experts, &mut Losses { ground, rows, patches, loss })?;
    let weights: Vec<f32> = found.weights.iter().map(|weight| *weight as f32).collect();
    Ok(Fitted {
        weights: Matrix::new(1, weights.len(), weights)?,
        groups: vec!["all layers".to_owned()],
        held_out: found.held_out,
        effort: found.evaluations,
    })
}

/// The rows under the base, with a weight per expert.
struct Losses<'a> {
    ground: Ground<'a>,
    rows: &'a [Example],
    patches: Patches,
    loss: TokenLoss<'a>,
}

impl RowLosses for Losses<'_> {
    /// Every candidate with every row, as many at a time as make a batch.
    fn losses(&mut self, candidates: &[Vec<f64>]) -> Result<Vec<Vec<RowLoss>>> {
        let weights: Vec<Arc<[f32]>> =
            candidates.iter().map(|candidate| candidate.iter().map(|weight| *weight as f32).collect()).collect();
        let n = self.rows.len();
        let pairs: Vec<(&Arc<[f32]>, &Example)> =
            weights.iter().flat_map(|weights| self.rows.iter().map(move |row| (weights, row))).collect();
        let mut losses = vec![RowLoss { sum: 0.0, tokens: 0 }; pairs.len()];
        let lengths = pairs.iter().map(|(_, row)| row.prompt.len() + row.target.len());
        for range in split_by_tokens(lengths, self.loss.batch_tokens) {
            let mut packed = Packed::default();
            pairs[range.clone()].iter().for_each(|(_, row)| packed.push(&row.prompt, &row.target, None));
            let mut of = pairs[range.clone()].iter().map(|(weights, _)| (*weights).clone());
            packed.for_each_row(|row: &mut Row| row.weights = of.next());
            let nll: Vec<f32> = self.ground.base.nll_by_token(&packed, &self.patches)?.to_vec1()?;
            for (target, loss) in packed.targets().iter().zip(nll) {
                let row = &mut losses[range.start + target.row as usize];
                row.sum += f64::from(loss);
                row.tokens += 1;
            }
        }
        Ok(losses.chunks(n).map(<[RowLoss]>::to_vec).collect())
    }

    fn slopes(&mut self, at: &[f64]) -> Result<Vec<Vec<f64>>> {
        let gates = Cat { per: Per::Expert, ..Cat::default() }.gates(self.ground.experts)?;
        let (_, weights) = gates.variables().into_iter().next().context("gates have variables")?;
        let at: Vec<f32> = at.iter().map(|weight| *weight as f32).collect();
        weights.set(&Tensor::from_vec(at, weights.shape(), weights.device())?)?;
        let slopes = |row: &Example| {
            let mut gradients = Gradients::default();
            let variables = std::slice::from_ref(&weights);
            self.loss.gradients(&[(None, row)], |_| Ok(gates.patches()?), variables, &mut gradients)?;
            let gradient = gradients.of(&weights)?.context("no gradient reached the weights")?;
            Ok(gradient.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
        };
        self.rows.iter().map(slopes).collect()
    }
}

fn cat(cat: &Cat, ground: Ground, rows: &[Example]) -> Result<Fitted> {
    let gates = cat.gates(ground.experts)?;
    let (mut left_out, mut fitted) = (Vec::new(), Vec::new());
    for (index, row) in rows.iter().enumerate() {
        if index % LEFT_OUT == LEFT_OUT - 1 { left_out.push(row) } else { fitted.push(row) }
    }
    let mut check = Check::new(ground, &gates, left_out)?;
    if cat.steps > 0 {
        steps(cat, ground, &gates, &fitted, &mut check)?;
    }
    check.set_best(&gates)?;
    Ok(Fitted {
        weights: gates.values()?,
        groups: cat.groups(ground.experts),
        held_out: check.held_out(),
        effort: check.best_step,
    })
}

fn steps(cat: &Cat, ground: Ground, gates: &Gates, rows: &[&Example], check: &mut Check) -> Result<()> {
    let settings = TrainConfig { learning_rate: cat.learning_rate, max_grad_norm: 0.0, ..TrainConfig::default() };
    let schedule = LrSchedule::new(settings.lr_scheduler, settings.warmup_ratio, cat.steps);
    let loss = TokenLoss::new(ground.base, &settings);
    let every = cat.steps.div_ceil(CHECKS);
    minimize(vec![ParameterGroup::new(gates.variables(), &settings)], schedule, |step, variables, gradients| {
        if step > 0 && step.is_multiple_of(every) {
            check.look(step, gates)?;
        }
        let own = batch_indices(ground.seed, "cat", rows.len(), BATCH, step);
        let own: Vec<FitRow> = own.into_iter().map(|row| (None, rows[row])).collect();
        loss.gradients(&own, |_| Ok(gates.patches()?), variables, gradients)
    })?;
    check.look(cat.steps, gates)
}

/// The rows that were left out, and the variables that did best on them: the best of a few looks, so that what they say
/// is a little too kind.
struct Check<'a> {
    ground: Ground<'a>,
    rows: Vec<&'a Example>,
    /// With no expert.
    base: Vec<f64>,
    best: Vec<f64>,
    best_step: usize,
    values: Vec<Tensor>,
}

impl<'a> Check<'a> {
    fn new(ground: Ground<'a>, gates: &Gates, rows: Vec<&'a Example>) -> Result<Self> {
        let mut check = Self { ground, rows, base: Vec::new(), best: Vec::new(), best_step: 0, values: Vec::new() };
        check.base = check.losses(&Patches::none())?;
        check.look(0, gates)?;
        Ok(check)
    }

    fn losses(&self, patches: &Patches) -> Result<Vec<f64>> {
        let rows: Vec<(usize, &Example)> = self.rows.iter().map(|row| (0, *row)).collect();
        let batch_tokens = TokenLoss::new(self.ground.base, &TrainConfig::default()).batch_tokens;
        example_losses(self.ground.base, patches, &rows, batch_tokens)
    }

    /// Remembers the variables where they are better than before, or where no rows can tell.
    fn look(&mut self, step: usize, gates: &Gates) -> Result<()> {
        let losses = self.losses(&gates.patches()?)?;
        let sum = |losses: &[f64]| losses.iter().sum::<f64>();
        ensure!(sum(&losses).is_finite(), "after step {step} the loss of left-out rows was no number");
        if self.values.is_empty() || self.rows.is_empty() || sum(&losses) < sum(&self.best) {
            let copies = gates.variables().iter().map(|(_, variable)| variable.copy()).collect::<Result<_, _>>()?;
            (self.best, self.best_step, self.values) = (losses, step, copies);
        }
        Ok(())
    }

    fn set_best(&self, gates: &Gates) -> Result<()> {
        gates.variables().iter().zip(&self.values).try_for_each(|((_, variable), value)| Ok(variable.set(value)?))
    }

    fn held_out(&self) -> Option<HeldOut> {
        (!self.rows.is_empty()).then(|| HeldOut::of(&self.base, &self.best))
    }
}
