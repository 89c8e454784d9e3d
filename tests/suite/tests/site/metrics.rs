//! A real Prometheus scrapes a running site: panels and alerts have data where the site has some.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use whetstone_dashboards::catalogue::{METRICS, Source};
use whetstone_dashboards::check::{Expect, against_with};
use whetstone_dashboards::exposition::compare;
use whetstone_sim_fleet::End;

use crate::harness::operator::port;
use crate::harness::{Site, listed, serial, until};

/// What this scenario gives no data for.
const NOT_FED: &[&str] = &[
    "whetstone_blades_stuck",
    "whetstone_evidence_refused_total",
    "whetstone_reconcile_errors_total",
    "whetstone_store_errors_total",
    "whetstone_kube_errors_total",
    "whetstone_agent_resident_bytes",
    "whetstone_agent_cpu_ratio",
    "whetstone_intake_handshakes_failed_total",
    "whetstone_run_seconds",
    "whetstone_runs",
];

struct Prometheus {
    child: Child,
    url: String,
}

impl Prometheus {
    fn start(site: &Site) -> Prometheus {
        let target = site.operators[0].settings.http;
        let config = site.path("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             scrape_configs:\n\
             - {{job_name: whetstone-operator, static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}\n"
        );
        std::fs::write(&config, text).unwrap();
        let port = port();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", site.path("prometheus").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus (Debian package prometheus)");
        let prometheus = Prometheus { child, url: format!("http://127.0.0.1:{port}") };
        // It takes some seconds to begin, and what it has not seen at 0 does not count.
        until(60, "the operator was scraped", || {
            let query = "count_over_time(whetstone_leader%5B1m%5D)%20%3E%201";
            let agent: ureq::Agent = ureq::Agent::config_builder().proxy(None).build().into();
            let mut answer = agent
                .get(format!("{}/api/v1/query?query={query}", prometheus.url))
                .call()
                .map_err(|error| error.to_string())?;
            let answer: Value = answer.body_mut().read_json().map_err(|error| error.to_string())?;
            if answer["data"]["result"].as_array().is_some_and(|found| !found.is_empty()) {
                Ok(())
            } else {
                Err(answer.to_string())
            }
        });
        prometheus
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn panels_and_alerts_have_data_on_a_running_site() {
    let site = Site::up();
    let prometheus = Prometheus::start(&site);
    // Counters have to be seen before they count: two tranches, one after the other.
    for letter in ["a", "b"] {
        let names: Vec<String> = (1..=5).map(|n| format!("{letter}-{n}")).collect();
        let manifest: Vec<Value> = names.iter().map(|name| listed(name, letter)).collect();
        for name in &names {
            site.node(name, json!({}));
        }
        site.tranche(&format!("t-{letter}"), &manifest, json!({ "owner": "spare" }));
        let pass: &[End] = &[End::Pass];
        let fleet = site.join(&[
            (&names[0], pass),
            (&names[1], pass),
            (&names[2], &[End::Fail]),
            (&names[3], &[End::Inconclusive, End::Pass]),
        ]);
        let wanted = [
            (names[0].as_str(), "InService"),
            (&names[1], "InService"),
            (&names[2], "Quarantined"),
            (&names[3], "InService"),
        ];
        site.wait_phases(40, &wanted);
        fleet.command(&[serial(&names[0])], |command| command.fault = Some("xid79".into()));
        site.wait_phases(20, &[(&names[0], "Quarantined")]);
    }
    site.check();

    let text = site.operators[0].metrics().unwrap();
    let errors: Vec<_> = compare(&text).into_iter().filter(|problem| problem.is_error()).collect();
    assert!(errors.is_empty(), "{errors:#?}");

    let fed = METRICS.iter().filter(|metric| metric.source == Source::Operator);
    let mut expect: Vec<Expect<'_>> =
        fed.map(|metric| metric.name).filter(|name| !NOT_FED.contains(name)).map(Expect::Metric).collect();
    expect.extend(MAY_BE_EMPTY.iter().map(|place| Expect::MayBeEmpty(place)));
    until(30, "every query that the site feeds returns data", || {
        let outcome =
            against_with(&prometheus.url, "2m", &expect).map_err(|error| vec![error.to_string()])?;
        std::thread::sleep(Duration::from_millis(300));
        if outcome.problems.is_empty() { Ok(()) } else { Err(outcome.problems) }
    });
}

/// Places whose queries ask for something that this scenario does not do.
const MAY_BE_EMPTY: &[&str] = &[
    // The fleet's blades measure GEMM and GPU memory alone.
    "burnin/PCIe bandwidth",
    "burnin/NCCL bus bandwidth",
    "burnin/GPU to GPU bandwidth",
    "burnin/Main memory bandwidth",
    // Of agents' own metrics.
    "health/Items in spool",
];
