//! A whole site on a real Kubernetes control plane: the real operator as a process of its own, a real store, and simulated agents
//! that speak the real protocol. Each test has its own site.
#![allow(
    clippy::result_large_err,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests: what fails here is a failed test, and an error is what the panic prints"
)]

mod bad_input;
mod drain;
mod elsewhere;
mod ha;
mod harness;
mod metrics;
mod names;
mod steps;
mod survive;
mod tranche;
mod verbs;
