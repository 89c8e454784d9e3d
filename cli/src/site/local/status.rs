//! `whet site status`: what runs, and how much memory it takes.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use serde::Serialize;
use serde_json::Value;

use super::cluster;
use super::state::State;
use super::{KUBECONFIG, Place};
use crate::site::table::{NONE, Table, duration, now_ms};
use crate::site::{print_json, say};

#[derive(clap::Args)]
#[command(
    after_help = "Exit code 0: all of it runs. 1: something does not, or there is no site.\n\nExample:\n  whet site status"
)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// {"running", "dir", "kubeconfig", "processes": [{"name","pid","running","pss_bytes"}], "cluster", "pss_bytes"}
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    name: String,
    pid: i32,
    running: bool,
    /// Proportional set size.
    pss_bytes: Option<u64>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let dir = args.place.path()?;
    let Some(state) = State::load(&dir)? else {
        if args.json {
            print_json(&serde_json::json!({"running": false, "dir": dir}))?;
        } else {
            eprintln!("no site in {}", dir.display());
        }
        return Ok(ExitCode::FAILURE);
    };
    let rows: Vec<Row> = state
        .processes
        .iter()
        .map(|recorded| Row {
            name: recorded.name.clone(),
            pid: recorded.process.pid,
            running: recorded.process.lives(),
            pss_bytes: recorded.process.pss(),
        })
        .collect();
    let cluster = state.whet_local.as_deref().and_then(|program| local(program, &dir));
    let cluster_bytes = cluster.as_ref().map(memory).unwrap_or_default();
    let answers = cluster.as_ref().is_some_and(|cluster| cluster.get("answers") == Some(&Value::Bool(true)));
    let own: u64 = rows.iter().filter_map(|row| row.pss_bytes).sum();
    let running =
        state.ready && rows.iter().all(|row| row.running) && (state.whet_local.is_none() || answers);
    if args.json {
        print_json(&serde_json::json!({
            "running": running, "dir": dir, "kubeconfig": dir.join(KUBECONFIG), "operator": state.operator_url,
            "operator_http": state.operator_http, "tranche": state.tranche, "blades": state.blades,
            "started_ms": state.started_ms, "processes": rows, "cluster": cluster, "pss_bytes": own + cluster_bytes,
        }))?;
    } else {
        say(&text(&dir, &state, &rows, answers, cluster_bytes, own))?;
    }
    Ok(if running { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

fn text(dir: &Path, state: &State, rows: &[Row], cluster: bool, cluster_bytes: u64, own: u64) -> String {
    let mut table = Table::new(&["PROCESS", "PID", "STATE", "MEMORY"]);
    if state.whet_local.is_some() {
        let state = if cluster { "running" } else { "GONE" };
        table.row(["kubernetes".into(), NONE.into(), state.into(), mib(cluster_bytes)]);
    }
    for row in rows {
        let state = if row.running { "running" } else { "GONE" };
        let memory = row.pss_bytes.map_or(NONE.to_owned(), mib);
        table.row([row.name.clone(), row.pid.to_string(), state.into(), memory]);
    }
    format!(
        "{table}\n{}: {} blades, up for {}, {} in all\n",
        dir.display(),
        state.blades.len(),
        duration(now_ms() - state.started_ms),
        mib(own + cluster_bytes)
    )
}

/// What `whet-local status` says, if there is a cluster.
fn local(program: &Path, dir: &Path) -> Option<Value> {
    let out = Command::new(program)
        .args(["status", "--json", "--dir"])
        .arg(cluster::folder(dir))
        .stdin(Stdio::null())
        .output()
        .ok()?;
    out.status.success().then(|| serde_json::from_slice(&out.stdout).ok())?
}

/// All that the cluster's processes take, bytes.
fn memory(status: &Value) -> u64 {
    let lists = ["components", "nodes"].iter().filter_map(|key| status.get(key)?.as_array());
    lists.flatten().filter_map(|part| part.get("memory_bytes")?.as_u64()).sum()
}
