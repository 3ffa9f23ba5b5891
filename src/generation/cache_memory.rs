//! How much memory the keys and values of texts may take.

use lorakit_model::Base;
use lorakit_train::DeviceMemory;

/// One over the share of available memory that cached keys and values may take; the rest is for activations and other
/// processes.
const MEMORY_DIVISOR: u64 = 4;

/// The bytes for them where the system does not report its memory.
const ASSUMED_MEMORY: u64 = 1 << 30;

/// Maximum memory for cached keys and values, in bytes.
pub fn cache_bytes(base: &Base) -> u64 {
    let free = |memory: DeviceMemory| memory.available.saturating_sub(base.weight_bytes());
    DeviceMemory::of_device(base).map_or(ASSUMED_MEMORY, |memory| free(memory) / MEMORY_DIVISOR)
}
