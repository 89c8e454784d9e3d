//! A tiny exporter that serves every metric of the catalogue, and a real Prometheus that scrapes it.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use whetstone_dashboards::catalogue::{Kind, METRICS, Metric, Source};

/// All combinations of label values, at most this many a metric.
const MAX_SERIES: usize = 400;
/// What has to be there within this time, or the test fails.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a process answers at its `step`-th scrape: counters and histograms grow, gauges stand.
pub fn exposition(source: Source, step: u64) -> String {
    let mut text = String::new();
    for metric in METRICS.iter().filter(|metric| metric.source == source) {
        text += &format!(
            "# HELP {} {}\n# TYPE {} {}\n",
            metric.name,
            metric.help,
            metric.name,
            metric.kind.as_str()
        );
        for labels in combinations(metric) {
            series(metric, &labels, step, &mut text);
        }
    }
    text
}

fn combinations(metric: &Metric) -> Vec<String> {
    let mut all = vec![String::new()];
    for label in metric.labels {
        all = all
            .iter()
            .flat_map(|before| {
                let comma = if before.is_empty() { "" } else { "," };
                label.values.iter().map(move |value| format!("{before}{comma}{}=\"{value}\"", label.name))
            })
            .take(MAX_SERIES)
            .collect();
    }
    all
}

fn series(metric: &Metric, labels: &str, step: u64, text: &mut String) {
    let braces = |labels: &str| if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    match metric.kind {
        Kind::Counter => *text += &format!("{}{} {}\n", metric.name, braces(labels), step * 3),
        Kind::Gauge => {
            let value = match metric.name {
                "whetstone_leader" | "whetstone_ready" | "whetstone_build_info" => 1.0,
                "whetstone_agent_certificate_expires_seconds" => 50_000.0,
                "whetstone_certificate_expires_seconds" => 3e7,
                _ => 4.0,
            };
            *text += &format!("{}{} {value}\n", metric.name, braces(labels));
        }
        Kind::Histogram => {
            let top = metric.reach.max(1.0);
            let comma = if labels.is_empty() { "" } else { "," };
            for (part, count) in [(0.01, step), (0.1, step * 2), (1.0, step * 3)] {
                *text += &format!("{}_bucket{{{labels}{comma}le=\"{}\"}} {count}\n", metric.name, top * part);
            }
            *text += &format!("{}_bucket{{{labels}{comma}le=\"+Inf\"}} {}\n", metric.name, step * 3);
            *text += &format!("{}_sum{} {}\n", metric.name, braces(labels), step as f64 * top * 0.1);
            *text += &format!("{}_count{} {}\n", metric.name, braces(labels), step * 3);
        }
    }
}

/// Serves `/operator` and `/agent`; the answer is the port. The thread ends with the test process.
pub fn exporter() -> u16 {
    let (listener, port) = listen();
    let step = Arc::new(AtomicU64::new(1));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let step = step.fetch_add(1, Ordering::Relaxed);
            let _ = answer(stream, step);
        }
    });
    port
}

fn answer(mut stream: TcpStream, step: u64) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
    }
    let (status, body) = match request.split(' ').nth(1) {
        Some("/operator") => ("200 OK", exposition(Source::Operator, step)),
        Some("/agent") => ("200 OK", exposition(Source::Agent, step)),
        _ => ("404 Not Found", String::new()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// A listener below 32768, where the kernel gives out no ports by itself. No port is tried twice in this process, so that
/// what is free stays free between closing it here and Prometheus opening it.
pub fn listen() -> (TcpListener, u16) {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Begins at a place of this process's own, so that two test processes seldom try the same ports.
    let start = 20_000 + (std::process::id() % 10_000) as u16;
    (0..2_000)
        .map(|_| start + NEXT.fetch_add(1, Ordering::Relaxed))
        .find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok().map(|listener| (listener, port)))
        .expect("a free port")
}

/// A Prometheus of this test's own; gone when dropped.
pub struct Prometheus {
    child: Child,
    pub url: String,
    _folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts Debian's Prometheus with our rules, scraping both paths of `exporter` each second.
pub fn prometheus(exporter: u16) -> Prometheus {
    let folder = tempfile::tempdir().unwrap();
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/alerts/whetstone.rules.yaml");
    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
         rule_files: [{rules:?}]\n\
         scrape_configs:\n\
         - {{job_name: whetstone-operator, metrics_path: /operator, static_configs: [{{targets: ['127.0.0.1:{exporter}']}}]}}\n\
         - {{job_name: whetstone-agent, metrics_path: /agent, static_configs: [{{targets: ['127.0.0.1:{exporter}']}}]}}\n"
    );
    std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
    let (listener, port) = listen();
    drop(listener);
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let child = Command::new("prometheus")
        .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("prometheus (Debian package prometheus)");
    let mut prometheus = Prometheus { child, url: format!("http://127.0.0.1:{port}"), _folder: folder };
    let log = prometheus._folder.path().join("log");
    wait_for("prometheus is ready", || {
        if let Ok(Some(status)) = prometheus.child.try_wait() {
            panic!("prometheus ended: {status}: {}", std::fs::read_to_string(&log).unwrap_or_default());
        }
        get(&format!("{}/-/ready", prometheus.url)).is_some()
    });
    prometheus
}

/// The body of a 200 answer.
pub fn get(url: &str) -> Option<String> {
    ureq::get(url).call().ok()?.body_mut().read_to_string().ok()
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
