//! The words of Whetstone as types: devices, evidence, faults, thresholds, verdicts, reports.
//!
//! Pure: no clock, no IO, no randomness. Data tables lie in `model/data/`.

pub mod action;
pub mod device;
pub mod evidence;
pub mod facts;
pub mod fault;
pub mod health;
pub mod ids;
pub mod lifecycle;
pub mod report;
pub mod threshold;
pub mod unit;
pub mod verdict;
pub mod wire;
