//! Routers: a library of adapters, turned into patches for the sites of a base. Merges: several adapters made one.
//!
//! [`Experts`] stacks the named adapters of a library site by site, once. A [`Router`], parsed from what a user types
//! (`arrow:top_k=2`), makes [`Patches`] of them, which a model then carries: uniform and verbatim experts are one
//! low-rank product on all tokens; [`Arrow`] scores every token against each expert's strongest direction and mixes
//! the few best by [`Mixing`]. An [`Observer`], where one is given, is shown each choice.
//!
//! A [`merge::Merge`], parsed in the same way (`ties:density=0.2`), makes one adapter of several and their weights, in
//! weight space alone, and reports what it could not keep.
//!
//! The crate deliberately knows no model, no text and no training. It sees [`Site`]s, tokens as rows of numbers, and
//! the names of tasks where an expert's record lists them. What a router has to learn is learned elsewhere and handed in
//! as [`Learned`]; [`Router::lesson`] says from what rows. [`Inputs`] is the probe by which inputs are gathered.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use lorakit_adapter::{Adapter, LowRank, Matrix};
//! use lorakit_lora::{Outputs, Projection, Rows, Site};
//! use lorakit_route::{Expert, Experts, Router, Setting};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let module = "model.layers.0.self_attn.q_proj";
//! let site = Site { layer: Some(0), name: "q", input: 2, projections: vec![Projection { module: module.into(), width: 2 }] };
//! // One expert reads the first feature, the other the second.
//! let expert = |name: &str, a: [f32; 2], b: [f32; 2]| -> Result<Expert, Box<dyn std::error::Error>> {
//!     let low_rank = LowRank::new(Matrix::new(1, 2, a.to_vec())?, Matrix::new(2, 1, b.to_vec())?, 1.0)?;
//!     Ok(Expert::new(name, Adapter::new([(module.to_string(), low_rank)].into())))
//! };
//! let library = [expert("first", [1., 0.], [1., 0.])?, expert("second", [0., 1.], [0., 2.])?];
//! let experts = Experts::new(library, &[site], &Device::Cpu)?;
//!
//! let router: Router = "arrow:top_k=1".parse()?;
//! let patches = router.build(&experts, &Setting::default())?;
//!
//! let token = Tensor::new(&[[3f32, 4.]], &Device::Cpu)?;
//! let mut out = Outputs::new(Tensor::new(&[[10f32, 10.]], &Device::Cpu)?);
//! if let Some(patch) = patches.at(0) {
//!     patch.add(&token, &Rows::packed([1]), &mut out)?;
//! }
//! assert_eq!(out.tensor().to_vec2::<f32>()?, [[10., 18.]]); // the second expert: 10 + 2 * 4
//! # Ok(())
//! # }
//! ```

mod always;
pub mod arrow;
mod by_prompt;
pub mod cat;
pub mod cm;
mod cobyla;
mod composition;
mod error;
pub mod evidence;
pub mod expert;
mod experts;
mod gate;
pub mod gks;
mod held_out;
mod inner_products;
mod inputs;
mod learned;
mod leftover;
pub mod lorahub;
pub mod merge;
mod mixing;
mod observer;
pub mod oracle;
mod pattern;
mod per_token;
pub mod phatgoose;
pub mod poly;
mod posterior;
pub mod response;
mod router;
mod settings;
mod stack;
pub mod tp;
mod uniform;
mod weighed;

pub use arrow::{Arrow, Tie};
pub use by_prompt::{ByPrompt, Survey};
pub use cat::{Cat, Gates};
pub use cm::Cm;
pub use composition::{COMPOSITIONS, Composition};
pub use error::{Result, RouteError};
pub use evidence::Evidence;
pub use expert::Verbatim;
pub use experts::{Expert, Experts};
pub use held_out::HeldOut;
pub use inputs::{Inputs, Pool};
pub use learned::{Learned, Lesson};
pub use lorahub::{LoraHub, RowLoss, RowLosses};
pub use mixing::Mixing;
pub use observer::{Observer, Routing, Share, Usage};
pub use pattern::TaskResponses;
pub use phatgoose::Phatgoose;
pub use poly::Poly;
pub use response::{Measure, Responses};
pub use router::{About, ROUTERS, Router, Setting};
pub use settings::AtMost;
pub use stack::Stack;
pub use tp::Tp;
pub use uniform::Uniform;
pub use weighed::{by_row_weights, by_weights};

use candle_core::Device;
use lorakit_lora::{Patch, Patches, Site};
use rayon::prelude::*;
use std::sync::Arc;

/// Waits until a card has done what this thread asked of it: each thread has a queue of its own there, and what another
/// one asks next is to find it done.
fn settled(device: &Device) -> candle_core::Result<()> {
    device.synchronize()
}

/// Makes the patch of every site that any expert touches, in parallel; sites that `make` gives none stay as they are.
fn patches(
    experts: &Experts,
    make: impl Fn(usize, &Site, &Stack) -> Result<Option<Arc<dyn Patch>>> + Sync,
) -> Result<Patches> {
    let touched: Vec<(usize, &Site, &Stack)> = experts.stacks().collect();
    let made: Vec<_> = touched
        .into_par_iter()
        .map(|(index, site, stack)| {
            let made = (index, make(index, site, stack)?);
            settled(stack.a().device())?;
            Ok(made)
        })
        .collect::<Result<_>>()?;
    let mut by_site = vec![None; experts.sites().len()];
    made.into_iter().for_each(|(index, patch)| by_site[index] = patch);
    Ok(Patches::new(by_site))
}
