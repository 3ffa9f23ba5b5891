//! A pass: several experts trained together over one base, each with its own rows, schedule, clipping and moments.

use crate::backward::example_losses::{example_losses, split_by_tokens};
use crate::backward::layerwise::{Activations, Gradients, LossBatch, accumulate};
use crate::divergence::DivergenceMonitor;
use crate::job::Job;
use crate::optim::lr_schedule::LrSchedule;
use crate::optim::parameter::{AdamWUpdate, Parameter};
use crate::run::expert_progress::ExpertProgress;
use crate::train_config::{LossReduction, TrainConfig};
use crate::trainable::dropout::Dropout;
use crate::trainable::lora_stack::LoraStack;
use crate::trainable::skill_stack::{RowTasks, SkillStack};
use crate::trainable::trainable_set::TrainableSet;
use anyhow::{Context, Result, bail, ensure};
use candle_core::Var;
use lorakit_adapter::Adapter;
use lorakit_model::{Base, Packed};
use std::ops::Range;
use std::sync::Arc;

/// The experts of a pass in the midst of their training.
pub struct Pass<'a> {
    base: &'a Base,
    jobs: &'a [Job],
    settings: &'a TrainConfig,
    seed: u64,
    /// Tokens that are packed into one forward at most.
    batch_tokens: usize,
    trained: TrainableSet,
    parameters: Vec<Parameter>,
    variables: Vec<Var>,
    step: usize,
    progress: Vec<ExpertProgress>,
    best: Vec<Option<Vec<Vec<f32>>>>,
}

/// What one step of a pass did.
pub struct StepOutput {
    /// Number of steps done.
    pub step: usize,
    /// Each expert's training loss, where it was trained in this step.
    pub losses: Vec<Option<f32>>,
    /// Experts that were validated, with their losses.
    pub validated: Vec<(usize, f32)>,
    /// Experts that ended with this step, by their end or by a failure.
    pub ended: Vec<usize>,
    /// Tokens that were read for training.
    pub tokens: usize,
}

/// A row's share in its expert's update.
struct BatchRow<'a> {
    expert: usize,
    /// Its index among the expert's training rows.
    number: usize,
    row: &'a lorakit_task::Example,
    key: [u8; 32],
}

/// What came of one batch of an update's rows.
struct BatchOutput {
    gradients: Gradients,
    /// The share of each row in its expert's loss.
    row_sums: Vec<f64>,
    /// Tokens that were read.
    tokens: usize,
}

/// The losses of an update: of each row, its share in its expert's, and of each expert their sum.
struct UpdateLosses {
    rows: Vec<f64>,
    experts: Vec<f64>,
}

impl<'a> Pass<'a> {
    /// Experts that all start at step zero.
    pub fn new(
        base: &'a Base,
        jobs: &'a [Job],
        settings: &'a TrainConfig,
        seed: u64,
        batch_tokens: usize,
    ) -> Result<Self> {
        ensure!(
            base.variables().is_empty(),
            "the base was opened to be trained; adapters are trained over a frozen one"
        );
        let starts: Vec<Option<Adapter>> =
            jobs.iter().map(|job| job.start.as_ref().map(|start| start.adapter.clone())).collect();
        let stack = LoraStack::new(base.sites(), base.device(), &starts, settings, seed)?;
        let parameters = stack.parameters()?;
        Ok(Self::of(base, jobs, settings, seed, batch_tokens, TrainableSet::Adapters(stack), parameters))
    }

    /// The same fit with all weights of a base that was opened to be trained (the paper's FullFT).
    pub fn full(
        base: &'a Base,
        job: &'a Job,
        settings: &'a TrainConfig,
        seed: u64,
        batch_tokens: usize,
    ) -> Result<Self> {
        ensure!(!base.variables().is_empty(), "the base was not opened to be trained");
        let mut parameters = Vec::new();
        for (name, variable) in base.variables() {
            parameters.push(Parameter::new(name.clone(), variable.clone(), vec![(0, 0..variable.dim(0)?)])?);
        }
        let weights = base.variables().iter().map(|(_, v)| v.clone()).collect();
        Ok(Self::of(
            base,
            std::slice::from_ref(job),
            settings,
            seed,
            batch_tokens,
            TrainableSet::Weights(weights),
            parameters,
        ))
    }

