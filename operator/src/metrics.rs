//! Metrics of the loop, the cluster and the store. Labels are few and bounded: never a serial, never a name of a blade.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};

/// All of them, registered once.
pub struct Metrics {
    pub blades: IntGaugeVec,
    pub blades_stuck: IntGaugeVec,
    pub tranche_blades: IntGaugeVec,
    pub phase_seconds: HistogramVec,
    pub transitions: IntCounterVec,
    pub agents: IntGaugeVec,
    pub runs: IntGaugeVec,
    pub runs_total: IntCounterVec,
    pub run_seconds: HistogramVec,
    pub burnin_metric: Distributions,
    pub verdicts: IntCounterVec,
    pub cases_open: IntGaugeVec,
    pub reconcile_seconds: Histogram,
    pub reconcile_errors: IntCounterVec,
    pub withhold_seconds: Histogram,
    pub node_patches: IntCounterVec,
    pub drains: IntGaugeVec,
    pub breaker_open: IntGauge,
    pub breaker_withheld: IntGauge,
    pub store_seconds: HistogramVec,
    pub store_errors: IntCounterVec,
    pub store_bytes: IntGauge,
    pub kube_errors: IntCounterVec,
    pub leader: IntGauge,
    pub ready: IntGaugeVec,
    pub identity_conflicts: IntGauge,
    pub unexpected: IntGauge,
    pub nodes_without_blade: IntGauge,
    pub certificate_expires: GaugeVec,
    pub build_info: IntGaugeVec,
    process: Process,
}

/// The operator about itself, in the names that every Prometheus client uses.
struct Process {
    resident: IntGauge,
    memory_limit: IntGauge,
    cpu: Counter,
    start: Gauge,
    open_fds: IntGauge,
}

struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn put<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<C>,
    ) -> prometheus::Result<C> {
        let metric = made?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.put(IntGauge::new(name, help))
    }
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.put(IntGaugeVec::new(Opts::new(name, help), labels))
    }
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.put(IntCounterVec::new(Opts::new(name, help), labels))
    }
    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
        self.put(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }
    fn histograms(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        labels: &[&str],
    ) -> prometheus::Result<HistogramVec> {
        self.put(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }
}

const FAST: [f64; 10] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
/// A minute to a month.
const LONG: [f64; 9] = [60.0, 300.0, 1800.0, 3600.0, 14_400.0, 86_400.0, 259_200.0, 604_800.0, 2_592_000.0];
const RUN: [f64; 9] = [10.0, 30.0, 120.0, 300.0, 900.0, 1800.0, 3600.0, 14_400.0, 86_400.0];
const WITHHOLD: [f64; 10] = [0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0];

