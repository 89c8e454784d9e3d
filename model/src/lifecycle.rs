//! The life of a blade: phases, who owns it in each, which phase may follow which, and how long each may last.
//!
//! `Expected → Discovered → Preparing → BurningIn → Ready → InService`; beside it `Draining`, `Quarantined`, `Repairing`,
//! `Sanitising`, `Retired`. Every way back into service goes through `BurningIn`.

use serde::{Deserialize, Serialize};

use crate::ids::RunId;

/// Where a blade is. What a phase needs to know is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all_fields = "camelCase")]
pub enum Phase {
    /// On a manifest; nothing has been heard of it.
    Expected,
    /// Its agent has joined.
    Discovered,
    /// Something has to be right before it can be burned in.
    Preparing {
        step: PrepareStep,
    },
    BurningIn {
        run: RunId,
    },
    /// Proven, and free.
    Ready,
    InService {
        owner: Owner,
    },
    /// Taken out of service, or no longer free; work on its node is moved away.
    Draining {
        then: AfterDrain,
    },
    Quarantined {
        reason: QuarantineReason,
    },
    Repairing {
        rung: Rung,
    },
    /// A tenant's traces are removed.
    Sanitising,
    /// Gone for good: returned or scrapped.
    Retired,
}

/// What a blade is prepared for, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrepareStep {
    /// The blade is held against its manifest: SKU, number of GPUs.
    Identity,
}

/// What a drain is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "snake_case")]
pub enum AfterDrain {
    /// Its owner gave it back, or it was free: a burn-in comes next.
    Release,
    Quarantine {
        reason: QuarantineReason,
    },
    Retire,
}

/// Why a blade is withheld.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuarantineReason {
    /// Burn-in failed.
    BurnIn,
    /// Burn-in could not be brought to an end, retries included.
    Untestable,
    /// It stands apart from its cohort.
    Outlier,
    /// A fault showed in service or while it was free.
    Fault,
    /// A person asked for it.
    Person,
    /// Two machines say that they are this blade.
    IdentityConflict,
    /// It is not what the manifest says.
    WrongInventory,
}

impl QuarantineReason {
    pub const ALL: [QuarantineReason; 7] = [
        QuarantineReason::BurnIn,
        QuarantineReason::Untestable,
        QuarantineReason::Outlier,
        QuarantineReason::Fault,
        QuarantineReason::Person,
        QuarantineReason::IdentityConflict,
        QuarantineReason::WrongInventory,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            QuarantineReason::BurnIn => "burn-in",
            QuarantineReason::Untestable => "untestable",
            QuarantineReason::Outlier => "outlier",
            QuarantineReason::Fault => "fault",
            QuarantineReason::Person => "person",
            QuarantineReason::IdentityConflict => "identity-conflict",
            QuarantineReason::WrongInventory => "wrong-inventory",
        }
    }
}

/// A step of the repair ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    RestartApp,
    ResetGpu,
    Reboot,
    PowerCycle,
    /// Reseat or replace: a person's work.
    Replace,
}

/// Who has the blade: exactly one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Owner {
    Nobody,
    BurnIn,
    Repair,
    Spare,
    Slurm(String),
    Kubernetes(String),
    Inference,
}

/// A text that names no owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "owner {0:?} is none of nobody, burn-in, repair, spare, slurm/<cluster>, kubernetes/<cluster>, inference"
)]
pub struct BadOwner(String);

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Owner::Nobody => f.write_str("nobody"),
            Owner::BurnIn => f.write_str("burn-in"),
            Owner::Repair => f.write_str("repair"),
            Owner::Spare => f.write_str("spare"),
            Owner::Slurm(cluster) => write!(f, "slurm/{cluster}"),
            Owner::Kubernetes(cluster) => write!(f, "kubernetes/{cluster}"),
            Owner::Inference => f.write_str("inference"),
        }
    }
}

impl std::str::FromStr for Owner {
    type Err = BadOwner;
    fn from_str(text: &str) -> Result<Self, BadOwner> {
        let cluster = |name: &str| {
            crate::ids::BladeName::new(name).map(String::from).map_err(|_| BadOwner(text.to_owned()))
        };
        Ok(match text.split_once('/') {
            Some(("slurm", name)) => Owner::Slurm(cluster(name)?),
            Some(("kubernetes", name)) => Owner::Kubernetes(cluster(name)?),
            _ => match text {
                "nobody" => Owner::Nobody,
                "burn-in" => Owner::BurnIn,
                "repair" => Owner::Repair,
                "spare" => Owner::Spare,
                "inference" => Owner::Inference,
                _ => return Err(BadOwner(text.chars().take(80).collect())),
            },
        })
    }
}

impl TryFrom<String> for Owner {
    type Error = BadOwner;
    fn try_from(text: String) -> Result<Self, BadOwner> {
        text.parse()
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> String {
        owner.to_string()
    }
}

/// A phase without its data: for columns, labels of metrics and tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PhaseName {
    Expected,
    Discovered,
    Preparing,
    BurningIn,
    Ready,
    InService,
    Draining,
    Quarantined,
    Repairing,
    Sanitising,
    Retired,
}

