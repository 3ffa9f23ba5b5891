//! A pass: several experts trained together over one base, each with its own rows, schedule, clipping and moments.

mod divergence_check;
pub(crate) mod pass_context;
mod validation;

use crate::backward::backward_mode::Activations;
use crate::backward::gradients::Gradients;
use crate::backward::layerwise::{LayerwiseBackward, LossBatch};
use crate::batch_row::{BatchRow, batches, batches_by_expert};
use crate::error::{Result, TrainError};
use crate::isolate_non_finite::isolate_non_finite;
use crate::job::Job;
use crate::optim::adamw::{AdamW, CollectedGradients};
use crate::optim::adamw_update::AdamWUpdate;
use crate::optim::clip::clip_factor;
use crate::optim::parameter::Parameter;
use crate::pass::divergence_check::DivergenceCheck;
use crate::pass::pass_context::PassContext;
use crate::run::expert_progress::ExpertProgress;
use crate::trainable::dropout::Dropout;
use crate::trainable::lora_stack::LoraStack;
use crate::trainable::skill_stack::{RowTasks, SkillStack};
use crate::trainable::trainable_set::TrainableSet;
use candle_core::Var;
use lorakit_adapter::Adapter;
use lorakit_model::{Base, TokenBatch};
use std::ops::Range;
use std::sync::Arc;

/// Experts in training.
pub struct Pass<'a> {
    context: PassContext<'a>,
    jobs: &'a [Job],
    trainable: TrainableSet,
    optimizer: AdamW,
    variables: Vec<Var>,
    step: usize,
    progress: Vec<ExpertProgress>,
    best: Vec<BestValues>,
    divergence: DivergenceCheck<'a>,
}

/// The values of an expert's best validation, variable by variable; None before the first.
pub(crate) type BestValues = Option<Vec<Vec<f32>>>;

/// The outcome of one step of a pass.
pub struct StepOutput {
    /// Steps done, this one included.
    pub step: usize,
    /// Each expert's training loss; None for experts that had ended before.
    pub losses: Vec<Option<f32>>,
    /// Each expert's gradient norm before clipping, which may not be finite.
    pub norms: Vec<f64>,
    /// The learning rate of each expert's update; None for experts that were not updated.
    pub learning_rates: Vec<Option<f64>>,
    /// The experts that were validated, with their losses.
    pub validated: Vec<(usize, f32)>,
    /// The experts that ended with this step, by reaching their end or by failure.
    pub ended: Vec<usize>,
    /// Tokens read for training.
    pub tokens: usize,
}

/// The result of one batch of a step's rows.
struct BatchOutput {
    gradients: Gradients,
    /// The share of each row in its expert's loss.
    row_losses: Vec<f64>,
    /// Tokens read.
    tokens: usize,
}

/// The gradients of all rows of a step, collected for the update.
struct StepGradients {
    collected: CollectedGradients,
    losses: StepLosses,
    /// Tokens read.
    tokens: usize,
}

impl StepGradients {
    /// The number of these experts whose loss or gradient is not finite.
    fn not_finite(&self, experts: &[usize]) -> usize {
        let is_finite = |&&e: &&usize| self.losses.experts[e].is_finite() && self.collected.norms[e].is_finite();
        experts.len() - experts.iter().filter(is_finite).count()
    }
}

/// The losses of a step: each row's share in its expert's loss, and each expert's sum.
struct StepLosses {
    rows: Vec<f64>,
    experts: Vec<f64>,
}

impl<'a> Pass<'a> {
    /// LoRA adapters over a frozen base, one per job.
    ///
    /// # Errors
    /// If the base was opened to be trained, or [`LoraStack::new`] fails.
    pub fn new(context: PassContext<'a>, jobs: &'a [Job]) -> Result<Self> {
        let PassContext { base, config, seed, .. } = context;
        if !base.variables().is_empty() {
            return Err(TrainError::TrainableBase);
        }
        let inits: Vec<Option<Adapter>> =
            jobs.iter().map(|job| job.init.as_ref().map(|init| init.adapter.clone())).collect();
        let stack = LoraStack::new(base, &inits, config, seed)?;
        let parameters = stack.parameters()?;
        Ok(Self::start(context, jobs, TrainableSet::Adapters(stack), parameters))
    }

