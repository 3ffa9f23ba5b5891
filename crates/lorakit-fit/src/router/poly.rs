//! The fit of `poly` and `mhr`: the adapter that a task's routing makes of a library's skills.

use super::router_fit::{RouterFit, as_kind};
use super::training_rows::TrainingRows;
use crate::error::{FitError, Result, WithContext as _};
use crate::fit_context::FitContext;
use lorakit_adapter::{Adapter, Library};
use lorakit_model::Base;
use lorakit_route::fixed::poly::{SkillRouting, Unseen};
use lorakit_route::{LibraryStack, Poly, Router, RouterState};
use lorakit_task::Example;
use lorakit_train::routing_store::{self, StoredRouting};
use lorakit_train::{FitScope, RoutingFit, RoutingSpec, SkillStack, TrainConfig, config_for_adapters};

/// The fit of [`Poly`].
pub struct PolyFit;

impl RouterFit for PolyFit {
    fn fit(&self, router: &dyn Router, rows: &TrainingRows) -> Option<Result<RouterState>> {
        as_kind(router).map(|poly| fit(poly, rows))
    }

    fn reads_current_task(&self, router: &dyn Router) -> bool {
        as_kind::<Poly>(router).is_some()
    }

    fn state_without_task(&self, router: &dyn Router, context: &FitContext) -> Option<Result<RouterState>> {
        let poly = as_kind::<Poly>(router).filter(|poly| poly.settings.unseen == Unseen::Mean)?;
        Some(mean(poly, context.base, &context.library.experts, &context.library.library))
    }
}

/// The adapter of the current task: by its own routing where that was trained with the skills, else by the mean
/// routing, or by one that is fitted to the task's rows with the skills frozen.
fn fit(poly: &Poly, rows: &TrainingRows) -> Result<RouterState> {
    let skills = RoutedSkills::open(poly, rows.base(), rows.experts(), rows.library())?;
    let known = rows.current_task().and_then(|task| skills.row_of(task));
    let mixed = match (known, poly.settings.unseen) {
        (Some(row), _) => skills.stack_of_tasks()?.task_adapter(row)?,
        (None, Unseen::Mean) => skills.stack_of_tasks()?.mean_adapter()?,
        (None, Unseen::Fit) => {
            let examples: Vec<Example> = rows.examples()?.into_iter().map(|row| row.example).collect();
            let settings = TrainConfig {
                max_steps: Some(poly.settings.steps),
                routing_learning_rate: poly.settings.learning_rate,
                max_grad_norm: 1.0,
                ..skills.settings.clone()
            };
            let stack = skills.stack_of_one(&settings, rows.seed())?;
            let (base, scope, seed) = (rows.base(), FitScope::Routing, rows.seed());
            RoutingFit { base, config: &settings, scope, seed }.fit(&stack, &examples)?;
            stack.task_adapter(0)?
        }
    };
    Ok(Poly::state(&mixed)?)
}

/// The adapter of the mean routing, where there is no current task.
fn mean(poly: &Poly, base: &Base, experts: &LibraryStack, library: &Library) -> Result<RouterState> {
    let skills = RoutedSkills::open(poly, base, experts, library)?;
    Ok(Poly::state(&skills.stack_of_tasks()?.mean_adapter()?)?)
}

/// The skills of a library with their routing.
struct RoutedSkills<'a> {
    base: &'a Base,
    skills: Vec<Adapter>,
    /// The routing of their training; `None` for experts that were not trained as skills.
    routing: Option<StoredRouting>,
    /// The settings that the skills could have been trained with.
    settings: TrainConfig,
}

impl<'a> RoutedSkills<'a> {
    fn open(poly: &Poly, base: &'a Base, experts: &LibraryStack, library: &Library) -> Result<Self> {
        let routing = routing_store::read(library, poly.info().name)?;
        let skills: Vec<Adapter> = match (&routing, poly.trained) {
            (Some(routing), _) => {
                let of = |name: &String| Ok(experts.experts()[experts.index(name)?].adapter.clone());
                let skills: Result<_> = routing.skills.iter().map(of).collect();
                skills.with_context(|| {
                    format!("the skills of {}/{}", library.routers_folder().display(), poly.info().name)
                })?
            }
            (None, SkillRouting::Poly) if routing_store::has_skills(library, poly.info().name)? => {
                return Err(FitError::UnfinishedSkills(library.routers_folder()));
            }
            // Experts of equal shapes can be mixed as skills (MBC-PolyZ of the paper).
            (None, SkillRouting::Poly) => experts.experts().iter().map(|expert| expert.adapter.clone()).collect(),
            (None, SkillRouting::Mhr) => return Err(FitError::NoMhr(library.routers_folder())),
        };
        let settings = config_for_adapters(&skills, &TrainConfig::default())?;
        Ok(Self { base, skills, routing, settings })
    }

    /// The index of a task among those trained on.
    fn row_of(&self, task: &str) -> Option<usize> {
        self.routing.as_ref()?.tasks.iter().position(|known| known == task)
    }

    fn splits(&self) -> usize {
        self.routing.as_ref().map_or(1, |routing| routing.splits)
    }

    /// The skills with the routing of the tasks that they were trained on, or with a uniform one where there is none.
    fn stack_of_tasks(&self) -> Result<SkillStack> {
        match &self.routing {
            Some(routing) => {
                let stack = self.stack(&routing.tasks, &self.settings, 0)?;
                stack.set_logits(&routing.logits)?;
                Ok(stack)
            }
            None => {
                let stack = self.stack(&["all".to_owned()], &self.settings, 0)?;
                stack.set_uniform()?;
                Ok(stack)
            }
        }
    }

    /// The skills with the initial routing of one new task.
    fn stack_of_one(&self, settings: &TrainConfig, seed: u64) -> Result<SkillStack> {
        self.stack(&["target".to_owned()], settings, seed)
    }

    fn stack(&self, tasks: &[String], settings: &TrainConfig, seed: u64) -> Result<SkillStack> {
        let routing = RoutingSpec { tasks, splits: self.splits() };
        Ok(SkillStack::new(self.base, self.skills.clone(), routing, settings, seed)?)
    }
}
