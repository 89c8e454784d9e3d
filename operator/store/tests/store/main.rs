//! The store's tests: each on SQLite and on a PostgreSQL of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests; the lint exempts only the tests themselves

#[macro_use]
mod common;

mod backup;
mod boots;
mod identity;
mod intake;
mod lifecycle;
mod migrations;
mod retention;
mod runs;
mod trouble;
mod writers;
