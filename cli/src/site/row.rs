//! A blade as the tables and the JSON of `whet` have it.

use serde::Serialize;
use whetstone_api::Blade;

use super::table::{Table, age, cell, clean, cut};

/// One blade. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BladeRow {
    pub name: String,
    pub serial: String,
    pub sku: Option<String>,
    pub tranche: Option<String>,
    pub rack: Option<String>,
    pub slot: Option<String>,
    pub nvlink_domain: Option<String>,
    pub phase: Option<String>,
    pub since_ms: Option<i64>,
    pub owner: Option<String>,
    /// pass, fail or inconclusive.
    pub verdict: Option<String>,
    pub verdict_code: Option<String>,
    pub reason: Option<String>,
    pub waits_for: Option<Wait>,
    pub run: Option<i64>,
    pub cases: Vec<i64>,
    pub node: Option<String>,
    /// Past its phase's time limit.
    pub stuck: bool,
}

/// What it waits for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Wait {
    pub code: String,
    pub message: String,
    pub actor: String,
}

impl From<&Blade> for BladeRow {
    fn from(blade: &Blade) -> BladeRow {
        let (spec, status) = (&blade.spec, blade.status.clone().unwrap_or_default());
        let stuck = |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
            c.type_ == whetstone_api::condition::STUCK && c.status == "True"
        };
        BladeRow {
            name: blade.metadata.name.clone().unwrap_or_default(),
            serial: spec.serial.clone(),
            sku: spec.sku.clone(),
            tranche: spec.tranche.clone(),
            rack: spec.rack.clone(),
            slot: spec.slot.clone(),
            nvlink_domain: spec.nvlink_domain.clone(),
            stuck: status.conditions.iter().any(stuck),
            phase: status.phase,
            since_ms: status.since.map(|time| time.0.as_millisecond()),
            owner: status.owner,
            verdict_code: status.verdict.as_ref().map(|verdict| verdict.code.clone()),
            verdict: status.verdict.map(|verdict| verdict.outcome),
            reason: status.reason.filter(|reason| !reason.is_empty()),
            waits_for: status.wait.map(|wait| Wait {
                code: wait.code,
                message: wait.message,
                actor: wait.actor,
            }),
            run: status.run,
            cases: status.cases,
            node: status.node,
        }
    }
}

/// Longest reason in a table that is not wide.
const REASON: usize = 60;

/// As `kubectl get blades` has it; `wide` has serial, node and what is waited for as well, and cuts nothing.
pub fn table(rows: &[BladeRow], wide: bool, now_ms: i64) -> Table {
    let mut head = vec!["NAME", "SKU", "TRANCHE", "RACK", "PHASE", "OWNER", "VERDICT", "REASON", "AGE"];
    if wide {
        head.extend(["SERIAL", "NODE", "WAITS-FOR"]);
    }
    let mut table = Table::new(&head);
    for row in rows {
        let phase = cell(row.phase.as_deref());
        let reason = clean(row.reason.as_deref().unwrap_or_default());
        let mut cells = vec![
            row.name.clone(),
            cell(row.sku.as_deref()),
            cell(row.tranche.as_deref()),
            cell(row.rack.as_deref()),
            if row.stuck { format!("{phase}!") } else { phase },
            cell(row.owner.as_deref()),
            cell(row.verdict.as_deref()),
            if wide { reason } else { cut(&reason, REASON) },
            age(row.since_ms, now_ms),
        ];
        if wide {
            cells.extend([
                row.serial.clone(),
                cell(row.node.as_deref()),
                cell(row.waits_for.as_ref().map(|wait| wait.message.trim_start_matches("Waits for: "))),
            ]);
        }
        table.row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blade(json: serde_json::Value) -> BladeRow {
        BladeRow::from(&serde_json::from_value::<Blade>(json).unwrap())
    }

    #[test]
    fn a_row_shows_what_there_is_and_a_dash_for_the_rest() {
        let new = blade(serde_json::json!({
            "apiVersion": "whetstone.dev/v1alpha1", "kind": "Blade",
            "metadata": {"name": "b-004"}, "spec": {"serial": "SN4"}
        }));
        let failed = blade(serde_json::json!({
            "apiVersion": "whetstone.dev/v1alpha1", "kind": "Blade",
            "metadata": {"name": "b-003"},
            "spec": {"serial": "SN3", "sku": "hgx-h100", "tranche": "t-07", "rack": "r-02"},
            "status": {
                "phase": "Quarantined", "since": "2026-03-01T12:10:00Z", "reason": "gpu5 sdc: wrong bits on SM 41",
                "verdict": {"outcome": "fail", "code": "gemm-wrong-bits", "why": "w", "action": "replace", "run": 41,
                            "at": "2026-03-01T12:10:00Z"},
                "wait": {"code": "person", "message": "Waits for: a board (a person), then a burn-in.", "actor": "person"},
                "conditions": [{"type": "Stuck", "status": "True", "reason": "R", "message": "",
                                "lastTransitionTime": "2026-03-01T12:10:00Z"}]
            }
        }));
        let now = "2026-03-01T12:24:30Z".parse::<jiff::Timestamp>().unwrap().as_millisecond();
        assert_eq!(
            table(&[failed.clone(), new], false, now).to_string(),
            "NAME   SKU       TRANCHE  RACK  PHASE         OWNER  VERDICT  REASON                         AGE\n\
             b-003  hgx-h100  t-07     r-02  Quarantined!  –      fail     gpu5 sdc: wrong bits on SM 41  14m\n\
             b-004  –         –        –     –             –      –                                       –\n"
        );
        let wide = table(std::slice::from_ref(&failed), true, now).to_string();
        assert!(wide.contains("SN3") && wide.contains("  a board (a person)"), "{wide}");
    }
}
