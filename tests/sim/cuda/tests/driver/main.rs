//! The simulated CUDA driver through cudarc, as the product uses it.
#![allow(unsafe_code, clippy::unwrap_used)]

mod blade;
mod faults;
mod kernels;
mod time;
