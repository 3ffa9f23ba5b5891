//! Routers turn a library of LoRA adapters into patches for the sites of a base; merges turn several adapters into one.
//!
//! [`LibraryStack`] puts the named adapters of a library together site by site. A [`Router`], read from what a user
//! types (`arrow:top_k=2`) by [`parse_router`], makes [`lorakit_lora::Patches`] of it, which a model then applies.
//! [`token`] has the routers that choose for each token, [`prompt`] those that choose for a row by its prompt,
//! [`fixed`] those whose weights do not depend on the token. An [`Observer`], if one is given, receives each choice.
//!
//! A [`merge::MergeMethod`], read in the same way (`ties:density=0.2`) by [`merge::parse_merge`], makes one adapter of
//! several and their weights, in weight space alone, and reports how much was retained.
//!
//! A method is one file, and one line in [`ROUTERS`], [`merge::MERGES`] or [`FITTED_MERGES`]: its [`MethodInfo`] has
//! its name, summary and link, and its settings are a struct with serde's derives.
//!
//! The crate deliberately knows no model, no text and no training. It sees [`lorakit_lora::Site`]s, tokens as rows of
//! numbers, and the names of tasks that an expert's record lists. What a router has to fit is fitted elsewhere and
//! handed in as [`RouterState`]; [`Router::training_data`] says to what rows. [`InputMeans`] and [`ResponseProbe`] are
//! the probes that record inputs and responses.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use lorakit_adapter::{Adapter, LowRank, Matrix};
//! use lorakit_lora::{Outputs, Projection, SequenceBatch, Site, SiteRole};
//! use lorakit_route::{Expert, LibraryStack, RouterContext, parse_router};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let module = "model.layers.0.self_attn.q_proj";
//! let projections = vec![Projection { module: module.into(), width: 2 }];
//! let site = Site { layer: Some(0), name: "q", role: SiteRole::AttentionInput, input: 2, projections };
//! // One expert reads the first feature, the other the second.
//! let expert = |name: &str, a: [f32; 2], b: [f32; 2]| -> Result<Expert, Box<dyn std::error::Error>> {
//!     let low_rank = LowRank::new(Matrix::new(1, 2, a.to_vec())?, Matrix::new(2, 1, b.to_vec())?, 1.0)?;
//!     Ok(Expert::new(name, Adapter::new([(module.to_string(), low_rank)].into())))
//! };
//! let library = [expert("first", [1., 0.], [1., 0.])?, expert("second", [0., 1.], [0., 2.])?];
//! let experts = LibraryStack::new(library, &[site], &Device::Cpu)?;
//!
//! let router = parse_router("arrow:top_k=1")?;
//! let patches = router.patches(&experts, &RouterContext::default())?;
//!
//! let token = Tensor::new(&[[3f32, 4.]], &Device::Cpu)?;
//! let mut out = Outputs::new(Tensor::new(&[[10f32, 10.]], &Device::Cpu)?);
//! if let Some(patch) = patches.at(0) {
//!     patch.add(&token, &SequenceBatch::packed([1]), &mut out)?;
//! }
//! assert_eq!(out.tensor().to_vec2::<f32>()?, [[10., 18.]]); // the second expert: 10 + 2 * 4
//! # Ok(())
//! # }
//! ```

mod error;
pub mod fixed;
mod inner_products;
mod library_stack;
mod limit;
pub mod merge;
mod method_info;
mod method_settings;
mod mixing;
mod observer;
mod ordered_results;
pub mod prompt;
mod router;
mod router_list;
mod router_state;
mod settings_text;
mod site_lora;
mod site_patches;
mod stack;
pub mod token;
mod training_data;

pub use error::{Result, RouteError};
pub use fixed::cat::{Cat, CatMerge};
pub use fixed::expert_per_row::expert_per_row;
pub use fixed::held_out_losses::HeldOutLosses;
pub use fixed::lorahub::LoraHub;
pub use fixed::lorahub::row_losses::{LossError, RowLoss, RowLosses};
pub use fixed::no_expert::NoExpert;
pub use fixed::oracle::{Oracle, expert_of_task};
pub use fixed::poly::Poly;
pub use fixed::row_weights::{by_row_weights, by_weights};
pub use fixed::scaled_uniform::ScaledUniform;
pub use fixed::single::{SingleExpert, single_expert};
pub use fixed::trainable_weights::TrainableWeights;
pub use fixed::uniform::Uniform;
pub use library_stack::{Expert, LibraryStack};
pub use limit::Limit;
pub use merge::{FITTED_MERGES, FittedMerge, parse_fitted_merge};
pub use method_info::MethodInfo;
pub use mixing::Mixing;
pub use observer::{ExpertShare, Observer, RoutingDecision, RoutingStats};
pub use prompt::evidence::Evidence;
pub use prompt::evidence::lda::TaskResponses;
pub use prompt::evidence::response::{ResponseMeasure, ResponseProbe};
pub use prompt::logo::{Logo, OutputMeasure};
pub use prompt::prompt_router::{PromptPass, PromptRouter};
pub use prompt::retrieve::Retrieve;
pub use prompt::task_predictor::TaskPredictor;
pub use prompt::tfidf::Tfidf;
pub use router::{Router, RouterContext};
pub use router_list::{ROUTERS, parse_router};
pub use router_state::RouterState;
pub use stack::Stack;
pub use token::arrow::Arrow;
pub use token::centroid::Centroid;
pub use token::input_means::{InputMeans, Pooling};
pub use token::lag::Lag;
pub use token::phatgoose::Phatgoose;
pub use token::prototypes::PrototypeScope;
pub use token::spectr::Spectr;
pub use token::subspaces::SubspaceMeasure;
pub use training_data::TrainingData;
