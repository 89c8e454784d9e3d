// targets: sm_100a sm_103a
// GEMM on datacenter Blackwell's tensor cores by tcgen05: the only way to its FP8 pipe. One block computes the 128x64
// tile of ABI.md with its accumulators in tensor memory; one instruction takes 32 bytes of K in every format.
//
// Compile-checked and read back from SASS only: the simulator does not run this file, see docs/simulated-silicon.md.
#include "core_matrix.cuh"

static constexpr u32 WS_ROWS = 128;    // also the lanes of tensor memory, one per row of the tile
static constexpr u32 WS_COLUMNS = 64;  // also the columns of tensor memory that are taken: a power of two, at least 32
static constexpr u32 WS_A_BYTES = WS_ROWS * WS_CHUNK_BYTES;
static constexpr u32 WS_STAGE = WS_A_BYTES + WS_COLUMNS * WS_CHUNK_BYTES;

// PTX ISA, "tcgen05 shared memory descriptor": as that of wgmma, with the fixed 0b001 in bits 46-48; no swizzle.
WS_DEVICE u64 ws_descriptor(const u8* operand, u32 rows) {
  const u64 address = ws_shared_address(operand) >> 4 & 0x3fff;
  return address | (u64)(ws_leading_bytes(rows) >> 4) << 16 | (u64)(WS_CORE_BYTES >> 4) << 32 | 1ull << 46;
}

// PTX ISA, "tcgen05 instruction descriptor": formats of D, A and B, and the shape; both operands K-major.
WS_DEVICE constexpr u32 ws_instruction(u32 d_format, u32 operand_format) {
  return d_format << 4 | operand_format << 7 | operand_format << 10 | (WS_COLUMNS >> 3) << 17 | (WS_ROWS >> 4) << 24;
}

// d (in tensor memory) = a * b, added to what is there if `add`.
#define WS_TCGEN05(name, Accumulator, kind, d_format, operand_format)                                     \
  struct name {                                                                                           \
    typedef Accumulator Acc;                                                                              \
    WS_MEMBER void step(u32 d, u64 a, u64 b, bool add) {                                                  \
      asm volatile(                                                                                       \
          "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %4, 0;\n\t"                                               \
          "tcgen05.mma.cta_group::1.kind::" kind " [%0], %1, %2, %3, p;\n\t}" ::"r"(d), "l"(a), "l"(b),   \
          "r"(ws_instruction(d_format, operand_format)), "r"((u32)add)                                    \
          : "memory");                                                                                    \
    }                                                                                                     \
  }

WS_TCGEN05(WsTcgen05Tf32, float, "tf32", 1, 2);
WS_TCGEN05(WsTcgen05F16, float, "f16", 1, 0);
WS_TCGEN05(WsTcgen05Bf16, float, "f16", 1, 1);
WS_TCGEN05(WsTcgen05E4m3, float, "f8f6f4", 1, 0);
WS_TCGEN05(WsTcgen05E5m2, float, "f8f6f4", 1, 1);
#ifdef __CUDA_ARCH_FEAT_SM100_ALL
WS_TCGEN05(WsTcgen05S8, s32, "i8", 2, 1);  // sm_103 has no integer kind
#endif

// The part of tensor memory that this block has, and the barrier on which its matrix instructions report.
struct WsTensorMemory {
  u32 address;
  u64 arrived;
};

WS_DEVICE void ws_tensor_begin(WsTensorMemory& tensor) {
  if (threadIdx.x < 32) {
    asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;\n\t"
                 "tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;" ::"r"(ws_shared_address(&tensor.address)),
                 "n"(WS_COLUMNS)
                 : "memory");
  }
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(
                     ws_shared_address(&tensor.arrived))
                 : "memory");
  }
  asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
  __syncthreads();
  asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
}

WS_DEVICE void ws_tensor_end(const WsTensorMemory& tensor) {
  asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
  __syncthreads();
  if (threadIdx.x < 32) {
    asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, %1;" ::"r"(tensor.address), "n"(WS_COLUMNS)
                 : "memory");
  }
}

// By the thread that issued the instructions: the barrier's phase ends when all of them are done.
WS_DEVICE void ws_tensor_commit(const WsTensorMemory& tensor) {
  asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(
                   ws_shared_address(&tensor.arrived))
               : "memory");
}

WS_DEVICE void ws_tensor_wait(const WsTensorMemory& tensor, u32 phase) {
  asm volatile(
      "{\n\t.reg .pred done;\n\tagain:\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t@!done bra again;\n\t}" ::"r"(
          ws_shared_address(&tensor.arrived)),
      "r"(phase)
      : "memory");
  asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
}

#define WS_R8(x, i) "=r"((x)[i]), "=r"((x)[i + 1]), "=r"((x)[i + 2]), "=r"((x)[i + 3]), "=r"((x)[i + 4]), \
    "=r"((x)[i + 5]), "=r"((x)[i + 6]), "=r"((x)[i + 7])
