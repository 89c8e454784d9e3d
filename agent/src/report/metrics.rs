//! `GET /metrics` in Prometheus' text format. One short answer at a time: a scraper asks every few seconds.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::log;
use super::shared::{Shared, lock};
use super::usage;
use crate::probe::now_ms;

/// A request line and some headers; more is not read.
const MAX_REQUEST: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers for as long as the process lives. The address is the one that it is bound to.
pub(super) fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    for connection in listener.incoming() {
        match connection {
            // One that went away or is too slow is its own business.
            Ok(stream) => drop(answer(stream, shared)),
            Err(error) => {
                log::warn("metrics", &[("why", &error)]);
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

pub(super) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address)
}

fn answer(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (mut request, mut chunk) = (Vec::new(), [0; 1024]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
        match stream.read(&mut chunk)? {
            0 => break,
            bytes => request.extend_from_slice(&chunk[..bytes]),
        }
    }
    let (status, body) = if request.starts_with(b"GET /metrics ") || request.starts_with(b"GET /metrics?") {
        ("200 OK", text(shared))
    } else {
        ("404 Not Found", "metrics are at /metrics\n".to_owned())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

/// All metrics as text.
pub(super) fn text(shared: &Shared) -> String {
    let mut out = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, values: &[(&str, f64)]| {
        let _ = writeln!(out, "# HELP whetstone_agent_{name} {help}\n# TYPE whetstone_agent_{name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(out, "whetstone_agent_{name}{labels} {value}");
        }
    };
    let status = shared.spool().status();
    metric("up_seconds", "gauge", "Since the agent began.", &[("", shared.started.elapsed().as_secs_f64())]);
    metric("spool_items", "gauge", "Items that wait for the operator.", &[("", status.items as f64)]);
    metric(
        "spool_memory_items",
        "gauge",
        "Of those, in memory: the disk cannot be written.",
        &[("", status.in_memory as f64)],
    );
    metric("spool_bytes", "gauge", "Size of the spool's files.", &[("", status.bytes as f64)]);
    metric(
        "spool_dropped_total",
        "counter",
        "Details that had to go for want of room.",
        &[("", status.dropped as f64)],
    );
    metric(
        "spool_lost_findings_total",
        "counter",
        "Findings that had to go for want of room.",
        &[("", status.lost as f64)],
    );
    metric(
        "spool_torn_bytes_total",
        "counter",
        "Bytes of records that were cut off.",
        &[("", status.torn as f64)],
    );
    let running = f64::from(u8::from(lock(&shared.progress).is_some()));
    metric("run_active", "gauge", "1 while a run goes on.", &[("", running)]);
    let counts = lock(&shared.counts);
    let label = |name: &str, value: &str| format!("{{{name}=\"{value}\"}}");
    let reports: Vec<(String, f64)> =
        counts.reports.iter().map(|(result, n)| (label("result", result), *n as f64)).collect();
    let reports: Vec<(&str, f64)> = reports.iter().map(|(labels, n)| (labels.as_str(), *n)).collect();
    metric("reports_total", "counter", "Reports by how they ended.", &reports);
    if let Some(at) = counts.last_report {
        metric(
            "last_report_seconds",
            "gauge",
            "Since the operator took a report.",
            &[("", at.elapsed().as_secs_f64())],
        );
    }
    if let Some(ends) = counts.certificate_ends_ms {
        let left = (ends - now_ms()) as f64 / 1000.0;
        metric("certificate_expires_seconds", "gauge", "Until the certificate ends.", &[("", left)]);
    }
    let findings = ["info", "warning", "fault"].map(|severity| {
        (label("severity", severity), counts.findings.get(severity).copied().unwrap_or(0) as f64)
    });
    let findings = findings.each_ref().map(|(labels, n)| (labels.as_str(), *n));
    metric("findings", "gauge", "Findings that stand now.", &findings);
    metric("look_seconds", "gauge", "Time that the last look took.", &[("", counts.look_s)]);
    if let Some(usage) = usage::now(shared.started) {
        metric(
            "resident_bytes",
            "gauge",
            "Resident memory of the agent.",
            &[("", usage.resident_bytes as f64)],
        );
        metric("cpu_seconds_total", "counter", "Processor time of the agent.", &[("", usage.cpu_seconds)]);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use whetstone_dashboards::exposition::{Problem, compare};

    use super::super::spool::Spool;
    use super::*;

    #[test]
    fn what_an_agent_says_is_what_the_catalogue_promises() {
        let dir = tempfile::tempdir().unwrap();
        let shared = Shared::new(Spool::open(dir.path(), 64 << 20).unwrap().0);
        // Before it has joined two values do not exist, and no report has ended in any way.
        let name = |problem: Problem| match problem {
            Problem::Missing { name, .. } | Problem::NotYet { name, .. } => name,
            other => panic!("{other}"),
        };
        let missing: Vec<&str> = compare(&text(&shared)).into_iter().map(name).collect();
        let not_yet = [
            "whetstone_agent_certificate_expires_seconds",
            "whetstone_agent_last_report_seconds",
            "whetstone_agent_reports_total",
        ];
        assert_eq!(missing, not_yet);
        {
            let mut counts = lock(&shared.counts);
            counts.reports.insert("ok", 3);
            counts.reports.insert("timeout", 1);
            counts.last_report = Some(Instant::now());
            counts.certificate_ends_ms = Some(now_ms() + 1_000);
            counts.findings.insert("fault", 1);
        }
        assert_eq!(compare(&text(&shared)), []);
    }
}
