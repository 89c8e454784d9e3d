//! Makes the table of `docs/benchmarks/fleet-judge.md`: the judge's realised false-positive rate on healthy fleets of
//! several noise shapes, and its precision and recall on planted gray devices beside fixed limits.
//!
//! `cargo run --release -p whetstone-burnin --example fleet_table -- [DEVICES_PER_CELL] [RAW_FILE]`
//!
//! Prints Markdown; RAW_FILE gets one JSON object per cell.

#[path = "../tests/fleets/mod.rs"]
mod fleets;

use std::collections::BTreeSet;
use std::io::Write;

use fleets::{Fleet, Plan, Shape, make};
use whetstone_burnin::judge::{Better, Options, Sample, judge, robust};

const BLADES: [usize; 5] = [3, 4, 8, 16, 40];
const METRICS: usize = 3;
const FPR: f64 = 0.01;

type Names = BTreeSet<(String, String)>;

/// A way to accuse devices.
struct Rule {
    name: &'static str,
    accuse: fn(&[Sample]) -> Names,
}

const RULES: [Rule; 4] = [
    Rule { name: "judge, fpr 1 %", accuse: by_judge },
    Rule { name: "fixed −5 %", accuse: |s| by_limit(s, |m, _| 0.05 * m) },
    Rule { name: "75 % floor", accuse: |s| by_limit(s, |m, _| 0.25 * m) },
    Rule { name: "3 MAD", accuse: |s| by_limit(s, |_, mad| 3.0 * mad) },
];

fn by_judge(samples: &[Sample]) -> Names {
    let judgement = judge(samples, &Options { fpr: FPR, seed: 0 });
    judgement.outliers.into_iter().map(|o| (o.blade, o.device)).collect()
}

/// Accuses whatever lies more than `limit(median, scaled MAD)` on the bad side of the cohort's median.
fn by_limit(samples: &[Sample], limit: fn(f64, f64) -> f64) -> Names {
    let metrics: BTreeSet<&str> = samples.iter().map(|s| s.metric.as_str()).collect();
    let mut accused = Names::new();
    for metric in metrics {
        let cohort: Vec<&Sample> = samples.iter().filter(|s| s.metric == metric).collect();
        let mut values: Vec<f64> = cohort.iter().map(|s| s.value).collect();
        values.sort_by(f64::total_cmp);
        let median = robust::median_of_sorted(&values);
        let off: Vec<f64> = values.iter().map(|v| (v - median).abs()).collect();
        let mad = 1.4826 * robust::median(&off).unwrap_or(0.0);
        for s in cohort {
            let lag = if s.better == Better::Higher { median - s.value } else { s.value - median };
            if lag > limit(median, mad) {
                accused.insert((s.blade.clone(), s.device.clone()));
            }
        }
    }
    accused
}

#[derive(Default)]
struct Tally {
    /// Planted and accused, planted, healthy and accused, healthy.
    hit: usize,
    gray: usize,
    wrong: usize,
    healthy: usize,
    /// Healthy devices accused per fleet, for an interval that knows that they come together.
    per_fleet: Vec<f64>,
}

impl Tally {
    fn add(&mut self, fleet: &Fleet, accused: &Names) {
        let wrong = accused.difference(&fleet.gray).count();
        self.hit += accused.intersection(&fleet.gray).count();
        self.gray += fleet.gray.len();
        self.wrong += wrong;
        self.healthy += fleet.devices - fleet.gray.len();
        self.per_fleet.push(wrong as f64);
    }

    /// Healthy devices accused in percent, with half the width of a 95 % interval (normal, over fleets).
    fn false_percent(&self) -> (f64, f64) {
        let n = self.per_fleet.len() as f64;
        let mean = self.wrong as f64 / n;
        let variance = self.per_fleet.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        let devices = self.healthy as f64 / n;
        (100.0 * mean / devices, 196.0 * (variance / n).sqrt() / devices)
    }

    fn recall(&self) -> f64 {
        100.0 * self.hit as f64 / self.gray.max(1) as f64
    }

    /// `None` if nobody was accused.
    fn precision(&self) -> Option<f64> {
        let accused = self.hit + self.wrong;
        (accused > 0).then(|| 100.0 * self.hit as f64 / accused as f64)
    }
}

fn run(plan: &Plan, devices: usize, rule: &Rule) -> Tally {
    let mut tally = Tally::default();
    for seed in 0..(devices / (plan.blades * plan.per_blade)).max(3) as u64 {
        let fleet = make(&Plan { seed: 1_000_000 + seed, ..*plan });
        tally.add(&fleet, &(rule.accuse)(&fleet.samples));
    }
    tally
}

