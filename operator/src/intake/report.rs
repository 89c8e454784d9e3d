//! `POST /v1/report`: evidence, a sign of life, and the order back.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use tokio::sync::oneshot;
use whetstone_model::wire::{
    BladeFacts, MAX_BODY, MAX_GPUS, MAX_ITEMS, Order, ReportAnswer, ReportRequest, RunProgress,
};
use whetstone_store::{AgentStats, NewReport, Seen, Stored};

use super::Shared;
use super::batch::Job;
use super::limits::Cost;
use super::refusal::{Reason, Refusal};
use super::request::{Incoming, agent, answer, body, check_hex, parse, same_boot, same_instance};
use crate::clock::now_ms;

pub(super) async fn report(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    answer(&shared, "report", request, handle).await
}

async fn handle(shared: Arc<Shared>, incoming: Incoming) -> Result<Response, Refusal> {
    let agent = agent(&shared, &incoming.client, incoming.received_ms, false).await?;
    let received_ms = incoming.received_ms;
    let bytes = body(&incoming.headers, incoming.body, MAX_BODY, shared.config.body).await?;
    let size = bytes.len();
    let report: ReportRequest = parse(&bytes)?;
    drop(bytes);
    check(&report)?;
    if report.serial != agent.serial {
        return Err(Refusal::wrong_blade(format!(
            "the report is of blade {}, the certificate of {}",
            report.serial, agent.serial
        )));
    }
    same_instance(&shared, &agent, &report.instance, received_ms).await?;
    same_boot(&shared, &agent, report.boot_id.as_deref(), received_ms).await?;
    let skew_ms = report.now_ms.saturating_sub(received_ms);
    let stats = AgentStats { usage: report.usage, dropped: report.dropped, spooled: report.spooled, skew_ms };
    let seen = Seen { serial: agent.serial.clone(), at_ms: received_ms, facts: None, stats };
    if let Err(refusal) = shared.charge(&agent.serial, cost(&shared, &report, size)) {
        // What it has to say waits in its spool. That it lives is noted all the while.
        shared.queue.seen(&agent.serial, seen, None);
        return Err(refusal);
    }

    shared.metrics.agent(skew_ms.unsigned_abs(), report.spooled);
    shared.remembered.learn(&agent.serial, &report.stream, &seen.stats, &shared.metrics);

    let going_on = report.run.as_ref().map(|run| run.run);
    let order =
        shared.known.order(&shared.store, &agent.serial, going_on).await.map_err(|e| Refusal::store(&e))?;
    // A run that is none of ours is answered with its cancellation, and its progress is not believed.
    let cancelled = matches!(order.as_deref(), Some(Order::CancelRun { .. }));
    let progress = report.run.filter(|_| !cancelled);
    let picked_up = progress.clone().filter(|p| shared.remembered.is_news(&agent.serial, p.run));

    let told = report.acked.unwrap_or(0);
    let nothing_new = report.items.is_empty() && report.facts.is_none() && picked_up.is_none();
    let known = shared.remembered.known(&agent.serial, &report.stream, told).filter(|_| nothing_new);
    let (acked, say_again) = match known {
        Some(known) => known,
        None => {
            let new = NewReport {
                serial: agent.serial.clone(),
                instance: report.instance,
                stream: report.stream.clone(),
                items: report.items,
                acked: report.acked,
                at_ms: received_ms,
            };
            let facts = report.facts.map(|facts| Seen { facts: Some(facts), ..seen.clone() });
            let stored = store(&shared, new, facts, picked_up.clone()).await?;
            if let Some(progress) = &picked_up {
                shared.remembered.heard(&agent.serial, progress.run);
            }
            shared.remembered.keep(&agent.serial, &report.stream, told, &stored)
        }
    };
    shared.queue.seen(&agent.serial, seen, progress.filter(|_| picked_up.is_none()));

    let answer = ReportAnswer {
        acked,
        order: order.as_deref().cloned(),
        say_again,
        next_report_ms: shared.config.report_interval_ms,
        now_ms: now_ms(),
    };
    Ok(Json(answer).into_response())
}

/// A sign of life costs nothing.
fn cost(shared: &Shared, report: &ReportRequest, bytes: usize) -> Cost {
    let (items, facts) = (report.items.len(), report.facts.is_some());
    let known = shared.remembered.known(&report.serial, &report.stream, report.acked.unwrap_or(0));
    if items == 0 && !facts && known.is_some() {
        return Cost::default();
    }
    // A stream of which nothing is known to be stored may be a new one.
    let stream = known.is_none_or(|(acked, again)| acked == 0 && !again);
    Cost { items, bytes, rows: usize::from(facts) + usize::from(stream) }
}

async fn store(
    shared: &Arc<Shared>,
    report: NewReport,
    facts: Option<Seen>,
    picked_up: Option<RunProgress>,
) -> Result<Stored, Refusal> {
    let (send, stored) = oneshot::channel();
    shared.queue.put(Job { report, facts, picked_up, answer: send })?;
    match tokio::time::timeout(shared.config.store, stored).await {
        Ok(Ok(stored)) => stored,
        // It may be stored yet: the agent sends it again, and that changes nothing.
        Ok(Err(_)) | Err(_) => {
            Err(Refusal::unavailable(Reason::Store, "the database did not answer in time"))
        }
    }
}

/// Bounds that the types do not hold.
fn check(report: &ReportRequest) -> Result<(), Refusal> {
    check_hex("instance", &report.instance, 32)?;
    check_hex("stream", &report.stream, 32)?;
    if let Some(boot_id) = &report.boot_id
        && !((1..=64).contains(&boot_id.len()) && boot_id.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Err(Refusal::bad("boot_id is not a word of at most 64 characters"));
    }
    if report.items.len() > MAX_ITEMS {
        return Err(Refusal::bad(format!(
            "{} items, at most {MAX_ITEMS} may come at once",
            report.items.len()
        )));
    }
    let mut last = 0;
    for (index, item) in report.items.iter().enumerate() {
        if item.seq <= last || item.seq > i64::MAX as u64 {
            return Err(Refusal::bad(format!("items[{index}]: seq {} after {last}", item.seq)));
        }
        last = item.seq;
    }
    if let Some(run) = &report.run
        && (run.test.len() > 256 || run.doing.len() > 1_024)
    {
        return Err(Refusal::bad("run: a text is too long"));
    }
    report.facts.as_ref().map_or(Ok(()), check_facts)
}

/// Facts are the blade's own words: bounded here, compared and shown elsewhere.
pub(super) fn check_facts(facts: &BladeFacts) -> Result<(), Refusal> {
    const MAX_TEXT: usize = 256;
    if facts.gpus.len() > MAX_GPUS {
        return Err(Refusal::bad(format!("facts: {} GPUs, at most {MAX_GPUS}", facts.gpus.len())));
    }
    let own = [
        &facts.serial,
        &facts.hostname,
        &facts.sku,
        &facts.driver,
        &facts.kernel,
        &facts.nvlink_cluster,
        &facts.boot_id,
    ];
    let of_gpus = facts.gpus.iter().flat_map(|gpu| [&gpu.name, &gpu.serial, &gpu.pci]);
    let too_long = own.into_iter().chain(of_gpus).flatten().any(|text| text.len() > MAX_TEXT);
    if too_long || facts.agent_version.len() > MAX_TEXT {
        return Err(Refusal::bad(format!("facts: a text is longer than {MAX_TEXT} bytes")));
    }
    Ok(())
}
