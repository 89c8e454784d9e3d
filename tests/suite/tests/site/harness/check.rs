//! What has to hold at a site whatever happened to it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use whetstone_api::{Blade, BurnIn};
use whetstone_model::ids::RunId;
use whetstone_model::lifecycle::{AfterDrain, Phase, PhaseName, QuarantineReason};
use whetstone_model::verdict::Outcome;
use whetstone_store::{BladeRow, RunState};

use super::site::{SeenNode, Site};
use super::until;

impl Site {
    /// The invariants: those of the store now, those of the cluster once it has caught up.
    #[track_caller]
    pub fn check(&self) {
        let broken = self.store_breaks();
        assert!(broken.is_empty(), "{broken:#?}");
        until(40, "the cluster shows what the store says", || {
            let rows = self.rows();
            match self.cluster_breaks(&rows) {
                Ok(broken) if broken.is_empty() => Ok(()),
                Ok(broken) => Err(broken),
                Err(error) => Err(vec![error.to_string()]),
            }
        });
        let broken = self.store_breaks();
        assert!(broken.is_empty(), "{broken:#?}");
    }

    fn store_breaks(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut runs_of: BTreeMap<RunId, String> = BTreeMap::new();
        for row in self.rows() {
            let name = &row.name;
            let mut bad = |what: String| broken.push(format!("{name}: {what}"));
            let proven =
                row.passed_ms.is_some_and(|passed| row.doubted_ms.is_none_or(|doubted| passed > doubted));
            if matches!(row.phase, Phase::Ready | Phase::InService { .. }) && !proven {
                bad(format!(
                    "{} unproven: passed {:?}, doubted {:?}",
                    row.phase.name(),
                    row.passed_ms,
                    row.doubted_ms
                ));
            }
            let history = self.rt.block_on(self.store().history(row.serial.as_str())).unwrap().unwrap();
            // By what was stored, not by what the operator says of it: a run after the last doubt, with a verdict that it passed.
            if matches!(row.phase, Phase::Ready | Phase::InService { .. }) {
                let since_doubt = history.transitions.iter().rev().take_while(|step| {
                    !matches!(step.to, Phase::Quarantined { .. } | Phase::Repairing { .. } | Phase::Retired)
                });
                let passed = since_doubt.clone().any(|step| match step.to {
                    Phase::BurningIn { run } => {
                        history.verdicts.iter().any(|v| v.run == run && v.outcome == Outcome::Pass)
                    }
                    _ => false,
                });
                if !passed {
                    bad(format!("{} without a passed run since its last doubt", row.phase.name()));
                }
            }
            // One chain, each link from where the last one led: never two owners, nothing lost, nothing doubled.
            let mut at: Option<Phase> = None;
            let mut number = 0;
            for step in &history.transitions {
                // A restored store goes on far above what it may have lost.
                if step.sequence != number + 1 && step.sequence < number + 10_000 {
                    bad(format!("transition {} follows {number}", step.sequence));
                }
                number = step.sequence;
                if step.from != at {
                    bad(format!(
                        "transition {} comes from {:?}, the blade was {at:?}",
                        step.sequence, step.from
                    ));
                }
                let legal = at.as_ref().is_none_or(|from| from.name().may_become(step.to.name()));
                if !legal {
                    bad(format!("transition {}: {at:?} to {:?}", step.sequence, step.to));
                }
                at = Some(step.to.clone());
            }
            if at.as_ref() != Some(&row.phase) {
                bad(format!("is {:?}, its last transition led to {at:?}", row.phase));
            }
            let going =
                history.runs.iter().filter(|r| matches!(r.state, RunState::Ordered | RunState::Running));
            if going.count() > 1 {
                bad("two runs go on".to_owned());
            }
            for run in &history.runs {
                if let Some(other) = runs_of.insert(run.run, name.to_string()) {
                    bad(format!("run {} is {other}'s, too", run.run));
                }
                let verdicts = history.verdicts.iter().filter(|verdict| verdict.run == run.run).count();
                let wanted = usize::from(matches!(run.state, RunState::Finished { .. }));
                if verdicts != wanted {
                    bad(format!("run {} is {:?} and has {verdicts} verdicts", run.run, run.state));
                }
            }
            // Each burn-in that began is a run, and the other way round.
            let begun: Vec<RunId> = history
                .transitions
                .iter()
                .filter_map(|step| match step.to {
                    Phase::BurningIn { run } => Some(run),
                    _ => None,
                })
                .collect();
            let runs: BTreeSet<RunId> = history.runs.iter().map(|run| run.run).collect();
            if begun.len() != runs.len() || begun.iter().any(|run| !runs.contains(run)) {
                bad(format!("burn-ins {begun:?}, runs {runs:?}"));
            }
        }
        broken
    }

