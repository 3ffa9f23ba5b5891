//! Weighing the evidence, a router of lorakit's own with nothing trained: under which of the tasks that the experts learned
//! would the library respond to a prompt as it does?
//!
//! The response of an expert `e` at a site to a token `x` is `|s B A x| / |x|` ([`crate::response`]), averaged over the
//! prompt's tokens as the base reads them. Alone it says little: experts differ in size, and one may answer loudest to
//! prompts that are none of its own. What says much is the pattern in which all of them respond, at every site: a few prompts
//! of each task tell what is usual, and `d_t²` is how far a new prompt is from a task `t` ([`crate::pattern`]). A row is
//! then served by the experts at the weights
//!
//! `p(e | prompt) = sum of p(t | prompt) over the tasks t of e`, `p(t | prompt) = softmax(-ln(d_t²) / temperature)`
//!
//! the `top_k` highest of them: where prompts tell tasks apart that is a choice, and where tasks share their inputs it is a
//! mixture. What counts is how many times further one task is than another, as under densities with heavy tails: a prompt
//! that is far from all is not sure of the least far. A confidence `c` goes from 1, where the nearest task is no further than
//! that of usual prompts mostly is (only the share `sure` is further), to 0, where only the share `floor` is as far from all;
//! what tasks look like is then said by others than the prompt that is judged, all but the scale of responses. What confidence leaves, `1 - c`, goes to the base, to all experts
//! alike, or to all experts as Arrow weighs them, as `otherwise` says: no expert fits such a prompt. (Under `mixing=separate`
//! every weight, and so the confidence, multiplies A and B each.)
//!
//! How sharp a choice should be, and what serves best what nobody fits, differ between libraries: `auto` takes what makes the
//! answers likeliest of a quarter of the same rows, the temperature out of [`TEMPERATURES`], from what the other three
//! quarters say. Nothing else sees an answer, and no row of a task that is evaluated is looked at beyond its prompt.
//!
//! What it costs: a pass of the base over the prompt, with one more product per site and token, of all experts' ranks.
//!
//! Learned: for each site `SITE` a matrix `SITE`, `[2, experts]`, of means and deviations; `whitening`, `[D, D]`, and `means`,
//! `[tasks, D]`, of patterns of D values; `experts`, `[1, tasks]`, whose each task is; `distances`, `[1, prompts]`, from each
//! prompt to its nearest task, ascending; `chosen`, `[1, 2]`, what `auto` took: the temperature, and the place of what serves
//! otherwise among [`OTHERWISE`].

use crate::arrow::Arrow;
use crate::by_prompt::ByPrompt;
use crate::error::{Result, RouteError, adapter};
use crate::experts::Experts;
use crate::learned::{Learned, Lesson};
use crate::leftover::leftover;
use crate::mixing::Mixing;
use crate::observer::Observer;
use crate::pattern::{Discriminant, TaskResponses, distances_of_new, pattern, spread, width};
use crate::posterior::{Posterior, Usual, quantile};
use crate::response::{Measure, Responses};
use crate::settings::{AtMost, Settings};
use crate::weighed::by_row_weights_shown;
use lorakit_adapter::Matrix;
use lorakit_lora::Patches;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The temperatures that `auto` chooses from.
pub const TEMPERATURES: [f32; 5] = [0.025, 0.05, 0.1, 0.2, 0.4];

/// What `auto` chooses from for prompts that no expert fits.
pub const OTHERWISE: [Otherwise; 3] = [Otherwise::Base, Otherwise::Uniform, Otherwise::Arrow];

/// What the logarithms of squared distances are divided by before the softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Temperature {
    /// The one of [`TEMPERATURES`] under which the calibration rows' answers are likeliest.
    Auto,
    /// This one.
    Fixed(f32),
}

impl FromStr for Temperature {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(value) if value > 0.0 && f32::is_finite(value) => Ok(Self::Fixed(value)),
            Err(_) if text == "auto" => Ok(Self::Auto),
            _ => Err("a number above zero, or auto"),
        }
    }
}

impl fmt::Display for Temperature {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(value) => value.fmt(f),
        }
    }
}

/// What serves a prompt that no expert fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// The one of [`OTHERWISE`] under which the calibration rows' answers are likeliest.
    Auto,
    /// The base alone.
    Base,
    /// All experts at equal weight.
    Uniform,
    /// All experts as Arrow weighs them, token by token.
    Arrow,
}

