//! The planner's view, put together from the store's rows, the objects and the nodes. Pure.

use k8s_openapi::api::core::v1::Node;
use whetstone_api::{Blade, SpecError, Tranche};
use whetstone_burnin::suite::{BUILT_IN, Suite};
use whetstone_model::ids::{Serial, TrancheName};
use whetstone_model::lifecycle::{AfterDrain, Owner, Phase, QuarantineReason};
use whetstone_plan::{
    AgentView, BladeView, CaseView, CohortResult, FaultView, Gates, Intent, NodeView, Power, RunState,
    RunView, TrancheView,
};
use whetstone_store as store;

use crate::cluster::drain::DrainStatus;
use crate::cluster::node;

/// A suite that a run can be started with.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedSuite {
    pub name: String,
    pub text: String,
    /// Sum of its tests' budgets, ms.
    pub budget_ms: i64,
}

/// The suite of that name, or the text given with it.
pub fn suite(name: &str, text: Option<&str>) -> Result<NamedSuite, SpecError> {
    let bad = |what: String| SpecError { field: "spec.suite".into(), what };
    let text = match text {
        Some(text) => text,
        None => BUILT_IN
            .iter()
            .find(|(built_in, _)| *built_in == name)
            .map(|(_, text)| *text)
            .ok_or_else(|| bad(format!("{name:?} is none of quick, standard, soak")))?,
    };
    let suite = Suite::parse(name, text).map_err(|e| bad(e.to_string()))?;
    let seconds: u64 = suite.tests.iter().map(|test| test.budget_s).sum();
    let budget_ms = i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX);
    Ok(NamedSuite { name: name.to_owned(), text: text.to_owned(), budget_ms })
}

/// The suite that a person's `BurnIn` names: a built-in one, or that of the blade's tranche.
pub fn suite_of_wish(name: &str, of_tranche: Option<&NamedSuite>) -> Result<(), SpecError> {
    if of_tranche.is_some_and(|suite| suite.name == name) { Ok(()) } else { suite(name, None).map(drop) }
}

/// What people want of a blade. `asked`: the suite of a `BurnIn` that one of them made.
pub fn intent(blade: &Blade, retested: i64, asked: Option<String>) -> Result<Intent, SpecError> {
    let retest = if asked.is_some() { blade.spec.retest.max(retested + 1) } else { blade.spec.retest };
    Ok(Intent {
        quarantine: blade.spec.quarantine.as_ref().map(|q| match &q.by {
            Some(by) => format!("{} (by {by})", q.reason),
            None => q.reason.clone(),
        }),
        owner: blade.owner()?,
        retest,
        retested,
        retired: blade.spec.retired,
        suite: asked.or_else(|| blade.spec.suite.clone()),
    })
}

/// What people must have wanted of a blade whose object is lost, by where it is. `default`: the owner by its tranche.
pub fn intent_of_phase(row: &store::BladeRow, default: Option<&Owner>) -> Intent {
    let owner = match &row.phase {
        Phase::InService { owner } if Some(owner) != default => Some(owner.clone()),
        _ => None,
    };
    let held = QuarantineReason::Person;
    let by_person = match &row.phase {
        Phase::Quarantined { reason } => *reason == held,
        Phase::Draining { then: AfterDrain::Quarantine { reason } } => *reason == held,
        _ => false,
    };
    Intent {
        quarantine: by_person.then(|| row.why.clone()),
        owner,
        retest: row.retested,
        retested: row.retested,
        retired: matches!(row.phase, Phase::Retired | Phase::Draining { then: AfterDrain::Retire }),
        suite: None,
    }
}

/// One blade. Without an object there is no wish; without a node nothing is to be withheld.
pub fn blade(row: &store::BladeRow, intent: Intent, node: Option<NodeView>) -> BladeView {
    BladeView {
        serial: row.serial.clone(),
        name: row.name.clone(),
        tranche: row.tranche.clone(),
        rack: row.rack.clone(),
        domain: row.domain.clone(),
        sku: row.sku.clone(),
        phase: row.phase.clone(),
        since_ms: row.since_ms,
        sequence: row.sequence,
        intent,
        agent: AgentView {
            joined: row.agent.joined,
            last_seen_ms: row.agent.last_seen_ms,
            conflict: row.agent.conflict.clone(),
            sku: row.agent.sku.clone(),
            gpus: row.agent.gpus,
        },
        run: row.run.as_ref().map(run),
        passed_ms: row.passed_ms,
        doubted_ms: row.doubted_ms,
        faults: row
            .faults
            .iter()
            .map(|fault| FaultView {
                code: fault.code.clone(),
                device: fault.device.clone(),
                detail: fault.detail.clone(),
                action: fault.action,
                since_ms: fault.since_ms,
                last_ms: fault.last_ms,
            })
            .collect(),
        cases: row
            .cases
            .iter()
            .map(|case| CaseView {
                case: case.case,
                code: case.code.clone(),
                device: case.device.clone(),
                opened_ms: case.opened_ms,
            })
            .collect(),
        node,
        inconclusive: row.inconclusive,
    }
}