impl Metrics {
    /// Registers all in `registry`; fails if they are there already.
    pub fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let m = Maker(registry);
        Ok(Metrics {
            blades: m.gauges("whetstone_blades", "Blades by phase.", &["phase"])?,
            blades_stuck: m.gauges(
                "whetstone_blades_stuck",
                "Blades past their phase's time limit.",
                &["phase"],
            )?,
            tranche_blades: m.gauges(
                "whetstone_tranche_blades",
                "Blades of a tranche by state.",
                &["tranche", "state"],
            )?,
            phase_seconds: m.histograms(
                "whetstone_phase_seconds",
                "Time in a phase, at leaving it.",
                &LONG,
                &["phase"],
            )?,
            transitions: m.counters(
                "whetstone_transitions_total",
                "Transitions of blades.",
                &["from", "to"],
            )?,
            agents: m.gauges("whetstone_agents", "Agents that have joined, by state.", &["state"])?,
            runs: m.gauges("whetstone_runs", "Runs that are not over, by state.", &["state"])?,
            runs_total: m.counters(
                "whetstone_runs_total",
                "Runs that ended, by suite and outcome.",
                &["suite", "outcome"],
            )?,
            run_seconds: m.histograms(
                "whetstone_run_seconds",
                "From a run's start to its result.",
                &RUN,
                &["suite"],
            )?,
            burnin_metric: Distributions {
                gauge: m.put(GaugeVec::new(
                    Opts::new(
                        "whetstone_burnin_metric",
                        "Distribution of a burn-in metric over the devices of a tranche.",
                    ),
                    &["sku", "tranche", "test", "metric", "quantile"],
                ))?,
                shown: Mutex::default(),
            },
            verdicts: m.counters(
                "whetstone_verdicts_total",
                "Verdicts on blades, by outcome and reason.",
                &["outcome", "reason"],
            )?,
            cases_open: m.gauges("whetstone_cases_open", "Open cases by reason.", &["reason"])?,
            reconcile_seconds: m.histogram("whetstone_reconcile_seconds", "One turn of the loop.", &FAST)?,
            reconcile_errors: m.counters(
                "whetstone_reconcile_errors_total",
                "Blades whose turn failed, by category.",
                &["category"],
            )?,
            withhold_seconds: m.histogram(
                "whetstone_withhold_seconds",
                "From evidence received to taint applied, without blades that the circuit breaker held back.",
                &WITHHOLD,
            )?,
            node_patches: m.counters(
                "whetstone_node_patches_total",
                "Changes of nodes.",
                &["verb", "result"],
            )?,
            drains: m.gauges("whetstone_drains", "Drains that go on.", &["state"])?,
            breaker_open: m.gauge("whetstone_breaker_open", "1 while the circuit breaker holds back.")?,
            breaker_withheld: m.gauge(
                "whetstone_breaker_withheld",
                "Blades withheld for faults within the breaker's window.",
            )?,
            store_seconds: m.histograms("whetstone_store_seconds", "Calls of the store.", &FAST, &["op"])?,
            store_errors: m.counters(
                "whetstone_store_errors_total",
                "Errors of the store by category.",
                &["category"],
            )?,
            store_bytes: m.gauge("whetstone_store_bytes", "Size of the store.")?,
            kube_errors: m.counters(
                "whetstone_kube_errors_total",
                "Errors of the Kubernetes API by category.",
                &["category"],
            )?,
            leader: m.gauge("whetstone_leader", "1 on the replica that leads.")?,
            ready: m.gauges("whetstone_ready", "1 if this component is well.", &["component"])?,
            identity_conflicts: m
                .gauge("whetstone_identity_conflicts", "Serials that two machines claim.")?,
            unexpected: m
                .gauge("whetstone_unexpected_blades", "Serials that asked to join and are on no manifest.")?,
            nodes_without_blade: m
                .gauge("whetstone_nodes_without_blade", "Nodes that carry our taint and are no Blade's.")?,
            certificate_expires: m.put(GaugeVec::new(
                Opts::new(
                    "whetstone_certificate_expires_seconds",
                    "Time until a certificate of the site runs out.",
                ),
                &["certificate"],
            ))?,
            build_info: m.gauges("whetstone_build_info", "1, with the version.", &["version"])?,
            process: Process {
                resident: m.gauge("process_resident_memory_bytes", "Resident memory.")?,
                memory_limit: m
                    .gauge("whetstone_memory_limit_bytes", "Memory that the operator may use at most.")?,
                cpu: m.put(Counter::new("process_cpu_seconds_total", "Processor time, user and system."))?,
                start: m
                    .put(Gauge::new("process_start_time_seconds", "Start, seconds since the Unix epoch."))?,
                open_fds: m.gauge("process_open_fds", "Open file descriptors.")?,
            },
        })
    }

    /// Reads what the kernel says about this process; called at each scrape.
    pub fn refresh_process(&self) {
        let Some(usage) = Usage::now() else { return };
        self.process.resident.set(usage.resident_bytes);
        self.process.memory_limit.set(usage.limit_bytes);
        self.process.cpu.inc_by((usage.cpu_seconds - self.process.cpu.get()).max(0.0));
        self.process.start.set(usage.start_seconds);
        self.process.open_fds.set(usage.open_fds);
    }
}

/// What a distribution is of, within a tranche.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OfWhat {
    pub sku: String,
    pub test: String,
    pub metric: String,
}

/// Values at the quantiles 0, 0.05, 0.5, 0.95 and 1, by what they are of.
pub type Distribution = BTreeMap<OfWhat, [(&'static str, f64); 5]>;

/// Tranches whose distributions are exported, the ones compared last: with a hundred metrics each, 8,000 series at most.
const MAX_TRANCHES: usize = 16;

/// Distributions of burn-in metrics. That of a tranche is replaced as a whole, and touches no other's.
pub struct Distributions {
    gauge: GaugeVec,
    /// The one compared longest ago is first.
    shown: Mutex<VecDeque<(String, Distribution)>>,
}

impl Distributions {
    /// What of this tranche was there before and is not any more goes.
    pub fn replace(&self, tranche: &str, distribution: &Distribution) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for (of, quantiles) in distribution {
            for (quantile, value) in quantiles {
                self.gauge.with_label_values(&labels(tranche, of, quantile)).set(*value);
            }
        }
        if let Some(before) = shown.iter().position(|(name, _)| name == tranche)
            && let Some((_, old)) = shown.remove(before)
        {
            self.remove(tranche, old.iter().filter(|(of, _)| !distribution.contains_key(of)));
        }
        shown.push_back((tranche.to_owned(), distribution.clone()));
        while shown.len() > MAX_TRANCHES {
            let Some((name, old)) = shown.pop_front() else { break };
            self.remove(&name, old.iter());
        }
    }

    /// Tranches that are gone are not shown for ever.
    pub fn keep(&self, is_there: impl Fn(&str) -> bool) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.retain(|(name, old)| {
            let there = is_there(name);
            if !there {
                self.remove(name, old.iter());
            }
            there
        });
    }

    fn remove<'a>(
        &self,
        tranche: &str,
        old: impl Iterator<Item = (&'a OfWhat, &'a [(&'static str, f64); 5])>,
    ) {
        for (of, quantiles) in old {
            for (quantile, _) in quantiles {
                // It is there: nothing else sets or removes any.
                let _ = self.gauge.remove_label_values(&labels(tranche, of, quantile));
            }
        }
    }
}

fn labels<'a>(tranche: &'a str, of: &'a OfWhat, quantile: &'a str) -> [&'a str; 5] {
    [of.sku.as_str(), tranche, of.test.as_str(), of.metric.as_str(), quantile]
}

struct Usage {
    resident_bytes: i64,
    /// Of the container, or what the machine has.
    limit_bytes: i64,
    cpu_seconds: f64,
    start_seconds: f64,
    open_fds: i64,
}

impl Usage {
    /// From `/proc/self`. Linux counts in ticks of 1/100 s and pages of 4 KiB on the machines that we run on.
    fn now() -> Option<Usage> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The name in parentheses may hold spaces.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |place: usize| fields.get(place).and_then(|text| text.parse::<f64>().ok());
        let boot = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let resident: i64 = resident.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(Usage {
            resident_bytes: resident * 1024,
            limit_bytes: memory_limit()?,
            cpu_seconds: (number(11)? + number(12)?) / 100.0,
            start_seconds: boot + number(19)? / 100.0,
            open_fds: i64::try_from(std::fs::read_dir("/proc/self/fd").ok()?.count()).ok()?,
        })
    }
}

