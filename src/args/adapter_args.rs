//! Options that select what is applied to a base: nothing, one adapter, or a library with a router.

use crate::args::router_arg::RouterArg;
use crate::args::task_args::{DataArgs, FitArgs};
use crate::args::usage;
use crate::base::resolved_base::ResolvedBase;
use crate::command_context::CommandContext;
use crate::output::text_table::help_entry;
use anyhow::{Context as _, Result};
use clap::Args;
use lorakit_adapter::Library;
use lorakit_fit::router::{RoutedPatches, build_router};
use lorakit_fit::{FitContext, open_adapter};
use lorakit_lora::Patches;
use lorakit_model::Base;
use lorakit_route::{ROUTERS, single_expert};
use std::path::PathBuf;

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
    #[command(flatten)]
    fit: FitArgs,
    #[command(flatten)]
    data: DataArgs,
}

/// The list of routers for `--help`.
pub fn routers() -> String {
    let lines = ROUTERS.iter().map(|about| help_entry(&about.usage(), &about.description())).collect::<Vec<_>>();
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

    /// Opens what is applied to `base`.
    pub fn open<'a>(
        &self,
        base: &'a Base,
        resolved: &ResolvedBase,
        context: &CommandContext,
    ) -> Result<RoutedPatches<'a>> {
        if let Some(folder) = &self.adapter {
            let opened = open_adapter(folder, base)?;
            for expert in opened.experts() {
                resolved.ensure_own_tensors(&expert.adapter).with_context(|| folder.display().to_string())?;
                for warning in expert.adapter.clone().with_equal_base_tensors().warnings() {
                    context.warn(format!("{}: {warning}", folder.display()))?;
                }
            }
            return Ok(RoutedPatches::plain(single_expert(&opened, 0)?));
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
        let data = self.data.data.as_deref();
        let fit = self.fit.load(&self.data, context)?;
        let tokenizer = || resolved.tokenizer().map_err(Into::into);
        let seed = context.seed;
        let over =
            FitContext { base, library: &opened, tokenizer: &tokenizer, tasks: &fit, data, seed, reporter: context };
        build_router(&over, &*typed.router, None, None).with_context(|| format!("--router {typed}"))
    }
}
