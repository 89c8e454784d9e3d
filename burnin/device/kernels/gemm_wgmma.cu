// targets: sm_90a
// GEMM on Hopper's tensor cores by wgmma: the only way to its FP8 pipe (mma.sync with FP8 operands runs on the FP16
// pipe there). One warpgroup computes the 64x64 tile of ABI.md; one step takes 32 bytes of K in every format.
//
// Compile-checked and read back from SASS only: the simulator does not run this file, see docs/simulated-silicon.md.
#include "core_matrix.cuh"

static constexpr u32 WS_TILE = 64;
static constexpr u32 WS_ELEMENTS = 32;  // accumulators of one thread
static constexpr u32 WS_OPERAND = WS_TILE * WS_CHUNK_BYTES;
static constexpr u32 WS_STAGE = 2 * WS_OPERAND;

// PTX ISA, "Matrix Descriptor Format" of wgmma: address, leading and stride byte offset in units of 16 bytes.
WS_DEVICE u64 ws_descriptor(const u8* operand) {
  const u64 address = ws_shared_address(operand) >> 4 & 0x3fff;
  return address | (u64)(ws_leading_bytes(WS_TILE) >> 4) << 16 | (u64)(WS_CORE_BYTES >> 4) << 32;
}

#define WS_D8(f, x, i) "+" f((x)[i]), "+" f((x)[i + 1]), "+" f((x)[i + 2]), "+" f((x)[i + 3]), \
    "+" f((x)[i + 4]), "+" f((x)[i + 5]), "+" f((x)[i + 6]), "+" f((x)[i + 7])
#define WS_D32(f, x) WS_D8(f, x, 0), WS_D8(f, x, 8), WS_D8(f, x, 16), WS_D8(f, x, 24)
#define WS_D32_TEXT                                                                                             \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28," \
  "%29,%30,%31}"
// d += a * b; `tail` holds the immediates that a format takes after the scale-d predicate.
#define WS_WGMMA(name, Accumulator, letter, shape, tail)                                           \
  struct name {                                                                                    \
    typedef Accumulator Acc;                                                                       \
    WS_MEMBER void step(Acc (&d)[WS_ELEMENTS], u64 a, u64 b) {                                     \
      asm volatile("wgmma.mma_async.sync.aligned." shape " " WS_D32_TEXT ", %32, %33, 1" tail ";"  \
                   : WS_D32(letter, d)                                                             \
                   : "l"(a), "l"(b)                                                                \
                   : "memory");                                                                    \
    }                                                                                              \
  }

WS_WGMMA(WsWgmmaTf32, float, "f", "m64n64k8.f32.tf32.tf32", ", 1, 1");
WS_WGMMA(WsWgmmaF16, float, "f", "m64n64k16.f32.f16.f16", ", 1, 1, 0, 0");
WS_WGMMA(WsWgmmaBf16, float, "f", "m64n64k16.f32.bf16.bf16", ", 1, 1, 0, 0");
WS_WGMMA(WsWgmmaE4m3, float, "f", "m64n64k32.f32.e4m3.e4m3", ", 1, 1");
WS_WGMMA(WsWgmmaE5m2, float, "f", "m64n64k32.f32.e5m2.e5m2", ", 1, 1");
WS_WGMMA(WsWgmmaS8, s32, "r", "m64n64k32.s32.s8.s8", "");

