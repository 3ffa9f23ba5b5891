//! The merges whose weights are fitted to rows, by name, as a user types them.

use crate::cat::Cat;
use crate::error::{Result, RouteError, listed};
use crate::experts::Experts;
use crate::lorahub::LoraHub;
use crate::merge::{Coefficients, Merge};
use crate::router::About;
use crate::settings::Settings;
use lorakit_adapter::Matrix;
use std::fmt;
use std::str::FromStr;

/// A way to weigh experts by what rows of a task say. What it is called and what it may be set to is in
/// [`COMPOSITIONS`].
#[derive(Clone, Debug, PartialEq)]
pub enum Composition {
    /// A weight for each expert, without gradients.
    LoraHub(LoraHub),
    /// A weight for each expert and layer, by gradient.
    Cat(Cat),
}

/// All of them.
pub const COMPOSITIONS: &[About] = &[
    About {
        name: "lorahub",
        settings: "mode=greedy,rows=5,experts=3",
        summary: "few experts that lower the loss of left-out rows; mode=as-published,budget=40: the authors' search (https://arxiv.org/abs/2307.13269)",
    },
    About {
        name: "cat_learned",
        settings: "per=layer,simplex=false,rows=100,steps=100,learning_rate=0.05",
        summary: "the exact weighted sum, with a weight per expert and layer fitted by gradient (https://arxiv.org/abs/2410.13025)",
    },
];

impl Composition {
    /// What is typed for it, without settings.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LoraHub(_) => "lorahub",
            Self::Cat(_) => "cat_learned",
        }
    }

    /// How many rows of each task it learns from at most.
    pub fn rows(&self) -> usize {
        match self {
            Self::LoraHub(hub) => hub.rows,
            Self::Cat(cat) => cat.rows,
        }
    }

    /// Refuses experts that cannot be weighed so.
    ///
    /// # Errors
    /// As published, LoraHub takes experts of the same modules, ranks and scales.
    pub fn check(&self, experts: &Experts) -> Result<()> {
        match self {
            Self::LoraHub(hub) => hub.check(experts),
            Self::Cat(_) => Ok(()),
        }
    }

    /// The merge that makes one adapter of what was learned, `[groups, experts]`. Its experts are to be given in the
    /// order of `experts`.
    ///
    /// # Errors
    /// Where the weights are of another library.
    pub fn merge(&self, experts: &Experts, weights: &Matrix) -> anyhow::Result<(Merge, Coefficients)> {
        match self {
            Self::LoraHub(hub) => Ok(hub.merge(&hub.weights(experts, weights)?)?),
            Self::Cat(cat) => Ok((Merge::Cat, cat.coefficients(experts, weights)?)),
        }
    }
}

impl FromStr for Composition {
    type Err = RouteError;

    /// Reads a name with its settings; `cat` is another name for `cat_learned`.
    fn from_str(text: &str) -> Result<Self> {
        let (name, rest) = match text.split_once(':') {
            Some((name, rest)) => (name, Some(rest)),
            None => (text, None),
        };
        let settings = Settings::new(name, rest);
        match name {
            "lorahub" => LoraHub::parse(settings).map(Self::LoraHub),
            "cat_learned" | "cat" => Cat::parse(settings).map(Self::Cat),
            _ => Err(RouteError::UnknownRouter {
                name: name.to_owned(),
                known: listed(COMPOSITIONS.iter().map(|about| about.name)),
            }),
        }
    }
}

impl fmt::Display for Composition {
    /// With all settings, as it can be typed.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::LoraHub(hub) => write!(f, "{}:{hub}", self.name()),
            Self::Cat(cat) => write!(f, "{}:{cat}", self.name()),
        }
    }
}
