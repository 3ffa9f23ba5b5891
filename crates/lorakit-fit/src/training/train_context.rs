//! What all training of one command shares.

use crate::reporter::Reporter;
use lorakit_model::Base;
use lorakit_task::Tokenizer;
use lorakit_train::RunPart;

/// What all training of one command shares.
#[derive(Clone, Copy)]
pub struct TrainContext<'a> {
    /// The base, as it is.
    pub base: &'a Base,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The seed of initial values, row orders and dropout.
    pub seed: u64,
    /// Whether what exists with other settings is trained again.
    pub restart: bool,
    /// The part of a run to train, without a lock of the library; none: all of it, under the lock.
    pub part: Option<RunPart>,
    /// Receives progress and warnings.
    pub reporter: &'a dyn Reporter,
}
