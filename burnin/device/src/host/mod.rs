//! Tests of the host: real on any machine.

pub mod bench;
pub mod clock;
pub mod coherence;
pub mod compute;
pub mod cores;
pub mod disk;
pub mod dram;
pub mod network;
pub mod pages;
pub mod stream;
