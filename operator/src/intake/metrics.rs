//! Metrics of the intake.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};
use whetstone_model::wire::ItemBody;
use whetstone_store::EvidenceKind;

use super::refusal::Reason;

/// All that the intake counts, registered once.
#[derive(Debug)]
pub struct Metrics {
    items: IntCounterVec,
    refused: IntCounterVec,
    duplicates: IntCounter,
    requests: IntCounterVec,
    seconds: HistogramVec,
    joins: IntCounterVec,
    skew: Histogram,
    dropped: IntCounter,
    spool: Histogram,
    resident: Histogram,
    cpu: Histogram,
    connections: IntGauge,
    handshakes: IntCounterVec,
    queue: IntGauge,
    batch: Histogram,
    audit_dropped: IntCounter,
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    let metric = IntCounter::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    let metric = IntGauge::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
    let metric = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

const MIB: f64 = 1_048_576.0;

impl Metrics {
    /// Registers all in `registry`; fails if they are there already.
    pub fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let r = registry;
        let seconds = HistogramVec::new(
            HistogramOpts::new("whetstone_intake_request_seconds", "Time to answer a request, by route.")
                .buckets(vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]),
            &["route"],
        )?;
        r.register(Box::new(seconds.clone()))?;
        Ok(Metrics {
            items: counters(
                r,
                "whetstone_evidence_items_total",
                "Items of evidence stored, by kind.",
                &["kind"],
            )?,
            refused: counters(
                r,
                "whetstone_evidence_refused_total",
                "Requests of agents that were not served, by reason.",
                &["reason"],
            )?,
            duplicates: counter(
                r,
                "whetstone_evidence_duplicates_total",
                "Items that were on record already.",
            )?,
            requests: counters(
                r,
                "whetstone_intake_requests_total",
                "Requests answered, by route and HTTP status.",
                &["route", "code"],
            )?,
            seconds,
            joins: counters(r, "whetstone_joins_total", "Joins and renewals, by result.", &["result"])?,
            skew: histogram(
                r,
                "whetstone_agent_clock_skew_seconds",
                "Distance between a blade's clock and ours, at each report.",
                &[0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 3_600.0, 86_400.0],
            )?,
            dropped: counter(
                r,
                "whetstone_agent_dropped_items_total",
                "Details that agents had to drop because their spools were full.",
            )?,
            spool: histogram(
                r,
                "whetstone_agent_spool_items",
                "Items that wait in an agent's spool, at each report.",
                &[0.0, 1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0],
            )?,
            resident: histogram(
                r,
                "whetstone_agent_resident_bytes",
                "Memory of an agent, at each report.",
                &[8.0 * MIB, 16.0 * MIB, 24.0 * MIB, 30.0 * MIB, 48.0 * MIB, 64.0 * MIB, 128.0 * MIB],
            )?,
            cpu: histogram(
                r,
                "whetstone_agent_cpu_ratio",
                "Part of a core that an agent used since its report before.",
                &[0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.03, 0.1, 1.0],
            )?,
            connections: gauge(r, "whetstone_intake_connections", "Open connections.")?,
            handshakes: counters(
                r,
                "whetstone_intake_handshakes_failed_total",
                "TLS handshakes that failed, by cause.",
                &["cause"],
            )?,
            queue: gauge(r, "whetstone_intake_queue_requests", "Reports that wait for the database.")?,
            batch: histogram(
                r,
                "whetstone_intake_batch_requests",
                "Reports stored in one transaction.",
                &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0],
            )?,
            audit_dropped: counter(
                r,
                "whetstone_audit_dropped_total",
                "Refusals that were not audited one by one: too many of one peer, or at once.",
            )?,
        })
    }

    pub(super) fn answered(&self, route: &'static str, status: u16, took: Duration) {
        self.requests.with_label_values(&[route, &status.to_string()]).inc();
        self.seconds.with_label_values(&[route]).observe(took.as_secs_f64());
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused.with_label_values(&[reason.as_str()]).inc();
    }

    pub(super) fn joined(&self, result: &'static str) {
        self.joins.with_label_values(&[result]).inc();
    }

    /// Items as they were stored; a replayed batch counts as duplicates only.
    pub(super) fn stored<'a>(&self, items: impl Iterator<Item = &'a ItemBody>, new: u64, sent: u64) {
        self.duplicates.inc_by(sent.saturating_sub(new));
        if new == sent {
            for body in items {
                self.items.with_label_values(&[EvidenceKind::of(body).as_str()]).inc();
            }
        } else if new > 0 {
            // Which ones were new is not known item by item.
            self.items.with_label_values(&["mixed"]).inc_by(new);
        }
    }

    pub(super) fn agent(&self, skew_ms: u64, spooled: u64) {
        self.skew.observe(skew_ms as f64 / 1000.0);
        self.spool.observe(spooled as f64);
    }

    pub(super) fn agent_dropped(&self, more: u64) {
        self.dropped.inc_by(more);
    }

    pub(super) fn agent_memory(&self, bytes: u64) {
        self.resident.observe(bytes as f64);
    }

    pub(super) fn agent_cpu(&self, ratio: f64) {
        self.cpu.observe(ratio);
    }

    /// Counts a connection as open until it is dropped.
    pub(super) fn connection(&self) -> Open {
        self.connections.inc();
        Open(self.connections.clone())
    }

    pub(super) fn handshake_failed(&self, cause: &'static str) {
        self.handshakes.with_label_values(&[cause]).inc();
    }

    pub(super) fn queued(&self, requests: usize) {
        self.queue.set(i64::try_from(requests).unwrap_or(i64::MAX));
    }

    pub(super) fn batch(&self, requests: usize) {
        self.batch.observe(requests as f64);
    }

    pub(super) fn audit_dropped(&self) {
        self.audit_dropped.inc();
    }
}

pub(super) struct Open(IntGauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