    /// All weights of a base that was opened to be trained.
    pub fn full(context: PassContext<'a>, job: &'a Job) -> Result<Self> {
        let variables = context.base.variables();
        if variables.is_empty() {
            return Err(TrainError::FrozenBase);
        }
        let mut parameters = Vec::new();
        for (name, variable) in variables {
            // As transformers' Trainer does: norms, biases and T5's biases by distance do not decay.
            let decays = variable.rank() > 1 && !name.contains("bias");
            let parameter = Parameter::whole(name.clone(), variable.clone(), 0)?;
            parameters.push(parameter.with_decay_factor(if decays { 1.0 } else { 0.0 }));
        }
        let weights = variables.iter().map(|(_, v)| v.clone()).collect();
        Ok(Self::start(context, std::slice::from_ref(job), TrainableSet::Weights(weights), parameters))
    }

    /// Skills and their routing, by one job whose rows belong to several tasks.
    pub fn skills(context: PassContext<'a>, job: &'a Job, stack: SkillStack, tasks: RowTasks) -> Result<Self> {
        for (what, tasks, rows) in [
            ("training", tasks.train.len(), job.train.len()),
            ("validation", tasks.validation.len(), job.validation.len()),
        ] {
            if tasks != rows {
                return Err(TrainError::RowTasks { what, tasks, rows });
            }
        }
        let parameters = stack.parameters(context.config)?;
        Ok(Self::start(context, std::slice::from_ref(job), TrainableSet::Skills(stack, tasks), parameters))
    }

    fn start(context: PassContext<'a>, jobs: &'a [Job], trainable: TrainableSet, parameters: Vec<Parameter>) -> Self {
        let optimizer = AdamW::new(parameters, jobs.len());
        let trains_base = matches!(trainable, TrainableSet::Weights(_));
        Self {
            context,
            jobs,
            trainable,
            variables: optimizer.variables(),
            optimizer,
            step: 0,
            progress: vec![ExpertProgress::default(); jobs.len()],
            best: vec![None; jobs.len()],
            divergence: DivergenceCheck::new(context, jobs, (!trains_base).then_some(context.base)),
        }
    }

    /// Compares losses with those of `base`, which is not trained, to detect that training of all weights diverges.
    #[must_use]
    pub fn with_initial_base(self, base: &'a Base) -> Self {
        Self { divergence: self.divergence.with_initial_base(base), ..self }
    }

    /// The experts' jobs.
    pub fn jobs(&self) -> &[Job] {
        self.jobs
    }

