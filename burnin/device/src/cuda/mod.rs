//! Tests of GPUs through the CUDA driver and NCCL, loaded at run time.

pub mod bandwidth;
mod blame;
pub mod collectives;
pub mod driver;
pub mod errors;
pub mod gemm;
pub mod kernels;
pub mod memory;
pub mod power;
