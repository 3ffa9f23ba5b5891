//! A router's settings as they are typed: `key=value`, with commas between.

use crate::error::{Result, RouteError, listed};
use std::fmt::{self, Display};
use std::str::FromStr;

/// How many of something there may be at most: a number above zero, or `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtMost(pub usize);

impl AtMost {
    /// However many there are.
    pub const ALL: Self = Self(usize::MAX);
}

impl FromStr for AtMost {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(number) if number > 0 => Ok(Self(number)),
            Err(_) if text == "all" => Ok(Self::ALL),
            _ => Err("a number above zero, or all"),
        }
    }
}

impl Display for AtMost {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match *self {
            Self::ALL => f.write_str("all"),
            Self(number) => number.fmt(f),
        }
    }
}

/// Settings that are taken out one by one, so that what nobody takes is an error.
pub(crate) struct Settings<'a> {
    router: &'a str,
    given: Vec<(&'a str, &'a str)>,
    known: Vec<String>,
    problem: Option<String>,
}

impl<'a> Settings<'a> {
    pub(crate) fn new(router: &'a str, text: Option<&'a str>) -> Self {
        let given =
            text.into_iter().flat_map(|text| text.split(',')).map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        Self {
            router,
            given: given.map(|(key, value)| (key.trim(), value.trim())).collect(),
            known: Vec::new(),
            problem: None,
        }
    }

    /// The value given for `key`, or the default. A problem is kept for [`Settings::finish`], which by then knows
    /// all the settings that it lists.
    pub(crate) fn take<T: FromStr<Err: Display> + Display>(&mut self, key: &str, default: T) -> T {
        self.known.push(format!("{key}={default}"));
        let Some(at) = self.given.iter().position(|(given, _)| *given == key) else { return default };
        let (_, value) = self.given.remove(at);
        value.parse().unwrap_or_else(|expected| {
            self.refuse(format!("{key}={value} cannot be read ({expected})"));
            default
        })
    }

    /// A number of something that there must be one of at least.
    pub(crate) fn at_least_one(&mut self, key: &str, default: usize) -> usize {
        let number = self.take(key, default);
        if number == 0 {
            self.refuse(format!("{key}=0 must be a number above zero"));
        }
        number
    }

    /// The temperature of a softmax: a number above zero.
    pub(crate) fn temperature(&mut self, default: f32) -> f32 {
        let temperature = self.take("temperature", default);
        if !(temperature > 0.0 && temperature.is_finite()) {
            self.refuse(format!("temperature={temperature} must be a number above zero"));
        }
        temperature
    }

    /// Notes a problem; the first one is reported.
    pub(crate) fn refuse(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }

    /// Reports the first problem, or what was given and nobody took.
    pub(crate) fn finish(mut self) -> Result<()> {
        if let Some((key, _)) = self.given.first() {
            let twice = self.known.iter().any(|known| known.split('=').next() == Some(key));
            let problem = if twice { format!("{key} is given twice") } else { format!("unknown setting {key:?}") };
            self.refuse(problem);
        }
        let Some(problem) = self.problem else { return Ok(()) };
        Err(RouteError::Setting { router: self.router.to_owned(), problem, known: listed(&self.known) })
    }
}
