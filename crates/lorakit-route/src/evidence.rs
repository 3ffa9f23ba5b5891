//! Weighing the evidence, a router of lorakit's own with nothing trained: how strongly would each expert respond to the
//! prompt, compared with how strongly it responds to prompts at large?
//!
//! The response of an expert `e` at a site to a token `x` is `|s B A x| / |x|` ([`crate::response`]), averaged over the
//! prompt's tokens as the base reads them. Alone it says little: experts differ in size, and sites in how far their inputs
//! spread. So it is standardised by its mean and deviation over a mix of unlabelled prompts, for each site and expert; less
//! the mean over the experts, since a prompt that moves all of them says nothing of one; and averaged over the sites. That
//! average is standardised once more over the same prompts. The score `z_e` then says by how many deviations the expert
//! responds to this prompt more than it usually does, and scores of different experts compare.
//!
//! The row is served by the `top_k` experts of the highest scores at the weights `softmax(z / temperature)`: a clear lead
//! is a choice, a close race is a mixture. A confidence `c` goes from 0, where no score is above what the highest score of a
//! usual prompt is at its `floor` quantile, to 1, where it is above the same at `sure`; what it leaves, `1 - c`, goes
//! to the base, or to all experts alike, as `otherwise` says: no expert fits such a prompt.
//!
//! How sharp a choice should be, and whether the base or the mean serves better what nobody fits, differ between libraries:
//! `auto` takes what makes the answers of the same calibration rows likeliest, the temperature out of [`TEMPERATURES`].
//! Nothing else sees an answer, and no row of a task that is evaluated is looked at beyond its prompt.
//!
//! The defaults of `floor` and `sure` were chosen on validation rows of `suite:skills`, with one expert of every family taken
//! out of the library: of those tried, the pair that leaves most to the base where the expert is missing and still goes
//! half of the way from Arrow to the oracle where it is there.
//!
//! What it costs: a pass of the base over the prompt, with one more product per site and token, of all experts' ranks.
//!
//! Learned: for each site `SITE` a matrix `SITE`, `[2, experts]`, of means and deviations; `scores`, `[2, experts]`, those
//! of the averages; `highest`, `[1, prompts]`, the highest score of each prompt, ascending; `chosen`, `[1, 2]`, what `auto`
//! took: the temperature, and 1 where the mean serves what nobody fits.

use crate::by_prompt::{ByPrompt, Survey};
use crate::error::{Result, RouteError, adapter};
use crate::experts::Experts;
use crate::learned::{Learned, Lesson};
use crate::mixing::Mixing;
use crate::response::{Measure, Responses, Watch, standardised};
use crate::settings::{AtMost, Settings};
use crate::tp::highest_softmax;
use candle_core::Tensor;
use lorakit_adapter::{Matrix, Patches, Rows};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The temperatures that `auto` chooses from.
pub const TEMPERATURES: [f32; 4] = [0.1, 0.3, 1.0, 3.0];

/// What scores are divided by before the softmax, in deviations.
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
    /// The one of the two under which the calibration rows' answers are likelier.
    Auto,
    /// The base alone.
    Base,
    /// All experts at equal weight.
    Uniform,
}

impl FromStr for Otherwise {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "base" => Ok(Self::Base),
            "uniform" => Ok(Self::Uniform),
            _ => Err("auto, base or uniform"),
        }
    }
}

impl fmt::Display for Otherwise {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Base => "base",
            Self::Uniform => "uniform",
        })
    }
}

/// The router `evidence`.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// How many experts a row has at most.
    pub top_k: AtMost,
    /// What scores are divided by before the softmax, in deviations.
    pub temperature: Temperature,
    /// The quantile of the usual prompts' highest scores below which no expert fits.
    pub floor: f64,
    /// The quantile above which the experts have their full weight.
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
            floor: 0.1,
            sure: 0.6,
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
            settings.refuse(format!("floor={floor},sure={sure} must be quantiles, 0 <= floor <= sure <= 1"));
        }
        settings.finish().map(|()| evidence)
    }

    /// Prompts of the experts' own tasks.
    pub fn lesson(&self) -> Lesson {
        Lesson::Prompts { rows: self.rows.0 }
    }

    /// What is usual, from the responses to a mix of prompts: for each touched site, `[prompts, experts]`. What `auto` takes
    /// is not yet among it: see [`Evidence::with_chosen`].
    ///
    /// # Errors
    /// Where there are fewer than two prompts.
    pub fn learned(&self, experts: &Experts, responses: &[(usize, Vec<f32>)]) -> Result<Learned> {
        let n = experts.len();
        let prompts = responses.first().map_or(0, |(_, responses)| responses.len() / n);
        if prompts < 2 {
            return Err(RouteError::FewPrompts(prompts));
        }
        let usual: Vec<Vec<f32>> = responses.iter().map(|(_, values)| spread(values, n)).collect();
        let mut averages = Vec::with_capacity(prompts * n);
        for row in 0..prompts {
            averages.extend(standardised(row, n, responses, &usual)?);
        }
        let scores = spread(&averages, n);
        let present = present(&usual, n);
        let best = |row: &[f32]| rescaled(row, &scores, &present).into_iter().fold(f32::NEG_INFINITY, f32::max);
        let mut highest: Vec<f32> = averages.chunks_exact(n).map(best).collect();
        highest.sort_by(f32::total_cmp);
        let sites = experts.stacks().map(|(_, site, _)| site.key()).zip(usual.into_iter().map(|usual| (2, usual)));
        let rest = [("scores".to_owned(), (2, scores)), ("highest".to_owned(), (1, highest))];
        let matrix = |(name, (rows, values)): (String, (usize, Vec<f32>))| {
            Ok((name, Matrix::new(rows, values.len() / rows, values).map_err(adapter)?))
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
        let uniform = f32::from(u8::from(otherwise == Otherwise::Uniform));
        let chosen = Matrix::new(1, 2, vec![temperature, uniform]).map_err(adapter)?;
        let before = learned.matrices().iter().map(|(name, matrix)| (name.clone(), matrix.clone()));
        Ok(Learned::new(before.chain([("chosen".to_owned(), chosen)])))
    }

    /// What decides, from what is usual.
    ///
    /// # Errors
    /// Where it was learned for another library.
    pub fn rule(&self, experts: &Experts, learned: &Learned) -> Result<Arc<dyn ByPrompt>> {
        let n = experts.len();
        let values = |name: &str| Ok::<_, RouteError>(learned.matrix(name, (2, n))?.values().into_owned());
        let highest =
            learned.matrices().get("highest").map(|highest| highest.values().into_owned()).unwrap_or_default();
        let chosen = |place: usize| Ok::<_, RouteError>(learned.matrix("chosen", (1, 2))?.values()[place]);
        let temperature = match self.temperature {
            Temperature::Auto => chosen(0)?,
            Temperature::Fixed(temperature) => temperature,
        };
        let uniform = match self.otherwise {
            Otherwise::Auto => chosen(1)? != 0.0,
            Otherwise::Base => false,
            Otherwise::Uniform => true,
        };
        let sites: Vec<Vec<f32>> = experts.stacks().map(|(_, site, _)| values(&site.key())).collect::<Result<_>>()?;
        Ok(Arc::new(Rule {
            responses: Responses::new(experts, self.measure)?,
            usual: Arc::new(Usual {
                top_k: self.top_k.0,
                temperature,
                uniform,
                present: present(&sites, n),
                sites,
                scores: values("scores")?,
                floor: quantile(&highest, self.floor),
                sure: quantile(&highest, self.sure),
            }),
        }))
    }
}

