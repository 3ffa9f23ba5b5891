//! The cache of fitted router state: `LIBRARY/routers/NAME-HASH/`, keyed by a hash of everything that decides it.
//!
//! Another tokenizer, other experts, rows, settings, routings of skills (`routers/poly` and `routers/mhr`, which training
//! replaces) or another version give another hash, so that no entry can be out of date.

use super::router_fits::reads_current_task;
use super::training_rows::{RowsIdentity, TrainingRows};
use crate::error::{FitError, Result, WithContext as _};
use lorakit_adapter::{ExpertHash, Library, Matrix};
use lorakit_format::hash::sha256;
use lorakit_route::{Router, RouterState};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Minimum lock wait before giving up on caching a state: single changes of other processes take moments.
const MIN_WAIT: Duration = Duration::from_secs(1);

/// Everything that decides a router's state.
pub(super) struct CacheKey {
    /// The router's name with the hash of the other two.
    name: String,
    experts: Vec<ExpertHash>,
    origin: StateOrigin,
}

/// What a router was fitted with, as its record has it. Keys and their order are hashed, and must stay as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct StateOrigin {
    /// The router with all its settings.
    router: String,
    /// The fingerprint of the base.
    base: String,
    /// The hash of its tokenizer.
    tokenizer: String,
    /// The hash of what was trained under the router's own name, such as the routing of skills: an input of the fit.
    trained: Option<String>,
    rows: RowsIdentity,
    seed: u64,
    /// The version of lorakit.
    lorakit: String,
    /// The version of the router's algorithm.
    formulas: u32,
    /// The type that the base's weights are read as, where it is not their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dtype: Option<String>,
}

impl CacheKey {
    /// The key of `router` fitted to `rows`. Hashes the weights of every expert as they were read: a state that is fitted to
    /// them does not get the key of experts that have replaced them since.
    pub fn new(router: &dyn Router, rows: &TrainingRows) -> Result<Self> {
        let (info, base) = (router.info(), rows.base());
        let origin = StateOrigin {
            router: router.to_string(),
            base: base.identity().fingerprint.clone(),
            tokenizer: rows.tokenizer().sha256()?,
            trained: rows.library().router_sha256(info.name)?,
            rows: rows.identity(reads_current_task(router)),
            seed: rows.seed(),
            lorakit: env!("CARGO_PKG_VERSION").to_owned(),
            formulas: info.version,
            dtype: base.dtype_override().map(|dtype| dtype.as_str().to_owned()),
        };
        Self::of(info.name, rows.expert_hashes()?, origin)
    }

    fn of(router: &str, experts: Vec<ExpertHash>, origin: StateOrigin) -> Result<Self> {
        let text = serde_json::to_string(&(&experts, &origin)).map_err(|error| FitError::Caller(error.into()))?;
        let hash = sha256(text.as_bytes());
        Ok(Self { name: format!("{router}-{}", &hash[..16]), experts, origin })
    }
}

/// The state of this key; `None` where there is none, or an incomplete one.
pub(super) fn read(library: &Library, key: &CacheKey) -> Result<Option<RouterState>> {
    let Ok(Some(record)) = library.router_record::<StateOrigin>(&key.name) else { return Ok(None) };
    if record.experts != key.experts || record.origin != key.origin {
        return Ok(None);
    }
    let Ok(state) = library.router_state(&key.name, &record) else { return Ok(None) };
    matrices(&state).map(Some).with_context(|| library.routers_folder().join(&key.name).display().to_string())
}

/// Writes the state of this key, unless another process holds the library's lock for longer than single changes take, as
/// one that trains does for hours: the state would be kept for later runs only, and this one is not to wait for that. Where
/// only time tells whether that process is alive, it is waited for so long.
pub(super) fn write(library: &Library, key: &CacheKey, state: &RouterState) -> Result<()> {
    let bytes = serialize(state)?;
    let (since, mut patience) = (Instant::now(), None);
    // The first attempt may be what finds that locks outlive processes here.
    let lock = library
        .lock_for_change_while(&mut || since.elapsed() < *patience.get_or_insert_with(|| longest_wait(library)))?;
    let library = library.guarded_by(&[&lock.ok_or(FitError::LibraryInUse)?]);
    Ok(library.put_router(&key.name, &key.experts, &key.origin, &bytes)?)
}

/// How long to wait for the library's lock. What is wrong with it, an attempt to take it says.
fn longest_wait(library: &Library) -> Duration {
    library.takeover_time().ok().flatten().map_or(MIN_WAIT, |time| time.max(MIN_WAIT))
}

fn serialize(state: &RouterState) -> Result<Vec<u8>> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn origin(rows: &str) -> StateOrigin {
        StateOrigin {
            router: "cm:rows=2".to_owned(),
            base: "2".to_owned(),
            tokenizer: "3".to_owned(),
            trained: None,
            rows: serde_json::from_str(rows).unwrap(),
            seed: 0,
            lorakit: "0.1.0".to_owned(),
            formulas: 2,
            dtype: None,
        }
    }

    /// A changed key would fit every router of every library again.
    #[test]
    fn keys_stay_as_they_are() {
        let rows = r#"{"split":"train","rows":2,"tasks":[{"expert":"a","task":"a","sha256":"1","split_seed":0}]}"#;
        let origin = origin(rows);
        let text = serde_json::to_string(&origin).unwrap();
        let expected = format!(
            r#"{{"router":"cm:rows=2","base":"2","tokenizer":"3","trained":null,"rows":{rows},"seed":0,"lorakit":"0.1.0","formulas":2}}"#
        );
        assert_eq!(text, expected);
        let experts = vec![ExpertHash { name: "a".to_owned(), sha256: "4".to_owned() }];
        let of = |origin: &StateOrigin| CacheKey::of("cm", experts.clone(), origin.clone()).unwrap().name;
        let text = serde_json::to_string(&(&experts, &origin)).unwrap();
        assert_eq!(of(&origin), format!("cm-{}", &sha256(text.as_bytes())[..16]));

        let with_dtype = StateOrigin { dtype: Some("bf16".to_owned()), ..origin.clone() };
        let text = serde_json::to_string(&with_dtype).unwrap();
        assert!(text.ends_with(r#""lorakit":"0.1.0","formulas":2,"dtype":"bf16"}"#), "{text}");
        let other = StateOrigin { tokenizer: "5".to_owned(), ..origin.clone() };
        assert!(of(&with_dtype) != of(&origin) && of(&other) != of(&origin));
    }

    fn state() -> RouterState {
        let matrix = Matrix::new(2, 3, vec![0.5, -1.0, 2.0, 3.5, 0.0, 7.25]).unwrap();
        RouterState::new([("1.qkv".to_owned(), matrix)])
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        assert_eq!(matrices(&serialize(&state()).unwrap()).unwrap(), state());
    }

    #[test]
    fn the_lease_of_a_dead_process_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::open_or_create(folder.path(), None).unwrap();
        std::fs::write(folder.path().join(".lease"), "2\n").unwrap();
        std::fs::write(folder.path().join(".lease-7"), "process 1 on another machine\n").unwrap();
        let origin = origin(r#"{"split":"train","rows":2,"tasks":[]}"#);
        let key = CacheKey::of("cm", Vec::new(), origin).unwrap();
        write(&library, &key, &state()).unwrap();
        assert_eq!(read(&library, &key).unwrap(), Some(state()));
    }
}
