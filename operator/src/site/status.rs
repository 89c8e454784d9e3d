//! What an object's status is to say, from what is known and decided. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use serde::Serialize;
use serde_json::{Map, Value};
use whetstone_api::condition::{AGENT_LIVE, DEGRADED, Now, PROGRESSING, READY, STUCK, VALID, merge};
use whetstone_api::{
    BladeStatus, BurnIn, BurnInPhase, BurnInStatus, CountsStatus, RUN_LABEL, TrancheStatus, VerdictStatus,
    WaitStatus,
};
use whetstone_model::ids::{Serial, TrancheName};
use whetstone_model::lifecycle::{Owner, PhaseName};
use whetstone_model::verdict::Outcome as Verdict;
use whetstone_plan::{BladePlan, Counts, Outcome, TranchePlan};
use whetstone_store::{BladeRow, RunRow, RunState};

use crate::clock::timestamp;
use crate::ops::Refused;

/// Longest line in a status; the schema's limit.
const LINE: usize = 1000;

fn line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() <= LINE { text } else { text.chars().take(LINE - 1).chain(['…']).collect() }
}

fn time(ms: i64) -> Time {
    // Kubernetes' times have seconds; what is compared with what comes back must have no more.
    Time(timestamp(ms - ms.rem_euclid(1000)))
}

/// The status of a blade, `before` being what its object says now.
pub fn blade(
    row: &BladeRow,
    plan: &BladePlan,
    node: Option<&str>,
    before: Option<&BladeStatus>,
    generation: Option<i64>,
    now_ms: i64,
) -> BladeStatus {
    let wait = match &plan.outcome {
        Outcome::Wait { reason } => Some(WaitStatus {
            code: reason.code().to_owned(),
            message: line(&reason.settled_sentence()),
            actor: reason.actor().word().to_owned(),
        }),
        _ => None,
    };
    let quarantined =
        matches!(row.phase.name(), PhaseName::Quarantined | PhaseName::Repairing | PhaseName::Retired);
    let reason = match (&wait, quarantined) {
        (_, true) => line(&row.why),
        // The column says it already.
        (Some(wait), false) => wait.message.strip_prefix("Waits for: ").unwrap_or(&wait.message).to_owned(),
        (None, false) => String::new(),
    };
    let owner = row.phase.owner();
    BladeStatus {
        observed_generation: generation,
        phase: Some(row.phase.name().as_str().to_owned()),
        since: Some(time(row.since_ms)),
        sequence: Some(row.sequence),
        owner: (owner != Owner::Nobody).then(|| owner.to_string()),
        verdict: row.run.as_ref().and_then(verdict).or_else(|| before.and_then(|b| b.verdict.clone())),
        reason: Some(reason).filter(|reason| !reason.is_empty()),
        wait: wait.clone(),
        run: row.run.as_ref().map(|run| run.run.0),
        cases: row.cases.iter().take(64).map(|case| case.case.0).collect(),
        node: node.map(str::to_owned),
        conditions: conditions(row, plan, wait.as_ref(), before, generation, now_ms),
    }
}

fn conditions(
    row: &BladeRow,
    plan: &BladePlan,
    wait: Option<&WaitStatus>,
    before: Option<&BladeStatus>,
    generation: Option<i64>,
    now_ms: i64,
) -> Vec<Condition> {
    let phase = row.phase.name();
    let proven = matches!(phase, PhaseName::Ready | PhaseName::InService);
    let message = wait.map_or_else(|| row.why.clone(), |wait| wait.message.clone());
    let moving = matches!(
        phase,
        PhaseName::Discovered
            | PhaseName::Preparing
            | PhaseName::BurningIn
            | PhaseName::Draining
            | PhaseName::Sanitising
    );
    let degraded = !row.faults.is_empty() || matches!(phase, PhaseName::Quarantined | PhaseName::Repairing);
    let now = [
        Now { type_: READY, status: proven, reason: phase.as_str(), message: line(&message) },
        Now { type_: PROGRESSING, status: moving, reason: phase.as_str(), message: String::new() },
        Now {
            type_: DEGRADED,
            status: degraded,
            reason: if degraded { "Faulty" } else { "NoFault" },
            message: line(&row.faults.first().map_or_else(
                || if degraded { row.why.clone() } else { String::new() },
                |fault| format!("{}: {}", fault.code, fault.detail),
            )),
        },
        Now {
            type_: STUCK,
            status: plan.stuck.is_some(),
            reason: if plan.stuck.is_some() { "PastLimit" } else { "WithinLimit" },
            message: line(plan.stuck.as_deref().unwrap_or("")),
        },
        agent(row, plan.away),
        Now { type_: VALID, status: true, reason: "Understood", message: String::new() },
    ];
    merge(before.map(|b| b.conditions.as_slice()).unwrap_or_default(), &now, generation, time(now_ms).0)
}

