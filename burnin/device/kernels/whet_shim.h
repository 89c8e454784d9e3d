// The one place where the kernels meet their compiler.
//
// nvcc: thin wrappers round PTX; the simulator's hooks vanish.
// g++:  the same names from `tests/sim/cuda/runtime`, where a CUDA thread is a fiber and a warp-wide instruction is
//       computed once by the last lane that reaches it.
//
// Everything that goes wrong when a compiler is clever is fenced here: operands come through volatile loads and the
// matrix instructions are volatile assembly, so no iteration of a burn-in loop can be folded into another.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;

// Operand formats, in the order of ABI.md; the simulator counts work and plants faults by these numbers.
enum WsFormat { WS_F64 = 0, WS_F32, WS_TF32, WS_F16, WS_BF16, WS_E4M3, WS_E5M2, WS_S8, WS_FORMATS };

#ifdef __CUDACC__

#define WS_DEVICE static __device__ __forceinline__
#define WS_MEMBER static __device__ __forceinline__
#define WS_GLOBAL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define WS_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define WS_KERNEL(name)
#define WS_UNROLL _Pragma("unroll")

// mma.sync with FP8 operands came with sm_89.
#define WS_HAS_FP8_MMA (__CUDA_ARCH__ >= 890)

// Hooks of the simulator: work that one thread has done, for virtual time; a tile's accumulators, for planted faults.
#define WS_COST_BYTES(bytes)
#define WS_COST_FMA(format, count)
#define WS_DONE_TILE(accumulators, count)

// Between matrix instructions and the first look at their results. Here the hardware sees to it; the simulator computes
// what the whole warp has issued so far.
#define WS_MMA_JOIN()

// Visits each index below `count` once, spread over the whole grid; a visit moves `bytes` of device memory.
#define WS_FOR_EACH(index, count, bytes) \
  for (u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x, ws_stride = (u64)gridDim.x * blockDim.x; \
       index < (count); index += ws_stride)

WS_DEVICE u32 ws_smid() {
  u32 id;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(id));
  return id;
}
WS_DEVICE u64 ws_globaltimer() {
  u64 ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns)::"memory");
  return ns;
}
WS_DEVICE u32 ws_bits(float x) { return __float_as_uint(x); }
WS_DEVICE u32 ws_bits(s32 x) { return (u32)x; }
WS_DEVICE u64 ws_bits(double x) { return (u64)__double_as_longlong(x); }
WS_DEVICE float ws_float_of_bits(u32 x) { return __uint_as_float(x); }
WS_DEVICE double ws_double_of_bits(u64 x) { return __longlong_as_double((long long)x); }
WS_DEVICE float ws_f16_to_f32(u16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
WS_DEVICE float ws_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
WS_DEVICE double ws_fma(double a, double b, double c) { return __fma_rn(a, b, c); }
WS_DEVICE s32 ws_dp4a(u32 a, u32 b, s32 c) {
  s32 d;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
WS_DEVICE u32 ws_atomic_add(u32* at, u32 x) { return atomicAdd(at, x); }

WS_DEVICE u32 ws_shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
WS_DEVICE void ws_load_shared(const void* p, u32 (&x)[2]) {
  asm volatile("ld.volatile.shared.v2.u32 {%0,%1}, [%2];" : "=r"(x[0]), "=r"(x[1]) : "r"(ws_shared_address(p)));
}
WS_DEVICE void ws_load_shared(const void* p, u32 (&x)[4]) {
  asm volatile("ld.volatile.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(ws_shared_address(p)));
}
// 16 bytes from global to shared memory, past the registers and the L1 cache.
WS_DEVICE void ws_copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(ws_shared_address(shared)), "l"(global) : "memory");
}
WS_DEVICE void ws_copy_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// d += a * b for a whole warp; fragments as in the PTX manual for each shape.
WS_DEVICE void ws_mma_f64(double (&d)[2], double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
               : "+d"(d[0]), "+d"(d[1])
               : "d"(a), "d"(b));
}
#define WS_MMA_F32(name, shape)                                                                                     \
  WS_DEVICE void name(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {                                        \
    asm volatile("mma.sync.aligned." shape " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                 \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                               \
  }
WS_MMA_F32(ws_mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
WS_MMA_F32(ws_mma_f16, "m16n8k16.row.col.f32.f16.f16.f32")
WS_MMA_F32(ws_mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
#if WS_HAS_FP8_MMA
WS_MMA_F32(ws_mma_e4m3, "m16n8k32.row.col.f32.e4m3.e4m3.f32")
WS_MMA_F32(ws_mma_e5m2, "m16n8k32.row.col.f32.e5m2.e5m2.f32")
#endif
#undef WS_MMA_F32
WS_DEVICE void ws_mma_s8(s32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#else  // the host, for the simulated driver

#include "host_runtime.h"  // tests/sim/cuda/runtime

#define WS_HAS_FP8_MMA 1

#endif