fn main() {
    let mut devices = 6_000;
    let mut raw = None;
    for arg in std::env::args().skip(1) {
        match arg.parse() {
            Ok(n) => devices = n,
            Err(_) => match std::fs::File::create(&arg) {
                Ok(file) => raw = Some(file),
                Err(error) => {
                    eprintln!("{arg}: {error}; usage: fleet_table [DEVICES_PER_CELL] [RAW_FILE]");
                    std::process::exit(2);
                }
            },
        }
    }
    let mut cell = |table: &str, plan: &Plan, rule: &Rule, tally: &Tally| {
        if let Some(file) = &mut raw {
            let (rate, half) = tally.false_percent();
            let written = writeln!(
                file,
                "{}",
                serde_json::json!({
                    "table": table, "shape": plan.shape.name(), "blades": plan.blades, "metrics": plan.metrics,
                    "gray_share": plan.gray_share, "gray_drop": plan.gray_drop, "slow_blade": plan.slow_blade,
                    "rule": rule.name, "fleets": tally.per_fleet.len(), "healthy": tally.healthy,
                    "healthy_accused": tally.wrong, "false_percent": rate, "half_width_95": half,
                    "planted": tally.gray, "planted_accused": tally.hit,
                })
            );
            if let Err(error) = written {
                eprintln!("raw file: {error}");
                std::process::exit(1);
            }
        }
    };
    let say = |text: String| println!("{text}");
    let heads = |first: &str| format!("| {first} | {} |", BLADES.map(|b| format!("{b} × 8")).join(" | "));
    let rule_line = format!("|---|{}", "---|".repeat(BLADES.len()));

    for metrics in [1, METRICS] {
        say(format!(
            "\n### Healthy devices accused at fpr 1 %, {metrics} metric(s) per device (percent ± 95 % interval)\n"
        ));
        say(heads("noise \\ blades × devices"));
        say(rule_line.clone());
        for shape in Shape::ALL {
            let row = BLADES.map(|blades| {
                let plan = Plan::healthy(shape, blades, metrics, 0);
                let tally = run(&plan, devices, &RULES[0]);
                cell("false positives", &plan, &RULES[0], &tally);
                let (rate, half) = tally.false_percent();
                format!("{rate:.2} ± {half:.2}")
            });
            say(format!("| {} | {} |", shape.name(), row.join(" | ")));
        }
    }

    say("\n### The other rules on the same healthy fleets (percent of healthy devices accused, 16 blades, 3 metrics)\n"
        .to_owned());
    say(format!("| noise | {} |", RULES.map(|r| r.name).join(" | ")));
    say(format!("|---|{}", "---|".repeat(RULES.len())));
    for shape in Shape::ALL {
        let row = RULES.map(|rule| {
            let plan = Plan::healthy(shape, 16, METRICS, 0);
            let tally = run(&plan, devices, &rule);
            cell("false positives of rules", &plan, &rule, &tally);
            format!("{:.2}", tally.false_percent().0)
        });
        say(format!("| {} | {} |", shape.name(), row.join(" | ")));
    }

    for shape in [Shape::Normal, Shape::StudentT3, Shape::BladeEffects] {
        for share in [0.01, 0.10] {
            say(format!(
                "\n### {}: {:.0} % of the devices slow in one of 3 metrics (recall / precision, percent)\n",
                shape.name(),
                100.0 * share
            ));
            say(heads("drop, rule"));
            say(rule_line.clone());
            for drop in [0.02, 0.03, 0.05, 0.08] {
                for rule in &RULES {
                    let row = BLADES.map(|blades| {
                        let plan = Plan {
                            gray_share: share,
                            gray_drop: drop,
                            ..Plan::healthy(shape, blades, METRICS, 0)
                        };
                        let tally = run(&plan, devices / 3, rule);
                        cell("gray devices", &plan, rule, &tally);
                        let precision = tally.precision().map_or("–".to_owned(), |p| format!("{p:.0}"));
                        format!("{:.0} / {precision}", tally.recall())
                    });
                    say(format!("| −{:.0} %, {} | {} |", 100.0 * drop, rule.name, row.join(" | ")));
                }
            }
        }
    }

    say(
        "\n### One whole blade slow in one of 3 metrics, normal noise (recall over its 8 devices, percent)\n"
            .to_owned(),
    );
    say(heads("drop"));
    say(rule_line);
    for drop in [0.02, 0.03, 0.05, 0.08] {
        let row = BLADES.map(|blades| {
            let plan = Plan { slow_blade: drop, ..Plan::healthy(Shape::Normal, blades, METRICS, 0) };
            let tally = run(&plan, devices / 3, &RULES[0]);
            cell("slow blade", &plan, &RULES[0], &tally);
            format!("{:.0}", tally.recall())
        });
        say(format!("| −{:.0} % | {} |", 100.0 * drop, row.join(" | ")));
    }
}
