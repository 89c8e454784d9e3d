//! `whet tranche list` and `show`.

use std::process::ExitCode;

use kube::api::ListParams;
use serde::Serialize;
use whetstone_api::{Blade, CountsStatus, Tranche, TrancheStatus};

use super::{checked, find};
use crate::site::access::Access;
use crate::site::failure::OrExit as _;
use crate::site::row::{self, BladeRow};
use crate::site::table::{Table, age, cell, clean, now_ms};
use crate::site::{print_json, say, wait_for};

/// A tranche at a glance. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrancheRow {
    pub name: String,
    pub phase: Option<String>,
    pub blades: usize,
    pub suite: String,
    pub paused: bool,
    pub owner: Option<String>,
    pub counts: CountsStatus,
    #[serde(rename = "yield")]
    pub yield_: Option<String>,
    pub summary: Option<String>,
    pub missing: Vec<String>,
    pub duplicates: Vec<String>,
    pub created_ms: Option<i64>,
    /// All that came is decided.
    pub ready: bool,
    /// What its condition says why it is not.
    pub why_not: Option<String>,
}

impl From<&Tranche> for TrancheRow {
    fn from(tranche: &Tranche) -> TrancheRow {
        let status = tranche.status.clone().unwrap_or_default();
        let ready = ready(&status);
        let condition = status.conditions.iter().find(|c| c.type_ == whetstone_api::condition::READY);
        TrancheRow {
            name: tranche.metadata.name.clone().unwrap_or_default(),
            blades: tranche.spec.blades.len(),
            suite: tranche.spec.suite.clone(),
            paused: tranche.spec.paused,
            owner: tranche.spec.owner.clone(),
            created_ms: tranche.metadata.creation_timestamp.as_ref().map(|time| time.0.as_millisecond()),
            ready,
            why_not: condition.filter(|_| !ready).map(|c| c.message.clone()),
            phase: status.phase,
            counts: status.counts,
            yield_: status.yield_,
            summary: status.summary,
            missing: status.missing,
            duplicates: status.duplicates,
        }
    }
}

/// As `kubectl wait --for=condition=Ready` sees it.
pub fn ready(status: &TrancheStatus) -> bool {
    let is = |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
        c.type_ == whetstone_api::condition::READY && c.status == "True"
    };
    status.conditions.iter().any(is)
}

pub fn list(json: bool, access: &Access) -> anyhow::Result<ExitCode> {
    wait_for(async {
        let site = access.connect().await?;
        let tranches: Vec<Tranche> = site.list(ListParams::default()).await.or_exit()?;
        let rows: Vec<TrancheRow> = tranches.iter().map(TrancheRow::from).collect();
        if json {
            print_json(&rows)?;
        } else if rows.is_empty() {
            eprintln!("no tranches");
        } else {
            say(&table(&rows, now_ms()))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub fn table(rows: &[TrancheRow], now_ms: i64) -> String {
    let mut table = Table::new(&[
        "NAME", "PHASE", "BLADES", "SUITE", "EXPECTED", "BURNING", "READY", "SERVING", "OUT", "MISSING",
        "YIELD", "AGE",
    ]);
    for row in rows {
        let phase = cell(row.phase.as_deref());
        table.row([
            row.name.clone(),
            if row.paused { format!("{phase} (paused)") } else { phase },
            row.blades.to_string(),
            row.suite.clone(),
            row.counts.expected.to_string(),
            row.counts.burning_in.to_string(),
            row.counts.ready.to_string(),
            row.counts.in_service.to_string(),
            row.counts.quarantined.to_string(),
            row.counts.missing.to_string(),
            cell(row.yield_.as_deref()),
            age(row.created_ms, now_ms),
        ]);
    }
    table.to_string()
}

pub fn one(name: &str, json: bool, access: &Access) -> anyhow::Result<ExitCode> {
    let name = checked(name)?;
    wait_for(async {
        let site = access.connect().await?;
        let tranche = find(&site, name).await?;
        let row = TrancheRow::from(&tranche);
        let params = ListParams::default().fields(&format!("spec.tranche={name}"));
        let blades: Vec<BladeRow> =
            site.list::<Blade>(params).await.or_exit()?.iter().map(BladeRow::from).collect();
        if json {
            print_json(&serde_json::json!({"tranche": row, "blades": blades, "spec": tranche.spec}))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut text = table(std::slice::from_ref(&row), now_ms());
        if let Some(summary) = &row.summary {
            text += &format!("{}\n", clean(summary));
        }
        if let Some(why) = row.why_not.as_deref().filter(|why| !why.is_empty()) {
            text += &format!("not decided: {}\n", clean(why));
        }
        for (what, serials) in [("missing", &row.missing), ("duplicate", &row.duplicates)] {
            if !serials.is_empty() {
                text += &format!("{what}: {}\n", clean(&serials.join(", ")));
            }
        }
        let out =
            |row: &&BladeRow| matches!(row.phase.as_deref(), Some("Quarantined" | "Repairing" | "Draining"));
        let withheld: Vec<BladeRow> = blades.iter().filter(out).cloned().collect();
        if !withheld.is_empty() {
            text += &format!("\n{}", row::table(&withheld, false, now_ms()));
        }
        say(&text)?;
        Ok(ExitCode::SUCCESS)
    })
}
