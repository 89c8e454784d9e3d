// Kernels with a known mistake: the tests of the runtime show that it finds them. Not part of the product.
#include "common.cuh"

// A block of 128 threads turns its 128 numbers round.
WS_GLOBAL(128) selftest_reverse(u32* numbers) {
  WS_SHARED(u32, shared, 128);
  shared[threadIdx.x] = numbers[threadIdx.x];
  __syncthreads();
  numbers[threadIdx.x] = shared[127 - threadIdx.x];
}
WS_KERNEL(selftest_reverse)

WS_GLOBAL(128) selftest_reverse_without_barrier(u32* numbers) {
  WS_SHARED(u32, shared, 128);
  shared[threadIdx.x] = numbers[threadIdx.x];
  numbers[threadIdx.x] = shared[127 - threadIdx.x];
}
WS_KERNEL(selftest_reverse_without_barrier)

// Half of each warp waits for a matrix instruction, half for the block.
WS_GLOBAL(128) selftest_deadlock(u32* numbers) {
  s32 d[4] = {};
  const u32 a[4] = {}, b[2] = {};
  if (threadIdx.x % 2 == 0) {
    ws_mma_s8(d, a, b);
    WS_MMA_JOIN();
  } else {
    __syncthreads();
  }
  numbers[threadIdx.x] = (u32)d[0];
}
WS_KERNEL(selftest_deadlock)