fn run(row: &store::RunRow) -> RunView {
    RunView {
        run: row.run,
        suite: row.suite.clone(),
        state: match &row.state {
            store::RunState::Ordered => RunState::Ordered,
            store::RunState::Running => RunState::Running,
            store::RunState::Finished { outcome, code, why, action } => RunState::Finished {
                outcome: *outcome,
                code: code.clone(),
                why: why.clone(),
                action: *action,
            },
            store::RunState::Lost { why } => RunState::Lost { why: why.clone() },
            store::RunState::Cancelled { why } => RunState::Cancelled { why: why.clone() },
        },
        created_ms: row.created_ms,
        started_ms: row.started_ms,
        heard_ms: row.heard_ms,
        budget_ms: row.budget_ms,
        cohort: row.cohort.as_ref().map(|cohort| CohortResult {
            outcome: cohort.outcome,
            why: cohort.why.clone(),
            at_ms: cohort.at_ms,
        }),
        progress: row.progress.clone(),
    }
}

/// The blade's node with its drain; `None` for one that is not ours to touch.
pub fn node_view(seen: &Node, drain: DrainStatus) -> Option<NodeView> {
    if node::unmanaged(seen) {
        return None;
    }
    let mut view = node::view(seen);
    drain.show(&mut view);
    Some(view)
}

/// One tranche.
pub fn tranche(
    object: &Tranche,
    suite: &NamedSuite,
    duplicates: Vec<(Serial, TrancheName)>,
) -> Result<TrancheView, SpecError> {
    let spec = &object.spec;
    let count = |number: i64| usize::try_from(number.max(0)).unwrap_or(usize::MAX);
    Ok(TrancheView {
        name: object.tranche_name()?,
        suite: spec.suite.clone(),
        budget_ms: suite.budget_ms,
        concurrency: count(spec.concurrency).max(1),
        power: spec.power.map_or(Power::default(), |power| Power {
            blade_watts: power.blade_watts as f64,
            rack_watts: power.rack_watts.map(|watts| watts as f64),
            tranche_watts: power.tranche_watts.map(|watts| watts as f64),
        }),
        gates: Gates { rack_percent: spec.gates.rack_percent as f64, whole_domain: spec.gates.whole_domain },
        retries: u32::try_from(spec.retries.max(0)).unwrap_or(u32::MAX),
        fpr: spec.fpr,
        owner: object.owner()?,
        paused: spec.paused,
        duplicates,
        due_ms: spec.due.as_ref().map(|due| due.0.as_millisecond()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_built_in_or_come_with_their_text() {
        assert!(suite("quick", None).unwrap().budget_ms > 60_000);
        assert_eq!(suite("mine", None).unwrap_err().field, "spec.suite");
        let text = "name = \"mine\"\ndescription = \"d\"\n[[test]]\nname = \"i\"\nkind = \"inventory\"\nbudget_s = 7\n";
        assert_eq!(suite("mine", Some(text)).unwrap().budget_ms, 7000);
        assert!(suite("mine", Some("[[test]]")).is_err());
    }

    #[test]
    fn a_run_made_by_hand_is_a_wish_for_a_burn_in() {
        let mut blade = Blade::new("b", whetstone_api::BladeSpec::default());
        blade.spec.retest = 2;
        blade.spec.suite = Some("standard".into());
        let plain = intent(&blade, 2, None).unwrap();
        assert_eq!((plain.retest, plain.suite.as_deref()), (2, Some("standard")));
        // Of the suite that the run's object names.
        let asked = intent(&blade, 2, Some("soak".into())).unwrap();
        assert_eq!((asked.retest, asked.suite.as_deref()), (3, Some("soak")));
        blade.spec.owner = Some("me".into());
        assert_eq!(intent(&blade, 0, None).unwrap_err().field, "spec.owner");
    }

    #[test]
    fn a_wish_names_a_built_in_suite_or_the_tranches_own() {
        let own = NamedSuite { name: "mine".into(), text: String::new(), budget_ms: 1 };
        assert!(suite_of_wish("soak", None).is_ok());
        assert!(suite_of_wish("mine", Some(&own)).is_ok());
        assert_eq!(suite_of_wish("mine", None).unwrap_err().field, "spec.suite");
    }
}