/// Means and deviations of every expert's column of `[rows, experts]`, as `[2, experts]`.
fn spread(values: &[f32], experts: usize) -> Vec<f32> {
    let rows = (values.len() / experts) as f64;
    let mut means = vec![0f64; experts];
    let mut squares = vec![0f64; experts];
    for row in values.chunks_exact(experts) {
        means.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value) / rows);
    }
    for row in values.chunks_exact(experts) {
        for ((sum, value), mean) in squares.iter_mut().zip(row).zip(&means) {
            *sum += (f64::from(*value) - mean).powi(2) / rows;
        }
    }
    means.into_iter().chain(squares.into_iter().map(f64::sqrt)).map(|value| value as f32).collect()
}

/// Which experts respond at all; one whose delta is zero everywhere is no candidate.
fn present(sites: &[Vec<f32>], experts: usize) -> Vec<bool> {
    (0..experts).map(|expert| sites.iter().any(|usual| usual[experts + expert] > 0.0)).collect()
}

/// Averages as scores: zero where an average never changes, and none for experts that do not respond.
fn rescaled(averages: &[f32], usual: &[f32], present: &[bool]) -> Vec<f32> {
    let (means, deviations) = usual.split_at(averages.len());
    let score = |(expert, average): (usize, &f32)| match (present[expert], deviations[expert] > 0.0) {
        (false, _) => f32::NEG_INFINITY,
        (true, false) => 0.0,
        (true, true) => (average - means[expert]) / deviations[expert],
    };
    averages.iter().enumerate().map(score).collect()
}

/// The quantile of ascending values, between neighbours by proportion.
fn quantile(sorted: &[f32], share: f64) -> f32 {
    let at = share * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(low), Some(high)) => low + (high - low) * at.fract() as f32,
        _ => f32::NEG_INFINITY,
    }
}

struct Rule {
    responses: Responses,
    usual: Arc<Usual>,
}

struct Usual {
    top_k: usize,
    temperature: f32,
    /// Whether the mean serves what no expert fits.
    uniform: bool,
    present: Vec<bool>,
    sites: Vec<Vec<f32>>,
    scores: Vec<f32>,
    floor: f32,
    sure: f32,
}

impl ByPrompt for Rule {
    fn survey(&self) -> Box<dyn Survey> {
        Box::new(Weighing { watch: self.responses.watch(), usual: self.usual.clone() })
    }
}

struct Weighing {
    watch: Watch,
    usual: Arc<Usual>,
}

impl Survey for Weighing {
    fn patches(&self) -> Patches {
        self.watch.patches()
    }

    fn weights(&self, rows: &Rows, _: &Tensor) -> Result<Vec<Arc<[f32]>>> {
        let responses = self.watch.responses();
        let experts = self.usual.scores.len() / 2;
        (0..rows.len())
            .map(|row| {
                let averages = standardised(row, experts, &responses, &self.usual.sites)?;
                Ok(self.weigh(&rescaled(&averages, &self.usual.scores, &self.usual.present)))
            })
            .collect()
    }
}

impl Weighing {
    fn weigh(&self, scores: &[f32]) -> Arc<[f32]> {
        let Usual { top_k, temperature, uniform, floor, sure, .. } = *self.usual;
        let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if best == f32::NEG_INFINITY {
            return vec![0.0; scores.len()].into();
        }
        let confidence = if best >= sure { 1.0 } else { ((best - floor) / (sure - floor)).clamp(0.0, 1.0) };
        let rest = if uniform { (1.0 - confidence) / scores.len() as f32 } else { 0.0 };
        let weights = highest_softmax(scores, top_k, temperature);
        weights.iter().map(|weight| confidence * weight + rest).collect()
    }
}
