// targets: sm_80 sm_89 sm_90a sm_100a sm_103a sm_120a compute_80
// An independent read of the results: other SMs than those that wrote them.
#include "common.cuh"

// One block of 128 threads per tile; block b reads tile tiles-1-b. `element_bytes` is 4 or 8.
WS_GLOBAL(128) tile_digest(const void* d, u32 element_bytes, u32 elements, u32 tiles, u64* out, u32* smid) {
  WS_SHARED(u64, parts, WS_BLOCK);
  u32 tile = tiles - 1 - blockIdx.x;
  u64 part = 0;
  for (u32 i = threadIdx.x; i < elements; i += WS_BLOCK) {
    u64 at = (u64)tile * elements + i;
    u64 bits = element_bytes == 8 ? ((const volatile u64*)d)[at] : ((const volatile u32*)d)[at];
    part += ws_digest_part(bits, i);
    WS_COST_BYTES(element_bytes);
  }
  parts[threadIdx.x] = part;
  __syncthreads();
  if (threadIdx.x == 0) {
    u64 sum = 0;
    for (u32 i = 0; i < WS_BLOCK; ++i) sum += parts[i];
    out[tile] = sum;
    smid[tile] = ws_smid();
  }
}
WS_KERNEL(tile_digest)
