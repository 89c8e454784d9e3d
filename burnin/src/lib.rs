//! Burn-in without the hardware: suites, the exact oracle, verdict rules, statistics, the fleet judge.
//!
//! Pure: no clock, no IO, no randomness of its own; seeds and times are arguments.

pub mod agreement;
pub mod exact;
pub mod inventory;
pub mod judge;
pub mod protocol;
pub mod suite;
pub mod verdict;
