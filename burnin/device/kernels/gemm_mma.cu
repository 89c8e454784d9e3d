// targets: sm_80 sm_89 sm_90a sm_100a sm_103a sm_120a compute_80
// GEMM on the tensor cores by mma.sync. One step takes 32 bytes of K in every format: 4 doubles, 8 tf32, 16 halves,
// 32 bytes. Each of the 4 warps has a 32x32 quarter of the tile.
//
// A lane takes 8 consecutive bytes of a row where the PTX manual names two words 16 bytes apart: A and B are permuted
// along K alike, so the same products are summed, and one load serves two registers.
#include "gemm_tile.cuh"

// 160 bytes between rows: the 8-byte loads of half a warp then fall on 32 different banks.
static constexpr u32 WS_MMA_PITCH = WS_CHUNK_BYTES + 32;

WS_DEVICE u32 ws_quarter_row() { return threadIdx.x / 64 * 32; }
WS_DEVICE u32 ws_quarter_column() { return threadIdx.x / 32 % 2 * 32; }
WS_DEVICE u32 ws_group() { return threadIdx.x % 32 / 4; }
WS_DEVICE u32 ws_quad() { return threadIdx.x % 4; }

template <u32 ELEMENT_BYTES, class Accumulator, void (*MMA)(Accumulator (&)[4], const u32 (&)[4], const u32 (&)[2])>
struct WsMma16x8 {
  typedef Accumulator Acc;
  static constexpr u32 BYTES = ELEMENT_BYTES;
  static constexpr u32 PITCH = WS_MMA_PITCH;
  static constexpr u32 STEP_BYTES = 32;
  static constexpr u32 ELEMENTS = 2 * 4 * 4;

  WS_MEMBER void step(Acc (&acc)[ELEMENTS], const u8* a, const u8* b) {
    const u32 at = ws_group() * PITCH + ws_quad() * 8;
    a += ws_quarter_row() * PITCH + at;
    b += ws_quarter_column() * PITCH + at;
    u32 right[4][2];
    WS_UNROLL for (u32 n = 0; n < 4; ++n) ws_load_shared(b + n * 8 * PITCH, right[n]);
    WS_UNROLL for (u32 m = 0; m < 2; ++m) {
      u32 low[2], high[2];
      ws_load_shared(a + m * 16 * PITCH, low);
      ws_load_shared(a + (m * 16 + 8) * PITCH, high);
      const u32 left[4] = {low[0], high[0], low[1], high[1]};
      WS_UNROLL for (u32 n = 0; n < 4; ++n) MMA(*(Acc(*)[4]) & acc[(m * 4 + n) * 4], left, right[n]);
    }
    WS_MMA_JOIN();
  }
  WS_MEMBER u32 row(u32 e) { return ws_quarter_row() + e / 16 * 16 + e / 2 % 2 * 8 + ws_group(); }
  WS_MEMBER u32 column(u32 e) { return ws_quarter_column() + e / 4 % 4 * 8 + ws_quad() * 2 + e % 2; }
};

struct WsMma8x8 {
  typedef double Acc;
  static constexpr u32 BYTES = 8;
  static constexpr u32 PITCH = WS_MMA_PITCH;
  static constexpr u32 STEP_BYTES = 32;
  static constexpr u32 ELEMENTS = 4 * 4 * 2;

  WS_MEMBER double load(const u8* p) {
    u32 x[2];
    ws_load_shared(p, x);
    return ws_double_of_bits((u64)x[1] << 32 | x[0]);
  }
  WS_MEMBER void step(Acc (&acc)[ELEMENTS], const u8* a, const u8* b) {
    const u32 at = ws_group() * PITCH + ws_quad() * 8;
    a += ws_quarter_row() * PITCH + at;
    b += ws_quarter_column() * PITCH + at;
    double right[4];
    WS_UNROLL for (u32 n = 0; n < 4; ++n) right[n] = load(b + n * 8 * PITCH);
    WS_UNROLL for (u32 m = 0; m < 4; ++m) {
      const double left = load(a + m * 8 * PITCH);
      WS_UNROLL for (u32 n = 0; n < 4; ++n) ws_mma_f64(*(Acc(*)[2]) & acc[(m * 4 + n) * 2], left, right[n]);
    }
    WS_MMA_JOIN();
  }
  WS_MEMBER u32 row(u32 e) { return ws_quarter_row() + e / 8 * 8 + ws_group(); }
  WS_MEMBER u32 column(u32 e) { return ws_quarter_column() + e / 2 % 4 * 8 + ws_quad() * 2 + e % 2; }
};

typedef WsMma16x8<4, float, ws_mma_tf32> WsMmaTf32;
typedef WsMma16x8<2, float, ws_mma_f16> WsMmaF16;
typedef WsMma16x8<2, float, ws_mma_bf16> WsMmaBf16;
typedef WsMma16x8<1, s32, ws_mma_s8> WsMmaS8;

WS_GEMM(gemm_f64_mma, WsMma8x8)
WS_GEMM(gemm_tf32_mma, WsMmaTf32)
WS_GEMM(gemm_f16_mma, WsMmaF16)
WS_GEMM(gemm_bf16_mma, WsMmaBf16)
WS_GEMM(gemm_s8_mma, WsMmaS8)
#if WS_HAS_FP8_MMA
// On sm_90 and sm_100 these compile to FP16 instructions (the FP8 pipe is reached by wgmma and tcgen05 only).
typedef WsMma16x8<1, float, ws_mma_e4m3> WsMmaE4m3;
typedef WsMma16x8<1, float, ws_mma_e5m2> WsMmaE5m2;
WS_GEMM(gemm_e4m3_mma, WsMmaE4m3)
WS_GEMM(gemm_e5m2_mma, WsMmaE5m2)
#endif
