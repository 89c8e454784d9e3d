//! The real agent against an operator in this process: what comes through whatever breaks on the way.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

mod agent;
mod evidence;
mod identity;
mod operator;
mod runs;
