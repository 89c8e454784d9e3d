//! What to do about a fault, and how bad it is: the two words that every finding carries.

use serde::{Deserialize, Serialize};

/// The recommended action, one of ours (a catalogue's own name is kept beside it, never instead of it).
///
/// Ordered by how much it disturbs the blade, so that the strongest of several is their maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    None,
    RestartApp,
    UpdateSoftware,
    DrainAndTest,
    ResetGpu,
    Reboot,
    PowerCycle,
    CheckLink,
    ContactSupport,
    Replace,
}

impl Action {
    pub const ALL: [Action; 10] = [
        Action::None,
        Action::RestartApp,
        Action::UpdateSoftware,
        Action::DrainAndTest,
        Action::ResetGpu,
        Action::Reboot,
        Action::PowerCycle,
        Action::CheckLink,
        Action::ContactSupport,
        Action::Replace,
    ];

    /// The name used in JSON and in data tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::None => "none",
            Action::RestartApp => "restart_app",
            Action::UpdateSoftware => "update_software",
            Action::DrainAndTest => "drain_and_test",
            Action::ResetGpu => "reset_gpu",
            Action::Reboot => "reboot",
            Action::PowerCycle => "power_cycle",
            Action::CheckLink => "check_link",
            Action::ContactSupport => "contact_support",
            Action::Replace => "replace",
        }
    }

    /// What a person does next, for a table's NEXT column.
    pub fn next_step(self) -> &'static str {
        match self {
            Action::None => "nothing",
            Action::RestartApp => "restart the application",
            Action::UpdateSoftware => "update driver or firmware, burn in again",
            Action::DrainAndTest => "drain, burn in again",
            Action::ResetGpu => "reset the GPU, burn in again",
            Action::Reboot => "reboot, burn in again",
            Action::PowerCycle => "power-cycle, burn in again",
            Action::CheckLink => "reseat, burn in again",
            Action::ContactSupport => "contact support with the evidence",
            Action::Replace => "replace",
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How bad a finding is. Only `Fault` makes a blade unfit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warning,
    Fault,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Fault => "fault",
        }
    }
}
