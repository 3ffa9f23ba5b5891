//! Vectors of which a kernel sets every value: memory that is not zeroed before.
//!
//! Zeroing is one more pass over memory, by one thread while the others wait.

/// A vector of `len` values that `init` sets. In builds with debug assertions, values that it leaves out are NaN.
///
/// # Safety
/// `init` must set every value, and must not read one that it has not set. Where it goes through several slices side by
/// side, the shortest decides how much is set: their lengths have to be checked before. It may panic.
pub unsafe fn uninit_vec(len: usize, init: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut values: Vec<f32> = Vec::with_capacity(len);
    let unset = &mut values.spare_capacity_mut()[..len];
    if cfg!(debug_assertions) {
        unset.iter_mut().for_each(|value| {
            value.write(f32::NAN);
        });
    }
    // SAFETY: the memory is that of `len` values, and the caller's `init` reads none of them before it is set.
    init(unsafe { std::slice::from_raw_parts_mut(unset.as_mut_ptr().cast(), len) });
    // SAFETY: the capacity is at least `len`, and `init` has set all values.
    unsafe { values.set_len(len) };
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_holds_what_was_set() {
        for len in [0, 1, 1000] {
            // SAFETY: every value is set.
            let values =
                unsafe { uninit_vec(len, |values| values.iter_mut().zip(0..).for_each(|(v, i)| *v = i as f32)) };
            assert!(values.len() == len && values.iter().zip(0..).all(|(&v, i)| v == i as f32));
        }
    }
}
