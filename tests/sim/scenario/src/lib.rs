//! Simulated silicon: what a simulated blade is, and the state that its simulated libraries share.
//!
//! A person writes a scenario in TOML ([`scenario`]); `whet-sim blade` resolves it into a directory:
//!
//! | in the directory | what |
//! |---|---|
//! | `blade.json` | the blade, fully explicit ([`BladeScenario`]) |
//! | `state.bin` | what changes while it runs ([`state`]), mapped by every process |
//! | `kmsg` | its kernel log, in the record form of `/dev/kmsg`; grows when faults happen |
//! | `root/` | its `/sys` and `/proc` |
//!
//! The simulated `libnvidia-ml.so.1`, `libcuda.so.1` and `libnccl.so.2` find the directory by the environment variable
//! `WHETSTONE_SIM`, open it with [`Sim::shared`], call [`Sim::tick`] on every entry and ask [`Gpu`] for the rest.
//! Nothing here is linked into a shipped binary.
#![allow(unsafe_code)]

pub mod blade;
mod check;
pub mod fault;
pub mod format;
pub mod home;
pub mod kmsg;
pub mod load;
pub mod root;
pub mod scenario;
pub mod seed;
pub mod sim;
pub mod sku;
pub mod state;
pub mod tranche;

pub use blade::{BladeScenario, Fabric, GpuScenario, Variation};
pub use fault::{Direction, Fault, FlipMode};
pub use format::Format;
pub use load::{Health, Span, Work};
pub use scenario::ScenarioError;
pub use sim::{DIR_VARIABLE, Gpu, Sim, SimError};
pub use sku::SimSku;

/// DIMMs of every simulated blade: two sockets, eight channels each.
pub const DIMMS: u32 = 16;

/// Memory controllers (sockets) that the DIMMs are shared over.
pub const MEMORY_CONTROLLERS: u32 = 2;
