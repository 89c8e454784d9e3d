//! The intake as an agent sees it: a real server on a free port, the real SQLite store, clients over mutual TLS.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a broken promise is a failed test"
)]

mod acceptance;
mod bodies;
mod budget;
mod fleet;
mod identity;
mod join;
mod load;
mod ops;
mod report;
mod result;
mod site;
