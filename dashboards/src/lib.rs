//! Grafana dashboards and Prometheus alert rules of a site, as values in Rust: generated, linted, and tried on a real
//! Prometheus.
//!
//! - [`catalogue`]: every metric there is; [`exposition::compare`] holds a process against it
//! - [`boards`], [`alerts`]: what is shown and what calls a person
//! - [`files`]: what is written and committed
//! - [`check::against`]: runs every query on a Prometheus

pub mod alerts;
pub mod boards;
pub mod catalogue;
pub mod check;
pub mod docs;
pub mod exposition;
pub mod expr;
pub mod lint;
pub mod panel;
pub mod rules;

use std::path::PathBuf;

/// Where the alerts' pages are, if nothing else is said: a path in this repository.
pub const RUNBOOKS: &str = "docs/playbooks";

/// A generated file could not be put into its format.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error("cannot write a dashboard as json")]
    Json(#[from] serde_json::Error),
    #[error("cannot write the alert rules as yaml")]
    Yaml(#[from] serde_norway::Error),
}

/// Dashboards and alert rules: paths below the output folder, and their text. The same every time.
pub fn files(runbooks: &str) -> Result<Vec<(PathBuf, String)>, GenerateError> {
    let mut files = Vec::new();
    for board in boards::all() {
        let text = serde_json::to_string_pretty(&board.json())? + "\n";
        files.push((PathBuf::from(format!("grafana/{}.json", board.name)), text));
    }
    files.push((PathBuf::from("alerts/whetstone.rules.yaml"), rules::yaml(runbooks)?));
    Ok(files)
}
