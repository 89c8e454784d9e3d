// Fibers, barriers, and the run of one block.
#include "runtime.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "fiber.h"

thread_local WsFiber* ws_current;

namespace {

constexpr size_t STACK_BYTES = 64 * 1024;
constexpr size_t GUARD_BYTES = 64 * 1024;  // a multiple of any page size in use

enum Wait : u32 { RUNS, AT_WARP, AT_BLOCK, ENDED };
enum Status : u32 { DONE = 0, DEADLOCK = 1, NO_MEMORY = 2 };

}  // namespace

namespace {

// A matrix instruction's inputs and result, by place in its block.
struct WsMemo {
  u32 kind;  // 0 = empty
  u32 a[32][4], b[32][2], c[32][4], d[32][4];
};
constexpr u32 MEMOS = 8192;  // 15 MB for each worker, as far as they are used

// A look at results that were not joined would see the past.
bool unjoined(const WsFiber* fiber) { return fiber->block->warps[fiber->linear / 32].issued[fiber->linear % 32] != 0; }

}  // namespace

// One OS thread's means to run blocks.
struct WsWorker {
  WsBlock block;
  WsFiber fibers[WS_MAX_THREADS];
  u32 queue[WS_MAX_THREADS];  // fibers that can run, a ring
  u32 queue_head, queue_length;
  u32 stacks;
  void* scheduler;  // stack pointer of the caller of the fibers
  WsEntry entry;
  void** parameters;
  u8* shared;
  WsMemo* memos;
  u32 shared_dirty;  // bytes that blocks have used so far
  bool failed;
};

namespace {

thread_local WsWorker* worker __attribute__((tls_model("initial-exec")));

void make_runnable(WsWorker* w, u32 fiber) {
  w->fibers[fiber].waits = RUNS;
  w->queue[(w->queue_head + w->queue_length++) % WS_MAX_THREADS] = fiber;
}

// Leaves this fiber for the next that can run, or for the scheduler when there is none.
void leave(WsWorker* w, WsFiber* from) {
  if (w->queue_length == 0) {
    ws_fiber_switch(&from->stack_pointer, w->scheduler);
    return;
  }
  WsFiber* to = &w->fibers[w->queue[w->queue_head]];
  w->queue_head = (w->queue_head + 1) % WS_MAX_THREADS;
  w->queue_length--;
  ws_current = to;
  ws_fiber_switch(&from->stack_pointer, to->stack_pointer);
}

void release(WsWorker* w, u32 first, u32 end, u32 waits) {
  for (u32 i = first; i < end; ++i) {
    if (w->fibers[i].waits == waits) make_runnable(w, i);
  }
}

void release_warp(WsWorker* w, u32 warp) {
  const u32 threads = w->block.launch->block.x * w->block.launch->block.y * w->block.launch->block.z;
  const u32 end = warp * 32 + 32;
  w->block.warps[warp].arrived = 0;
  release(w, warp * 32, end < threads ? end : threads, AT_WARP);
}

void release_block(WsWorker* w) {
  const u32 threads = w->block.launch->block.x * w->block.launch->block.y * w->block.launch->block.z;
  w->block.arrived = 0;
  release(w, 0, threads, AT_BLOCK);
}

void fiber_main() {
  WsWorker* w = worker;
  w->entry(w->parameters);
  WsFiber* me = ws_current;
  if (unjoined(me)) w->failed = true;
  me->waits = ENDED;
  // Those who wait for all live threads no longer wait for this one.
  WsWarp* warp = &w->block.warps[me->linear / 32];
  if (--warp->live == warp->arrived && warp->live != 0) release_warp(w, me->linear / 32);
  if (--w->block.live == w->block.arrived && w->block.live != 0) release_block(w);
  leave(w, me);
  __builtin_trap();  // an ended fiber is never resumed
}

bool ensure_stacks(WsWorker* w, u32 threads) {
  for (; w->stacks < threads; ++w->stacks) {
    void* at = mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return false;
    u8* stack = static_cast<u8*>(at) + GUARD_BYTES;
    if (mprotect(stack, STACK_BYTES, PROT_READ | PROT_WRITE) != 0) return false;
    w->fibers[w->stacks].stack = stack;
  }
  return true;
}

double compute_ns(const WsBlock* block) {
  const WsLaunch* launch = block->launch;
  double compute = 0;
  for (u32 f = 0; f < WS_FORMAT_COUNT; ++f) {
    if (block->cost.mma_ops[f] != 0) compute += static_cast<double>(block->cost.mma_ops[f]) / launch->mma_rate[f];
    if (block->cost.fma_ops[f] != 0) compute += static_cast<double>(block->cost.fma_ops[f]) / launch->fma_rate[f];
  }
  return compute / launch->sm_speed[block->sm];
}

}  // namespace

