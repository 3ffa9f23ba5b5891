//! CAT, the learned concatenation of LoRA Soups (Prabhakar et al. 2024, <https://arxiv.org/abs/2410.13025>):
//! `delta(x) = g sum_e w_e s_e B_e A_e x`, with a weight for each expert and layer, and no cross terms.
//!
//! The weights are fitted by gradient to rows that ask for all the experts at once. They start uniform, at `1/n`, which
//! is the static form; with `steps=0` they stay there. The authors' code starts at random, forces the weights of a module
//! to a sum of one by a softmax, and goes at a rate of 1e-4, by which a weight moves less than it was drawn apart; their
//! merge then leaves the learned weights out. Here the sum is free unless `simplex=true`, where the softmax is of the
//! logits that are fitted; the factor `g`, of all layers together, lets even then a mixture be stronger than a mean.
//!
//! The crate fits nothing: [`Gates`] holds the variables, and makes patches of them for whoever does.
//!
//! Learned: `weights`, `[groups, experts]`, with `g` in them; a group is what [`Per`] says, in the order of the sites.

use crate::always::Always;
use crate::error::{Result, RouteError};
use crate::experts::Experts;
use crate::merge::Coefficients;
use crate::patches;
use crate::settings::Settings;
use crate::stack::{Choice, Stack};
use candle_core::{DType, Device, Tensor, Var};
use lorakit_adapter::Matrix;
use lorakit_lora::{Outputs, Patch, Patches, SequenceBatch, Site, WeightedLora};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The router `cat`, and the merge `cat_learned`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cat {
    /// What has weights of its own.
    pub per: Per,
    /// Whether the weights of a group are positive with the sum `g`.
    pub simplex: bool,
    /// How many rows of each task are learned from.
    pub rows: usize,
    /// Steps of the fit.
    pub steps: usize,
    /// Its highest learning rate.
    pub learning_rate: f64,
}

/// What has weights of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Per {
    /// An expert, whatever the layer.
    Expert,
    /// An expert in a layer: the paper's formula.
    #[default]
    Layer,
    /// An expert at a site.
    Site,
    /// An expert in a module: the authors' code.
    Module,
}

impl FromStr for Per {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "expert" => Ok(Self::Expert),
            "layer" => Ok(Self::Layer),
            "site" => Ok(Self::Site),
            "module" => Ok(Self::Module),
            _ => Err("expert, layer, site or module"),
        }
    }
}

impl fmt::Display for Per {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Expert => "expert",
            Self::Layer => "layer",
            Self::Site => "site",
            Self::Module => "module",
        })
    }
}

impl Default for Cat {
    fn default() -> Self {
        Self { per: Per::Layer, simplex: false, rows: 100, steps: 100, learning_rate: 0.05 }
    }
}

impl fmt::Display for Cat {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { per, simplex, rows, steps, learning_rate } = self;
        write!(f, "per={per},simplex={simplex},rows={rows},steps={steps},learning_rate={learning_rate}")
    }
}

impl Cat {
    pub(crate) fn parse(mut settings: Settings) -> Result<Self> {
        let default = Self::default();
        let cat = Self {
            per: settings.take("per", default.per),
            simplex: settings.take("simplex", default.simplex),
            rows: settings.at_least_one("rows", default.rows),
            steps: settings.take("steps", default.steps),
            learning_rate: settings.take("learning_rate", default.learning_rate),
        };
        if !(cat.learning_rate > 0.0 && cat.learning_rate.is_finite()) {
            settings.refuse(format!("learning_rate={} must be a number above zero", cat.learning_rate));
        }
        settings.finish().map(|()| cat)
    }

