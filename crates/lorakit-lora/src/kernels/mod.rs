//! CPU kernels: matrix products, vector dispatch, and how ops enter candle's graph.

pub mod cpu_tensor;
pub mod gemm;
pub mod narrow_product;
pub mod op;
pub mod simd;
pub mod uninit_vec;
pub mod vector_product;
pub mod vjp;
