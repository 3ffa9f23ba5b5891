//! A router as the user typed it, which keys results and appears in messages.

use lorakit_route::{RouteError, Router, parse_router};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A router and its text on the command line.
#[derive(Clone, Debug)]
pub struct RouterArg {
    /// The text.
    pub text: String,
    /// The router.
    pub router: Arc<dyn Router>,
}

impl RouterArg {
    /// Whether it may serve the expert `name`.
    pub fn uses(&self, name: &str) -> bool {
        self.router.uses_experts() && self.router.only_expert().is_none_or(|only| only == name)
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_router_of_one_expert_uses_no_other() {
        let uses = |router: &str| router.parse::<RouterArg>().unwrap().uses("a");
        assert!(uses("expert:a") && uses("arrow") && uses("uniform"));
        assert!(!uses("expert:b") && !uses("base"));
    }
}
