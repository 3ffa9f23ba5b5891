//! Inner products of tokens with experts' vectors, which most routers choose by.

use candle_core::{Result, Tensor};
use lorakit_lora::kernels::cpu_tensor;
use lorakit_lora::kernels::gemm::{Destination, MatrixMut, MatrixRef, par_gemm};
use lorakit_lora::kernels::vector_product::row_products;
use rayon::prelude::*;

/// The name of the product in errors.
const NAME: &str = "inner products";

/// Vectors that a thread multiplies with a single token at a time.
const VECTORS_PER_TASK: usize = 24;

/// `x vectorsᵀ`, row by row `[tokens, vectors]`, of contiguous f32 `x`, `[tokens, d]`, and `vectors`, `[vectors, d]`:
/// on all threads of a CPU, or copied to the host from a device.
pub(crate) fn inner_products(x: &Tensor, vectors: &Tensor) -> Result<Vec<f32>> {
    if !x.device().is_cpu() {
        return x.matmul(&vectors.t()?)?.flatten_all()?.to_vec1();
    }
    let ((tokens, d), count) = (x.dims2()?, vectors.dim(0)?);
    let mut products = vec![0.0; tokens * count];
    cpu_tensor::with_values(x, NAME, |x| {
        cpu_tensor::with_values(vectors, NAME, |vectors| {
            if tokens == 1 {
                let tasks = products.par_chunks_mut(VECTORS_PER_TASK).zip(vectors.par_chunks(VECTORS_PER_TASK * d));
                return tasks.for_each(|(products, vectors)| row_products(vectors, x, products));
            }
            let (x, vectors) = (MatrixRef::new(x, tokens, d, d), MatrixRef::new(vectors, count, d, d));
            let products = MatrixMut::new(&mut products, tokens, count, count);
            par_gemm(products, Destination::Overwrite, x, vectors.transposed(), 1.0);
        })
    })??;
    Ok(products)
}