    /// The weights before their fit, as variables, with the experts that they weigh.
    ///
    /// # Errors
    /// Where a tensor cannot be made.
    pub fn gates<'a>(&self, experts: &'a Experts) -> Result<Gates<'a>> {
        Gates::new(self, experts)
    }

    /// The patches of learned weights, `[groups, experts]`.
    ///
    /// # Errors
    /// Where the weights are of another library.
    pub fn patches(&self, experts: &Experts, weights: &Matrix) -> Result<Patches> {
        let groups = Groups::of(self.per, experts);
        let values = groups.checked(experts, weights)?;
        patches(experts, |index, _, stack| {
            let weight = |projection, expert| values[groups.group(index, projection) * experts.len() + expert];
            Ok(Some(Arc::new(Always(stack.weighed(weight)?)) as Arc<dyn Patch>))
        })
    }

    /// Learned weights, `[groups, experts]`, as coefficients of a merge: [`crate::merge::Merge::Cat`] folds them into the
    /// merged adapter.
    ///
    /// # Errors
    /// Where the weights are of another library.
    pub fn coefficients(&self, experts: &Experts, weights: &Matrix) -> Result<Coefficients> {
        let groups = Groups::of(self.per, experts);
        let values = groups.checked(experts, weights)?;
        let mut coefficients = Coefficients::uniform(experts.len());
        for (index, site, _) in experts.stacks() {
            for (projection, of) in site.projections.iter().enumerate() {
                if (0..experts.len()).any(|expert| experts.module(expert, &of.module).is_some()) {
                    let row = &values[groups.group(index, projection) * experts.len()..][..experts.len()];
                    coefficients = coefficients.with_module(&of.module, row.iter().map(|w| f64::from(*w)).collect());
                }
            }
        }
        Ok(coefficients)
    }

    /// The names of the groups, in their order, as `layer 3` or `3.qkv`.
    pub fn groups(&self, experts: &Experts) -> Vec<String> {
        Groups::of(self.per, experts).names
    }
}

/// Which weights serve which projection of which site.
struct Groups {
    /// The first group of each site, by its index.
    first: BTreeMap<usize, usize>,
    per: Per,
    names: Vec<String>,
}

impl Groups {
    fn of(per: Per, experts: &Experts) -> Self {
        let (mut first, mut names) = (BTreeMap::new(), Vec::new());
        for (index, site, _) in experts.stacks() {
            let own: Vec<String> = match per {
                Per::Expert => vec!["all layers".to_owned()],
                Per::Layer => vec![site.layer.map_or_else(|| site.key(), |layer| format!("layer {layer}"))],
                Per::Site => vec![site.key()],
                Per::Module => site.projections.iter().map(|projection| projection.module.clone()).collect(),
            };
            let known = names.iter().position(|name| *name == own[0]);
            first.insert(index, known.unwrap_or(names.len()));
            if known.is_none() {
                names.extend(own);
            }
        }
        Self { first, per, names }
    }

    fn group(&self, site: usize, projection: usize) -> usize {
        let first = self.first.get(&site).copied().unwrap_or(0);
        first + if self.per == Per::Module { projection } else { 0 }
    }

    /// The values of weights that fit.
    fn checked(&self, experts: &Experts, weights: &Matrix) -> Result<Vec<f32>> {
        let (found, expected) = ((weights.rows(), weights.cols()), (self.names.len(), experts.len()));
        if found != expected {
            return Err(RouteError::Learned { name: "weights".to_owned(), expected, found: Some(found) });
        }
        Ok(weights.values().into_owned())
    }

    /// For each group, the experts that have anything there.
    fn present(&self, experts: &Experts) -> Vec<BTreeSet<usize>> {
        let mut present = vec![BTreeSet::new(); self.names.len()];
        for (index, _, stack) in experts.stacks() {
            for (projection, blocks) in stack.projections().enumerate() {
                present[self.group(index, projection)].extend(blocks.map(|(expert, _)| expert));
            }
        }
        present
    }
}

/// The weights as variables, in the midst of their fit.
pub struct Gates<'a> {
    experts: &'a Experts,
    groups: Groups,
    simplex: bool,
    /// The weights, or their logits: `[groups, experts]`.
    weights: Var,
    /// What is added to the logits: minus infinity for an expert that a group does not have.
    mask: Tensor,
    /// `g`, `[1]`.
    scale: Var,
    sites: Vec<(usize, WeightedLora)>,
}