impl FromStr for Otherwise {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "base" => Ok(Self::Base),
            "uniform" => Ok(Self::Uniform),
            "arrow" => Ok(Self::Arrow),
            _ => Err("auto, base, uniform or arrow"),
        }
    }
}

impl fmt::Display for Otherwise {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Base => "base",
            Self::Uniform => "uniform",
            Self::Arrow => "arrow",
        })
    }
}

/// The router `evidence`.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// How many experts a row has at most.
    pub top_k: AtMost,
    /// What the logarithms of squared distances are divided by before the softmax.
    pub temperature: Temperature,
    /// The share of usual prompts that are so far from every task that no expert fits.
    pub floor: f64,
    /// The share of usual prompts that are too far from every task for the experts to have their full weight.
    pub sure: f64,
    /// What serves where no expert fits.
    pub otherwise: Otherwise,
    /// What of an expert's delta responds.
    pub measure: Measure,
    /// How many prompts of each task are looked at.
    pub rows: AtMost,
    /// How the chosen experts' deltas become one.
    pub mixing: Mixing,
}

impl Default for Evidence {
    fn default() -> Self {
        Self {
            top_k: AtMost::ALL,
            temperature: Temperature::Auto,
            floor: 0.02,
            sure: 0.2,
            otherwise: Otherwise::Auto,
            measure: Measure::Energy,
            rows: AtMost(16),
            mixing: Mixing::Outputs,
        }
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { top_k, temperature, floor, sure, otherwise, measure, rows, mixing } = self;
        write!(
            f,
            "top_k={top_k},temperature={temperature},floor={floor},sure={sure},otherwise={otherwise},measure={measure},\
             rows={rows},mixing={mixing}"
        )
    }
}

impl Evidence {
    pub(crate) fn parse(mut settings: Settings) -> Result<Self> {
        let default = Self::default();
        let evidence = Self {
            top_k: settings.take("top_k", default.top_k),
            temperature: settings.take("temperature", default.temperature),
            floor: settings.take("floor", default.floor),
            sure: settings.take("sure", default.sure),
            otherwise: settings.take("otherwise", default.otherwise),
            measure: settings.take("measure", default.measure),
            rows: settings.take("rows", default.rows),
            mixing: settings.take("mixing", default.mixing),
        };
        let (floor, sure) = (evidence.floor, evidence.sure);
        if !(0.0 <= floor && floor <= sure && sure <= 1.0) {
            settings.refuse(format!("floor={floor},sure={sure} must be shares, 0 <= floor <= sure <= 1"));
        }
        settings.finish().map(|()| evidence)
    }

    /// Prompts of the experts' own tasks.
    pub fn lesson(&self) -> Lesson {
        Lesson::Experts { rows: self.rows.0 }
    }

    /// What is usual. What `auto` takes is not yet among it: see [`Evidence::with_chosen`].
    ///
    /// # Errors
    /// Where no task has two prompts, or a response is no number.
    pub fn learned(&self, experts: &Experts, prompts: &TaskResponses) -> Result<Learned> {
        let n = experts.len();
        if !prompts.folds().contains(&1) {
            return Err(RouteError::FewPrompts(prompts.tasks.len()));
        }
        if prompts.responses.iter().any(|(_, values)| values.iter().any(|value| !value.is_finite())) {
            return Err(RouteError::NoPattern);
        }
        let usual: Vec<Vec<f32>> = prompts.responses.iter().map(|(_, values)| spread(values, n)).collect();
        let mut patterns = Vec::new();
        for row in 0..prompts.tasks.len() {
            patterns.extend(pattern(row, n, &prompts.responses, &usual)?);
        }
        let Discriminant { whitening, means, width } = Discriminant::of(&patterns, &prompts.tasks)?;
        let whose = |task: usize| prompts.experts[task] as f32;
        let known: BTreeSet<usize> = prompts.tasks.iter().copied().collect();
        let sites = experts.stacks().map(|(_, site, _)| site.key()).zip(usual.into_iter().map(|usual| (2, usual)));
        let rest = [
            ("whitening", (width, whitening)),
            ("means", (known.len(), means)),
            ("experts", (1, known.into_iter().map(whose).collect())),
            ("distances", (1, distances_of_new(&patterns, prompts)?)),
        ];
        let rest = rest.map(|(name, matrix)| (name.to_owned(), matrix));
        let matrix = |(name, (rows, values)): (String, (usize, Vec<f32>))| {
            Ok((name, Matrix::new(rows, values.len() / rows.max(1), values).map_err(adapter)?))
        };
        Ok(Learned::new(sites.chain(rest).map(matrix).collect::<Result<Vec<_>>>()?))
    }

