//! What burn-in measures, by SKU: levels, spread, and why blades fail.

use crate::expr::{buckets, latest, led, quantile, total};
use crate::panel::{Dashboard, Draw, Panel, Row, Variable};

/// `burnin.json`.
pub fn dashboard() -> Dashboard {
    Dashboard {
        name: "burnin",
        title: "Whetstone / Burn-in distributions",
        description: "Distributions of what burn-in measures over the devices of a SKU in each tranche, and how long and how well runs go.",
        variables: vec![
            Variable {
                name: "sku",
                title: "SKU",
                description: "SKUs to show",
                series: "whetstone_burnin_metric",
                label: "sku",
            },
            Variable {
                name: "tranche",
                title: "Tranche",
                description: "Deliveries to show; the sixteen that were compared last are there",
                series: "whetstone_burnin_metric",
                label: "tranche",
            },
            Variable {
                name: "metric",
                title: "Metric",
                description: "Metrics for the panels on any metric",
                series: "whetstone_burnin_metric",
                label: "metric",
            },
        ],
        rows: vec![
            Row { title: "Levels", panels: levels() },
            Row { title: "Any metric", panels: any() },
            Row { title: "Runs", panels: runs() },
        ],
    }
}

/// What tells one distribution from another: two tests of a suite may measure the same metric.
const BY: &str = "sku, tranche, test, metric, quantile";
const LEGEND: &str = "{{sku}} {{tranche}} {{test}} {{metric}} q{{quantile}}";

fn level(title: &str, unit: &str, metrics: &str, description: &str) -> Panel {
    let series = format!(r#"whetstone_burnin_metric{{sku=~"$sku",tranche=~"$tranche",metric=~"{metrics}"}}"#);
    Panel::new(Draw::Timeseries, title, unit, description).target(LEGEND, latest(&series, BY))
}

fn levels() -> Vec<Panel> {
    vec![
        level(
            "GEMM throughput",
            "suffix: TFLOP/s",
            "gemm.*",
            "Exact matrix products by data type. The low quantile falling away from the median means single slow devices; \
             all of them falling means power, cooling or a driver.",
        ),
        level(
            "GPU memory bandwidth",
            "GBs",
            "hbm.*",
            "Bytes read plus bytes written. Spread within a SKU is small: a low device is an outlier.",
        ),
        level(
            "PCIe bandwidth",
            "GBs",
            "pcie.*bandwidth",
            "Host to GPU and back, pinned memory. Half the median is a link that trained down.",
        ),
        level(
            "NCCL bus bandwidth",
            "GBs",
            "nccl.*",
            "Collectives within a blade, as nccl-tests defines bus bandwidth.",
        ),
        level(
            "GPU to GPU bandwidth",
            "GBs",
            "p2p.*bandwidth",
            "Copies between the GPUs of a blade. A pair below the others is a lane or a switch port.",
        ),
        level(
            "Main memory bandwidth",
            "GBs",
            "dram.*",
            "Of the blade. Half the median is a channel without a DIMM, or one that was switched off.",
        ),
    ]
}

fn any() -> Vec<Panel> {
    let series = r#"whetstone_burnin_metric{sku=~"$sku",tranche=~"$tranche",metric=~"$metric"}"#;
    let high = format!("max by (sku, tranche, test, metric) ({})", led(series));
    let low = format!("min by (sku, tranche, test, metric) ({})", led(series));
    vec![
        Panel::new(
            Draw::BarGauge,
            "Spread",
            "percentunit",
            "Distance between the highest and the lowest quantile, as part of the highest. The fleet judge works on the \
             same samples; this shows where to look.",
        )
        .target("{{sku}} {{tranche}} {{test}} {{metric}}", format!("sort_desc(({high} - {low}) / {high})")),
        Panel::new(
            Draw::Table,
            "Quantiles now",
            "short",
            "Latest distribution of each chosen metric; units stand in docs/metrics.md.",
        )
        .target(LEGEND, latest(series, BY)),
    ]
}

fn runs() -> Vec<Panel> {
    vec![
        Panel::new(
            Draw::BarGauge,
            "Failed and inconclusive verdicts by reason",
            "short",
            "In the range shown. `untestable` and `wrong-inventory` are work for the site; `outlier` and `burn-in` for the supplier.",
        )
        .target("{{outcome}} {{reason}}", total(r#"whetstone_verdicts_total{outcome=~"fail|inconclusive"}"#, "outcome, reason")),
        Panel::new(Draw::Heatmap, "Time of a run", "s", "Runs that ended, by the time from their start on the blade to the result.")
            .target("{{le}}", buckets("whetstone_run_seconds", "")),
        Panel::new(
            Draw::Timeseries,
            "Part of the runs by outcome",
            "percentunit",
            "Over the last hour at each moment. A rising part of lost runs is a problem of agents or network, not of blades.",
        )
        .target(
            "{{outcome}}",
            "sum by (outcome) (rate(whetstone_runs_total[1h])) \
             / on () group_left () clamp_min(sum(rate(whetstone_runs_total[1h])), 1e-9)",
        )
        .max(1.0),
        Panel::new(Draw::Timeseries, "Time of a run by suite", "s", "Median from start to result, by suite.")
            .target("{{suite}} p50", quantile(0.5, "whetstone_run_seconds", "", "suite")),
    ]
}
