//! The trait of routers: rules that decide which of a library's experts serve a token.

use crate::error::{Result, RouteError};
use crate::library_stack::LibraryStack;
use crate::method_info::MethodInfo;
use crate::mixing::Mixing;
use crate::observer::Observer;
use crate::prompt::prompt_router::PromptRouter;
use crate::router_state::RouterState;
use crate::training_data::TrainingData;
use lorakit_lora::{Patches, Site};
use std::any::Any;
use std::fmt::{Debug, Display};
use std::sync::Arc;

/// A rule that decides which of a library's experts serve a token. Its display is the name with all settings, as it can
/// be typed: equal texts are equal routers.
///
/// All routers are in [`crate::ROUTERS`].
pub trait Router: Any + Debug + Display + Send + Sync {
    /// Its name, settings and summary.
    fn info(&self) -> &'static MethodInfo<dyn Router>;

    /// The patches that apply the router.
    ///
    /// # Errors
    /// If the library does not allow it (see each router), or the context lacks what the router reads.
    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches>;

    /// For a router that decides by prompts: what computes the weights of rows that its patches read.
    ///
    /// # Errors
    /// If the state was fitted to another library.
    fn prompt_router(&self, _: &LibraryStack, _: &RouterContext) -> Result<Option<Arc<dyn PromptRouter>>> {
        Ok(None)
    }

    /// The rows that the router is fitted to unless the user gives others; none if nothing is fitted.
    fn training_data(&self) -> Option<TrainingData> {
        None
    }

    /// What a weight multiplies: an expert's delta, or its A and its B separately.
    fn mixing(&self) -> Mixing {
        Mixing::Outputs
    }

    /// Whether it reads the name of the current task, [`RouterContext::task`].
    fn reads_task(&self) -> bool {
        false
    }

    /// The name of the one expert that it serves, if it is typed.
    fn only_expert(&self) -> Option<&str> {
        None
    }

    /// The names of the experts that serve `tasks`, where they follow from the names of all experts, in order, and of the
    /// tasks that each records: no other needs to be opened. None: any expert may serve.
    fn served(&self, _tasks: &[&str], _experts: &[(String, Vec<String>)]) -> Option<Vec<String>> {
        None
    }

    /// Whether it serves any expert.
    fn uses_experts(&self) -> bool {
        true
    }
}

/// What a router may look at besides the experts.
#[derive(Clone, Default)]
pub struct RouterContext<'a> {
    /// The current task, read only by routers with [`Router::reads_task`].
    pub task: Option<&'a str>,
    /// The fitted state, for a router that has [`Router::training_data`].
    pub state: Option<&'a RouterState>,
    /// Receives every choice, if there is one.
    pub observer: Option<Arc<dyn Observer>>,
}

impl<'a> RouterContext<'a> {
    /// The observer of a site's choices: those of a head, which is called for some tokens alone, are not shown.
    pub(crate) fn observer_at(&self, site: &Site) -> Option<Arc<dyn Observer>> {
        self.observer.clone().filter(|_| site.layer.is_some())
    }

    /// The fitted state of `router`.
    ///
    /// # Errors
    /// If the context has none.
    pub(crate) fn state_of(&self, router: &dyn Display) -> Result<&'a RouterState> {
        self.state.ok_or_else(|| RouteError::MissingState(router.to_string()))
    }
}
