//! How much memory the keys and values of texts may take.

use lorakit_model::Base;
use lorakit_train::DeviceMemory;

/// The part of the available memory that is for cached keys and values; the rest is for activations and for others.
const PART: u64 = 4;

/// The memory where the system does not report what is available.
const UNKNOWN: u64 = 1 << 30;

/// Maximum memory for cached keys and values, in bytes.
pub fn cache_bytes(base: &Base) -> u64 {
    let free = |memory: DeviceMemory| memory.available.saturating_sub(base.weight_bytes());
    DeviceMemory::of_device(base).map_or(UNKNOWN, |memory| free(memory) / PART)
}
