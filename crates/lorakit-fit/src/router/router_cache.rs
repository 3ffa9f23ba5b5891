//! The cache of fitted router state: `LIBRARY/routers/NAME-HASH/`, keyed by a hash of everything that decides it.
//!
//! Other experts, rows, settings, routings of skills (`routers/poly` and `routers/mhr`, which training replaces) or another
//! version give another hash, so that no entry can be out of date.

use super::training_rows::TrainingRows;
use crate::error::{Context as _, FitError, Result};
use lorakit_adapter::{ExpertWeights, Library, Matrix};
use lorakit_format::hash::sha256;
use lorakit_route::{Router, RouterState};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

/// Everything that decides a router's state.
pub(super) struct CacheKey {
    /// The router's name with the hash of the other two.
    name: String,
    experts: Vec<ExpertWeights>,
    document: Value,
}

impl CacheKey {
    /// The key of `router` fitted to `rows`. Hashes the weights of every expert.
    pub fn new(router: &dyn Router, rows: &TrainingRows) -> Result<Self> {
        let experts = rows.library().expert_weights(rows.experts().names())?;
        let mut document = json!({
            "router": router.to_string(),
            "base": rows.base().identity().fingerprint,
            // What was trained under the router's own name, such as the routing of skills, is an input of the fit.
            "trained": rows.library().router_sha256(router.info().name)?,
            "rows": rows.identity(),
            "seed": rows.seed(),
            "lorakit": env!("CARGO_PKG_VERSION"),
            "formulas": router.info().version,
        });
        if let Some(dtype) = rows.base().dtype_override() {
            document["dtype"] = json!(dtype.as_str());
        }
        let hash = sha256(json!([experts, document]).to_string().as_bytes());
        Ok(Self { name: format!("{}-{}", router.info().name, &hash[..16]), experts, document })
    }
}

/// The state of this key; `None` where there is none, or an incomplete one.
pub(super) fn read(library: &Library, key: &CacheKey) -> Result<Option<RouterState>> {
    let Ok(Some(record)) = library.router_record::<Value>(&key.name) else { return Ok(None) };
    if record.experts != key.experts || record.origin != key.document {
        return Ok(None);
    }
    let Ok(state) = library.router_state(&key.name, &record) else { return Ok(None) };
    matrices(&state).map(Some).with_context(|| library.routers_folder().join(&key.name).display().to_string())
}

/// Writes the state of this key.
pub(super) fn write(library: &Library, key: &CacheKey, state: &RouterState) -> Result<()> {
    let bytes = serialise(state)?;
    let _lock = library.lock()?;
    Ok(library.put_router(&key.name, &key.experts, &key.document, &bytes)?)
}

fn serialise(state: &RouterState) -> Result<Vec<u8>> {
    let tensors = state.matrices().iter().map(|(name, matrix)| {
        let bytes: Vec<u8> = matrix.values().iter().flat_map(|value| value.to_le_bytes()).collect();
        (name, (matrix.rows(), matrix.cols()), bytes)
    });
    let tensors: Vec<_> = tensors.collect();
    let views = tensors.iter().map(|(name, (rows, columns), bytes)| {
        Ok((name.as_str(), TensorView::new(Dtype::F32, vec![*rows, *columns], bytes)?))
    });
    Ok(safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None)?)
}

fn matrices(bytes: &[u8]) -> Result<RouterState> {
    let file = SafeTensors::deserialize(bytes)?;
    let matrix = |(name, tensor): (String, TensorView)| {
        if tensor.dtype() != Dtype::F32 {
            return Err(FitError::StateType { name, found: format!("{:?}", tensor.dtype()) });
        }
        let &[rows, columns] = tensor.shape() else {
            return Err(FitError::StateShape { name, found: tensor.shape().to_vec() });
        };
        let values = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Ok((name, Matrix::new(rows, columns, values)?))
    };
    Ok(RouterState::new(file.tensors().into_iter().map(matrix).collect::<Result<Vec<_>>>()?))
}
