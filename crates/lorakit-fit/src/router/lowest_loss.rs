//! The best of several settings that were tried.

/// The setting of the lowest loss, the first of equal ones; NaN is higher than any number. `default` where none was tried.
pub(super) fn of_lowest_loss<T: Copy>(tried: &[(f64, T)], default: T) -> T {
    let lowest = tried.iter().min_by(|(a, _), (b, _)| a.is_nan().cmp(&b.is_nan()).then(a.total_cmp(b)));
    lowest.map_or(default, |(_, setting)| *setting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_of_either_sign_is_worse_than_any_loss() {
        // 0 / 0 and inf - inf are NaN with the sign bit set on x86, which the total order puts below all numbers.
        let tried = [(-f64::NAN, 'a'), (f64::NAN, 'b'), (f64::INFINITY, 'c'), (2.0, 'd'), (2.0, 'e')];
        assert_eq!(of_lowest_loss(&tried, 'z'), 'd');
        assert_eq!(of_lowest_loss(&tried[..3], 'z'), 'c');
        assert_eq!(of_lowest_loss(&[], 'z'), 'z');
    }
}
