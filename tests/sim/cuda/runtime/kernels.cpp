// The product's kernels, compiled for the host: the same sources that nvcc compiles for the GPU.
// wgmma.cu and tcgen05.cu are not here: what they do cannot be emulated faithfully, so their names are "not found".
#include <string.h>

#include "runtime.h"

namespace {
// Filled by the constructors of the entries below, when the library is loaded.
WsKernelEntry* kernels = nullptr;
}

WsKernelEntry::WsKernelEntry(const char* n, WsEntry e, u32 p) : name(n), entry(e), parameters(p), next(kernels) {
  kernels = this;
}

#include "memory.cu"
#include "digest.cu"
#include "gemm_cuda.cu"
#include "gemm_mma.cu"
#include "selftest.cu"

// Here, beside the kernels: a linker takes an object out of an archive only for a symbol that is asked for.
extern "C" const WsKernelEntry* ws_kernel_find(const char* name) {
  for (const WsKernelEntry* k = kernels; k != nullptr; k = k->next) {
    if (strcmp(k->name, name) == 0) return k;
  }
  return nullptr;
}

extern "C" u32 ws_kernel_parameters(const WsKernelEntry* kernel) { return kernel->parameters; }
