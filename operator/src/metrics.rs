//! Metrics of the loop, the cluster and the store. Labels are few and bounded: never a serial, never a name of a blade.

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
    pub burnin_metric: GaugeVec,
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
    pub build_info: IntGaugeVec,
    process: Process,
}

/// The operator about itself, in the names that every Prometheus client uses.
struct Process {
    resident: IntGauge,
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
            run_seconds: m.histograms("whetstone_run_seconds", "How long a run took.", &RUN, &["suite"])?,
            burnin_metric: m.put(GaugeVec::new(
                Opts::new(
                    "whetstone_burnin_metric",
                    "Distribution of a burn-in metric over the devices of the last cohort.",
                ),
                &["sku", "metric", "quantile"],
            ))?,
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
                "From evidence received to taint applied.",
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
            build_info: m.gauges("whetstone_build_info", "1, with the version.", &["version"])?,
            process: Process {
                resident: m.gauge("process_resident_memory_bytes", "Resident memory.")?,
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
        self.process.cpu.inc_by((usage.cpu_seconds - self.process.cpu.get()).max(0.0));
        self.process.start.set(usage.start_seconds);
        self.process.open_fds.set(usage.open_fds);
    }
}

struct Usage {
    resident_bytes: i64,
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
            cpu_seconds: (number(11)? + number(12)?) / 100.0,
            start_seconds: boot + number(19)? / 100.0,
            open_fds: i64::try_from(std::fs::read_dir("/proc/self/fd").ok()?.count()).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_read() {
        let usage = Usage::now().unwrap();
        assert!(usage.resident_bytes > 1 << 20 && usage.open_fds > 2, "{}", usage.resident_bytes);
        assert!(usage.start_seconds > 1.7e9 && usage.cpu_seconds >= 0.0);
    }

    #[test]
    fn all_metrics_can_be_registered_once() {
        let registry = Registry::new();
        assert!(Metrics::new(&registry).is_ok());
        assert!(Metrics::new(&registry).is_err());
    }
}