    /// The same settings with nothing left to choose.
    pub fn fixed(&self, temperature: f32, otherwise: Otherwise) -> Self {
        Self { temperature: Temperature::Fixed(temperature), otherwise, ..self.clone() }
    }

    /// What is usual, with what `auto` took.
    ///
    /// # Errors
    /// Where the temperature is no number.
    pub fn with_chosen(learned: Learned, temperature: f32, otherwise: Otherwise) -> Result<Learned> {
        let place = OTHERWISE.iter().position(|other| *other == otherwise).unwrap_or(0);
        let chosen = Matrix::new(1, 2, vec![temperature, place as f32]).map_err(adapter)?;
        let before = learned.matrices().iter().map(|(name, matrix)| (name.clone(), matrix.clone()));
        Ok(Learned::new(before.chain([("chosen".to_owned(), chosen)])))
    }

    /// What serves what no expert fits.
    fn otherwise(&self, learned: Option<&Learned>) -> Result<Otherwise> {
        match (self.otherwise, learned) {
            (Otherwise::Auto, Some(learned)) => Ok(chosen(learned)?.1),
            (Otherwise::Auto, None) => Err(RouteError::NothingLearned(format!("evidence:{self}"))),
            (given, _) => Ok(given),
        }
    }

    /// The patches of a library: rows carry their weights, and what these leave goes where it should.
    ///
    /// # Errors
    /// Under separate mixing, where ranks differ at a projection; where `auto` was to choose, and did not.
    pub fn patches(
        &self,
        experts: &Experts,
        learned: Option<&Learned>,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Patches> {
        let weighed = by_row_weights_shown(experts, self.mixing, observer)?;
        Ok(match self.otherwise(learned)? {
            Otherwise::Arrow => weighed.with(leftover(&self.arrow().patches(experts, None)?, experts.sites().len())),
            Otherwise::Auto | Otherwise::Base | Otherwise::Uniform => weighed,
        })
    }

    /// Arrow over all experts, which serves what no expert fits under [`Otherwise::Arrow`].
    pub fn arrow(&self) -> Arrow {
        Arrow { top_k: AtMost::ALL, mixing: self.mixing, ..Arrow::default() }
    }

    /// What decides, from what is usual.
    ///
    /// # Errors
    /// Where it was learned for another library.
    pub fn rule(&self, experts: &Experts, learned: &Learned) -> Result<Arc<dyn ByPrompt>> {
        let n = experts.len();
        let columns = |name: &str| learned.matrices().get(name).map_or(0, Matrix::cols);
        let values = |name: &str, rows, columns| {
            Ok::<_, RouteError>(learned.matrix(name, (rows, columns))?.values().into_owned())
        };
        let temperature = match self.temperature {
            Temperature::Auto => chosen(learned)?.0,
            Temperature::Fixed(temperature) => temperature,
        };
        let sites: Vec<Vec<f32>> =
            experts.stacks().map(|(_, site, _)| values(&site.key(), 2, n)).collect::<Result<_>>()?;
        let (width, tasks) = (width(sites.len(), n), columns("experts"));
        let distances = values("distances", 1, columns("distances"))?;
        let experts_of_tasks: Vec<usize> = values("experts", 1, tasks)?.into_iter().map(|e| e as usize).collect();
        if experts_of_tasks.iter().any(|expert| *expert >= n) {
            return Err(RouteError::Adapter(format!("`experts` names more than the {n} of this library")));
        }
        Ok(Arc::new(Posterior {
            responses: Responses::new(experts, self.measure)?,
            usual: Arc::new(Usual {
                top_k: self.top_k.0,
                temperature,
                uniform: self.otherwise(Some(learned))? == Otherwise::Uniform,
                experts: n,
                sites,
                discriminant: Discriminant {
                    whitening: values("whitening", width, width)?,
                    means: values("means", tasks, width)?,
                    width,
                },
                experts_of_tasks,
                far: quantile(&distances, 1.0 - self.floor),
                near: quantile(&distances, 1.0 - self.sure),
            }),
        }))
    }
}

/// What `auto` took.
fn chosen(learned: &Learned) -> Result<(f32, Otherwise)> {
    let values = learned.matrix("chosen", (1, 2))?.values();
    Ok((values[0], OTHERWISE.get(values[1] as usize).copied().unwrap_or(Otherwise::Base)))
}
