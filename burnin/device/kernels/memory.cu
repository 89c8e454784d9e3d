// targets: sm_80 sm_89 sm_90a sm_100a sm_103a sm_120a compute_80
// Patterns over device memory. Words are 64 bits; `first_index` is the index of the first word within the whole
// range under test, so that a range larger than one launch has one continuous pattern.
#include "common.cuh"

enum WsPattern { WS_ADDRESS = 0, WS_WALKING_ONE = 1, WS_WALKING_ZERO = 2, WS_CONSTANT = 3, WS_RANDOM = 4 };
static constexpr u32 WS_COMPLEMENT = 1u << 31;

WS_DEVICE u64 ws_pattern(u32 pattern, u64 seed, u64 index) {
  u64 word = seed;  // WS_CONSTANT
  switch (pattern & ~WS_COMPLEMENT) {
    case WS_ADDRESS: word = (index * 8) ^ seed; break;
    case WS_WALKING_ONE: word = 1ull << ((index + seed) % 64); break;
    case WS_WALKING_ZERO: word = ~(1ull << ((index + seed) % 64)); break;
    case WS_RANDOM: word = ws_mix64(seed + (index + 1) * WS_GOLDEN); break;
  }
  return pattern & WS_COMPLEMENT ? ~word : word;
}

WS_DEVICE void ws_log_fault(WsMemFault* log, u32 cap, u32* count, u64 index, u64 expected, u64 got, u32 pass) {
  u32 slot = ws_atomic_add(count, 1);
  if (slot < cap) {
    WsMemFault fault = {index, expected, got, ws_smid(), pass};
    log[slot] = fault;
  }
}

WS_GLOBAL(1024) mem_fill(u64* base, u64 words, u64 first_index, u32 pattern, u64 seed) {
  WS_FOR_EACH(i, words, 8) {
    base[i] = ws_pattern(pattern, seed, first_index + i);
  }
}
WS_KERNEL(mem_fill)

// Reads are volatile: a word is judged by what memory gives, never by what a compiler remembers.
WS_GLOBAL(1024) mem_verify(const u64* base, u64 words, u64 first_index, u32 pattern, u64 seed, WsMemFault* log, u32 cap,
                           u32* count, u32 pass) {
  const volatile u64* memory = base;
  WS_FOR_EACH(i, words, 8) {
    u64 expected = ws_pattern(pattern, seed, first_index + i);
    u64 got = memory[i];
    if (got != expected) ws_log_fault(log, cap, count, first_index + i, expected, got, pass);
  }
}
WS_KERNEL(mem_verify)

// Moving inversions: check, then leave the complement. Up and down sweeps find different coupling faults.
WS_GLOBAL(1024) mem_invert(u64* base, u64 words, u64 first_index, u32 pattern, u64 seed, u32 descending, WsMemFault* log,
                           u32 cap, u32* count, u32 pass) {
  volatile u64* memory = base;
  WS_FOR_EACH(n, words, 16) {
    u64 i = descending ? words - 1 - n : n;
    u64 expected = ws_pattern(pattern, seed, first_index + i);
    u64 got = memory[i];
    memory[i] = ~expected;
    if (got != expected) ws_log_fault(log, cap, count, first_index + i, expected, got, pass);
  }
}
WS_KERNEL(mem_invert)

WS_GLOBAL(1024) mem_copy(u64* dst, const u64* src, u64 words) {
  WS_FOR_EACH(i, words, 16) {
    dst[i] = src[i];
  }
}
WS_KERNEL(mem_copy)
