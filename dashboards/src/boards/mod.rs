//! The dashboards.

mod blade;
mod burnin;
mod health;
mod site;
mod tranche;

use crate::panel::Dashboard;

/// All of them, in the order in which a person goes through them.
pub fn all() -> Vec<Dashboard> {
    vec![
        site::dashboard(),
        tranche::dashboard(),
        blade::dashboard(),
        burnin::dashboard(),
        health::dashboard(),
    ]
}
