//! A small real model, and tasks to score it on.

use lorakit_adapter::{Outputs, Patch, Patches, Rows};
use lorakit_eval::{Model, Row};
use lorakit_model::{Base, Options};
use lorakit_task::{Task, Vocabulary};
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
    pub vocabulary: Vocabulary,
    pub patches: Patches,
}

impl Stories {
    pub fn open() -> Option<Stories> {
        let folder = shared("data/models/stories260K-hf")?;
        let base = Base::open(&folder, &Options::default()).unwrap();
        Some(Stories { base, vocabulary: Vocabulary::open(&folder).unwrap(), patches: Patches::none() })
    }

    /// With a patch at every site that is not the same for every row and not linear in the input.
    pub fn bend(self) -> Stories {
        let patches = self.base.sites().iter().map(|_| Some(Arc::new(Bend) as Arc<dyn Patch>));
        Stories { patches: Patches::new(patches.collect()), ..self }
    }

    pub fn model(&self) -> Model<'_> {
        let template = Row { expert: Some(3), weights: Some(Arc::from([0.5f32, 0.25])), ..Row::default() };
        Model { base: &self.base, vocabulary: &self.vocabulary, patches: &self.patches, template }
    }
}

/// Adds to every output a part of itself that depends on what the row carries.
struct Bend;

impl Patch for Bend {
    fn add(&self, _: &candle_core::Tensor, rows: &Rows, out: &mut Outputs) -> candle_core::Result<()> {
        for row in rows.iter() {
            assert_eq!((row.expert, row.weights.as_deref()), (Some(3), Some(&[0.5f32, 0.25][..])));
        }
        let weight = rows.iter().next().and_then(|row| row.weights.as_ref()).map_or(0.0, |w| f64::from(w[1]));
        let delta = (out.tensor().sin()? * weight)?;
        out.add(&delta)
    }
}

/// Writes `text` to a file of its own and loads it as a task.
pub fn task(folder: &Path, file: &str, text: &str) -> Task {
    let path = folder.join(file);
    std::fs::write(&path, text).unwrap();
    Task::load(path.to_str().unwrap(), None).unwrap().remove(0)
}
