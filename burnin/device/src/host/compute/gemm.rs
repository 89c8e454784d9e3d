//! Exact matrix products in each vector unit that the core has.

pub mod block;
pub mod oracle;
pub mod product;
pub mod tasks;
pub mod units;
