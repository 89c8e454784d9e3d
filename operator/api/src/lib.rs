//! The custom resources of Whetstone: group `whetstone.dev`, version `v1alpha1`, cluster-scoped.
//!
//! `spec` is what people want; `status` is the operator's projection of the store. Objects are small: evidence and history
//! are in the store. The YAML in `deploy/crds/` is generated from here ([`manifests`]).

mod blade;
mod burnin;
mod convert;
mod tranche;
mod yaml;

pub mod condition;
pub mod node;

pub use blade::{Blade, BladeSpec, BladeStatus, QuarantineSpec, VerdictStatus, WaitStatus};
pub use burnin::{BurnIn, BurnInPhase, BurnInSpec, BurnInStatus, RUN_LABEL};
pub use convert::SpecError;
pub use tranche::{
    CountsStatus, ExpectedBlade, GatesSpec, MAX_TRANCHE_BLADES, PowerSpec, Tranche, TrancheSpec,
    TrancheStatus,
};
pub use yaml::{Manifest, manifests};

/// API group of all kinds.
pub const GROUP: &str = "whetstone.dev";
/// Who writes, as the apiserver records it.
pub const FIELD_MANAGER: &str = "whetstone-operator";