WS_DEVICE void ws_wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
WS_DEVICE void ws_wgmma_finish() {
  asm volatile("wgmma.commit_group.sync.aligned;\n\twgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// Place of accumulator e of this thread in the tile (PTX ISA, "Register Fragments" of wgmma, matrix D).
WS_DEVICE u32 ws_row(u32 e) { return threadIdx.x / 32 * 16 + e / 2 % 2 * 8 + threadIdx.x % 32 / 4; }
WS_DEVICE u32 ws_column(u32 e) { return e / 4 * 8 + threadIdx.x % 4 * 2 + e % 2; }

template <class F, u32 ELEMENT_BYTES>
WS_DEVICE void ws_gemm(const void* a_global, const void* b_global, void* d, u32 k, u32 iterations, WsTile* tiles) {
  typedef typename F::Acc Acc;
  __shared__ __align__(128) u8 shared[2 * WS_STAGE];

  const u64 start_ns = ws_globaltimer();
  const u8 *a = (const u8*)a_global, *b = (const u8*)b_global;
  const u32 row_bytes = k * ELEMENT_BYTES;
  const u32 chunks = (row_bytes + WS_CHUNK_BYTES - 1) / WS_CHUNK_BYTES;
  const bool resident = chunks <= 2;

  const u32 first_fetch = resident ? chunks : 1;
  for (u32 chunk = 0; chunk < first_fetch; ++chunk) {
    ws_fetch_core<WS_TILE>(shared + chunk * WS_STAGE, a, row_bytes, chunk);
    ws_fetch_core<WS_TILE>(shared + chunk * WS_STAGE + WS_OPERAND, b, row_bytes, chunk);
  }
  if (resident) ws_operands_ready();

  Acc acc[WS_ELEMENTS], first[WS_ELEMENTS];
  WS_UNROLL for (u32 e = 0; e < WS_ELEMENTS; ++e) acc[e] = first[e] = 0;
  u32 mismatches = 0;
  u32 stage = 0;
  for (u32 iteration = 0; iteration < iterations; ++iteration) {
    WS_UNROLL for (u32 e = 0; e < WS_ELEMENTS; ++e) acc[e] = 0;
    for (u32 chunk = 0; chunk < chunks; ++chunk) {
      if (resident) {
        stage = chunk;
      } else {
        // This chunk has come; the one before was waited for, so its place is free for the next.
        ws_operands_ready();
        const u32 next = chunk + 1 == chunks ? 0 : chunk + 1;
        if (next != 0 || iteration + 1 < iterations) {
          ws_fetch_core<WS_TILE>(shared + (stage ^ 1) * WS_STAGE, a, row_bytes, next);
          ws_fetch_core<WS_TILE>(shared + (stage ^ 1) * WS_STAGE + WS_OPERAND, b, row_bytes, next);
        }
      }
      const u8* rows = shared + stage * WS_STAGE;
      const u32 left = row_bytes - chunk * WS_CHUNK_BYTES;
      const u32 bytes = left < WS_CHUNK_BYTES ? left : WS_CHUNK_BYTES;
      ws_wgmma_fence();
      for (u32 byte = 0; byte < bytes; byte += WS_STEP_BYTES) {
        const u32 at = byte / WS_CORE_ROW_BYTES * ws_leading_bytes(WS_TILE);
        F::step(acc, ws_descriptor(rows + at), ws_descriptor(rows + WS_OPERAND + at));
      }
      ws_wgmma_finish();
      stage ^= 1;
    }
    // By bits, so that a NaN or the sign of a zero counts too.
    WS_UNROLL for (u32 e = 0; e < WS_ELEMENTS; ++e) {
      if (iteration == 0) {
        first[e] = acc[e];
      } else {
        mismatches += ws_bits(acc[e]) != ws_bits(first[e]);
      }
    }
  }

  u64 digest = 0;
  Acc* out = (Acc*)d + (u64)blockIdx.x * WS_TILE * WS_TILE;
  WS_UNROLL for (u32 e = 0; e < WS_ELEMENTS; ++e) {
    const u32 at = ws_row(e) * WS_TILE + ws_column(e);
    out[at] = acc[e];
    digest += ws_digest_part(ws_bits(acc[e]), at);
  }
  ws_finish_tile(tiles, digest, mismatches, start_ns);
}

#define WS_WGMMA_KERNEL(name, F, bytes)                                                                \
  WS_GLOBAL(128) name(const void* a, const void* b, void* d, u32 k, u32 iterations, WsTile* tiles) {   \
    ws_gemm<F, bytes>(a, b, d, k, iterations, tiles);                                                  \
  }

WS_WGMMA_KERNEL(gemm_tf32_wgmma, WsWgmmaTf32, 4)
WS_WGMMA_KERNEL(gemm_f16_wgmma, WsWgmmaF16, 2)
WS_WGMMA_KERNEL(gemm_bf16_wgmma, WsWgmmaBf16, 2)
WS_WGMMA_KERNEL(gemm_e4m3_wgmma, WsWgmmaE4m3, 1)
WS_WGMMA_KERNEL(gemm_e5m2_wgmma, WsWgmmaE5m2, 1)
WS_WGMMA_KERNEL(gemm_s8_wgmma, WsWgmmaS8, 1)