fn agent(row: &BladeRow, away: bool) -> Now<'static> {
    let reason = match (row.agent.joined, away) {
        (false, _) => "NotJoined",
        (true, true) => "Away",
        (true, false) => "Live",
    };
    let heard = row.agent.last_seen_ms.filter(|_| away);
    let message = heard.map_or_else(String::new, |ms| format!("last heard of at {}", time(ms).0));
    Now { type_: AGENT_LIVE, status: reason == "Live", reason, message }
}

/// The verdict of a run that is over; the cohort's word counts with it.
pub fn verdict(run: &RunRow) -> Option<VerdictStatus> {
    let RunState::Finished { outcome, code, why, action } = &run.state else { return None };
    let at = time(run.ended_ms.unwrap_or(run.created_ms));
    let status = |outcome: Verdict, code: &str, why: &str| VerdictStatus {
        outcome: outcome.as_str().to_owned(),
        code: code.to_owned(),
        why: line(why),
        action: action.as_str().to_owned(),
        run: run.run.0,
        at: at.clone(),
    };
    Some(match &run.cohort {
        Some(cohort) if *outcome == Verdict::Pass && cohort.outcome == Verdict::Fail => {
            status(Verdict::Fail, "outlier", &cohort.why)
        }
        _ => status(*outcome, code, why),
    })
}

/// The status of a blade whose object cannot be understood: all else stays as it is.
pub fn invalid(before: &[Condition], generation: Option<i64>, what: &str, now_ms: i64) -> Vec<Condition> {
    let now = [Now { type_: VALID, status: false, reason: "BadSpec", message: line(what) }];
    merge(before, &now, generation, time(now_ms).0)
}

/// The status of a run's object.
pub fn burnin(run: &RunRow) -> BurnInStatus {
    let (phase, why) = match &run.state {
        RunState::Ordered => (BurnInPhase::Pending, String::new()),
        RunState::Running => (BurnInPhase::Running, String::new()),
        RunState::Finished { outcome: Verdict::Pass, why, .. } => match &run.cohort {
            Some(cohort) if cohort.outcome == Verdict::Fail => (BurnInPhase::Passed, cohort.why.clone()),
            _ => (BurnInPhase::Passed, why.clone()),
        },
        RunState::Finished { outcome: Verdict::Fail, why, .. } => (BurnInPhase::Failed, why.clone()),
        RunState::Finished { outcome: Verdict::Inconclusive, why, .. } => {
            (BurnInPhase::Inconclusive, why.clone())
        }
        RunState::Lost { why } | RunState::Cancelled { why } => (BurnInPhase::Cancelled, why.clone()),
    };
    let progress = Some(run.progress.chars().take(250).collect::<String>());
    BurnInStatus {
        run: Some(run.run.0),
        phase: Some(phase),
        progress: progress.filter(|text| phase == BurnInPhase::Running && !text.is_empty()),
        why: Some(line(&why)).filter(|why| !why.is_empty()),
        started: run.started_ms.map(time),
        ended: run.ended_ms.map(time),
    }
}

/// The status of a `BurnIn` that nothing can come of, as it stands.
pub fn burnin_refused(why: &str) -> BurnInStatus {
    BurnInStatus { phase: Some(BurnInPhase::Cancelled), why: Some(line(why)), ..BurnInStatus::default() }
}

/// The status of a `BurnIn` that waits for something to come.
pub fn burnin_waits(why: &str) -> BurnInStatus {
    let why = Some(line(why)).filter(|why| !why.is_empty());
    BurnInStatus { phase: Some(BurnInPhase::Pending), why, ..BurnInStatus::default() }
}

/// True for an object that a person made and that has no run yet.
pub fn is_wish(burnin: &BurnIn) -> bool {
    let status = burnin.status.as_ref();
    status.and_then(|status| status.run).is_none()
        && status.and_then(|status| status.phase) != Some(BurnInPhase::Cancelled)
        && burnin.metadata.deletion_timestamp.is_none()
        && !burnin.labels().contains_key(RUN_LABEL)
}