impl PhaseName {
    pub const ALL: [PhaseName; 11] = [
        PhaseName::Expected,
        PhaseName::Discovered,
        PhaseName::Preparing,
        PhaseName::BurningIn,
        PhaseName::Ready,
        PhaseName::InService,
        PhaseName::Draining,
        PhaseName::Quarantined,
        PhaseName::Repairing,
        PhaseName::Sanitising,
        PhaseName::Retired,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            PhaseName::Expected => "Expected",
            PhaseName::Discovered => "Discovered",
            PhaseName::Preparing => "Preparing",
            PhaseName::BurningIn => "BurningIn",
            PhaseName::Ready => "Ready",
            PhaseName::InService => "InService",
            PhaseName::Draining => "Draining",
            PhaseName::Quarantined => "Quarantined",
            PhaseName::Repairing => "Repairing",
            PhaseName::Sanitising => "Sanitising",
            PhaseName::Retired => "Retired",
        }
    }

    /// The phases that may follow this one directly. A blade comes to `Ready` from `BurningIn` alone, and to
    /// `InService` from `Ready` alone: nothing is served that was not proven since it was last in doubt.
    pub fn next(self) -> &'static [PhaseName] {
        use PhaseName::*;
        match self {
            Expected => &[Discovered, Retired],
            Discovered => &[Preparing, BurningIn, Quarantined, Retired],
            Preparing => &[BurningIn, Quarantined, Retired],
            // To Discovered: its run was taken back before the agent had it.
            BurningIn => &[BurningIn, Discovered, Ready, Quarantined, Retired],
            // To Draining: its node was let go, and pods may be on it.
            Ready => &[InService, Draining, BurningIn, Quarantined, Retired],
            InService => &[Draining, Quarantined],
            Draining => &[BurningIn, Sanitising, Quarantined, Retired],
            Quarantined => &[BurningIn, Repairing, Sanitising, Discovered, Retired],
            Repairing => &[BurningIn, Quarantined, Retired],
            Sanitising => &[BurningIn, Quarantined, Retired],
            Retired => &[Expected],
        }
    }

    pub fn may_become(self, to: PhaseName) -> bool {
        self.next().contains(&to)
    }

    /// How long a blade may be in this phase before it counts as stuck, milliseconds; `None` = for ever.
    /// `BurningIn` is limited by its suite instead, see the planner.
    pub fn limit_ms(self) -> Option<i64> {
        const MINUTE: i64 = 60_000;
        const HOUR: i64 = 60 * MINUTE;
        match self {
            // A delivery may take weeks; the manifest says when it is due.
            PhaseName::Expected | PhaseName::Ready | PhaseName::InService | PhaseName::Retired => None,
            PhaseName::Discovered => Some(24 * HOUR),
            PhaseName::Preparing => Some(HOUR),
            PhaseName::BurningIn => Some(48 * HOUR),
            PhaseName::Draining => Some(2 * HOUR),
            // A person has to look at it within a day.
            PhaseName::Quarantined => Some(24 * HOUR),
            PhaseName::Repairing => Some(72 * HOUR),
            PhaseName::Sanitising => Some(12 * HOUR),
        }
    }
}

impl std::fmt::Display for PhaseName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl Phase {
    pub fn name(&self) -> PhaseName {
        match self {
            Phase::Expected => PhaseName::Expected,
            Phase::Discovered => PhaseName::Discovered,
            Phase::Preparing { .. } => PhaseName::Preparing,
            Phase::BurningIn { .. } => PhaseName::BurningIn,
            Phase::Ready => PhaseName::Ready,
            Phase::InService { .. } => PhaseName::InService,
            Phase::Draining { .. } => PhaseName::Draining,
            Phase::Quarantined { .. } => PhaseName::Quarantined,
            Phase::Repairing { .. } => PhaseName::Repairing,
            Phase::Sanitising => PhaseName::Sanitising,
            Phase::Retired => PhaseName::Retired,
        }
    }

    /// Follows from the phase, so that there can never be two.
    pub fn owner(&self) -> Owner {
        match self {
            Phase::InService { owner } => owner.clone(),
            Phase::BurningIn { .. } => Owner::BurnIn,
            Phase::Repairing { .. } => Owner::Repair,
            _ => Owner::Nobody,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_is_reached_through_a_burn_in_only() {
        for from in PhaseName::ALL {
            assert_eq!(from.may_become(PhaseName::Ready), from == PhaseName::BurningIn, "{from}");
            assert_eq!(from.may_become(PhaseName::InService), from == PhaseName::Ready, "{from}");
        }
    }

    #[test]
    fn whatever_pods_may_be_on_can_be_drained() {
        let drained: Vec<PhaseName> =
            PhaseName::ALL.into_iter().filter(|from| from.may_become(PhaseName::Draining)).collect();
        assert_eq!(drained, [PhaseName::Ready, PhaseName::InService]);
    }

    #[test]
    fn every_phase_can_be_left_and_is_reached() {
        for phase in PhaseName::ALL {
            assert!(!phase.next().is_empty(), "{phase}");
            assert!(PhaseName::ALL.iter().any(|from| from.may_become(phase)), "{phase}");
        }
    }

    #[test]
    fn a_phase_goes_through_json_and_back() {
        for phase in [
            Phase::Expected,
            Phase::BurningIn { run: RunId(41) },
            Phase::InService { owner: Owner::Kubernetes("k-1".into()) },
            Phase::Draining { then: AfterDrain::Quarantine { reason: QuarantineReason::Fault } },
        ] {
            let text = serde_json::to_string(&phase).unwrap();
            assert_eq!(serde_json::from_str::<Phase>(&text).unwrap(), phase, "{text}");
        }
        assert_eq!(
            serde_json::to_string(&Phase::BurningIn { run: RunId(41) }).unwrap(),
            r#"{"phase":"BurningIn","run":41}"#
        );
    }

    #[test]
    fn an_owner_is_one_of_the_known_ones() {
        for good in ["nobody", "burn-in", "slurm/a", "kubernetes/default", "inference", "spare", "repair"] {
            assert_eq!(good.parse::<Owner>().unwrap().to_string(), good);
        }
        for bad in ["", "slurm", "slurm/", "slurm/A", "kubernetes/a/b", "me"] {
            assert!(bad.parse::<Owner>().is_err(), "{bad}");
        }
    }
}
