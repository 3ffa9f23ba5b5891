//! A small real model, and tasks to score it on.

use lorakit_eval::{PatchedModel, PromptRouting, Sequence};
use lorakit_lora::{Outputs, Patch, Patches, SequenceBatch};
use lorakit_model::{Base, BaseOptions};
use lorakit_task::{Task, Tokenizer};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What lies beside the project; None, with a notice, where it does not.
pub fn shared(path: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path);
    if !found.exists() {
        eprintln!("skipped: no ../shared");
        return None;
    }
    Some(found)
}

/// A. Karpathy's model of 260 thousand parameters, which was trained on stories.
pub struct Stories {
    pub base: Base,
    pub tokenizer: Tokenizer,
    pub patches: Patches,
    pub template: Sequence,
}

impl Stories {
    pub fn open() -> Option<Stories> {
        let folder = shared("data/models/stories260K-hf")?;
        let base = Base::open(&folder, &BaseOptions::default()).unwrap();
        let (tokenizer, patches) = (Tokenizer::open(&folder).unwrap(), Patches::none());
        Some(Stories { base, tokenizer, patches, template: carrying(0.25) })
    }

    /// With a patch at every site that is not the same for every row and not linear in the input.
    pub fn bend(self) -> Stories {
        let patches = self.base.sites().iter().map(|_| Some(Arc::new(Bend) as Arc<dyn Patch>));
        Stories { patches: Patches::new(patches.collect()), ..self }
    }

    pub fn model(&self) -> PatchedModel<'_> {
        self.with(&self.template)
    }

    /// The same with rows that carry what `routing` says.
    pub fn with<'a>(&'a self, routing: &'a dyn PromptRouting) -> PatchedModel<'a> {
        PatchedModel { base: &self.base, tokenizer: &self.tokenizer, patches: &self.patches, routing }
    }
}

/// What a row carries here: an expert, and two weights.
pub fn carrying(weight: f32) -> Sequence {
    Sequence { expert: Some(3), weights: Some(Arc::from([0.5, weight])), ..Sequence::default() }
}

/// Adds to every output a part of itself that depends on what the row carries.
struct Bend;

impl Patch for Bend {
    fn add(&self, _: &candle_core::Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        let weights: Vec<f32> = rows
            .iter()
            .flat_map(|row| {
                assert_eq!(row.expert, Some(3));
                std::iter::repeat_n(row.weights.as_ref().unwrap()[1], row.len)
            })
            .collect();
        let weights = candle_core::Tensor::from_slice(&weights, (weights.len(), 1), out.tensor().device())?;
        let delta = out.tensor().sin()?.broadcast_mul(&weights)?;
        out.add(&delta)
    }
}

/// Writes `text` to a file of its own and loads it as a task.
pub fn task(folder: &Path, file: &str, text: &str) -> Task {
    let path = folder.join(file);
    std::fs::write(&path, text).unwrap();
    Task::load(path.to_str().unwrap(), None).unwrap().remove(0)
}
