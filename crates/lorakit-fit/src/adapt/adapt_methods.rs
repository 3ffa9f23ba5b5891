//! The adaptation methods. A new one is a file with its [`AdaptMethod`] and [`AdaptMethodInfo`], and a line here.

use super::adapt_method::{AdaptMethod, AdaptMethodInfo};
use crate::error::{FitError, Result};
use std::sync::Arc;

/// All adaptation methods, in the order in which they are listed.
pub static ADAPT_METHODS: &[&AdaptMethodInfo] = &[
    &super::no_library::NO_LIBRARY,
    &super::mean::MEAN,
    &super::shared::SHARED,
    &super::skill_fit::POLY,
    &super::skill_fit::POLY_Z,
    &super::weighted_experts::LORAHUB,
    &super::weighted_experts::CAT,
];

/// Reads a method from `NAME` or `NAME:SETTINGS`.
///
/// # Errors
/// An unknown name, or settings that the method refuses.
pub fn parse_adapt_method(typed: &str) -> Result<Arc<dyn AdaptMethod>> {
    let (name, settings) = match typed.split_once(':') {
        Some((name, settings)) => (name, Some(settings)),
        None => (typed, None),
    };
    let Some(method) = ADAPT_METHODS.iter().find(|method| method.name == name) else {
        let known: Vec<String> = ADAPT_METHODS.iter().map(|method| method.usage()).collect();
        return Err(FitError::UnknownMethod { name: name.to_owned(), known: known.join(", ") });
    };
    (method.parse)(settings)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_method_displays_as_it_is_typed() {
        for typed in ["no_library", "mean", "shared", "shared:joint", "poly", "poly_z"] {
            assert_eq!(parse_adapt_method(typed).unwrap().to_string(), typed);
        }
        let cat = parse_adapt_method("cat:steps=7").unwrap().to_string();
        assert_eq!(cat, "cat:per=layer,simplex=false,rows=100,steps=7,learning_rate=0.05");
        for method in ADAPT_METHODS {
            assert_eq!(parse_adapt_method(method.name).unwrap().info().name, method.name);
        }
    }

    #[test]
    fn wrong_methods_are_refused_by_name() {
        let refused = |typed: &str| parse_adapt_method(typed).unwrap_err().to_string();
        assert!(refused("mean:x").contains("`mean` has no settings; found `mean:x`"));
        assert!(refused("shared:").contains("no name after the colon; expected `shared` or `shared:NAME`"));
        assert!(
            refused("cat_learned")
                .contains("unknown method `cat_learned`; expected one of no_library, mean, shared[:NAME]")
        );
        assert!(refused("lorahb").contains("unknown method `lorahb` (did you mean `lorahub`?); expected one of"));
        assert!(refused("lorahub:rank=3").contains("rank"));
    }
}
