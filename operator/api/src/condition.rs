//! Conditions: constant types and reasons, and a transition time that changes only with the status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// The object is where it is wanted: a blade is proven and may serve, a tranche is decided.
pub const READY: &str = "Ready";
/// Work goes on.
pub const PROGRESSING: &str = "Progressing";
/// Something is wrong with it.
pub const DEGRADED: &str = "Degraded";
/// It is past its phase's time limit.
pub const STUCK: &str = "Stuck";
/// Its agent reports.
pub const AGENT_LIVE: &str = "AgentLive";
/// The spec can be understood.
pub const VALID: &str = "Valid";

/// One condition as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Now<'a> {
    pub type_: &'a str,
    pub status: bool,
    /// CamelCase.
    pub reason: &'a str,
    pub message: String,
}

/// The conditions in `now`, each with the transition time of `before` where its status is the same. `at` is the time of
/// those that changed. Conditions of other types in `before` stay: they may be somebody else's.
pub fn merge(
    before: &[Condition],
    now: &[Now<'_>],
    generation: Option<i64>,
    at: Timestamp,
) -> Vec<Condition> {
    let mut merged: Vec<Condition> =
        before.iter().filter(|old| now.iter().all(|new| new.type_ != old.type_)).cloned().collect();
    merged.extend(now.iter().map(|new| {
        let status = if new.status { "True" } else { "False" };
        let since = before.iter().find(|old| old.type_ == new.type_ && old.status == status);
        Condition {
            type_: new.type_.to_owned(),
            status: status.to_owned(),
            reason: new.reason.to_owned(),
            message: new.message.chars().take(1024).collect(),
            observed_generation: generation,
            last_transition_time: since.map_or(Time(at), |old| old.last_transition_time.clone()),
        }
    }));
    merged.sort_by(|a, b| a.type_.cmp(&b.type_));
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(status: bool, reason: &'static str) -> Now<'static> {
        Now { type_: READY, status, reason, message: String::new() }
    }

    #[test]
    fn the_time_changes_with_the_status_alone() {
        let (first, later) = (Timestamp::from_second(1).unwrap(), Timestamp::from_second(2).unwrap());
        let a = merge(&[], &[now(false, "Waiting")], Some(1), first);
        let b = merge(&a, &[now(false, "Other")], Some(2), later);
        assert_eq!((b[0].last_transition_time.0, b[0].reason.as_str()), (first, "Other"));
        let c = merge(&b, &[now(true, "Proven")], Some(2), later);
        assert_eq!(c[0].last_transition_time.0, later);
    }

    #[test]
    fn conditions_of_others_stay() {
        let mut foreign = merge(&[], &[now(true, "X")], None, Timestamp::UNIX_EPOCH);
        foreign[0].type_ = "Foreign".into();
        let merged = merge(&foreign, &[now(true, "Y")], None, Timestamp::UNIX_EPOCH);
        assert_eq!(merged.iter().map(|c| c.type_.as_str()).collect::<Vec<_>>(), ["Foreign", READY]);
    }
}