// This thread's row: thread t of the block has lane t of tensor memory.
WS_DEVICE void ws_tensor_load(const WsTensorMemory& tensor, u32 (&row)[WS_COLUMNS]) {
  const u32 from = tensor.address + (threadIdx.x / 32 * 32 << 16);
  WS_UNROLL for (u32 half = 0; half < 2; ++half) {
    u32* x = row + half * 32;
    asm volatile(
        "tcgen05.ld.sync.aligned.32x32b.x32.b32 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,"
        "%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, [%32];"
        : WS_R8(x, 0), WS_R8(x, 8), WS_R8(x, 16), WS_R8(x, 24)
        : "r"(from + half * 32)
        : "memory");
  }
  asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory");
}

WS_DEVICE void ws_fetch_stage(u8* stage, const u8* a, const u8* b, u32 row_bytes, u32 chunk) {
  ws_fetch_core<WS_ROWS>(stage, a, row_bytes, chunk);
  ws_fetch_core<WS_COLUMNS>(stage + WS_A_BYTES, b, row_bytes, chunk);
}

template <class F, u32 ELEMENT_BYTES>
WS_DEVICE void ws_gemm(const void* a_global, const void* b_global, void* d, u32 k, u32 iterations, WsTile* tiles) {
  typedef typename F::Acc Acc;
  // One stage: two would pass the 48 KiB of static shared memory. A K of one chunk stays for all iterations.
  __shared__ __align__(128) u8 shared[WS_STAGE];
  __shared__ WsTensorMemory tensor;

  const u64 start_ns = ws_globaltimer();
  const u8 *a = (const u8*)a_global, *b = (const u8*)b_global;
  const u32 row_bytes = k * ELEMENT_BYTES;
  const u32 chunks = (row_bytes + WS_CHUNK_BYTES - 1) / WS_CHUNK_BYTES;

  ws_tensor_begin(tensor);
  ws_fetch_stage(shared, a, b, row_bytes, 0);
  ws_operands_ready();

  u32 row[WS_COLUMNS], first[WS_COLUMNS];
  WS_UNROLL for (u32 e = 0; e < WS_COLUMNS; ++e) row[e] = first[e] = 0;
  u32 mismatches = 0;
  u32 phase = 0;
  for (u32 iteration = 0; iteration < iterations; ++iteration) {
    for (u32 chunk = 0; chunk < chunks; ++chunk) {
      if (chunks > 1 && (chunk > 0 || iteration > 0)) {
        ws_fetch_stage(shared, a, b, row_bytes, chunk);
        ws_operands_ready();
      }
      const u32 left = row_bytes - chunk * WS_CHUNK_BYTES;
      const u32 bytes = left < WS_CHUNK_BYTES ? left : WS_CHUNK_BYTES;
      if (threadIdx.x == 0) {
        for (u32 byte = 0; byte < bytes; byte += WS_STEP_BYTES) {
          const u32 column = byte / WS_CORE_ROW_BYTES;
          F::step(tensor.address, ws_descriptor(shared + column * ws_leading_bytes(WS_ROWS), WS_ROWS),
                  ws_descriptor(shared + WS_A_BYTES + column * ws_leading_bytes(WS_COLUMNS), WS_COLUMNS),
                  chunk > 0 || byte > 0);
        }
        ws_tensor_commit(tensor);
      }
      ws_tensor_wait(tensor, phase);
      phase ^= 1;
    }
    ws_tensor_load(tensor, row);
    // By bits, so that a NaN or the sign of a zero counts too.
    WS_UNROLL for (u32 e = 0; e < WS_COLUMNS; ++e) {
      if (iteration == 0) {
        first[e] = row[e];
      } else {
        mismatches += row[e] != first[e];
      }
    }
    // All rows are read before the next iteration overwrites them.
    asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
    __syncthreads();
    asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
  }

  u64 digest = 0;
  u32* out = (u32*)d + ((u64)blockIdx.x * WS_ROWS + threadIdx.x) * WS_COLUMNS;
  WS_UNROLL for (u32 e = 0; e < WS_COLUMNS; ++e) {
    out[e] = row[e];
    digest += ws_digest_part(row[e], threadIdx.x * WS_COLUMNS + e);
  }
  ws_finish_tile(tiles, digest, mismatches, start_ns);
  ws_tensor_end(tensor);
}

#define WS_TCGEN05_KERNEL(name, F, bytes)                                                              \
  WS_GLOBAL(128) name(const void* a, const void* b, void* d, u32 k, u32 iterations, WsTile* tiles) {   \
    ws_gemm<F, bytes>(a, b, d, k, iterations, tiles);                                                  \
  }

WS_TCGEN05_KERNEL(gemm_tf32_tcgen05, WsTcgen05Tf32, 4)
WS_TCGEN05_KERNEL(gemm_f16_tcgen05, WsTcgen05F16, 2)
WS_TCGEN05_KERNEL(gemm_bf16_tcgen05, WsTcgen05Bf16, 2)
WS_TCGEN05_KERNEL(gemm_e4m3_tcgen05, WsTcgen05E4m3, 1)
WS_TCGEN05_KERNEL(gemm_e5m2_tcgen05, WsTcgen05E5m2, 1)
#ifdef __CUDA_ARCH_FEAT_SM100_ALL
WS_TCGEN05_KERNEL(gemm_s8_tcgen05, WsTcgen05S8, 1)
#endif
