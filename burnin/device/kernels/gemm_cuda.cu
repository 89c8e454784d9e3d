// targets: sm_80 sm_89 sm_90a sm_100a sm_103a sm_120a compute_80
// GEMM on the CUDA cores: the fused multiply-add units, which the tensor-core kernels leave idle.
// A thread has rows r, r+16, r+32, r+48 and columns c, c+8, .., c+56 of the tile, r = thread / 8, c = thread % 8.
#include "gemm_tile.cuh"

// One 16-byte word of an operand row as numbers.
struct WsLanesF64 {
  typedef double Acc;
  static constexpr u32 COUNT = 2;
  static constexpr u32 FORMAT = WS_F64;
  WS_MEMBER Acc get(const u32 (&x)[4], u32 i) { return ws_double_of_bits((u64)x[2 * i + 1] << 32 | x[2 * i]); }
};
struct WsLanesF32 {
  typedef float Acc;
  static constexpr u32 COUNT = 4;
  static constexpr u32 FORMAT = WS_F32;
  WS_MEMBER Acc get(const u32 (&x)[4], u32 i) { return ws_float_of_bits(x[i]); }
};
struct WsLanesF16 {
  typedef float Acc;
  static constexpr u32 COUNT = 8;
  static constexpr u32 FORMAT = WS_F16;
  WS_MEMBER Acc get(const u32 (&x)[4], u32 i) { return ws_f16_to_f32((u16)(x[i / 2] >> (i % 2 * 16))); }
};
struct WsLanesBf16 {
  typedef float Acc;
  static constexpr u32 COUNT = 8;
  static constexpr u32 FORMAT = WS_BF16;
  WS_MEMBER Acc get(const u32 (&x)[4], u32 i) { return ws_float_of_bits(i % 2 ? x[i / 2] & 0xffff0000u : x[i / 2] << 16); }
};

struct WsThreadTile {
  static constexpr u32 PITCH = WS_CHUNK_BYTES + 16;  // 8 rows' 16-byte words on 32 different banks
  static constexpr u32 STEP_BYTES = 16;
  static constexpr u32 ELEMENTS = 4 * 8;
  WS_MEMBER u32 row(u32 e) { return threadIdx.x / 8 + e / 8 * 16; }
  WS_MEMBER u32 column(u32 e) { return threadIdx.x % 8 + e % 8 * 8; }
  WS_MEMBER void load(u32 (&left)[4][4], u32 (&right)[8][4], const u8* a, const u8* b) {
    WS_UNROLL for (u32 i = 0; i < 4; ++i) ws_load_shared(a + row(i * 8) * PITCH, left[i]);
    WS_UNROLL for (u32 j = 0; j < 8; ++j) ws_load_shared(b + column(j) * PITCH, right[j]);
  }
};

template <class Lanes>
struct WsFma : WsThreadTile {
  typedef typename Lanes::Acc Acc;
  static constexpr u32 BYTES = 16 / Lanes::COUNT;

  WS_MEMBER void step(Acc (&acc)[ELEMENTS], const u8* a, const u8* b) {
    u32 left[4][4], right[8][4];
    load(left, right, a, b);
    WS_UNROLL for (u32 k = 0; k < Lanes::COUNT; ++k) {
      Acc x[4], y[8];
      WS_UNROLL for (u32 i = 0; i < 4; ++i) x[i] = Lanes::get(left[i], k);
      WS_UNROLL for (u32 j = 0; j < 8; ++j) y[j] = Lanes::get(right[j], k);
      WS_UNROLL for (u32 e = 0; e < ELEMENTS; ++e) acc[e] = ws_fma(x[e / 8], y[e % 8], acc[e]);
    }
    WS_COST_FMA(Lanes::FORMAT, ELEMENTS * Lanes::COUNT);
  }
};

struct WsDp4a : WsThreadTile {
  typedef s32 Acc;
  static constexpr u32 BYTES = 1;

  WS_MEMBER void step(Acc (&acc)[ELEMENTS], const u8* a, const u8* b) {
    u32 left[4][4], right[8][4];
    load(left, right, a, b);
    WS_UNROLL for (u32 w = 0; w < 4; ++w) {
      WS_UNROLL for (u32 e = 0; e < ELEMENTS; ++e) acc[e] = ws_dp4a(left[e / 8][w], right[e % 8][w], acc[e]);
    }
    WS_COST_FMA(WS_S8, ELEMENTS * 16);
  }
};

WS_GEMM(gemm_f64_cuda, WsFma<WsLanesF64>)
WS_GEMM(gemm_f32_cuda, WsFma<WsLanesF32>)
WS_GEMM(gemm_f16_cuda, WsFma<WsLanesF16>)
WS_GEMM(gemm_bf16_cuda, WsFma<WsLanesBf16>)
WS_GEMM(gemm_s8_cuda, WsDp4a)
