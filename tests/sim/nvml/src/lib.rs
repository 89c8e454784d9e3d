//! A `libnvidia-ml.so.1` that speaks for a simulated blade (see the crate `whetstone-scenario`).
//!
//! Each exported function has the name, arguments and result codes that NVIDIA's `nvml.h` gives it. What the SKU or its
//! generation does not have answers `NVML_ERROR_NOT_SUPPORTED`, as there. Functions that are not here are not exported:
//! a caller finds the symbol missing, as with an old driver.
#![allow(unsafe_code)]
// The C names are the interface; each function takes raw pointers by its nature (the contract is nvml.h's), and the
// macro that exports them wraps every body alike.
#![allow(non_snake_case, non_upper_case_globals, unused_unsafe, clippy::missing_safety_doc)]

mod call;
mod events;
mod fields;
mod identity;
mod links;
mod memory;
mod sensors;
mod system;
