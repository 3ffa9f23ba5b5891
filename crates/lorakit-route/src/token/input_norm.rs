//! How a token, or an expert's vector, is normalized before they are compared.

use candle_core::{D, Result, Tensor};

/// Added to a variance before its root, as in torch's LayerNorm.
const EPSILON: f64 = 1e-5;

/// The normalization of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputNorm {
    /// None.
    Raw,
    /// Division by its length.
    Unit,
    /// Subtraction of its mean and division by its deviation: LayerNorm without gain and bias.
    LayerNorm,
}

impl InputNorm {
    /// Normalizes rows, `[n, d]`.
    pub(crate) fn apply(self, rows: &Tensor) -> Result<Tensor> {
        match self {
            Self::Raw => Ok(rows.clone()),
            Self::Unit => {
                let length = rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
                // A row of zeros has no direction, and stays zero.
                rows.broadcast_div(&length.maximum(f32::MIN_POSITIVE)?)
            }
            Self::LayerNorm => {
                let centered = rows.broadcast_sub(&rows.mean_keepdim(D::Minus1)?)?;
                let deviation = (centered.sqr()?.mean_keepdim(D::Minus1)? + EPSILON)?.sqrt()?;
                centered.broadcast_div(&deviation)
            }
        }
    }
}
