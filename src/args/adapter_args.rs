//! Options that select what is applied to a base: nothing, one adapter, or a library with a router.

use crate::args::router_arg::RouterArg;
use crate::args::row_encoding_args::PromptEncodingArgs;
use crate::args::task_args::DataArgs;
use crate::args::usage;
use crate::base::resolved_base::ResolvedBase;
use crate::command_context::CommandContext;
use crate::encoding_check::EncodingCheck;
use crate::output::text_table::help_entry;
use anyhow::{Context as _, Result};
use clap::Args;
use lorakit_adapter::Library;
use lorakit_fit::router::{RoutedPatches, build_router, warn_of_router_seeds};
use lorakit_fit::{FitContext, open_adapter, record_beside};
use lorakit_lora::Patches;
use lorakit_model::Base;
use lorakit_route::{ROUTERS, single_expert};
use lorakit_task::Tokenizer;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};

/// The adapter, or the library and router, applied to the base.
#[derive(Args, Debug)]
pub struct AdapterArgs {
    /// Library of experts; needs --router
    #[arg(long, value_name = "L", requires = "router")]
    library: Option<PathBuf>,
    /// Router over the library, such as arrow:top_k=2; all are listed below
    #[arg(long, value_name = "R")]
    router: Option<RouterArg>,
    /// A PEFT adapter folder
    #[arg(long, value_name = "DIR", conflicts_with_all = ["library", "router"])]
    adapter: Option<PathBuf>,
    /// Tasks whose rows routers are fitted to [default: each expert's own tasks; required by routers for one task, such as
    /// cat]
    #[arg(long, num_args = 1.., value_name = "[NAME=]T")]
    fit: Vec<String>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    pub encoding: PromptEncodingArgs,
}

/// Prompts that the base reads.
pub struct GivenPrompts<'a> {
    /// With the choices of how they become tokens.
    pub tokenizer: &'a Tokenizer,
    /// Whether they go through the chat template, for each kind that is there.
    pub are_chats: &'a [bool],
}

/// The list of routers for `--help`.
pub fn routers() -> String {
    let lines = ROUTERS.iter().map(|router| help_entry(&router.usage(), &router.description())).collect::<Vec<_>>();
    format!("Routers, with their settings and defaults:\n{}", lines.join("\n"))
}

impl AdapterArgs {
    /// Checks what needs no file to be opened.
    pub fn ensure_usage(&self) -> Result<()> {
        match &self.router {
            Some(typed) if typed.router.uses_experts() => {
                usage::ensure(self.library.is_some(), || format!("--router {typed} needs --library"))
            }
            _ => Ok(()),
        }
    }

    /// Opens what is applied to `base`. Warns of prompts in another form than what it was trained on.
    pub fn open<'a>(
        &self,
        base: &'a Base,
        resolved: &ResolvedBase,
        prompts: Option<GivenPrompts>,
        context: &CommandContext,
    ) -> Result<RoutedPatches<'a>> {
        let read = PromptReading { resolved, prompts, tokenizer: OnceCell::new(), context };
        // An adapter was trained over the base as it is.
        let is_alone = self.adapter.is_none() && self.library.is_none();
        if let Some(record) = resolved.record()?.filter(|_| is_alone) {
            read.warn(&EncodingCheck::one("the base", &record));
        }
        if let Some(folder) = &self.adapter {
            return read.open_adapter(folder, base);
        }
        self.ensure_usage()?;
        let (Some(typed), Some(library)) = (&self.router, self.library.as_deref()) else {
            return Ok(RoutedPatches::plain(Patches::none()));
        };
        if !typed.router.uses_experts() {
            // `base` uses no expert, but a missing library is still an error.
            Library::open(library)?;
            return Ok(RoutedPatches::plain(Patches::none()));
        }
        // A library may be large, and others of its experts damaged.
        let only: Vec<String> = typed.router.only_expert().map(str::to_owned).into_iter().collect();
        let opened = context.open_library(library, base, &only)?;
        let fit = self.data.load_fit(&self.fit, context)?;
        let trained = EncodingCheck::of(&opened, |name| typed.uses(name));
        read.warn(&trained);
        let tokenizer = || Ok(read.tokenizer(self.encoding)?.clone());
        if typed.router.training_data().is_some_and(|data| !data.is_of_experts()) && !fit.is_empty() {
            trained.warn_of_tasks(&fit, "fitted to", read.tokenizer(self.encoding)?, context);
        }
        let load_tasks = self.data.load_recorded(context);
        let over = FitContext {
            base,
            library: &opened,
            tokenizer: &tokenizer,
            tasks: &fit,
            load_tasks: &load_tasks,
            seed: context.seed,
            reporter: context,
        };
        warn_of_router_seeds(&over, &*typed.router);
        build_router(&over, &*typed.router, None, None).with_context(|| format!("--router {typed}"))
    }
}

/// What a base reads: prompts, if any are given, and rows to fit to.
struct PromptReading<'a> {
    resolved: &'a ResolvedBase,
    prompts: Option<GivenPrompts<'a>>,
    /// The base's tokenizer where there are no prompts, once it was needed.
    tokenizer: OnceCell<Tokenizer>,
    context: &'a CommandContext,
}

impl PromptReading<'_> {
    /// The tokenizer; it need not be there where nothing is fitted.
    fn tokenizer(&self, encoding: PromptEncodingArgs) -> Result<&Tokenizer> {
        if let Some(given) = &self.prompts {
            return Ok(given.tokenizer);
        }
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer);
        }
        let tokenizer = self.resolved.tokenizer()?.with_encoding(encoding.encoding());
        Ok(self.tokenizer.get_or_init(|| tokenizer))
    }

    /// Warns of prompts in another form than what `trained` was trained on.
    fn warn(&self, trained: &EncodingCheck) {
        if let Some(given) = &self.prompts {
            given.are_chats.iter().for_each(|is_chat| trained.warn_of_prompts(*is_chat, given.tokenizer, self.context));
        }
    }

    /// Opens one adapter.
    fn open_adapter<'a>(&self, folder: &Path, base: &'a Base) -> Result<RoutedPatches<'a>> {
        let place = folder.display().to_string();
        let opened = open_adapter(folder, base)?;
        for expert in opened.experts() {
            self.resolved.ensure_own_tensors(&expert.adapter).with_context(|| place.clone())?;
            for warning in expert.adapter.clone().with_equal_base_tensors().warnings() {
                self.context.warn(format!("{place}: {warning}"))?;
            }
        }
        if let Some(record) = record_beside(folder)? {
            self.warn(&EncodingCheck::one(&place, &record));
        }
        Ok(RoutedPatches::plain(single_expert(&opened, 0)?))
    }
}
