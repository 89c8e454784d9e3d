// How a kernel runs on the host.
//
// One OS thread runs one block at a time. Each CUDA thread of it is a fiber with a small stack of its own, which runs
// until it must wait: at a block barrier for all live fibers of the block, at a warp barrier for those of its warp.
// A missing barrier therefore shows at once: one fiber runs far ahead of the others.
//
// Not modelled: threads that really run at once, memory ordering, races inside a warp.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;

static constexpr u32 WS_MAX_THREADS = 1024;
static constexpr u32 WS_MAX_WARPS = WS_MAX_THREADS / 32;
static constexpr u32 WS_FORMAT_COUNT = 8;  // as WsFormat in whet_shim.h
static constexpr u32 WS_SHARED_BYTES = 64 * 1024;

struct WsDim {
  u32 x, y, z;
};

// A processor that computes wrongly: thread `thread` inverts bit `bit` of its accumulator `element` in each
// `period`-th tile that a block on SM `sm` computes. `tiles` counts them, over launches too. Shared with Rust.
struct WsFault {
  u32 sm, thread, element, bit, period;
  u32* tiles;
};

// Shared with Rust (`src/kernels.rs`), field by field.
struct WsLaunch {
  WsDim grid, block;
  u32 sm_count;
  u32 fault_count;
  const WsFault* faults;
  u64 start_ns;
  // Added to a duration before its fraction of a ns is dropped, 0 to 1.
  double tick;
  // Of a single SM, operations (2 per multiply-add) per ns, by format.
  double mma_rate[WS_FORMAT_COUNT];
  double fma_rate[WS_FORMAT_COUNT];
  // Of a single SM's share of the memory, bytes per ns.
  double byte_rate;
  // Speed of each SM against the nominal one; `sm_count` of them.
  const double* sm_speed;
  // Significand bits that an mma keeps, by format.
  u32 significand[WS_FORMAT_COUNT];
};

// Shared with Rust: what one block did.
struct WsCost {
  u64 mma_ops[WS_FORMAT_COUNT];
  u64 fma_ops[WS_FORMAT_COUNT];
  u64 bytes;
  double compute_ns;
};

struct WsFiber;

// A warp-wide instruction: where each lane's accumulators are, and its operand registers.
struct WsMma {
  u32 format;
  void* d[32];
  u32 a[32][4], b[32][2];
};
static constexpr u32 WS_MMA_PENDING = 16;

struct WsWarp {
  u32 live, arrived;
  // Instructions that each lane has issued and that are not computed yet.
  u32 issued[32];
  // Instructions computed in this block so far.
  u32 computed;
  WsMma pending[WS_MMA_PENDING];
};

struct WsBlock {
  const WsLaunch* launch;
  WsDim index;
  u32 sm;
  u32 live, arrived;
  WsCost cost;
  WsWarp warps[WS_MAX_WARPS];
};

struct WsFiber {
  WsBlock* block;
  WsDim thread_index;
  u32 linear;
  u32 shared_used;
  u32 waits;
  void* stack_pointer;
  u8* stack;
};

// The fiber that runs on this OS thread. Initial-exec: the library is small, and this is read everywhere.
extern thread_local WsFiber* ws_current __attribute__((tls_model("initial-exec"), visibility("hidden")));

void ws_barrier_block();
void* ws_shared(u32 bytes);
u64 ws_block_time(const WsBlock* block);
// Issues d += a * b; d holds the result after `ws_mma_join`, in which all lanes of the warp meet.
void ws_mma(u32 format, void* d, const void* a, const void* b);
void ws_mma_join();
// Computes one instruction (mma.cpp).
void ws_mma_compute(const WsMma* mma, u32 significand);
// The block has finished a tile; these are this thread's `count` accumulators of `bytes` each.
void ws_done_tile(void* accumulators, u32 bytes, u32 count);
float ws_decode_f16(u16 bits);

typedef void (*WsEntry)(void** parameters);

struct WsKernelEntry {
  const char* name;
  WsEntry entry;
  u32 parameters;
  WsKernelEntry* next;
  WsKernelEntry(const char* name, WsEntry entry, u32 parameters);
};
