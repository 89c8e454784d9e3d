// The product's kernels, compiled for the host: the same sources that nvcc compiles for the GPU.
// wgmma.cu and tcgen05.cu are not here: what they do cannot be emulated faithfully, so their names are "not found".
#include "memory.cu"
#include "digest.cu"
#include "gemm_cuda.cu"
#include "gemm_mma.cu"
