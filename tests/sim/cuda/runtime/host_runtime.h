// The kernels' language on the host: what nvcc gives, given by fibers. See `runtime.h` for how a block runs.
#pragma once

#include "runtime.h"

#define __global__
#define __device__
#define threadIdx (ws_current->thread_index)
#define blockIdx (ws_current->block->index)
#define blockDim (ws_current->block->launch->block)
#define gridDim (ws_current->block->launch->grid)
#define __syncthreads() ws_barrier_block()

#define WS_DEVICE static inline
#define WS_MEMBER static inline
#define WS_GLOBAL(threads) static void
// All threads of a block declare the same variables in the same order, so each finds the same place.
#define WS_SHARED(type, name, count) type* const name = static_cast<type*>(ws_shared(sizeof(type) * (count)))
#define WS_UNROLL
#define WS_COST_BYTES(n) (ws_current->block->cost.bytes += (n))
#define WS_COST_FMA(format, count) (ws_current->block->cost.fma_ops[format] += 2ull * (count))
#define WS_MMA_JOIN() ws_mma_join()
#define WS_DONE_TILE(accumulators, count) ws_done_tile(accumulators, sizeof((accumulators)[0]), count)

// One run of indices per thread: the host's caches want neighbours, and the kernels may not care.
struct WsRun {
  u64 at, end;
  WsRun(u64 count, u64 bytes) {
    const u64 threads = (u64)gridDim.x * blockDim.x, part = (count + threads - 1) / threads;
    at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * part;
    at = at < count ? at : count;
    end = part < count - at ? at + part : count;
    WS_COST_BYTES((end - at) * bytes);
  }
};
#define WS_FOR_EACH(index, count, bytes) \
  for (WsRun ws_run(count, bytes); ws_run.at < ws_run.end; ws_run.at = ws_run.end) \
    for (u64 index = ws_run.at; index < ws_run.end; ++index)

static inline u32 ws_smid() { return ws_current->block->sm; }
static inline u64 ws_globaltimer() { return ws_block_time(ws_current->block); }

template <class To, class From>
static inline To ws_cast_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To y;
  __builtin_memcpy(&y, &x, sizeof y);
  return y;
}
static inline u32 ws_bits(float x) { return ws_cast_bits<u32>(x); }
static inline u32 ws_bits(s32 x) { return static_cast<u32>(x); }
static inline u64 ws_bits(double x) { return ws_cast_bits<u64>(x); }
static inline float ws_float_of_bits(u32 x) { return ws_cast_bits<float>(x); }
static inline double ws_double_of_bits(u64 x) { return ws_cast_bits<double>(x); }
static inline float ws_f16_to_f32(u16 x) { return ws_decode_f16(x); }
static inline float ws_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double ws_fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
static inline s32 ws_dp4a(u32 a, u32 b, s32 c) {
  u32 sum = static_cast<u32>(c);  // unsigned: the device wraps
  for (u32 i = 0; i < 4; ++i) {
    sum += static_cast<u32>(static_cast<signed char>(a >> (8 * i)) * static_cast<signed char>(b >> (8 * i)));
  }
  return static_cast<s32>(sum);
}
static inline u32 ws_atomic_add(u32* at, u32 x) { return __atomic_fetch_add(at, x, __ATOMIC_RELAXED); }

template <u32 N>
static inline void ws_load_shared(const void* p, u32 (&x)[N]) {
  __builtin_memcpy(x, p, sizeof x);
}
static inline void ws_copy_async(void* shared, const void* global) { __builtin_memcpy(shared, global, 16); }
static inline void ws_copy_wait() {}

static inline void ws_mma_f64(double (&d)[2], double a, double b) {
  const u64 left = ws_bits(a), right = ws_bits(b);
  ws_mma(WS_F64, d, &left, &right);
}
static inline void ws_mma_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { ws_mma(WS_TF32, d, a, b); }
static inline void ws_mma_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { ws_mma(WS_F16, d, a, b); }
static inline void ws_mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { ws_mma(WS_BF16, d, a, b); }
static inline void ws_mma_e4m3(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { ws_mma(WS_E4M3, d, a, b); }
static inline void ws_mma_e5m2(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { ws_mma(WS_E5M2, d, a, b); }
static inline void ws_mma_s8(s32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { ws_mma(WS_S8, d, a, b); }

// Registers a kernel with the driver: name, number of parameters, and how to call it with an array of pointers.
template <u32... I>
struct WsIndices {};
template <u32 N, u32... I>
struct WsCount : WsCount<N - 1, N - 1, I...> {};
template <u32... I>
struct WsCount<0, I...> {
  typedef WsIndices<I...> Type;
};
template <class... A>
static constexpr u32 ws_parameters(void (*)(A...)) {
  return sizeof...(A);
}
template <class... A, u32... I>
static inline void ws_apply(void (*kernel)(A...), void** parameters, WsIndices<I...>) {
  kernel(*static_cast<A*>(parameters[I])...);
}
template <class... A>
static inline void ws_invoke(void (*kernel)(A...), void** parameters) {
  ws_apply(kernel, parameters, typename WsCount<sizeof...(A)>::Type());
}
#define WS_KERNEL(name)                                                        \
  static void ws_entry_##name(void** parameters) { ws_invoke(&name, parameters); } \
  static WsKernelEntry ws_kernel_##name(#name, &ws_entry_##name, ws_parameters(&name));