/// What the container may use (cgroup v2 or v1), or what the machine has if that is less or there is no container.
fn memory_limit() -> Option<i64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total: i64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let limits = [
        format!("/sys/fs/cgroup{}/memory.max", own.trim_end_matches('/')),
        "/sys/fs/cgroup/memory.max".to_owned(),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned(),
    ];
    let texts = limits.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    Some(least(texts, total * 1024))
}

/// A limit that is no number (`max`) is none; version 1 says "none" by a number that no machine has.
fn least(limits: impl Iterator<Item = String>, total: i64) -> i64 {
    limits.filter_map(|text| text.trim().parse().ok()).fold(total, i64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_read() {
        let usage = Usage::now().unwrap();
        assert!(usage.resident_bytes > 1 << 20 && usage.open_fds > 2, "{}", usage.resident_bytes);
        assert!(usage.start_seconds > 1.7e9 && usage.cpu_seconds >= 0.0);
        assert!(usage.limit_bytes >= usage.resident_bytes, "{}", usage.limit_bytes);
    }

    #[test]
    fn the_memory_limit_is_the_containers_or_the_machines() {
        let of = |texts: &[&str]| least(texts.iter().map(|text| (*text).to_owned()), 64 << 30);
        assert_eq!(of(&[]), 64 << 30);
        assert_eq!(of(&["max\n"]), 64 << 30);
        assert_eq!(of(&["9223372036854771712\n"]), 64 << 30);
        assert_eq!(of(&["max\n", "2147483648\n"]), 2 << 30);
    }

    #[test]
    fn a_tranche_replaces_its_own_distribution_and_the_oldest_goes_when_there_are_too_many() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let of = |metric: &str| OfWhat { sku: "s".into(), test: "t".into(), metric: metric.into() };
        let distribution = |metrics: &[&str], value: f64| -> Distribution {
            let at = ["0", "0.05", "0.5", "0.95", "1"].map(|quantile| (quantile, value));
            metrics.iter().map(|metric| (of(metric), at)).collect()
        };
        // (tranche, metric) -> the median that is exported.
        let shown = || -> BTreeMap<(String, String), f64> {
            let families = registry.gather();
            let family = families.iter().find(|family| family.name() == "whetstone_burnin_metric");
            family
                .into_iter()
                .flat_map(|family| family.get_metric())
                .filter_map(|metric| {
                    let label = |name: &str| {
                        let label = metric.get_label().iter().find(|label| label.name() == name).unwrap();
                        label.value().to_owned()
                    };
                    (label("quantile") == "0.5")
                        .then(|| ((label("tranche"), label("metric")), metric.get_gauge().get_value()))
                })
                .collect()
        };
        let key = |tranche: &str, metric: &str| (tranche.to_owned(), metric.to_owned());
        let burnin = &metrics.burnin_metric;
        burnin.replace("a", &distribution(&["m", "n"], 1.0));
        burnin.replace("b", &distribution(&["m"], 2.0));
        burnin.replace("a", &distribution(&["m"], 3.0));
        assert_eq!(shown(), BTreeMap::from([(key("a", "m"), 3.0), (key("b", "m"), 2.0)]));
        burnin.keep(|tranche| tranche == "a");
        assert_eq!(shown(), BTreeMap::from([(key("a", "m"), 3.0)]));
        for number in 0..MAX_TRANCHES {
            burnin.replace(&format!("t-{number}"), &distribution(&["m"], 4.0));
        }
        assert_eq!(shown().len(), MAX_TRANCHES);
        assert!(!shown().contains_key(&key("a", "m")), "the one compared longest ago stays");
    }

    #[test]
    fn all_metrics_can_be_registered_once() {
        let registry = Registry::new();
        assert!(Metrics::new(&registry).is_ok());
        assert!(Metrics::new(&registry).is_err());
    }
}
