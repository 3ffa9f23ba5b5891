//! `shared`: training starts from an expert of all tasks.

use super::adapt_method::{Action, AdaptMethod, AdaptMethodInfo, Configure};
use super::init_training::{InitTraining, SourceExpert};
use crate::error::{FitError, Result, WithContext as _};
use crate::open_library::OpenLibrary;
use lorakit_train::Init;
use serde_json::json;
use std::fmt;
use std::sync::Arc;

/// The method `shared`.
pub static SHARED: AdaptMethodInfo = AdaptMethodInfo {
    name: "shared",
    settings: || "[:NAME]".to_owned(),
    summary: "train from an expert of all tasks, `joint` or the one named",
    link: Some("https://arxiv.org/abs/2405.11157"),
    needs_library: true,
    uses_train_config: true,
    parse: |typed| match typed {
        Some("") => Err(FitError::NoName(SHARED.name)),
        name => Ok(Arc::new(Shared(name.map(str::to_owned)))),
    },
};

/// The expert that `shared` starts from by default; `train-experts --joint` trains it.
const JOINT: &str = "joint";

/// Training from one expert of all tasks, the one named or the default.
#[derive(Debug)]
struct Shared(Option<String>);

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.0 {
            Some(expert) => write!(f, "{}:{expert}", SHARED.name),
            None => f.write_str(SHARED.name),
        }
    }
}

impl AdaptMethod for Shared {
    fn info(&self) -> &'static AdaptMethodInfo {
        &SHARED
    }

    fn action<'a>(&'a self, library: Option<&'a OpenLibrary>, configure: &Configure) -> Result<Box<dyn Action + 'a>> {
        let init = shared(library.ok_or(FitError::NeedsLibrary)?, self.0.as_deref())?;
        Ok(Box::new(InitTraining::new(Some(init), configure)?))
    }
}

/// One expert of the library: the one named, else `joint`, else the only one.
fn shared(opened: &OpenLibrary, name: Option<&str>) -> Result<Init> {
    let experts = &opened.experts;
    let index = match name {
        Some(name) => experts.index(name)?,
        None if experts.len() == 1 => 0,
        None => experts.index(JOINT).with_context(|| {
            format!(
                "shared starts from an expert of all tasks: `lorakit train-experts --joint` makes `{JOINT}`; or name \
                 one, as in shared:NAME"
            )
        })?,
    };
    let expert = &experts.experts()[index];
    let origin = json!({
        "method": "shared",
        "experts": [SourceExpert::of(opened, &expert.name)?],
    });
    Ok(Init { adapter: expert.adapter.clone(), origin, seen: opened.seen([index]) })
}
