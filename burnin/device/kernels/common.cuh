// What all kernels share: the structures, the patterns and the digest of ABI.md.
#pragma once
#include "whet_shim.h"

struct WsTile {
  u32 smid;
  u32 mismatches;
  u64 digest;
  u64 start_ns;
  u64 end_ns;
};
struct WsMemFault {
  u64 word_index;
  u64 expected;
  u64 got;
  u32 smid;
  u32 pass;
};
static_assert(sizeof(WsTile) == 32 && sizeof(WsMemFault) == 32, "the host reads these as 32 bytes");

static constexpr u64 WS_GOLDEN = 0x9e3779b97f4a7c15ull;

// SplitMix64's finaliser (Steele, Lea, Flood 2014): a bijection in which each input bit reaches every output bit.
WS_DEVICE u64 ws_mix64(u64 x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// One element's part of a digest; parts are added, so the order of the threads does not matter.
WS_DEVICE u64 ws_digest_part(u64 bits, u64 index) { return ws_mix64(bits + (index + 1) * WS_GOLDEN); }

static constexpr u32 WS_BLOCK = 128;  // threads of a GEMM or digest block

// Ends a tile: `digest` and `mismatches` are this thread's parts. Every thread of the block calls it once.
WS_DEVICE void ws_finish_tile(WsTile* tiles, u64 digest, u32 mismatches, u64 start_ns) {
  WS_SHARED(u64, digests, WS_BLOCK);
  WS_SHARED(u32, counts, WS_BLOCK);
  digests[threadIdx.x] = digest;
  counts[threadIdx.x] = mismatches;
  __syncthreads();
  if (threadIdx.x == 0) {
    WsTile tile = {ws_smid(), 0, 0, start_ns, ws_globaltimer()};
    for (u32 i = 0; i < WS_BLOCK; ++i) {
      tile.digest += digests[i];
      tile.mismatches += counts[i];
    }
    tiles[blockIdx.x] = tile;
  }
}
