//! Tensors in an adapter's file that are the base's own, or hold nothing.
//!
//! PEFT saves an adapted embedding or head with its adapter, and the base's biases under `bias`; loading the adapter puts
//! them in place of the base's. What is equal to the base's changes nothing.

use std::collections::BTreeMap;

use crate::adapter::Adapter;
use crate::error::{AdapterError, Result};
use crate::matrix::Matrix;
use crate::name_list::quote_names;
use crate::peft::adapter_tensor::AdapterTensor;
use crate::peft::wrapper_prefix::Unwrapped;
use crate::warning::Warning;

/// The names that embeddings and heads have in PEFT, which saves them without being asked.
const EMBEDDING_NAMES: [&str; 2] = ["embed_tokens", "lm_head"];

/// The subject of the warning about weights of the base.
const SAVED: &str = "base_layer";

/// What becomes of biases of the base other than zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Biases {
    /// They are refused: trained ones are no low-rank update.
    Refused,
    /// They must be the base's, with which they are compared later.
    OfBase,
}

/// What a tensor is that belongs to no LoRA.
enum BaseTensor {
    /// The base's tensor of this name: its weight, or a weight or bias that comes with an embedding.
    Saved(String),
    /// The base's bias of this name, which `bias` trains.
    Bias(String),
    /// A bias of lora_B.
    LoraBias,
}

/// The tensors without those of the base, and those by their names in the base. Biases must be zero to be among them, or
/// else `biases` decides; zero biases of lora_B are left out.
pub(crate) fn without_base_tensors(
    tensors: Vec<AdapterTensor>,
    biases: Biases,
    warnings: &mut Vec<Warning>,
) -> Result<(Vec<AdapterTensor>, BTreeMap<String, Matrix>)> {
    let (mut kept, mut of_base) = (Vec::new(), BTreeMap::new());
    let (mut zero, mut saved) = (Vec::new(), Vec::new());
    for tensor in tensors {
        match BaseTensor::of(&tensor.key) {
            None => kept.push(tensor),
            Some(BaseTensor::Saved(name)) => {
                saved.push(name.clone());
                insert(&mut of_base, name, tensor)?;
            }
            Some(bias) => {
                let is_zero = tensor.clone().rows()?.values().iter().all(|value| *value == 0.0);
                match bias {
                    BaseTensor::Bias(name) if is_zero || biases == Biases::OfBase => {
                        if is_zero {
                            zero.push(tensor.key.clone())
                        } else {
                            saved.push(name.clone())
                        }
                        insert(&mut of_base, name, tensor)?;
                    }
                    _ if is_zero => zero.push(tensor.key.clone()),
                    _ => kept.push(tensor),
                }
            }
        }
    }
    if !zero.is_empty() {
        warnings.push(Warning::new("bias", format!("left out, since they are zero: {}", quote_names(&zero))));
    }
    if !saved.is_empty() {
        let text = format!(
            "weights that PEFT would load in place of the base's are left out, and were not compared with the base's: {}; \
             `library add --base B` compares them",
            quote_names(&saved)
        );
        warnings.push(Warning::new(SAVED, text));
    }
    Ok((kept, of_base))
}

/// Adds the tensor of the base of this name, which must be the only one: with and without a wrapper's prefix, two may be.
fn insert(of_base: &mut BTreeMap<String, Matrix>, name: String, tensor: AdapterTensor) -> Result<()> {
    if of_base.contains_key(&name) {
        let key = &tensor.key;
        return Err(AdapterError::Tensors(format!("`{key}` is the base's `{name}`, which the file holds twice")));
    }
    of_base.insert(name, tensor.rows()?);
    Ok(())
}

impl Adapter {
    /// The same adapter, whose [`Adapter::base_tensors`] were found to be equal to the base's: its warning says so.
    pub fn with_equal_base_tensors(self) -> Self {
        let names: Vec<&String> = self.base_tensors().keys().collect();
        let text = format!(
            "copies of the base's own weights, which PEFT saves with an embedding or under `bias`, are left out: {}",
            quote_names(&names)
        );
        self.with_warning_replaced(&Warning::new(SAVED, text))
    }
}

impl BaseTensor {
    fn of(key: &str) -> Option<Self> {
        // The names of the checkpoint, of which none has a wrapper's prefix.
        let path = Unwrapped::of(key).path;
        let is_embedding = |module: &str| EMBEDDING_NAMES.contains(&module.rsplit('.').next().unwrap_or(module));
        if let Some(module) = path.strip_suffix(".weight") {
            if let Some(module) = module.strip_suffix(".base_layer") {
                return Some(Self::Saved(format!("{module}.weight")));
            }
            return is_embedding(module).then(|| Self::Saved(path.clone()));
        }
        let module = path.strip_suffix(".bias")?;
        if let Some(module) = module.strip_suffix(".base_layer").filter(|module| is_embedding(module)) {
            return Some(Self::Saved(format!("{module}.bias")));
        }
        if module.contains(".lora_B") {
            return Some(Self::LoraBias);
        }
        Some(Self::Bias(format!("{}.bias", module.strip_suffix(".base_layer").unwrap_or(module))))
    }
}
