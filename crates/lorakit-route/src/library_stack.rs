//! The experts of a library, named and put together site by site.

use crate::error::{Result, RouteError, first_listed};
use crate::stack::{Modules, Stack};
use candle_core::Device;
use lorakit_adapter::{Adapter, LowRank};
use lorakit_lora::Site;
use rayon::prelude::*;
use std::collections::HashMap;

/// An adapter with its name and its recorded tasks.
#[derive(Clone, Debug)]
pub struct Expert {
    /// The name, unique in its library.
    pub name: String,
    /// The weights.
    pub adapter: Adapter,
    /// Names of the tasks that it was trained on, as recorded; empty if nothing is recorded.
    pub tasks: Vec<String>,
}

impl Expert {
    /// An expert without recorded tasks.
    pub fn new(name: impl Into<String>, adapter: Adapter) -> Self {
        Self { name: name.into(), adapter, tasks: Vec::new() }
    }
}

/// The experts of a library in the order of their names, and for each site of a base their matrices.
///
/// Built once for a device; every router shares what is made of the matrices, which is made when it is first needed. An
/// expert's index, in [`lorakit_lora::Sequence`] and everywhere else, is its position in the order of names.
#[derive(Debug)]
pub struct LibraryStack {
    names: Vec<String>,
    experts: Vec<Expert>,
    sites: Vec<Site>,
    stacks: Vec<Option<Stack>>,
}

impl LibraryStack {
    /// Puts `experts` together at the `sites` of a base. No weights are read.
    ///
    /// # Errors
    /// If two experts have one name, an adapter has a module that no site has, or its widths are not the base's.
    pub fn new(experts: impl IntoIterator<Item = Expert>, sites: &[Site], device: &Device) -> Result<Self> {
        let mut experts: Vec<Expert> = experts.into_iter().collect();
        experts.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = experts.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(RouteError::SameName(pair[0].name.clone()));
        }
        check_modules(&experts, sites)?;
        let stacks = sites.par_iter().map(|site| Stack::of(site, &modules(&experts, site), device)).collect();
        let names = experts.iter().map(|expert| expert.name.clone()).collect();
        Ok(Self { names, experts, sites: sites.to_vec(), stacks })
    }

    /// The experts' names, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of experts.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no expert.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The index of the expert of a name.
    ///
    /// # Errors
    /// If there is no such expert; the error lists the experts.
    pub fn index(&self, name: &str) -> Result<usize> {
        self.names
            .binary_search_by(|known| known.as_str().cmp(name))
            .map_err(|_| RouteError::UnknownExpert { name: name.to_owned(), known: first_listed(self.names.iter()) })
    }

    /// The experts themselves, in the order of their names.
    pub fn experts(&self) -> &[Expert] {
        &self.experts
    }

    /// The sites of the base, in its order: those of the layers first.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// Each site of a layer with its index and its experts' matrices; sites that no expert touches are left out.
    pub fn stacks(&self) -> impl Iterator<Item = (usize, &Site, &Stack)> {
        self.all_stacks().filter(|(_, site, _)| site.layer.is_some())
    }

    /// The same with the embedding and the head.
    pub(crate) fn all_stacks(&self) -> impl Iterator<Item = (usize, &Site, &Stack)> {
        let stacked = |(index, (site, stack))| Some((index, site, Option::<&Stack>::as_ref(&stack).copied()?));
        self.sites.iter().zip(self.stacks.iter().map(Option::as_ref)).enumerate().filter_map(stacked)
    }

    /// Checks that no expert changes the embedding or the head, for `method`, which fits something of the layers alone.
    ///
    /// # Errors
    /// If one does; the error names the module.
    pub fn ensure_layers_only(&self, method: &str) -> Result<()> {
        match self.all_stacks().find(|(_, site, _)| site.layer.is_none()) {
            None => Ok(()),
            Some((_, site, _)) => {
                let module =
                    site.projections.first().map_or_else(|| site.key(), |projection| projection.module.clone());
                Err(RouteError::OutsideLayers { method: method.to_owned(), module })
            }
        }
    }

    /// An expert's update of a module, if it has one.
    pub fn module(&self, expert: usize, module: &str) -> Option<&LowRank> {
        self.experts[expert].adapter.modules().get(module)
    }
}

/// Each expert's module for each projection of a site.
fn modules<'a>(experts: &'a [Expert], site: &Site) -> Modules<'a> {
    let of = |module: &str| experts.iter().map(|expert| expert.adapter.modules().get(module)).collect();
    site.projections.iter().map(|projection| of(&projection.module)).collect()
}

/// Refuses an adapter of another base.
fn check_modules(experts: &[Expert], sites: &[Site]) -> Result<()> {
    let widths: HashMap<&str, (usize, usize)> = sites
        .iter()
        .flat_map(|site| site.projections.iter().map(|p| (p.module.as_str(), (site.input, p.width))))
        .collect();
    // In parallel, since of a large library this looks up hundreds of thousands of modules; the first error in order of names.
    match experts.par_iter().find_map_first(|expert| misfit(expert, &widths, sites)) {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

/// Why an expert does not fit a base with modules of these widths.
fn misfit(expert: &Expert, widths: &HashMap<&str, (usize, usize)>, sites: &[Site]) -> Option<RouteError> {
    for (module, low_rank) in expert.adapter.modules() {
        let found = (low_rank.input(), low_rank.output());
        let expected = widths.get(module.as_str());
        if expected == Some(&found) {
            continue;
        }
        let (expert, module) = (expert.name.clone(), module.clone());
        match expected {
            Some(&expected) => return Some(RouteError::Widths { expert, module, found, expected }),
            None => {
                let example = sites.first().and_then(|site| site.projections.first());
                let example = example.map_or("none".to_owned(), |projection| projection.module.clone());
                return Some(RouteError::UnknownModule { expert, module, example });
            }
        }
    }
    None
}
