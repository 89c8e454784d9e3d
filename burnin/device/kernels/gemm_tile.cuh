// The frame of the GEMM kernels for CUDA cores and mma.sync: one 64x64 tile of D = A * B^T per block, computed from
// scratch `iterations` times and compared with the first result in registers.
//
// K is counted in bytes of an operand row and streamed through shared memory in chunks of 128 bytes, two of them in
// turn; a K of one or two chunks stays there for all iterations, which is the hottest way to run.
//
// The arithmetic F gives: Acc, BYTES (of an operand element), ELEMENTS (accumulators of one thread), PITCH (bytes between
// rows in shared memory, chosen against bank conflicts), STEP_BYTES (of K per step), step(acc, a, b) and the
// place of accumulator e in the tile, row(e) and column(e).
#pragma once
#include "common.cuh"

static constexpr u32 WS_TILE = 64;
static constexpr u32 WS_CHUNK_BYTES = 128;

// Starts the copy of one chunk of both operands; bytes past the end of a row are left as they are.
template <u32 PITCH>
WS_DEVICE void ws_fetch_chunk(u8* stage, const u8* a, const u8* b, u32 row_bytes, u32 chunk) {
  WS_UNROLL for (u32 i = 0; i < 2 * WS_TILE * WS_CHUNK_BYTES / 16 / WS_BLOCK; ++i) {
    const u32 piece = i * WS_BLOCK + threadIdx.x;
    const u32 row = piece / 8 % WS_TILE, byte = piece % 8 * 16;
    const u32 offset = chunk * WS_CHUNK_BYTES + byte;
    const bool second = piece >= WS_TILE * 8;
    if (offset < row_bytes) {
      ws_copy_async(stage + (second ? WS_TILE * PITCH : 0) + row * PITCH + byte,
                    (second ? b : a) + (u64)row * row_bytes + offset);
    }
  }
}

template <class F>
WS_DEVICE void ws_gemm(const void* a_global, const void* b_global, void* d, u32 k, u32 iterations, WsTile* tiles) {
  typedef typename F::Acc Acc;
  constexpr u32 STAGE_BYTES = 2 * WS_TILE * F::PITCH;
  static_assert(2 * STAGE_BYTES + 2048 <= 48 * 1024, "static shared memory");
  WS_SHARED(u8, shared, 2 * STAGE_BYTES);

  const u64 start_ns = ws_globaltimer();
  const u8 *a = (const u8*)a_global, *b = (const u8*)b_global;
  const u32 row_bytes = k * F::BYTES;
  const u32 chunks = (row_bytes + WS_CHUNK_BYTES - 1) / WS_CHUNK_BYTES;
  const bool resident = chunks <= 2;

  ws_fetch_chunk<F::PITCH>(shared, a, b, row_bytes, 0);
  if (resident) {
    if (chunks == 2) ws_fetch_chunk<F::PITCH>(shared + STAGE_BYTES, a, b, row_bytes, 1);
    ws_copy_wait();
    __syncthreads();
  }

  Acc acc[F::ELEMENTS], first[F::ELEMENTS];
  WS_UNROLL for (u32 e = 0; e < F::ELEMENTS; ++e) acc[e] = first[e] = 0;
  u32 mismatches = 0;
  u32 stage = 0;
  for (u32 iteration = 0; iteration < iterations; ++iteration) {
    WS_UNROLL for (u32 e = 0; e < F::ELEMENTS; ++e) acc[e] = 0;
    for (u32 chunk = 0; chunk < chunks; ++chunk) {
      if (resident) {
        stage = chunk;
      } else {
        // This chunk has come, and all threads are done with the one before, whose place the next one takes.
        ws_copy_wait();
        __syncthreads();
        const u32 next = chunk + 1 == chunks ? 0 : chunk + 1;
        if (next != 0 || iteration + 1 < iterations) {
          ws_fetch_chunk<F::PITCH>(shared + (stage ^ 1) * STAGE_BYTES, a, b, row_bytes, next);
        }
      }
      const u8* rows = shared + stage * STAGE_BYTES;
      const u32 left = row_bytes - chunk * WS_CHUNK_BYTES;
      const u32 bytes = left < WS_CHUNK_BYTES ? left : WS_CHUNK_BYTES;
      for (u32 byte = 0; byte < bytes; byte += F::STEP_BYTES) {
        F::step(acc, rows + byte, rows + WS_TILE * F::PITCH + byte);
      }
      stage ^= 1;
    }
    WS_DONE_TILE(acc, F::ELEMENTS);
    // By bits, so that a NaN or the sign of a zero counts too.
    WS_UNROLL for (u32 e = 0; e < F::ELEMENTS; ++e) {
      if (iteration == 0) {
        first[e] = acc[e];
      } else {
        mismatches += ws_bits(acc[e]) != ws_bits(first[e]);
      }
    }
  }

  u64 digest = 0;
  Acc* out = (Acc*)d + (u64)blockIdx.x * WS_TILE * WS_TILE;
  WS_UNROLL for (u32 e = 0; e < F::ELEMENTS; ++e) {
    const u32 at = F::row(e) * WS_TILE + F::column(e);
    out[at] = acc[e];
    digest += ws_digest_part(ws_bits(acc[e]), at);
  }
  ws_finish_tile(tiles, digest, mismatches, start_ns);
}

#define WS_GEMM(name, F)                                                                                            \
  WS_GLOBAL(128) name(const void* a, const void* b, void* d, u32 k, u32 iterations, WsTile* tiles) {                \
    ws_gemm<F>(a, b, d, k, iterations, tiles);                                                                      \
  }                                                                                                                 \
  WS_KERNEL(name)
