//! What routers learned, kept in `LIBRARY/routers/` under a hash of everything that it came from.
//!
//! `NAME-HASH/` has router.json, which says what it came from, and router.safetensors, its matrices. What came from other
//! experts, rows, settings or another version has another hash, so that nothing here can be out of date.

use super::Rows;
use anyhow::{Context as _, Result, ensure};
use lorakit_adapter::sha256::sha256;
use lorakit_adapter::{Library, Matrix, persist};
use lorakit_route::{Learned, Router};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const RECORD: &str = "router.json";
const WEIGHTS: &str = "router.safetensors";

/// Everything that a router's state comes from.
pub struct Origin {
    /// The router's name.
    name: &'static str,
    document: Value,
    hash: String,
}

impl Origin {
    /// The origin of what `router` learns from `rows`. Hashes the weights of every expert.
    pub fn of(router: &Router, rows: &Rows) -> Result<Self> {
        let expert = |name: &String| Ok(json!({ "name": name, "sha256": rows.library().weights_sha256(name)? }));
        let document = json!({
            "router": router.to_string(),
            "base": rows.base().identity().fingerprint,
            "experts": rows.experts().names().iter().map(expert).collect::<Result<Vec<_>>>()?,
            "rows": rows.identity(),
            "seed": rows.seed(),
            "lorakit": env!("CARGO_PKG_VERSION"),
        });
        Ok(Self { name: router.name(), hash: sha256(document.to_string().as_bytes()), document })
    }

    fn folder(&self, library: &Library) -> Result<PathBuf> {
        library.router_folder(&format!("{}-{}", self.name, &self.hash[..16]))
    }
}

/// What was kept of this origin; none where there is nothing, or nothing whole.
pub fn read(library: &Library, origin: &Origin) -> Result<Option<Learned>> {
    let folder = origin.folder(library)?;
    let Ok(text) = fs::read_to_string(folder.join(RECORD)) else { return Ok(None) };
    let Ok(bytes) = fs::read(folder.join(WEIGHTS)) else { return Ok(None) };
    let record: Value = serde_json::from_str(&text).unwrap_or_default();
    if record["sha256"] != origin.hash || record["weights_sha256"] != sha256(&bytes) {
        return Ok(None);
    }
    matrices(&bytes).map(Some).with_context(|| folder.join(WEIGHTS).display().to_string())
}

/// Keeps what was learned.
pub fn write(library: &Library, origin: &Origin, learned: &Learned) -> Result<()> {
    let bytes = serialised(learned)?;
    let record = json!({
        "sha256": origin.hash,
        "weights_sha256": sha256(&bytes),
        "of": origin.document,
    });
    let _lock = library.lock()?;
    let routers = library.routers_folder();
    fs::create_dir_all(&routers).with_context(|| routers.display().to_string())?;
    persist::replace_folder(&origin.folder(library)?, |folder: &Path| {
        persist::write_file(&folder.join(WEIGHTS), &bytes)?;
        persist::write_file(&folder.join(RECORD), format!("{}\n", serde_json::to_string_pretty(&record)?).as_bytes())
    })
}

fn serialised(learned: &Learned) -> Result<Vec<u8>> {
    let tensors = learned.matrices().iter().map(|(name, matrix)| {
        let bytes: Vec<u8> = matrix.values().iter().flat_map(|value| value.to_le_bytes()).collect();
        (name, (matrix.rows(), matrix.cols()), bytes)
    });
    let tensors: Vec<_> = tensors.collect();
    let views = tensors.iter().map(|(name, (rows, columns), bytes)| {
        Ok((name.as_str(), TensorView::new(Dtype::F32, vec![*rows, *columns], bytes)?))
    });
    Ok(safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None)?)
}

fn matrices(bytes: &[u8]) -> Result<Learned> {
    let file = SafeTensors::deserialize(bytes)?;
    let matrix = |(name, tensor): (String, TensorView)| {
        ensure!(tensor.dtype() == Dtype::F32, "`{name}` is {:?}; expected F32", tensor.dtype());
        let &[rows, columns] = tensor.shape() else { anyhow::bail!("`{name}` has the shape {:?}", tensor.shape()) };
        let values = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Ok((name, Matrix::new(rows, columns, values)?))
    };
    Ok(Learned::new(file.tensors().into_iter().map(matrix).collect::<Result<Vec<_>>>()?))
}
