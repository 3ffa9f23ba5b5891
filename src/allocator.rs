//! The memory allocator. Every op allocates and frees tensors, and the next step needs as much again.

use std::ffi::c_int;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay`, for which the bindings have no name.
const PURGE_DELAY: c_int = 15;

/// Keeps freed pages instead of returning them to the kernel, which would zero them before it hands them out again: 13 to
/// 20 % of the time of a training step. The environment variable `MIMALLOC_PURGE_DELAY` has precedence.
pub fn keep_freed_pages() {
    // SAFETY: sets a number in mimalloc's options; no memory is touched.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, -1) };
}