/// The status of a tranche. `missing`: serials that have not come; `refused`: lines of its list that could not be entered,
/// without which it is not complete.
pub fn tranche(
    plan: &TranchePlan,
    missing: &[&Serial],
    duplicates: &[(Serial, TrancheName)],
    refused: &[Refused],
    before: Option<&TrancheStatus>,
    generation: Option<i64>,
    now_ms: i64,
) -> TrancheStatus {
    let counts = &plan.counts;
    let passed = counts.ready + counts.in_service;
    let decided = passed + counts.quarantined + counts.retired;
    let all = total(counts);
    let come = all - counts.expected;
    let stable = plan.stable && refused.is_empty();
    let phase = match (plan.complete && refused.is_empty(), stable && come > 0, come) {
        (true, ..) => "Accepted",
        (_, true, _) => "Stable",
        (_, _, 0) => "Waiting",
        _ => "BurningIn",
    };
    let yield_ = (decided > 0)
        .then(|| format!("{:.1} % ({passed} of {decided})", 100.0 * passed as f64 / decided as f64));
    let ready = stable && come > 0;
    let now = [
        Now { type_: READY, status: ready, reason: phase, message: line(&plan.summary) },
        Now { type_: PROGRESSING, status: come > 0 && !stable, reason: phase, message: line(&plan.summary) },
        delivery(counts, duplicates, refused),
        Now { type_: VALID, status: true, reason: "Understood", message: String::new() },
    ];
    TrancheStatus {
        observed_generation: generation,
        phase: Some(phase.to_owned()),
        counts: counts_status(counts),
        yield_,
        summary: Some(line(&plan.summary)),
        missing: missing.iter().take(20).map(|serial| serial.to_string()).collect(),
        duplicates: duplicates
            .iter()
            .take(20)
            .map(|(serial, tranche)| format!("{serial} ({tranche})"))
            .collect(),
        conditions: merge(
            before.map(|b| b.conditions.as_slice()).unwrap_or_default(),
            &now,
            generation,
            time(now_ms).0,
        ),
    }
}

/// What is wrong with a delivery itself.
fn delivery(counts: &Counts, duplicates: &[(Serial, TrancheName)], refused: &[Refused]) -> Now<'static> {
    let twice: Vec<String> = duplicates.iter().take(5).map(|(s, t)| format!("{s} is in {t}")).collect();
    let taken: Vec<String> =
        refused.iter().take(5).map(|one| format!("{}: {}", one.serial, one.why)).collect();
    let (status, reason, message) = match (duplicates.is_empty(), refused.is_empty(), counts.missing) {
        (_, false, _) => (true, "NameTaken", taken.join(", ")),
        (false, ..) => (true, "DuplicateSerials", twice.join(", ")),
        (true, true, 0) => (false, "AsListed", String::new()),
        (true, true, missing) => (true, "Overdue", format!("{missing} blades are overdue")),
    };
    Now { type_: DEGRADED, status, reason, message: line(&message) }
}

fn total(counts: &Counts) -> usize {
    counts.expected
        + counts.discovered
        + counts.burning_in
        + counts.ready
        + counts.in_service
        + counts.quarantined
        + counts.retired
        + counts.other
}

/// `expected`: all that the manifest lists; `missing`: those of it that have not come, due or not.
fn counts_status(counts: &Counts) -> CountsStatus {
    let n = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    CountsStatus {
        expected: n(total(counts)),
        discovered: n(counts.discovered),
        burning_in: n(counts.burning_in),
        ready: n(counts.ready),
        in_service: n(counts.in_service),
        quarantined: n(counts.quarantined),
        retired: n(counts.retired),
        missing: n(counts.expected),
        duplicates: n(counts.duplicates),
    }
}

/// The JSON merge patch (RFC 7386) that makes `before` into `after`; `None` if they are the same.
pub fn difference<T: Serialize>(before: Option<&T>, after: &T) -> Result<Option<Value>, serde_json::Error> {
    let before = before.map_or(Ok(Value::Object(Map::new())), serde_json::to_value)?;
    let after = serde_json::to_value(after)?;
    Ok((before != after).then(|| merge_patch(&before, &after)))
}

fn merge_patch(before: &Value, after: &Value) -> Value {
    let (Some(old), Some(new)) = (before.as_object(), after.as_object()) else { return after.clone() };
    let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = new.iter().filter(|(key, value)| old.get(*key) != Some(value)).map(|(key, value)| {
        (key.clone(), old.get(key).map_or_else(|| value.clone(), |old| merge_patch(old, value)))
    });
    gone.chain(changed).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_names_what_changed_and_what_went() {
        let before = json!({"a": 1, "b": {"x": 1, "y": 2}, "c": [1], "d": 4});
        let after = json!({"a": 1, "b": {"x": 3}, "c": [1, 2]});
        let patch = difference(Some(&before), &after).unwrap().unwrap();
        assert_eq!(patch, json!({"b": {"x": 3, "y": null}, "c": [1, 2], "d": null}));
        assert_eq!(difference(Some(&after), &after).unwrap(), None);
        assert_eq!(difference(None, &after).unwrap(), Some(after));
    }

    #[test]
    fn a_line_stays_a_line_and_within_the_schema() {
        assert_eq!(line("a\nb"), "a b");
        assert_eq!(line(&"x".repeat(5000)).chars().count(), LINE);
    }
}