impl<'a> Gates<'a> {
    fn new(cat: &Cat, experts: &'a Experts) -> Result<Self> {
        let groups = Groups::of(cat.per, experts);
        let choice = if cat.per == Per::Module { Choice::Projection } else { Choice::Site };
        let gated = |(index, _, stack): (usize, &Site, &Stack)| {
            Ok((index, WeightedLora::new(stack.a().clone(), stack.b().clone(), &stack.layouts(choice))?))
        };
        let sites: Vec<(usize, WeightedLora)> = experts.stacks().map(gated).collect::<Result<_>>()?;
        let device = experts.stacks().next().map_or(Device::Cpu, |(_, _, stack)| stack.a().device().clone());
        let (n, present) = (experts.len(), groups.present(experts));
        let start = if cat.simplex { 0.0 } else { 1.0 / n as f32 };
        // A group that no expert has anything in is used nowhere; its weights only have to be numbers.
        let masked = |group: &BTreeSet<usize>| {
            let counts = |e| group.is_empty() || group.contains(&e);
            (0..n).map(|e| if counts(e) { 0.0 } else { f32::NEG_INFINITY }).collect::<Vec<f32>>()
        };
        let mask: Vec<f32> = present.iter().flat_map(masked).collect();
        let shape = (groups.names.len(), n);
        Ok(Self {
            experts,
            simplex: cat.simplex,
            weights: Var::from_tensor(&Tensor::full(start, shape, &device)?)?,
            mask: Tensor::from_vec(mask, shape, &device)?,
            scale: Var::from_tensor(&Tensor::ones(1, DType::F32, &device)?)?,
            groups,
            sites,
        })
    }

    /// What is to be fitted, by names.
    pub fn variables(&self) -> Vec<(String, Var)> {
        let weights = ("weights of the experts".to_owned(), self.weights.clone());
        vec![weights, ("their common factor".to_owned(), self.scale.clone())]
    }

    /// The weights as they are used, `[groups, experts]`, downstream of the variables.
    fn used(&self) -> candle_core::Result<Tensor> {
        let weights = match self.simplex {
            false => self.weights.as_tensor().clone(),
            true => {
                let exp = (self.weights.as_tensor() + &self.mask)?.exp()?;
                exp.broadcast_div(&exp.sum_keepdim(1)?)?
            }
        };
        weights.broadcast_mul(self.scale.as_tensor())
    }

    /// Patches that carry the weights out, downstream of the variables.
    ///
    /// # Errors
    /// What candle refuses.
    pub fn patches(&self) -> candle_core::Result<Patches> {
        let used = self.used()?;
        let mut by_site: Vec<Option<Arc<dyn Patch>>> = vec![None; self.experts.sites().len()];
        for (site, gated) in &self.sites {
            let groups = gated.slots() / self.experts.len();
            let weights = used.narrow(0, self.groups.group(*site, 0), groups)?.flatten_all()?;
            by_site[*site] = Some(Arc::new(GatedPatch { gated: gated.clone(), weights }));
        }
        Ok(Patches::new(by_site))
    }

    /// The weights as they stand, `[groups, experts]`, as [`Cat::patches`] and [`Cat::coefficients`] read them.
    ///
    /// # Errors
    /// What candle refuses.
    pub fn values(&self) -> Result<Matrix> {
        let used = self.used()?.detach();
        let (rows, columns) = used.dims2()?;
        let values = used.flatten_all()?.to_vec1()?;
        Matrix::new(rows, columns, values).map_err(|error| RouteError::Adapter(format!("{error:#}")))
    }
}

/// All experts of a site at learned weights.
struct GatedPatch {
    gated: WeightedLora,
    weights: Tensor,
}

impl Patch for GatedPatch {
    fn add(&self, x: &Tensor, _: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        let delta = self.gated.delta(&x.to_dtype(DType::F32)?, &self.weights)?;
        out.add(&delta.to_dtype(out.tensor().dtype())?)
    }
}
