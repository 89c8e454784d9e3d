//! The daemon of one blade: probes, test runner, bundle. No cluster is needed for any of it.

pub mod bundle;
pub mod probe;
pub mod report;
pub mod run;
pub mod watch;
