//! The routers by name, as a user types them.

use crate::arrow::Arrow;
use crate::by_prompt::ByPrompt;
use crate::cat::Cat;
use crate::cm::Cm;
use crate::error::{Result, RouteError, listed};
use crate::evidence::Evidence;
use crate::expert::{self, Verbatim};
use crate::experts::Experts;
use crate::learned::{Learned, Lesson};
use crate::lorahub::LoraHub;
use crate::observer::Observer;
use crate::oracle;
use crate::phatgoose::Phatgoose;
use crate::poly::{Poly, Trained};
use crate::settings::Settings;
use crate::tp::Tp;
use crate::uniform::Uniform;
use crate::weighed;
use lorakit_lora::Patches;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A rule by which a library's experts serve tokens. What it is called and what it may be set to is in [`ROUTERS`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Router {
    /// No expert: the base as it is.
    Base,
    /// The expert that was trained on the task at hand.
    Oracle,
    /// Every expert at equal weight.
    Uniform(Uniform),
    /// Prototypes from the weights, per token and projection.
    Arrow(Arrow),
    /// Mean inputs of the experts' own rows, per token and site.
    Cm(Cm),
    /// Gates that were trained with each expert, per token and site.
    Phatgoose(Phatgoose),
    /// A classifier over the base's reading of the prompt, per row.
    Tp(Tp),
    /// Which experts would respond to the prompt more than they usually do, per row.
    Evidence(Evidence),
    /// Skills trained together, mixed for the task at hand.
    Poly(Poly),
    /// A weight for each expert, found without gradients.
    LoraHub(LoraHub),
    /// A weight for each expert and layer, fitted by gradient.
    Cat(Cat),
    /// One expert, verbatim.
    Expert(Verbatim),
}

/// What a user is told of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// What is typed.
    pub name: &'static str,
    /// What may follow, with defaults; empty where nothing may.
    pub settings: &'static str,
    /// What it does, in one line, with the paper's address where there is one.
    pub summary: &'static str,
}

/// All routers, in the order in which they are listed.
pub const ROUTERS: &[About] = &[
    About { name: "base", settings: "", summary: "no expert: the base model as it is" },
    About { name: "oracle", settings: "", summary: "the expert trained on the task at hand, else the one of its name" },
    About {
        name: "uniform",
        settings: "mixing=outputs",
        summary: "every expert at weight 1/n (https://arxiv.org/abs/2405.11157)",
    },
    About {
        name: "arrow",
        settings: "top_k=4,temperature=1,mixing=outputs,tie=none,general=none,gks=factors",
        summary: "per token, the experts whose strongest direction meets it (https://arxiv.org/abs/2405.11157)",
    },
    About {
        name: "cm",
        settings: "top_k=all,temperature=1,score=dot,pool=last,rows=10,mixing=outputs",
        summary: "per token, the experts whose training inputs it resembles; learns centroids (https://arxiv.org/abs/2405.11157)",
    },
    About {
        name: "phatgoose",
        settings: "top_k=2,temperature=1,steps=100,learning_rate=0.001,batch_size=4,rows=all,mixing=outputs",
        summary: "per token, the experts whose trained gates open to it; learns gates (https://arxiv.org/abs/2402.05859)",
    },
    About {
        name: "tp",
        settings: "top_k=1,temperature=1,rows=100,mixing=outputs",
        summary: "per row, the expert of the task that the prompt looks like; learns a classifier (https://arxiv.org/abs/2405.11157)",
    },
    About {
        name: "evidence",
        settings: "top_k=all,temperature=auto,floor=0.02,sure=0.2,otherwise=auto,measure=energy,rows=16,mixing=outputs",
        summary: "per row, the experts of the tasks to whose prompts the library responds alike; lorakit's own, nothing trained",
    },
    About {
        name: "poly",
        settings: "unseen=fit,rows=all,steps=100,rate=0.1",
        summary: "the skills of train-experts --poly, mixed for the task at hand; learns the routing of a new task (https://arxiv.org/abs/2202.13914)",
    },
    About {
        name: "mhr",
        settings: "unseen=fit,rows=all,steps=100,rate=0.1",
        summary: "the same of train-experts --mhr, mixed block by block (https://arxiv.org/abs/2211.03831)",
    },
    About {
        name: "lorahub",
        settings: "mode=greedy,rows=5,experts=3",
        summary: "few experts, weighed by a few rows of the task; mode=as-published,budget=40: the authors' search (https://arxiv.org/abs/2307.13269)",
    },
    About {
        name: "cat",
        settings: "per=layer,simplex=false,rows=100,steps=100,learning_rate=0.05",
        summary: "every expert, at a weight per layer fitted to rows of the task (https://arxiv.org/abs/2410.13025)",
    },
    About { name: "expert", settings: "NAME", summary: "one expert, verbatim" },
];