void ws_barrier_block() {
  WsWorker* w = worker;
  WsFiber* me = ws_current;
  if (++w->block.arrived == w->block.live) {
    release_block(w);
    return;
  }
  me->waits = AT_BLOCK;
  leave(w, me);
}

void* ws_shared(u32 bytes) {
  WsFiber* me = ws_current;
  u8* at = worker->shared + me->shared_used;
  me->shared_used += (bytes + 15u) & ~15u;
  if (me->shared_used > WS_SHARED_BYTES) __builtin_trap();  // a kernel that nvcc would refuse
  if (me->shared_used > worker->shared_dirty) worker->shared_dirty = me->shared_used;
  return at;
}

u64 ws_block_time(const WsBlock* block) {
  // All blocks of an SM share it from start to end, as they do on the device while they fit.
  const WsLaunch* launch = block->launch;
  const u64 blocks = static_cast<u64>(launch->grid.x) * launch->grid.y * launch->grid.z;
  const u64 together = (blocks - block->sm + launch->sm_count - 1) / launch->sm_count;
  // Arithmetic and memory traffic go side by side: the longer one counts.
  const double compute = compute_ns(block), memory = static_cast<double>(block->cost.bytes) / launch->byte_rate;
  return launch->start_ns + static_cast<u64>((compute > memory ? compute : memory) * static_cast<double>(together) + launch->tick);
}

namespace {

constexpr u32 OPS[WS_FORMAT_COUNT] = {2 * 8 * 8 * 4,   0,                2 * 16 * 8 * 8,  2 * 16 * 8 * 16,
                                      2 * 16 * 8 * 16, 2 * 16 * 8 * 32, 2 * 16 * 8 * 32, 2 * 16 * 8 * 32};

// Computes an instruction, or takes its result from the last time that it had the very same inputs: all blocks and
// iterations of a burn-in compute the same tile.
void compute(WsWorker* w, u32 warp_index, WsWarp* warp, const WsMma* mma) {
  const u32 significand = w->block.launch->significand[mma->format];
  if (mma->format == 0) {  // fewer operations than the comparison would take
    ws_mma_compute(mma, significand);
    return;
  }
  const u32 warps = (w->block.launch->block.x + 31) / 32;
  WsMemo* memo = &w->memos[(warp->computed++ * warps + warp_index) % MEMOS];
  const u32 kind = 1 + mma->format + significand * WS_FORMAT_COUNT;
  u32 c[32][4];
  for (u32 lane = 0; lane < 32; ++lane) memcpy(c[lane], mma->d[lane], 16);
  if (memo->kind == kind && memcmp(memo->a, mma->a, sizeof mma->a) == 0 && memcmp(memo->b, mma->b, sizeof mma->b) == 0 &&
      memcmp(memo->c, c, sizeof c) == 0) {
    for (u32 lane = 0; lane < 32; ++lane) memcpy(mma->d[lane], memo->d[lane], 16);
    return;
  }
  ws_mma_compute(mma, significand);
  memo->kind = kind;
  memcpy(memo->a, mma->a, sizeof mma->a);
  memcpy(memo->b, mma->b, sizeof mma->b);
  memcpy(memo->c, c, sizeof c);
  for (u32 lane = 0; lane < 32; ++lane) memcpy(memo->d[lane], mma->d[lane], 16);
}

}  // namespace

void ws_mma(u32 format, void* d, const void* a, const void* b) {
  WsFiber* me = ws_current;
  WsWarp* warp = &me->block->warps[me->linear / 32];
  const u32 lane = me->linear % 32;
  if (warp->issued[lane] == WS_MMA_PENDING) ws_mma_join();
  WsMma* mma = &warp->pending[warp->issued[lane]++];
  mma->format = format;
  mma->d[lane] = d;
  // fp64 has one double for each operand, the others four and two registers.
  if (format == 0) {
    memset(mma->a[lane], 0, 16);
    memcpy(mma->a[lane], a, 8);
  } else {
    memcpy(mma->a[lane], a, 16);
  }
  memcpy(mma->b[lane], b, 8);
}

void ws_mma_join() {
  WsWorker* w = worker;
  WsFiber* me = ws_current;
  const u32 warp_index = me->linear / 32;
  WsWarp* warp = &w->block.warps[warp_index];
  if (++warp->arrived != warp->live) {
    me->waits = AT_WARP;
    leave(w, me);
    return;
  }
  // A warp with missing lanes, or lanes that issued different numbers: undefined on the device, an error here.
  const u32 count = warp->issued[0];
  bool whole = warp->live == 32;
  for (u32 lane = 0; lane < 32; ++lane) {
    whole = whole && warp->issued[lane] == count;
    warp->issued[lane] = 0;
  }
  if (!whole) w->failed = true;
  for (u32 i = 0; whole && i < count; ++i) {
    compute(w, warp_index, warp, &warp->pending[i]);
    w->block.cost.mma_ops[warp->pending[i].format] += OPS[warp->pending[i].format];
  }
  release_warp(w, warp_index);
}

