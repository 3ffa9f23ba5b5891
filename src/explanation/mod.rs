//! Which experts a router chose, for which token, at which site.

pub mod page;

use lorakit_lora::Site;
use lorakit_route::{Experts, Observer, Routing};
use serde_json::{Value, json};
use std::sync::{Mutex, PoisonError};

/// Whose the weight is that no expert was given.
pub const LEFT_OVER: &str = "no expert's own: the base, or what evidence's otherwise says";

/// Takes down every choice that a router makes over one prompt.
#[derive(Default)]
pub struct Trace(Mutex<Vec<Choice>>);

/// What was chosen at one place: a site, or one of its projections.
pub struct Choice {
    /// Index of the site.
    pub site: usize,
    /// The projections of the site that the choice holds for.
    pub projections: std::ops::Range<usize>,
    /// For each token the chosen experts with their weights, the highest first.
    pub tokens: Vec<Vec<Share>>,
}

/// An expert with its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Its index.
    pub expert: usize,
    /// Its weight.
    pub weight: f64,
}

impl Observer for Trace {
    fn saw(&self, routing: &Routing) {
        let chosen =
            routing.experts.chunks_exact(routing.per_token).zip(routing.weights.chunks_exact(routing.per_token));
        let tokens = chosen.map(|(experts, weights)| {
            let share = |(expert, weight): (&u32, &f32)| Share { expert: *expert as usize, weight: f64::from(*weight) };
            sorted(experts.iter().zip(weights).filter(|(_, weight)| **weight != 0.0).map(share).collect())
        });
        let choice = Choice { site: routing.site, projections: routing.projections.clone(), tokens: tokens.collect() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(choice);
    }
}

/// The highest weight first, and of equal ones the first name.
fn sorted(mut shares: Vec<Share>) -> Vec<Share> {
    shares.sort_by(|a, b| b.weight.total_cmp(&a.weight).then(a.expert.cmp(&b.expert)));
    shares
}

/// All choices over one prompt.
pub struct Explanation<'a> {
    /// The router as typed.
    pub router: String,
    /// The prompt.
    pub prompt: String,
    /// Each token: its id, and how the vocabulary spells it.
    pub tokens: Vec<(u32, String)>,
    /// The experts of the library.
    pub experts: &'a Experts,
    /// Every choice, site by site.
    pub choices: Vec<Choice>,
}

impl Trace {
    /// What was taken down, in the order of sites and projections.
    pub fn choices(&self) -> Vec<Choice> {
        let mut choices = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        choices.sort_by_key(|choice| (choice.site, choice.projections.start));
        choices
    }
}

impl Explanation<'_> {
    /// The name of an expert.
    pub fn name(&self, expert: usize) -> &str {
        &self.experts.names()[expert]
    }

    /// Where a choice holds, as in `3.qkv` or `3.qkv q_proj`.
    pub fn place(&self, choice: &Choice) -> String {
        let site: &Site = &self.experts.sites()[choice.site];
        let names: Vec<&str> = site.projections[choice.projections.clone()].iter().map(|p| p.name()).collect();
        if names.len() == site.projections.len() { site.key() } else { format!("{} {}", site.key(), names.join(",")) }
    }

    /// The layer of a choice; none at a site outside the layers.
    pub fn layer(&self, choice: &Choice) -> Option<usize> {
        self.experts.sites()[choice.site].layer
    }

    /// For each token every expert's weight, averaged over `choices`; experts of no weight are left out.
    pub fn averaged<'c>(&self, choices: impl Iterator<Item = &'c Choice>) -> Vec<Vec<Share>> {
        let mut sums = vec![vec![0.0; self.experts.len()]; self.tokens.len()];
        let mut count = 0.0;
        for choice in choices {
            count += 1.0;
            for (sums, shares) in sums.iter_mut().zip(&choice.tokens) {
                shares.iter().for_each(|share| sums[share.expert] += share.weight);
            }
        }
        let shares = |sums: Vec<f64>| {
            let of = |(expert, sum): (usize, f64)| Share { expert, weight: sum / count };
            sorted(sums.into_iter().enumerate().filter(|(_, sum)| *sum != 0.0).map(of).collect())
        };
        sums.into_iter().map(shares).collect()
    }

    /// Every expert's weight, averaged over all choices and tokens.
    pub fn overall(&self) -> Vec<Share> {
        let mut sums = vec![0.0; self.experts.len()];
        for share in self.averaged(self.choices.iter()).into_iter().flatten() {
            sums[share.expert] += share.weight / self.tokens.len() as f64;
        }
        let of = |(expert, weight)| Share { expert, weight };
        sorted(sums.into_iter().enumerate().filter(|(_, sum)| *sum != 0.0).map(of).collect())
    }

    /// Everything, as JSON.
    pub fn document(&self) -> Value {
        let shares = |shares: &[Share]| -> Vec<Value> {
            shares.iter().map(|share| json!({ "expert": self.name(share.expert), "weight": share.weight })).collect()
        };
        let averaged = self.averaged(self.choices.iter());
        let token = |((id, token), of): (&(u32, String), &Vec<Share>)| json!({ "id": id, "token": token, "experts": shares(of) });
        let choice = |choice: &Choice| {
            let site = &self.experts.sites()[choice.site];
            let modules: Vec<&str> =
                site.projections[choice.projections.clone()].iter().map(|p| p.module.as_str()).collect();
            json!({
                "site": site.key(),
                "layer": site.layer,
                "modules": modules,
                "tokens": choice.tokens.iter().map(|of| shares(of)).collect::<Vec<_>>(),
            })
        };
        json!({
            "router": self.router,
            "prompt": self.prompt,
            "experts": shares(&self.overall()),
            "tokens": self.tokens.iter().zip(&averaged).map(token).collect::<Vec<_>>(),
            "choices": self.choices.iter().map(choice).collect::<Vec<_>>(),
        })
    }
}