impl About {
    /// The name with all settings at their defaults, as it can be typed.
    pub fn typed(&self) -> String {
        let colon = if self.settings.is_empty() { "" } else { ":" };
        format!("{}{colon}{}", self.name, self.settings)
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}  {}", self.typed(), self.summary)
    }
}

/// What a router may look at besides the experts.
#[derive(Clone, Default)]
pub struct Setting<'a> {
    /// The task at hand, which only the oracle reads.
    pub task: Option<&'a str>,
    /// What the router learned, for one that [learns](Router::lesson).
    pub learned: Option<&'a Learned>,
    /// Who is shown every choice that is made per token, if anyone.
    pub observer: Option<Arc<dyn Observer>>,
}

impl Router {
    /// The patches that carry the router out.
    ///
    /// # Errors
    /// Where the library does not allow it: see each router.
    pub fn build(&self, experts: &Experts, setting: &Setting) -> Result<Patches> {
        match self {
            Self::Base => Ok(Patches::none()),
            Self::Oracle => expert::one(experts, oracle::expert_of(setting.task.ok_or(RouteError::NoTask)?, experts)?),
            Self::Uniform(uniform) => uniform.patches(experts),
            Self::Arrow(arrow) => arrow.patches(experts, setting.observer.clone()),
            Self::Cm(cm) => cm.patches(experts, self.learned(setting)?, setting.observer.clone()),
            Self::Phatgoose(phatgoose) => phatgoose.patches(experts, self.learned(setting)?, setting.observer.clone()),
            Self::Tp(tp) => weighed::by_row_weights_shown(experts, tp.mixing, setting.observer.clone()),
            Self::Evidence(evidence) => evidence.patches(experts, setting.learned, setting.observer.clone()),
            Self::Poly(poly) => poly.patches(experts, self.learned(setting)?),
            Self::LoraHub(hub) => hub.patches(experts, self.learned(setting)?.matrix("weights", (1, experts.len()))?),
            Self::Cat(cat) => {
                let shape = (cat.groups(experts).len(), experts.len());
                cat.patches(experts, self.learned(setting)?.matrix("weights", shape)?)
            }
            Self::Expert(verbatim) => verbatim.patches(experts),
        }
    }

    /// For a router that decides by prompts: what gives rows the weights that its patches read.
    ///
    /// # Errors
    /// Where what was learned is of another library.
    pub fn by_prompt(&self, experts: &Experts, setting: &Setting) -> Result<Option<Arc<dyn ByPrompt>>> {
        match self {
            Self::Tp(tp) => tp.rule(experts, self.learned(setting)?).map(Some),
            Self::Evidence(evidence) => evidence.rule(experts, self.learned(setting)?).map(Some),
            _ => Ok(None),
        }
    }

