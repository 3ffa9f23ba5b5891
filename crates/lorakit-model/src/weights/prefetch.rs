//! Fetching weights from memory before they are multiplied: what a core looks ahead by itself does not reach far enough to
//! keep its memory busy.

/// How far ahead weights are fetched, in bytes: memory has answered by then.
const AHEAD: usize = 2048;

/// Begins to fetch the line of memory that is [`AHEAD`] bytes past `at`. What is not the program's is not fetched.
#[inline(always)]
pub(super) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every machine of this kind has the instruction, which accepts any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_byte_add(AHEAD).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
