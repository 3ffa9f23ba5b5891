//! Dispatch of CPU loops to the widest vectors of the machine.
//!
//! A kernel implements [`WithSimd`]. It may use the vectors of the `S` it is given, or write plain loops and leave them to
//! the compiler, which then knows the machine's instructions. No float operation is fused or reordered by that: plain
//! loops give the same values on every machine. What a kernel calls must be `#[inline(always)]`; a function that is not
//! inlined is compiled for no machine in particular.

pub use pulp::{Simd, WithSimd};

/// Runs `kernel` compiled for the widest vectors of this machine.
#[inline]
pub fn dispatch<K: WithSimd>(kernel: K) -> K::Output {
    pulp::Arch::new().dispatch(kernel)
}