    fn learned<'a>(&self, setting: &Setting<'a>) -> Result<&'a Learned> {
        setting.learned.ok_or_else(|| RouteError::NothingLearned(self.to_string()))
    }

    /// What the router learns from where nobody gives it rows; none for a router that learns nothing.
    pub fn lesson(&self) -> Option<Lesson> {
        match self {
            Self::Base | Self::Oracle | Self::Uniform(_) | Self::Arrow(_) | Self::Expert(_) => None,
            Self::Cm(cm) => Some(cm.lesson()),
            Self::Phatgoose(phatgoose) => Some(phatgoose.lesson()),
            Self::Tp(tp) => Some(tp.lesson()),
            Self::Evidence(evidence) => Some(evidence.lesson()),
            Self::Poly(poly) => Some(poly.lesson()),
            Self::LoraHub(LoraHub { rows, .. }) | Self::Cat(Cat { rows, .. }) => Some(Lesson::Task { rows: *rows }),
        }
    }

    /// One line for a user: name, settings with their defaults, what it does, and the paper.
    pub fn describe(&self) -> String {
        let name = self.name();
        ROUTERS.iter().find(|about| about.name == name).map_or_else(String::new, About::to_string)
    }

    /// What is typed for it, without settings.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Oracle => "oracle",
            Self::Uniform(_) => "uniform",
            Self::Arrow(_) => "arrow",
            Self::Cm(_) => "cm",
            Self::Phatgoose(_) => "phatgoose",
            Self::Tp(_) => "tp",
            Self::Evidence(_) => "evidence",
            Self::Poly(poly) => poly.name(),
            Self::LoraHub(_) => "lorahub",
            Self::Cat(_) => "cat",
            Self::Expert(_) => "expert",
        }
    }
}

impl FromStr for Router {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self> {
        let (name, rest) = match text.split_once(':') {
            Some((name, rest)) => (name, Some(rest)),
            None => (text, None),
        };
        let settings = Settings::new(name, rest);
        match name {
            "base" => settings.finish().map(|()| Self::Base),
            "oracle" => settings.finish().map(|()| Self::Oracle),
            "uniform" => Uniform::parse(settings).map(Self::Uniform),
            "arrow" => Arrow::parse(settings).map(Self::Arrow),
            "cm" => Cm::parse(settings).map(Self::Cm),
            "phatgoose" => Phatgoose::parse(settings).map(Self::Phatgoose),
            "tp" => Tp::parse(settings).map(Self::Tp),
            "evidence" => Evidence::parse(settings).map(Self::Evidence),
            "poly" => Poly::parse(Trained::Poly, settings).map(Self::Poly),
            "mhr" => Poly::parse(Trained::Mhr, settings).map(Self::Poly),
            "lorahub" => LoraHub::parse(settings).map(Self::LoraHub),
            "cat" => Cat::parse(settings).map(Self::Cat),
            "expert" => Verbatim::parse(rest).map(Self::Expert),
            _ => Err(RouteError::UnknownRouter {
                name: name.to_owned(),
                known: listed(ROUTERS.iter().map(|about| about.name)),
            }),
        }
    }
}

impl fmt::Display for Router {
    /// The router with all its settings, as it can be typed.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Base | Self::Oracle => f.write_str(self.name()),
            Self::Uniform(uniform) => write!(f, "uniform:{uniform}"),
            Self::Arrow(arrow) => write!(f, "arrow:{arrow}"),
            Self::Cm(cm) => write!(f, "cm:{cm}"),
            Self::Phatgoose(phatgoose) => write!(f, "phatgoose:{phatgoose}"),
            Self::Tp(tp) => write!(f, "tp:{tp}"),
            Self::Evidence(evidence) => write!(f, "evidence:{evidence}"),
            Self::Poly(poly) => write!(f, "{}:{poly}", poly.name()),
            Self::LoraHub(hub) => write!(f, "lorahub:{hub}"),
            Self::Cat(cat) => write!(f, "cat:{cat}"),
            Self::Expert(verbatim) => write!(f, "expert:{}", verbatim.name),
        }
    }
}