    /// Skills and their routing, trained together by one job whose rows are of several tasks; `of` says of which.
    pub fn skills(
        base: &'a Base,
        job: &'a Job,
        stack: SkillStack,
        of: RowTasks,
        settings: &'a TrainConfig,
        seed: u64,
        batch_tokens: usize,
    ) -> Result<Self> {
        ensure!(
            of.train.len() == job.train.len() && of.validation.len() == job.validation.len(),
            "tasks of {} and {} rows for {} and {} rows",
            of.train.len(),
            of.validation.len(),
            job.train.len(),
            job.validation.len()
        );
        let parameters = stack.parameters(settings)?;
        let trained = TrainableSet::Skills(stack, of);
        Ok(Self::of(base, std::slice::from_ref(job), settings, seed, batch_tokens, trained, parameters))
    }

    fn of(
        base: &'a Base,
        jobs: &'a [Job],
        settings: &'a TrainConfig,
        seed: u64,
        batch_tokens: usize,
        trained: TrainableSet,
        parameters: Vec<Parameter>,
    ) -> Self {
        Self {
            base,
            jobs,
            settings,
            seed,
            batch_tokens,
            trained,
            variables: parameters.iter().map(|p| p.variable().clone()).collect(),
            parameters,
            step: 0,
            progress: vec![ExpertProgress::default(); jobs.len()],
            best: vec![None; jobs.len()],
        }
    }

    /// What is trained.
    pub fn jobs(&self) -> &[Job] {
        self.jobs
    }

    /// Steps done.
    pub fn step_number(&self) -> usize {
        self.step
    }

    /// Steps until every expert has ended.
    pub fn steps(&self) -> usize {
        self.jobs.iter().map(|job| job.steps(self.settings)).max().unwrap_or(0)
    }

    /// Whether an expert is neither at its end nor given up.
    pub fn is_running(&self) -> bool {
        (0..self.jobs.len()).any(|expert| self.active(expert))
    }

    /// How far each expert is.
    pub fn progress(&self) -> &[ExpertProgress] {
        &self.progress
    }

    /// The trained variables with their moments.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The same, to be set from a checkpoint.
    pub(crate) fn parameters_mut(&mut self) -> &mut [Parameter] {
        &mut self.parameters
    }

    /// The best weights of each expert so far.
    pub(crate) fn best(&self) -> &[Option<Vec<Vec<f32>>>] {
        &self.best
    }

    /// Goes on from a saved state.
    pub(crate) fn resume(&mut self, step: usize, progress: Vec<ExpertProgress>, best: Vec<Option<Vec<Vec<f32>>>>) {
        (self.step, self.progress, self.best) = (step, progress, best);
    }

    fn active(&self, expert: usize) -> bool {
        self.step < self.jobs[expert].steps(self.settings) && self.progress[expert].failure.is_none()
    }

    /// One update of every expert that is not at its end.
    pub fn step(&mut self) -> Result<StepOutput> {
        let active: Vec<usize> = (0..self.jobs.len()).filter(|&e| self.active(e)).collect();
        let taken = self.take(&active);
        let weights = self.weights(&taken);
        let lanes = self.base.batch_parallel(self.batch_tokens);
        let (mut gradients, mut row_sums, mut tokens) = (Gradients::default(), Vec::with_capacity(taken.len()), 0);
        let backward = |batch: &Range<usize>| self.backward(&taken[batch.clone()], &weights[batch.clone()]);
        lanes.run(&batches(&taken, lanes.tokens()), backward, |part| {
            row_sums.extend(part.row_sums);
            tokens += part.tokens;
            gradients.add_all(part.gradients)
        })?;
        let mut sums = vec![0.0f64; self.jobs.len()];
        taken.iter().zip(&row_sums).for_each(|(taken, loss)| sums[taken.expert] += loss);
        let losses = UpdateLosses { rows: row_sums, experts: sums };
        self.update(&active, &gradients, &taken, &losses)?;
        for taken in &taken {
            self.progress[taken.expert].tokens += taken.row.target.len() as u64;
        }
        self.step += 1;
        let validated = self.validate(&active)?;
        self.check_final_losses(&active);
        let ended = active.iter().copied().filter(|&e| !self.active(e)).collect();
        let losses = (0..self.jobs.len()).map(|e| active.contains(&e).then(|| losses.experts[e] as f32)).collect();
        Ok(StepOutput { step: self.step, losses, validated, ended, tokens })
    }

    fn activations(&self) -> Activations {
        if self.settings.gradient_checkpointing { Activations::Recomputed } else { Activations::Kept }
    }

