//! Symmetric matrices of which one triangle was computed.

/// Copies the lower triangle of the row-major `[n, n]` to the upper one.
pub(crate) fn mirror_lower(values: &mut [f64], n: usize) {
    for i in 0..n {
        for j in 0..i {
            values[j * n + i] = values[i * n + j];
        }
    }
}
