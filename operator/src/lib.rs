//! The operator: the brain of a site.
//!
//! Agents report to [`intake`]; what they say goes to the store; [`site`] looks, plans and acts on [`cluster`]; people ask
//! through [`ops`] and the objects' status.

pub mod clock;
pub mod cluster;
pub mod dirty;
pub mod health;
pub mod intake;
pub mod metrics;
pub mod ops;
pub mod pki;
pub mod retention;
pub mod run;
pub mod site;
pub mod upkeep;