void ws_done_tile(void* accumulators, u32 bytes, u32 count) {
  const WsFiber* me = ws_current;
  if (unjoined(me)) worker->failed = true;
  const WsLaunch* launch = me->block->launch;
  for (u32 i = 0; i < launch->fault_count; ++i) {
    const WsFault* fault = &launch->faults[i];
    if (fault->sm != me->block->sm || fault->thread != me->linear) continue;
    const u32 tile = __atomic_add_fetch(fault->tiles, 1, __ATOMIC_RELAXED);
    if (tile % fault->period != 0) continue;
    u8* at = static_cast<u8*>(accumulators) + static_cast<size_t>(fault->element % count) * bytes;
    const u32 bit = fault->bit % (bytes * 8);
    at[bit / 8] = static_cast<u8>(at[bit / 8] ^ (1u << (bit % 8)));
  }
}

extern "C" {

WsWorker* ws_worker_new() {
  void* at = mmap(nullptr, sizeof(WsWorker), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return nullptr;
  WsWorker* w = static_cast<WsWorker*>(at);
  void* shared = mmap(nullptr, WS_SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) {
    munmap(at, sizeof(WsWorker));
    return nullptr;
  }
  w->shared = static_cast<u8*>(shared);
  void* memos = mmap(nullptr, MEMOS * sizeof(WsMemo), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memos == MAP_FAILED) {
    munmap(shared, WS_SHARED_BYTES);
    munmap(at, sizeof(WsWorker));
    return nullptr;
  }
  w->memos = static_cast<WsMemo*>(memos);
  return w;
}

// Runs block `linear` of the launch on the calling OS thread. Returns 0, 1 if its threads wait for each other for
// ever or a warp-wide instruction lacks lanes, 2 if the host has no memory for the stacks.
u32 ws_block_run(WsWorker* w, const WsKernelEntry* kernel, void** parameters, const WsLaunch* launch, u64 linear,
                 WsCost* cost) {
  const u32 threads = launch->block.x * launch->block.y * launch->block.z;
  if (threads == 0 || threads > WS_MAX_THREADS) return DEADLOCK;
  if (!ensure_stacks(w, threads)) return NO_MEMORY;

  WsBlock* block = &w->block;
  block->launch = launch;
  block->index.x = static_cast<u32>(linear % launch->grid.x);
  block->index.y = static_cast<u32>(linear / launch->grid.x % launch->grid.y);
  block->index.z = static_cast<u32>(linear / launch->grid.x / launch->grid.y);
  block->sm = static_cast<u32>(linear % launch->sm_count);
  block->live = threads;
  block->arrived = 0;
  memset(&block->cost, 0, sizeof block->cost);
  for (u32 i = 0; i < (threads + 31) / 32; ++i) {
    WsWarp* warp = &block->warps[i];
    warp->live = threads - i * 32 < 32 ? threads - i * 32 : 32;
    warp->arrived = 0;
    warp->computed = 0;
    memset(warp->issued, 0, sizeof warp->issued);
  }
  // What an earlier block left must not look like an answer.
  memset(w->shared, 0xa5, w->shared_dirty);
  w->failed = false;

  w->entry = kernel->entry;
  w->parameters = parameters;
  w->queue_head = w->queue_length = 0;
  for (u32 i = 0; i < threads; ++i) {
    WsFiber* f = &w->fibers[i];
    f->block = block;
    f->linear = i;
    f->thread_index.x = i % launch->block.x;
    f->thread_index.y = i / launch->block.x % launch->block.y;
    f->thread_index.z = i / launch->block.x / launch->block.y;
    f->shared_used = 0;
    f->stack_pointer = ws_fiber_prepare(f->stack + STACK_BYTES, fiber_main);
    make_runnable(w, i);
  }

  worker = w;
  // `leave` comes back here only when no fiber can run: all have ended, or they are stuck.
  w->queue_head = 1 % WS_MAX_THREADS;
  w->queue_length--;
  ws_current = &w->fibers[0];
  ws_fiber_switch(&w->scheduler, w->fibers[0].stack_pointer);
  ws_current = nullptr;
  worker = nullptr;
  if (block->live != 0 || w->failed) return DEADLOCK;
  block->cost.compute_ns = compute_ns(block);
  *cost = block->cost;
  return DONE;
}
}
