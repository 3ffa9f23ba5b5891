//! A router as the user typed it: what results are keyed by and messages say, whatever defaults it stands for.

use lorakit_route::{RouteError, Router, parse_router};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A router with the text that it was typed as.
#[derive(Clone, Debug)]
pub struct RouterArg {
    /// The text.
    pub text: String,
    /// The router.
    pub router: Arc<dyn Router>,
}

impl FromStr for RouterArg {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, RouteError> {
        Ok(Self { text: text.to_owned(), router: parse_router(text)? })
    }
}

impl fmt::Display for RouterArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
