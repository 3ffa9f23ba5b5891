//! Dispatch of CPU loops to the widest vectors of the machine, or to narrower ones that `LORAKIT_SIMD` asks for.
//!
//! A kernel implements [`WithSimd`]. It may use the vectors of the `S` it is given, or write plain loops and leave them to
//! the compiler, which then knows the machine's instructions. No float operation is fused or reordered by that: plain
//! loops give the same values on every machine. What a kernel calls must be `#[inline(always)]`; a function that is not
//! inlined is compiled for no machine in particular.
//!
//! The products of [`gemm`](crate::kernels::gemm) find the machine's vectors by themselves, whatever is asked for here.

pub use pulp::{Simd, WithSimd};

use pulp::Arch;
use std::sync::LazyLock;

/// The environment variable that asks for a level.
pub const ENV_VAR: &str = "LORAKIT_SIMD";

/// A set of vector instructions, from narrow to wide. On machines other than x86, whatever vectors there are count as
/// [`SimdLevel::Scalar`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SimdLevel {
    /// What every machine of its kind has.
    Scalar,
    /// 256 bits: AVX2 and FMA.
    Avx2,
    /// 512 bits: AVX-512 F, BW, CD, DQ and VL.
    Avx512,
}

/// Read from the environment once: each call of a kernel asks for it.
static CURRENT: LazyLock<SimdLevel> = LazyLock::new(|| {
    let requested = SimdLevel::from_env().ok().flatten();
    requested.map_or(SimdLevel::widest(), |level| level.min(SimdLevel::widest()))
});

impl SimdLevel {
    /// All, from narrow to wide.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// Its name in `LORAKIT_SIMD`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// The widest that this machine has.
    pub fn widest() -> Self {
        match Arch::new() {
            #[cfg(target_arch = "x86_64")]
            Arch::V4(_) => Self::Avx512,
            #[cfg(target_arch = "x86_64")]
            Arch::V3(_) => Self::Avx2,
            _ => Self::Scalar,
        }
    }

    /// Those that this machine has.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|&level| level <= Self::widest())
    }

    /// The level that `LORAKIT_SIMD` asks for, if it is set.
    ///
    /// # Errors
    /// If it asks for none of these, or for one that this machine does not have: a sentence that says what to do.
    pub fn from_env() -> Result<Option<Self>, String> {
        let Some(value) = std::env::var_os(ENV_VAR) else { return Ok(None) };
        match Self::ALL.into_iter().find(|level| value == level.name()) {
            Some(level) if level <= Self::widest() => Ok(Some(level)),
            Some(level) => Err(format!(
                "{ENV_VAR} asks for {}, which this machine does not have; its widest is {}",
                level.name(),
                Self::widest().name()
            )),
            None => Err(format!(
                "{ENV_VAR} is `{}`; expected one of {}, or no such variable",
                value.to_string_lossy(),
                Self::ALL.map(Self::name).join(", ")
            )),
        }
    }

    /// The level of kernels in this process: the one that `LORAKIT_SIMD` asks for, if the machine has it, else the widest.
    pub fn current() -> Self {
        *CURRENT
    }

    /// Runs `kernel` compiled for this level, or for the widest that the machine has if that is narrower.
    #[inline]
    pub fn dispatch<K: WithSimd>(self, kernel: K) -> K::Output {
        self.arch().dispatch(kernel)
    }

    #[inline]
    fn arch(self) -> Arch {
        match (self, Arch::new()) {
            #[cfg(target_arch = "x86_64")]
            (Self::Scalar, _) => Arch::Scalar,
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, Arch::V4(simd)) => Arch::V3(*simd),
            (_, widest) => widest,
        }
    }
}

/// Runs `kernel` compiled for the vectors of [`SimdLevel::current`].
#[inline]
pub fn dispatch<K: WithSimd>(kernel: K) -> K::Output {
    SimdLevel::current().dispatch(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of f32 in a vector.
    struct Lanes;

    impl WithSimd for Lanes {
        type Output = usize;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }

    #[test]
    fn each_level_has_its_own_vectors() {
        assert!(SimdLevel::available().any(|level| level == SimdLevel::current()));
        for level in SimdLevel::available() {
            let lanes = level.dispatch(Lanes);
            let expected = match level {
                SimdLevel::Scalar => 1,
                SimdLevel::Avx2 => 8,
                SimdLevel::Avx512 => 16,
            };
            assert!(lanes == expected || cfg!(not(target_arch = "x86_64")), "{level:?} has {lanes}");
        }
    }
}
