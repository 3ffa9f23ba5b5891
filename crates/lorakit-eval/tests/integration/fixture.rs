//! Small trained models, and tasks to score them on.

use lorakit_eval::{PatchedModel, PromptRouting, Sequence};
use lorakit_lora::{Outputs, Patch, Patches, SequenceBatch};
use lorakit_model::{Base, BaseOptions, TokenPrecision};
use lorakit_task::{Split, Task, Tokenizer};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file of the reference data in `../shared`; tests that use it are ignored by default.
pub fn shared(path: &str) -> PathBuf {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path);
    assert!(found.exists(), "{} is needed", found.display());
    found
}

/// A model with patches, and the data that its rows carry.
pub struct Fixture {
    pub base: Base,
    pub tokenizer: Tokenizer,
    pub patches: Patches,
    pub template: Sequence,
}

impl Fixture {
    /// `pico`, the bundled model.
    pub fn pico() -> Fixture {
        Fixture::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/pico"))
    }

    /// A small random T5.
    pub fn t5() -> Fixture {
        Fixture::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/t5/base"))
    }

    /// A. Karpathy's stories260K model.
    pub fn stories() -> Fixture {
        Fixture::open(&shared("data/models/stories260K-hf"))
    }

    pub fn open(folder: &Path) -> Fixture {
        let base = Base::open(folder, &BaseOptions::default()).unwrap();
        let (tokenizer, patches) = (Tokenizer::open(folder).unwrap(), Patches::none());
        Fixture { base, tokenizer, patches, template: carrying(0.25) }
    }

    /// Adds a patch at every site that depends on the row and is not linear in the input.
    pub fn bend(self) -> Fixture {
        let patches = self.base.sites().iter().map(|_| Some(Arc::new(Bend) as Arc<dyn Patch>));
        Fixture { patches: Patches::new(patches.collect()), ..self }
    }

    pub fn model(&self) -> PatchedModel<'_> {
        self.with(&self.template)
    }

    /// The model with another routing.
    pub fn with<'a>(&'a self, routing: &'a dyn PromptRouting) -> PatchedModel<'a> {
        let precision = TokenPrecision::Exact;
        PatchedModel { base: &self.base, tokenizer: &self.tokenizer, patches: &self.patches, routing, precision }
    }
}

/// A row that carries an expert and two weights.
pub fn carrying(weight: f32) -> Sequence {
    Sequence { expert: Some(3), weights: Some(Arc::from([0.5, weight])), ..Sequence::default() }
}

/// Adds to every output its sine, scaled by a weight that the row carries.
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

/// Writes `text` to a file and loads it as a task.
pub fn task(folder: &Path, file: &str, text: &str) -> Task {
    let path = folder.join(file);
    std::fs::write(&path, text).unwrap();
    Task::load(path.to_str().unwrap(), None).unwrap().remove(0)
}

/// Multiple-choice rows for `pico`: the prompts of a skill, each with its answer and the answers of the next three
/// rows. Every eighth prompt is repeated until it exceeds the context length.
pub fn choice_task(folder: &Path) -> Task {
    let skill = Task::load("suite:skills/shift_up1", None).unwrap().remove(0);
    let rows = skill.rows(Split::All, Some(24)).unwrap();
    let line = |i: usize| {
        let input = rows[i].prompt.repeat(if i % 8 == 7 { 40 } else { 1 });
        let mut choices: Vec<&str> = (0..4).map(|next| rows[(i + next) % 24].accepted()[0].as_str()).collect();
        choices.rotate_right(i % 4);
        json!({"input": input, "choices": choices, "answer": i % 4}).to_string() + "\n"
    };
    task(folder, "choices.jsonl", &(0..24).map(line).collect::<String>())
}
