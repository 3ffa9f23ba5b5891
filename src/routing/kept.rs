//! What routers learned, kept in `LIBRARY/routers/NAME-HASH/` under a hash of everything that it came from.
//!
//! What came from other experts, rows, settings, skills' routings (`routers/poly` and `routers/mhr`, which trainings
//! replace) or another version has another hash, so that nothing here can be served out of date.

use super::Rows;
use anyhow::{Context as _, Result, ensure};
use lorakit_adapter::{ExpertWeights, Library, Matrix};
use lorakit_format::hash::sha256;
use lorakit_route::{Learned, Router};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

/// Raised where any router learns something else from the same, so that what was kept before is learned anew.
const FORMULAS: u32 = 2;

/// Everything that a router's state comes from.
pub struct Origin {
    /// The router's name with the hash of the rest.
    name: String,
    experts: Vec<ExpertWeights>,
    document: Value,
}

impl Origin {
    /// The origin of what `router` learns from `rows`. Hashes the weights of every expert.
    pub fn of(router: &Router, rows: &Rows) -> Result<Self> {
        let experts = rows.library().expert_weights(rows.experts().names())?;
        let mut document = json!({
            "router": router.to_string(),
            "base": rows.base().identity().fingerprint,
            // What was trained under the router's own name, as the routing of skills is: it is learned from too.
            "trained": rows.library().router_sha256(router.name())?,
            "rows": rows.identity(),
            "seed": rows.seed(),
            "lorakit": env!("CARGO_PKG_VERSION"),
            "formulas": FORMULAS,
        });
        if let Some(dtype) = rows.base().narrowed() {
            document["dtype"] = json!(dtype.as_str());
        }
        let hash = sha256(json!([experts, document]).to_string().as_bytes());
        Ok(Self { name: format!("{}-{}", router.name(), &hash[..16]), experts, document })
    }
}

/// What was kept of this origin; none where there is nothing, or nothing whole.
pub fn read(library: &Library, origin: &Origin) -> Result<Option<Learned>> {
    let Ok(Some(record)) = library.router_record::<Value>(&origin.name) else { return Ok(None) };
    if record.experts != origin.experts || record.of != origin.document {
        return Ok(None);
    }
    let Ok(state) = library.router_state(&origin.name, &record) else { return Ok(None) };
    matrices(&state).map(Some).with_context(|| library.routers_folder().join(&origin.name).display().to_string())
}

/// Keeps what was learned.
pub fn write(library: &Library, origin: &Origin, learned: &Learned) -> Result<()> {
    let state = serialised(learned)?;
    let _lock = library.lock()?;
    library.put_router(&origin.name, &origin.experts, &origin.document, &state)
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
