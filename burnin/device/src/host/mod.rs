//! Tests of the host: real on any machine.

pub mod clock;
pub mod coherence;
pub mod compute;
pub mod disk;
pub mod dram;
pub mod network;
