//! The methods of adaptation, by name, as a user types them.

use lorakit_route::{FittedMerge, parse_fitted_merge};
use lorakit_train::FitScope;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A way from a library to a target task.
#[derive(Clone, Debug)]
pub enum Method {
    /// Training from scratch.
    NoLibrary,
    /// Training from the library's mean.
    Mean,
    /// Training from one expert of all tasks.
    Shared(Option<String>),
    /// Skills, mixed by a routing that is fitted, alone or with them.
    Skills(FitScope),
    /// Weights of the library's experts.
    FittedMerge(Arc<dyn FittedMerge>),
}

/// What is typed, and what it does.
pub const METHODS: &[(&str, &str)] = &[
    ("no_library", "train an adapter from scratch, which needs no --library"),
    ("mean", "train from the mean of the library's experts (µ of https://arxiv.org/abs/2405.11157)"),
    ("shared[:NAME]", "train from an expert of all tasks, `joint` or the one named (https://arxiv.org/abs/2405.11157)"),
    (
        "poly",
        "tune all experts of the library and their routing together; the skills of --poly, where there are such (https://arxiv.org/abs/2202.13914)",
    ),
    ("poly_z", "fit the routing alone, at routing_learning_rate (PolyZ of https://arxiv.org/abs/2405.11157)"),
    (
        "lorahub[:mode=greedy,rows=5,experts=3]",
        "weigh few experts by a few rows; mode=as-published,budget=40: the authors' search (https://arxiv.org/abs/2307.13269)",
    ),
    (
        "cat[:per=layer,simplex=false,rows=100,steps=100,learning_rate=0.05]",
        "weigh all experts, layer by layer, by gradient (https://arxiv.org/abs/2410.13025)",
    ),
];

impl Method {
    /// What is typed for it, without settings.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoLibrary => "no_library",
            Self::Mean => "mean",
            Self::Shared(_) => "shared",
            Self::Skills(FitScope::All) => "poly",
            Self::Skills(FitScope::Routing) => "poly_z",
            Self::FittedMerge(merge) => match merge.info().name {
                "cat_learned" => "cat",
                name => name,
            },
        }
    }

    /// Whether it starts from a library.
    pub fn needs_library(&self) -> bool {
        !matches!(self, Self::NoLibrary)
    }
}

impl fmt::Display for Method {
    /// With all settings, as it can be typed.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Shared(Some(expert)) => write!(f, "shared:{expert}"),
            Self::FittedMerge(composition) => match composition.to_string().split_once(':') {
                Some((_, settings)) => write!(f, "{}:{settings}", self.name()),
                None => f.write_str(self.name()),
            },
            _ => f.write_str(self.name()),
        }
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = match text.split_once(':') {
            Some((name, rest)) => (name, Some(rest)),
            None => (text, None),
        };
        match (name, rest) {
            ("no_library", None) => Ok(Self::NoLibrary),
            ("mean", None) => Ok(Self::Mean),
            ("shared", None) => Ok(Self::Shared(None)),
            ("shared", Some(expert)) if !expert.is_empty() => Ok(Self::Shared(Some(expert.to_owned()))),
            ("poly", None) => Ok(Self::Skills(FitScope::All)),
            ("poly_z", None) => Ok(Self::Skills(FitScope::Routing)),
            ("lorahub" | "cat", _) => {
                parse_fitted_merge(text).map(Self::FittedMerge).map_err(|error| error.to_string())
            }
            ("no_library" | "mean" | "shared" | "poly" | "poly_z", _) => {
                Err(format!("{name} has no settings; found {text:?}"))
            }
            _ => {
                let known: Vec<&str> = METHODS.iter().map(|(name, _)| *name).collect();
                Err(format!("unknown method {name:?}; known are: {}", known.join(", ")))
            }
        }
    }
}