    /// The base.
    pub fn base(&self) -> &'a Base {
        self.context.base
    }

    /// Steps done.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// Total steps until every expert has ended.
    pub fn steps(&self) -> usize {
        self.jobs.iter().map(|job| job.steps(self.context.config)).max().unwrap_or(0)
    }

    /// Whether an expert has not ended.
    pub fn is_running(&self) -> bool {
        (0..self.jobs.len()).any(|expert| self.is_active(expert))
    }

    /// Each expert's progress.
    pub fn progress(&self) -> &[ExpertProgress] {
        &self.progress
    }

    /// The trained variables with their moments.
    pub fn parameters(&self) -> &[Parameter] {
        self.optimizer.parameters()
    }

    /// The trained variables, to restore them from a checkpoint.
    pub(crate) fn parameters_mut(&mut self) -> &mut [Parameter] {
        self.optimizer.parameters_mut()
    }

    /// The best weights of each expert so far.
    pub(crate) fn best(&self) -> &[BestValues] {
        &self.best
    }

    /// Continues from a saved state.
    pub(crate) fn resume(&mut self, step: usize, progress: Vec<ExpertProgress>, best: Vec<BestValues>) {
        (self.step, self.progress, self.best) = (step, progress, best);
    }

    fn is_active(&self, expert: usize) -> bool {
        self.step < self.jobs[expert].steps(self.context.config) && self.progress[expert].failure.is_none()
    }

    /// One optimizer step of every expert that has not ended.
    ///
    /// # Errors
    /// If the forward or backward fails, or a trained variable has no gradient. A diverged expert is no error: it ends with
    /// a failure in its progress.
    pub fn step(&mut self) -> Result<StepOutput> {
        let active: Vec<usize> = (0..self.jobs.len()).filter(|&e| self.is_active(e)).collect();
        let rows = self.batch_rows(&active);
        let weights = self.loss_weights(&rows);
        let parallel = self.context.base.batch_parallel(self.context.batch_tokens);
        let gradients = isolate_non_finite(
            |batches| self.gradients(&rows, &weights, batches),
            |gradients| gradients.not_finite(&active),
            [batches(&rows, parallel.tokens()), batches_by_expert(&rows, parallel.tokens())],
        )?;
        let learning_rates = self.update(&active, &gradients, &rows)?;
        let StepGradients { collected, losses, tokens } = gradients;
        for row in &rows {
            self.progress[row.expert].tokens += row.row.loss_tokens() as u64;
        }
        self.step += 1;
        let validated = self.validate(&active)?;
        self.check_final_losses(&active)?;
        let ended = active.iter().copied().filter(|&e| !self.is_active(e)).collect();
        let losses = (0..self.jobs.len()).map(|e| active.contains(&e).then(|| losses.experts[e] as f32)).collect();
        let norms = collected.norms;
        Ok(StepOutput { step: self.step, losses, norms, learning_rates, validated, ended, tokens })
    }

    /// The losses and gradients of all rows of a step, batch by batch.
    fn gradients(&self, rows: &[BatchRow], weights: &[f32], batches: &[Range<usize>]) -> Result<StepGradients> {
        let parallel = self.context.base.batch_parallel(self.context.batch_tokens);
        let (mut gradients, mut row_losses, mut tokens) = (Gradients::default(), Vec::with_capacity(rows.len()), 0);
        let backward = |batch: &Range<usize>| self.backward(&rows[batch.clone()], &weights[batch.clone()]);
        parallel.run(batches, backward, |output| {
            row_losses.extend(output.row_losses);
            tokens += output.tokens;
            gradients.add_all(output.gradients)
        })?;
        let mut experts = vec![0.0f64; self.jobs.len()];
        rows.iter().zip(&row_losses).for_each(|(row, loss)| experts[row.expert] += loss);
        let losses = StepLosses { rows: row_losses, experts };
        Ok(StepGradients { collected: self.optimizer.collect(&gradients)?, losses, tokens })
    }

    /// The rows of this step, expert by expert.
    fn batch_rows(&self, active: &[usize]) -> Vec<BatchRow<'a>> {
        let PassContext { config, seed, .. } = self.context;
        let mut batch = Vec::new();
        for &expert in active {
            let job = &self.jobs[expert];
            let indices = job.batch(config, seed, self.step);
            let keys = job.dropout_keys(seed, self.step, indices.len());
            let row =
                |(index, dropout_key): (usize, _)| BatchRow { expert, index, row: &job.train[index], dropout_key };
            batch.extend(indices.into_iter().zip(keys).map(row));
        }
        batch
    }

    /// The weight of each row's target tokens in its expert's loss; over a step they sum to one.
    fn loss_weights(&self, rows: &[BatchRow]) -> Vec<f32> {
        let reduction = self.context.config.loss_reduction;
        // The rows and the target tokens of each expert.
        let mut totals = vec![(0, 0); self.jobs.len()];
        for row in rows {
            let (rows, tokens) = &mut totals[row.expert];
            (*rows, *tokens) = (*rows + 1, *tokens + row.row.loss_tokens());
        }
        rows.iter().map(|row| reduction.token_weight(row.row.loss_tokens(), totals[row.expert])).collect()
    }

    /// The losses and gradients of some rows, given the weight of each row's target tokens.
    fn backward(&self, rows: &[BatchRow], weights: &[f32]) -> Result<BatchOutput> {
        let PassContext { base, config, .. } = self.context;
        let (packed, dropout) = self.pack(rows);
        let (patches, sinks) = self.trainable.backward_patches(base, dropout.as_ref())?;
        let weights: Vec<f32> = packed.targets().iter().map(|t| weights[t.row as usize]).collect();
        let batch = LossBatch { packed: &packed, patches: &patches, weights: &weights, sinks: sinks.as_ref() };
        let activations = Activations::of_checkpointing(config.gradient_checkpointing);
        let mut gradients = Gradients::default();
        let losses =
            LayerwiseBackward { base, activations, variables: &self.variables }.accumulate(&batch, &mut gradients)?;
        let mut row_losses = vec![0.0; rows.len()];
        for ((target, loss), weight) in packed.targets().iter().zip(losses).zip(&weights) {
            row_losses[target.row as usize] += f64::from(loss) * f64::from(*weight);
        }
        Ok(BatchOutput { gradients, row_losses, tokens: packed.ids().len() })
    }

    fn pack(&self, rows: &[BatchRow]) -> (TokenBatch, Option<Dropout>) {
        let mut packed = TokenBatch::default();
        for row in rows {
            let owner = self.trainable.train_owner(row.expert, row.index);
            packed.push_masked(&row.row.tokens, &row.row.loss, Some(owner));
        }
        let rate = self.context.config.dropout;
        let keys: Arc<[[u8; 32]]> = rows.iter().map(|row| row.dropout_key).collect();
        (packed, (rate > 0.0).then(|| Dropout::new(rate, keys)))
    }

    /// Fails the experts whose validation loss has diverged at their end.
    fn check_final_losses(&mut self, active: &[usize]) -> Result<()> {
        for &expert in active {
            let progress = &mut self.progress[expert];
            if progress.failure.is_none() {
                progress.failure = self.divergence.check_validation(expert, self.step, progress)?;
            }
        }
        Ok(())
    }

    /// Clips each expert's gradient and updates its weights, and returns the learning rates of the updates. An expert that has
    /// diverged stops here, its weights unchanged.
    fn update(&mut self, active: &[usize], gradients: &StepGradients, rows: &[BatchRow]) -> Result<Vec<Option<f64>>> {
        let StepGradients { collected, losses, .. } = gradients;
        let mut updates = vec![None; self.jobs.len()];
        for &expert in active {
            updates[expert] = self.expert_update(expert, collected, rows, losses)?;
        }
        self.optimizer.step(collected, &updates)?;
        Ok(updates.iter().map(|update| update.as_ref().map(|update| update.lr)).collect())
    }

    /// The learning rate of an expert's update in a step, counted from 1.
    fn learning_rate(&self, expert: usize, step: usize) -> f64 {
        let config = self.context.config;
        let schedule = config.schedule(self.jobs[expert].steps(config));
        config.learning_rate * schedule.factor(step - 1)
    }

    /// Records an expert's loss and norm, and returns its update; None if it has diverged.
    fn expert_update(
        &mut self,
        expert: usize,
        collected: &CollectedGradients,
        rows: &[BatchRow],
        losses: &StepLosses,
    ) -> Result<Option<AdamWUpdate>> {
        let config = self.context.config;
        let (loss, norm) = (losses.experts[expert], collected.norms[expert]);
        let progress = &mut self.progress[expert];
        let divergence = self.divergence.check_step((expert, self.step), (loss, norm), progress)?;
        if let Some(divergence) = divergence {
            let own = rows.iter().zip(&losses.rows).filter(|(row, _)| row.expert == expert);
            let rows: Vec<(usize, f64)> = own.map(|(row, loss)| (row.index, *loss)).collect();
            progress.failure = Some(divergence.describe(self.step + 1, &self.jobs[expert], &rows));
            return Ok(None);
        }
        progress.losses.push(loss as f32);
        progress.norms.push(norm as f32);
        Ok(Some(AdamWUpdate {
            lr: self.learning_rate(expert, self.step + 1),
            clip: clip_factor(norm, config.max_grad_norm),
            step: self.step + 1,
            weight_decay: config.weight_decay,
        }))
    }

    /// An expert's adapter: the best validated weights, or the current ones without validation.
    ///
    /// # Errors
    /// If the expert failed, or the pass does not train adapters.
    pub fn adapter(&self, expert: usize) -> Result<Adapter> {
        if let Some(reason) = &self.progress[expert].failure {
            return Err(TrainError::Failed { expert: self.jobs[expert].name.clone(), reason: reason.clone() });
        }
        let TrainableSet::Adapters(stack) = &self.trainable else { return Err(TrainError::NotAdapters) };
        match &self.best[expert] {
            Some(values) => stack.adapter(expert, values),
            None => stack.adapter(expert, &stack.values(expert)?),
        }
    }

    /// Sets the base's own weights, or skills and routing, to the best validated values.
    pub fn restore_best(&self) -> Result<()> {
        self.best[0].as_ref().map_or(Ok(()), |best| self.trainable.restore(best))
    }

    /// The skills with their current values, if the pass trains skills.
    pub fn skill_stack(&self) -> Option<&SkillStack> {
        match &self.trainable {
            TrainableSet::Skills(stack, _) => Some(stack),
            _ => None,
        }
    }
}