    fn cluster_breaks(&self, rows: &[BladeRow]) -> Result<Vec<String>, kube::Error> {
        let mut broken = Vec::new();
        let blades: BTreeMap<String, Blade> = self
            .list::<Blade>()?
            .into_iter()
            .map(|b| (b.metadata.name.clone().unwrap_or_default(), b))
            .collect();
        let by_name: BTreeMap<&str, &BladeRow> = rows.iter().map(|row| (row.name.as_str(), row)).collect();
        for row in rows {
            let Some(blade) = blades.get(row.name.as_str()) else {
                broken.push(format!("{} has no object", row.name));
                continue;
            };
            let status = blade.status.clone().unwrap_or_default();
            let owner = row.phase.owner();
            let shown = (status.phase.as_deref(), status.sequence, status.owner.unwrap_or("nobody".into()));
            let is = (Some(row.phase.name().as_str()), Some(row.sequence), owner.to_string());
            if shown != is {
                broken.push(format!("{} is {is:?}, its object says {shown:?}", row.name));
            }
        }
        for node in self.list::<Node>()? {
            let name = node.metadata.name.clone().unwrap_or_default();
            let seen = SeenNode::of(&node);
            let Some(row) = by_name.get(seen.blade.as_deref().unwrap_or(&name)) else { continue };
            let wait =
                blades.get(row.name.as_str()).and_then(|b| b.status.as_ref()).and_then(|s| s.wait.as_ref());
            let wait = wait.map(|wait| wait.code.as_str());
            if let Err(what) = node_fits(row, &seen, wait) {
                broken.push(format!("node {name}: {what}: {seen:?}, {:?}, wait {wait:?}", row.phase));
            }
        }
        let mut runs = BTreeSet::new();
        for burnin in self.list::<BurnIn>()? {
            let Some(run) = burnin.status.and_then(|status| status.run) else { continue };
            if !runs.insert(run) {
                broken.push(format!("run {run} has two objects"));
            }
        }
        Ok(broken)
    }
}

/// Nothing is withheld without somebody who can end it, and nothing unproven is not withheld.
fn node_fits(row: &BladeRow, node: &SeenNode, wait: Option<&str>) -> Result<(), &'static str> {
    let free = match row.phase.name() {
        PhaseName::InService => true,
        PhaseName::Ready => !matches!(wait, Some("rack-gate" | "domain-gate")),
        _ => false,
    };
    if free {
        return if node.taint.is_none() && !node.ours && node.note.is_none() {
            Ok(())
        } else {
            Err("withheld")
        };
    }
    if node.taint.is_none() || !node.cordoned {
        return Err("not withheld");
    }
    let reason = match row.phase {
        Phase::Quarantined { reason } | Phase::Draining { then: AfterDrain::Quarantine { reason } } => reason,
        // Gone for good: withheld until somebody takes the node away.
        Phase::Retired => return Ok(()),
        _ => return if wait.is_some() { Ok(()) } else { Err("withheld, and waits for nothing") },
    };
    // A person's wish stands in the blade's spec, a conflict in its identity; everything else is a case.
    let by_itself = matches!(reason, QuarantineReason::Person | QuarantineReason::IdentityConflict);
    let case = row.cases.iter().map(|case| case.case.0).min();
    if !by_itself && case.is_none() {
        return Err("withheld without a case");
    }
    let says_case =
        case.is_none_or(|case| node.note.as_deref().is_some_and(|n| n.contains(&format!("case={case}"))));
    if says_case && wait.is_some() {
        Ok(())
    } else {
        Err("its note does not name the case, or it waits for nothing")
    }
}