    /// The rows of this step, expert by expert.
    fn take(&self, active: &[usize]) -> Vec<BatchRow<'a>> {
        let mut taken = Vec::new();
        for &expert in active {
            let job = &self.jobs[expert];
            let rows = job.rows(self.settings, self.seed, self.step);
            let keys = job.dropout_keys(self.seed, self.step, rows.len());
            let taking = |(number, key): (usize, _)| BatchRow { expert, number, row: &job.train[number], key };
            taken.extend(rows.into_iter().zip(keys).map(taking));
        }
        taken
    }

    /// The weight of each row's target tokens in its expert's loss: over an update they add up to one.
    fn weights(&self, taken: &[BatchRow]) -> Vec<f32> {
        let mut totals = vec![0usize; self.jobs.len()];
        for taken in taken {
            totals[taken.expert] += match self.settings.loss_reduction {
                LossReduction::Tokens => taken.row.target.len(),
                LossReduction::Rows => 1,
            };
        }
        let weight = |taken: &BatchRow| match self.settings.loss_reduction {
            LossReduction::Tokens => 1.0 / totals[taken.expert] as f32,
            LossReduction::Rows => 1.0 / (totals[taken.expert] * taken.row.target.len()) as f32,
        };
        taken.iter().map(weight).collect()
    }

    /// The gradients of some rows, each of whose target tokens has the row's weight.
    fn backward(&self, taken: &[BatchRow], weights: &[f32]) -> Result<BatchOutput> {
        let (packed, dropout) = self.pack(taken);
        let (patches, collected) = self.trained.differentiated(self.base, dropout.as_ref())?;
        let weights: Vec<f32> = packed.targets().iter().map(|t| weights[t.row as usize]).collect();
        let batch = LossBatch { packed: &packed, patches: &patches, weights: &weights, collected: collected.as_ref() };
        let mut gradients = Gradients::default();
        let losses = accumulate(self.base, &batch, self.activations(), &self.variables, &mut gradients)?;
        let mut row_sums = vec![0.0; taken.len()];
        for ((target, loss), weight) in packed.targets().iter().zip(losses).zip(&weights) {
            row_sums[target.row as usize] += f64::from(loss) * f64::from(*weight);
        }
        Ok(BatchOutput { gradients, row_sums, tokens: packed.ids().len() })
    }

    fn pack(&self, taken: &[BatchRow]) -> (Packed, Option<Dropout>) {
        let mut packed = Packed::default();
        for t in taken {
            packed.push(&t.row.prompt, &t.row.target, Some(self.trained.owner(t.expert, t.number)));
        }
        let keys: Arc<[[u8; 32]]> = taken.iter().map(|t| t.key).collect();
        let dropout = (self.settings.dropout > 0.0).then(|| Dropout::new(self.settings.dropout, keys));
        (packed, dropout)
    }

    fn watch(&self) -> DivergenceMonitor {
        DivergenceMonitor { factor: self.settings.max_loss_jump, vocabulary: self.base.config().vocabulary }
    }

    /// Gives up the experts that are at their end and worse than at their start.
    fn check_final_losses(&mut self, active: &[usize]) {
        let watch = self.watch();
        for &expert in active {
            let progress = &mut self.progress[expert];
            if self.step == self.jobs[expert].steps(self.settings) && progress.failure.is_none() {
                let validation = progress.validation.last().filter(|(step, _)| *step == self.step);
                progress.failure = watch.at_end(validation.map(|(_, loss)| *loss), &progress.losses);
            }
        }
    }

    /// Clips each expert's gradient and moves its weights; an expert whose loss or gradient is no number, whose loss
    /// jumped, or that has no gradient any more, stops here, its weights as they were. Before the first update as before
    /// every other, all that is trained must have a gradient.
    fn update(
        &mut self,
        active: &[usize],
        gradients: &Gradients,
        taken: &[BatchRow],
        losses: &UpdateLosses,
    ) -> Result<()> {
        let mut squares = vec![0.0; self.jobs.len()];
        let mut found = Vec::with_capacity(self.parameters.len());
        for parameter in &self.parameters {
            let gradient = gradients
                .of(parameter.variable())?
                .with_context(|| format!("no gradient reached {}", parameter.name()))?;
            parameter.add_squares(&gradient, &mut squares)?;
            found.push(gradient);
        }
        let mut updates = vec![None; self.jobs.len()];
        let watch = self.watch();
        for &expert in active {
            let (loss, norm) = (losses.experts[expert], squares[expert].sqrt());
            let progress = &mut self.progress[expert];
            if let Some(trouble) = watch.trouble(loss, norm, &progress.losses, &progress.norms) {
                let own = taken.iter().zip(&losses.rows).filter(|(taken, _)| taken.expert == expert);
                let rows: Vec<(usize, f64)> = own.map(|(taken, loss)| (taken.number, *loss)).collect();
                progress.failure = Some(trouble.told(self.step + 1, &rows));
                continue;
            }
            progress.losses.push(loss as f32);
            progress.norms.push(norm as f32);
            let schedule = LrSchedule::new(
                self.settings.lr_scheduler,
                self.settings.warmup_ratio,
                self.jobs[expert].steps(self.settings),
            );
            let limit = self.settings.max_grad_norm;
            updates[expert] = Some(AdamWUpdate {
                rate: self.settings.learning_rate * schedule.factor(self.step),
                clip: if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 },
                number: self.step + 1,
                weight_decay: self.settings.weight_decay,
            });
        }
        self.parameters.iter().zip(&found).try_for_each(|(parameter, gradient)| parameter.step(gradient, &updates))
    }

    /// Validates the experts whose turn it is, and remembers the weights of those that were never better.
    fn validate(&mut self, active: &[usize]) -> Result<Vec<(usize, f32)>> {
        let due = |&expert: &usize| {
            let job = &self.jobs[expert];
            let every = job.eval_interval(self.settings)?;
            let turn = self.step.is_multiple_of(every) || self.step == job.steps(self.settings);
            (turn && self.progress[expert].failure.is_none()).then_some(expert)
        };
        let due: Vec<usize> = active.iter().filter_map(due).collect();
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let patches = self.trained.patches(None)?;
        let numbered =
            |&e: &usize| self.jobs[e].validation.iter().enumerate().map(move |(number, row)| (e, number, row));
        let rows: Vec<_> = due.iter().flat_map(numbered).collect();
        let owned = rows.iter().map(|&(e, number, row)| (self.trained.validation_owner(e, number), row));
        let losses = example_losses(self.base, &patches, &owned.collect::<Vec<_>>(), self.batch_tokens)?;
        let mut validated = Vec::new();
        for expert in due {
            let own: Vec<f64> =
                rows.iter().zip(&losses).filter(|((e, ..), _)| *e == expert).map(|(_, &loss)| loss).collect();
            let loss = (own.iter().sum::<f64>() / own.len() as f64) as f32;
            let progress = &mut self.progress[expert];
            if !loss.is_finite() {
                let bad = own.iter().position(|loss| !loss.is_finite()).map_or(0, |row| row + 1);
                progress.failure = Some(format!(
                    "after update {} its validation loss was {loss}, row {bad} of its validation rows the first such; \
                     try a lower learning_rate",
                    self.step
                ));
                continue;
            }
            progress.validation.push((self.step, loss));
            if progress.best.is_none_or(|(_, best)| loss < best) {
                progress.best = Some((self.step, loss));
                self.best[expert] = Some(self.trained.values(expert)?);
            }
            validated.push((expert, loss));
        }
        Ok(validated)
    }

    /// An expert's adapter: of its best validation, or as it stands where there was none.
    pub fn adapter(&self, expert: usize) -> Result<Adapter> {
        if let Some(failure) = &self.progress[expert].failure {
            bail!("expert '{}' failed: {failure}", self.jobs[expert].name);
        }
        let TrainableSet::Adapters(stack) = &self.trained else { bail!("no adapters were trained, one of each job") };
        match &self.best[expert] {
            Some(values) => stack.adapter(expert, values),
            None => stack.adapter(expert, &stack.values(expert)?),
        }
    }

    /// Sets what one job has all of, the base's own weights or skills, to the values of the best validation.
    pub fn keep_best_weights(&self) -> Result<()> {
        self.best[0].as_ref().map_or(Ok(()), |best| self.trained.set(best))
    }

    /// The skills as they stand, where those are trained.
    pub fn trained_skills(&self) -> Option<&SkillStack> {
        match &self.trained {
            TrainableSet::Skills(stack, _) => Some(stack),
            _ => None,
        }
    }
}

/// The rows that go through the base together: as many as fit into `tokens`, in order.
fn batches(taken: &[BatchRow], tokens: usize) -> Vec<Range<usize>> {
    split_by_tokens(taken.iter().map(|t| t.row.prompt.len() + t.row.target.len()), tokens)
}
