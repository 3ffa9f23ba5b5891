//! `no_library`: an adapter is trained from scratch.

use super::adapt_method::{Action, AdaptMethod, AdaptMethodInfo, Configure, no_settings};
use super::init_training::InitTraining;
use crate::error::Result;
use crate::open_library::OpenLibrary;
use std::fmt;
use std::sync::Arc;

/// The method `no_library`.
pub static NO_LIBRARY: AdaptMethodInfo = AdaptMethodInfo {
    name: "no_library",
    settings: no_settings,
    summary: "train an adapter from scratch, which needs no --library",
    link: None,
    needs_library: false,
    uses_train_config: true,
    parse: |typed| NO_LIBRARY.ensure_no_settings(typed).map(|()| Arc::new(NoLibrary) as Arc<dyn AdaptMethod>),
};

/// Training from scratch.
#[derive(Debug)]
struct NoLibrary;

impl fmt::Display for NoLibrary {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(NO_LIBRARY.name)
    }
}

impl AdaptMethod for NoLibrary {
    fn info(&self) -> &'static AdaptMethodInfo {
        &NO_LIBRARY
    }

    fn action<'a>(&'a self, _: Option<&'a OpenLibrary>, configure: &Configure) -> Result<Box<dyn Action + 'a>> {
        Ok(Box::new(InitTraining::new(None, configure)?))
    }
}
