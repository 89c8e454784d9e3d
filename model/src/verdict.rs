//! Verdicts: pass, fail, or could not test. The three are never mixed up.

use serde::{Deserialize, Serialize};

use crate::action::Action;
use crate::device::DeviceId;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Pass,
    /// A fault was found.
    Fail,
    /// It could not be tested; says nothing about the hardware.
    Inconclusive,
}

impl Outcome {
    /// The outcome of a whole from those of its parts: one failure fails it, else one gap leaves it open.
    pub fn and(self, other: Outcome) -> Outcome {
        use Outcome::*;
        match (self, other) {
            (Fail, _) | (_, Fail) => Fail,
            (Inconclusive, _) | (_, Inconclusive) => Inconclusive,
            (Pass, Pass) => Pass,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Pass => "pass",
            Outcome::Fail => "fail",
            Outcome::Inconclusive => "inconclusive",
        }
    }

    /// Exit code of `whet` for it.
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Pass => 0,
            Outcome::Fail => 10,
            Outcome::Inconclusive => 20,
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Immutable result about one device (`device: Some`) or the whole blade (`None`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub device: Option<DeviceId>,
    pub outcome: Outcome,
    /// Code of the gravest finding; `ok` for a pass.
    pub code: String,
    /// One line for a person.
    pub why: String,
    pub action: Action,
    /// Ids of the evidence that it rests on ([`crate::evidence::Evidence::id`]).
    pub evidence: Vec<u64>,
}
