// Switching stacks without a system call (swapcontext makes one for the signal mask).
#pragma once

extern "C" {
// Saves the callee-saved registers on the running stack, stores its pointer in *save, and goes on at `load`.
void ws_fiber_switch(void** save, void* load) __attribute__((visibility("hidden")));
}

// A stack on which `entry` starts when it is switched to for the first time. `top` is 16-byte aligned.
void* ws_fiber_prepare(void* top, void (*entry)());
