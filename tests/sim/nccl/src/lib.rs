//! Simulated vendor library; see docs of the crate `whetstone-scenario`.
#![allow(unsafe_code)]
