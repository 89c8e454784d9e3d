//! `whet explain`: where a blade is and what it waits for, then its history.

use std::process::ExitCode;

use jiff::tz::TimeZone;
use k8s_openapi::api::core::v1::Node;
use whetstone_api::{Blade, node};

use super::access::{Access, Site, checked_blade};
use super::failure::OrExit as _;
use super::history::{History, lines};
use super::row::BladeRow;
use super::table::{clean, duration, now_ms};
use super::{print_json, say, wait_for};
use crate::{complain, input_error};

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  whet explain b-003\n  whet explain 1655123000042 --json | jq .history.verdicts"
)]
pub struct Args {
    /// Name or serial
    #[arg(value_name = "BLADE")]
    blade: String,
    /// {"explain", "blade", "node", "history"}; history is null where the operator cannot be reached
    #[arg(long)]
    json: bool,
    /// All of its history, not the end of it alone
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    access: Access,
}

/// Events shown without --all.
const SHOWN: usize = 40;

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    checked_blade(&args.blade)?;
    wait_for(async {
        let site = args.access.connect().await?;
        let blade = site.find_blade(&args.blade).await.or_exit()?;
        let wanted = blade.as_ref().map_or(args.blade.as_str(), |blade| &blade.spec.serial);
        let history = match site.ops().await {
            Ok(ops) => ops.get::<History>(&format!("/v1/ops/blades/{wanted}/history")).await,
            Err(failure) => Err(failure),
        };
        let (history, away) = match history {
            Ok(history) => (Some(history), None),
            // Not in the store yet, or the operator cannot be asked: what the cluster says has to do.
            Err(failure) if blade.is_some() && (failure.is_operator_away() || failure.is_not_found()) => {
                (None, Some(failure.to_string()))
            }
            Err(failure) if failure.is_not_found() => {
                return Err(input_error(format!("no blade {} (`whet blades` lists them)", args.blade)));
            }
            Err(failure) if failure.is_operator_away() => {
                let what =
                    format!("the cluster has no blade {}, and the operator cannot be asked", args.blade);
                return Err(failure.into_error().context(what));
            }
            Err(failure) => return Err(failure.into_error()),
        };
        let node = match &blade {
            Some(blade) => node_text(&site, blade).await,
            None => None,
        };
        let now = now_ms();
        let row = blade.as_ref().map(BladeRow::from);
        let first = first_line(row.as_ref(), history.as_ref(), now);
        if args.json {
            print_json(&serde_json::json!({
                "explain": first, "blade": row, "node": node, "history": history, "history_missing": away,
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut text = format!("{first}\n");
        if let Some(history) = &history {
            let events = history.events();
            let from = if args.all { 0 } else { events.len().saturating_sub(SHOWN) };
            if from > 0 {
                text += &format!("  … {from} events before (--all shows them)\n");
            }
            text += &lines(events.get(from..).unwrap_or_default(), &TimeZone::system());
        }
        if let Some(node) = node {
            text += &format!("  now: {node}\n");
        }
        say(&text)?;
        if let Some(away) = away {
            complain(format_args!("no history: {away}"));
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Where it is, since when, why; what it waits for; who must act.
fn first_line(row: Option<&BladeRow>, history: Option<&History>, now_ms: i64) -> String {
    if let Some(sentence) = history.and_then(|history| history.explain.as_deref()) {
        return clean(sentence);
    }
    let Some(row) = row else {
        let last = history.and_then(|history| history.events().pop());
        return match last {
            Some((at, text)) => {
                format!("No object in the cluster. Last, {} ago: {text}", duration(now_ms - at))
            }
            None => "No object in the cluster, and no history.".to_owned(),
        };
    };
    let Some(phase) = &row.phase else {
        return "New: the operator has not looked at it yet.".to_owned();
    };
    let mut text = phase.clone();
    if let Some(since) = row.since_ms {
        text += &format!(" for {}", duration(now_ms.saturating_sub(since)));
    }
    match (phase.as_str(), &row.owner, row.run) {
        ("InService", Some(owner), _) => text += &format!(" with {owner}"),
        ("BurningIn", _, Some(run)) => text += &format!(" in run {run}"),
        // Its own fault, not a person's wish or one in service.
        ("Quarantined", _, Some(run)) if row.verdict.as_deref() == Some("fail") => {
            text += &format!(" by burn-in run {run}");
        }
        _ => {}
    }
    let waits = row.waits_for.as_ref().map(|wait| wait.message.as_str());
    match &row.reason {
        Some(reason) if Some(reason.as_str()) != waits => {
            text += &format!(": {}.", clean(reason).trim_end_matches('.'))
        }
        _ => text.push('.'),
    }
    if let Some(wait) = &row.waits_for {
        text += &format!(" {}", clean(&wait.message));
        // Where a person is named already, saying it again is noise.
        if !wait.message.contains("(a person)") {
            let who = match wait.actor.as_str() {
                "person" => "a person",
                "supplier" => "the supplier",
                "tenant" => "the tenant",
                other => other,
            };
            text += &format!(" Who acts: {}.", clean(who));
        }
    }
    if row.stuck {
        text += " Stuck: past the time limit of its phase.";
    }
    text
}

/// Our taint and cordon, and a person's, as they are on the node now.
async fn node_text(site: &Site, blade: &Blade) -> Option<String> {
    let name = blade.node_name();
    let found = site.all::<Node>().get_opt(name).await.ok()??;
    let spec = found.spec.unwrap_or_default();
    let annotations = found.metadata.annotations.unwrap_or_default();
    let taint = spec.taints.unwrap_or_default().into_iter().find(|taint| taint.key == node::TAINT);
    let ours = annotations.get(node::CORDONED).is_some_and(|value| value == "true");
    let mut parts = Vec::new();
    if let Some(taint) = taint {
        parts.push(format!("taint {}", clean(taint.value.as_deref().unwrap_or(&taint.key))));
    }
    if spec.unschedulable == Some(true) {
        parts.push(if ours { "cordon".to_owned() } else { "a person's cordon".to_owned() });
    }
    Some(match parts.is_empty() {
        true => format!("node {name} is open to pods"),
        false => {
            let note = annotations.get(node::NOTE).map(|note| format!(" (ours: {})", clean(note)));
            format!("{} on node {name}{}", parts.join(" + "), note.unwrap_or_default())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::row::Wait;

    fn row(phase: &str) -> BladeRow {
        let mut row = BladeRow::from(&Blade::new("b-003", whetstone_api::BladeSpec::default()));
        row.phase = Some(phase.to_owned());
        row.since_ms = Some(0);
        row
    }

    #[test]
    fn the_first_line_says_where_why_and_who_acts() {
        let mut bad = row("Quarantined");
        bad.run = Some(41);
        bad.verdict = Some("fail".into());
        bad.reason = Some("gpu5 computes wrong bits on SM 41".into());
        bad.waits_for = Some(Wait {
            code: "person".into(),
            message: "Waits for: replacement of the board (a person), then burn-in.".into(),
            actor: "person".into(),
        });
        let nine = 9 * 60_000;
        assert_eq!(
            first_line(Some(&bad), None, nine),
            "Quarantined for 9m by burn-in run 41: gpu5 computes wrong bits on SM 41. \
             Waits for: replacement of the board (a person), then burn-in."
        );
        let mut serving = row("InService");
        serving.owner = Some("kubernetes/k-1".into());
        assert_eq!(first_line(Some(&serving), None, nine), "InService for 9m with kubernetes/k-1.");
        let mut waiting = row("Discovered");
        waiting.waits_for = Some(Wait {
            code: "power".into(),
            message: "Waits for: power.".into(),
            actor: "whetstone".into(),
        });
        waiting.stuck = true;
        assert_eq!(
            first_line(Some(&waiting), None, nine),
            "Discovered for 9m. Waits for: power. Who acts: whetstone. Stuck: past the time limit of its phase."
        );
        let own = History { explain: Some("Ready for 1m.".into()), ..History::default() };
        assert_eq!(first_line(Some(&waiting), Some(&own), nine), "Ready for 1m.");
        assert!(first_line(None, Some(&History::default()), nine).starts_with("No object"));
    }
}
