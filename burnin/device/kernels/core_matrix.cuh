// Operands in shared memory as wgmma and tcgen05 read them without swizzling: core matrices of 8 rows x 16 bytes, each
// contiguous; those of one 16-byte column of K follow each other down the rows, then comes the next column.
#pragma once
#include "common.cuh"

static constexpr u32 WS_CHUNK_BYTES = 128;      // of K, per row, in one stage of shared memory
static constexpr u32 WS_CORE_ROW_BYTES = 16;
static constexpr u32 WS_CORE_BYTES = 8 * WS_CORE_ROW_BYTES;  // also the stride between groups of 8 rows
static constexpr u32 WS_STEP_BYTES = 32;        // of K that one matrix instruction takes, in every format

// Bytes between neighbours along K: the "leading" offset of a K-major operand of `rows` rows.
WS_DEVICE constexpr u32 ws_leading_bytes(u32 rows) { return rows / 8 * WS_CORE_BYTES; }

// Starts the copy of one chunk of an operand of ROWS rows; what lies past the end of a row is left as it is.
template <u32 ROWS>
WS_DEVICE void ws_fetch_core(u8* stage, const u8* operand, u32 row_bytes, u32 chunk) {
  constexpr u32 COLUMNS = WS_CHUNK_BYTES / WS_CORE_ROW_BYTES;
  WS_UNROLL for (u32 i = 0; i < ROWS * COLUMNS / WS_BLOCK; ++i) {
    const u32 piece = i * WS_BLOCK + threadIdx.x;
    const u32 row = piece / COLUMNS, column = piece % COLUMNS;
    const u32 offset = chunk * WS_CHUNK_BYTES + column * WS_CORE_ROW_BYTES;
    if (offset < row_bytes) {
      ws_copy_async(stage + column * ws_leading_bytes(ROWS) + row / 8 * WS_CORE_BYTES + row % 8 * WS_CORE_ROW_BYTES,
                    operand + (u64)row * row_bytes + offset);
    }
  }
}

// What this block copied has come, and the matrix unit, which reads shared memory by the asynchronous proxy, sees it.
WS_DEVICE void ws_operands_ready() {
  ws_copy_wait();
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
}
