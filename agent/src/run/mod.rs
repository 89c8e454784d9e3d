//! The runner: a suite on this blade, each device test in a process of its own.
