//! The inner products of tokens with the experts' vectors, which most routers choose by.

use candle_core::{Result, Tensor};
use lorakit_lora::cpu;
use lorakit_lora::product::{Destination, Threads, View, ViewMut, multiply};

/// What the product is called in errors.
const NAME: &str = "inner products";

/// `x vectorsᵀ`, row by row `[tokens, vectors]`, of contiguous f32 `x`, `[tokens, d]`, and `vectors`, `[vectors, d]`: on
/// all threads where they are on a CPU, and brought there from a device.
pub(crate) fn inner_products(x: &Tensor, vectors: &Tensor) -> Result<Vec<f32>> {
    if !x.device().is_cpu() {
        return x.matmul(&vectors.t()?)?.flatten_all()?.to_vec1();
    }
    let ((tokens, d), count) = (x.dims2()?, vectors.dim(0)?);
    let mut products = vec![0.0; tokens * count];
    cpu::with_values(x, NAME, |x| {
        cpu::with_values(vectors, NAME, |vectors| {
            let (x, vectors) = (View::new(x, tokens, d, d), View::new(vectors, count, d, d));
            let products = ViewMut::new(&mut products, tokens, count, count);
            multiply(products, Destination::Overwrite, x, vectors.transposed(), 1.0, Threads::All);
        })
    })??;
    Ok(products)
}
