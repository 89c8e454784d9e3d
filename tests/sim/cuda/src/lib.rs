//! `libcuda.so.1` without a GPU: the CUDA driver's C interface over a simulated blade.
//!
//! Kernels really run: the product's own `.cu` sources, compiled for the host (`runtime/`). A module is loaded from
//! the very cubin or PTX that ships; its bytes say which kernels it has, and those that the host build has can be
//! launched. Names that only real silicon can run (wgmma, tcgen05) are "not found", so a program takes its next path.
//!
//! Time is virtual: a launch or copy lasts as long as its counted work would on the SKU ([`timeline`]), `%globaltimer`
//! and events show that, and nothing sleeps. What is wrong with the blade comes from `whetstone-scenario`.
//!
//! | planted | what a program sees |
//! |---|---|
//! | bad HBM cell | the bit reads 1 after every kernel and copy, or is inverted once |
//! | wrong SM | one bit of one accumulator in every n-th tile on that SM |
//! | copy that corrupts | one bit of the n-th copy in a direction |
//! | launch error | the n-th launch and everything after it answer that code |
//! | hang | the call never returns |
//! | GPU lost | 719 (launch failed) where a context was open, 46 (device unavailable) where none was |
//! | slow SM, GPU, HBM, link | longer virtual time |
//!
//! Not modelled: an out-of-range pointer in a kernel (the process dies of a segmentation fault instead of error 700),
//! kernels that run at once on one GPU, graphs, textures, managed memory.
#![allow(unsafe_code)]
#![allow(non_snake_case)]
// The C interface: what each pointer must be is NVIDIA's documentation of the function of that name.
#![allow(clippy::missing_safety_doc)]

mod api;
mod driver;
mod error;
mod handles;
mod image;
mod launch;
mod memory;
mod runtime;
mod timeline;
