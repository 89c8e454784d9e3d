//! PromQL: the few forms that panels and alerts are put together from, and what can be said of an expression without a
//! Prometheus.

use std::collections::BTreeSet;

use regex::Regex;

use crate::catalogue::{self, Metric};

/// A series of the replica that leads. Others may still export what they knew when they led.
pub fn led(series: &str) -> String {
    format!("({series} and on (job, instance) (whetstone_leader == 1))")
}

/// The leader's value for each value of `by` (comma separated; empty: one value). `max`, because for a moment two
/// replicas may think that they lead.
pub fn latest(series: &str, by: &str) -> String {
    format!("max{} {}", clause(by), led(series))
}

/// Events a second over all replicas, with the window that Grafana thinks right.
pub fn rate(series: &str, by: &str) -> String {
    format!("sum{} (rate({series}[$__rate_interval]))", clause(by))
}

/// Events over the time that the dashboard shows.
pub fn total(series: &str, by: &str) -> String {
    format!("sum{} (increase({series}[$__range]))", clause(by))
}

/// A quantile of a histogram over all replicas; `matchers` without braces, may be empty.
pub fn quantile(q: f64, histogram: &str, matchers: &str, by: &str) -> String {
    let by = if by.is_empty() { String::new() } else { format!(", {by}") };
    format!(
        "histogram_quantile({q}, sum by (le{by}) (rate({histogram}_bucket{{{matchers}}}[$__rate_interval])))"
    )
}

/// The buckets of a histogram, for a heat map.
pub fn buckets(histogram: &str, matchers: &str) -> String {
    format!("sum by (le) (increase({histogram}_bucket{{{matchers}}}[$__rate_interval]))")
}

fn clause(by: &str) -> String {
    if by.is_empty() { String::new() } else { format!(" by ({by})") }
}

/// What an expression is made of.
#[derive(Debug, Default, PartialEq)]
pub struct Parts {
    /// Names of series, as Prometheus stores them.
    pub series: BTreeSet<String>,
    /// Grafana's variables, without `$`; built-in ones (`__…`) left out.
    pub variables: BTreeSet<String>,
    /// What is wrong, one line each.
    pub problems: Vec<String>,
}

impl Parts {
    /// The metrics read, without those that only choose the replica.
    pub fn metrics(&self) -> Vec<&'static Metric> {
        self.series.iter().filter_map(|name| catalogue::series(name)).collect()
    }
}

const FUNCTIONS: &[&str] = &[
    "sum",
    "max",
    "min",
    "count",
    "avg",
    "rate",
    "increase",
    "changes",
    "delta",
    "absent",
    "histogram_quantile",
    "clamp_min",
    "clamp_max",
    "sort_desc",
    "topk",
    "vector",
    "label_replace",
    "max_over_time",
    "min_over_time",
];
const WORDS: &[&str] = &["and", "or", "unless", "by", "on", "bool"];
/// Labels that Prometheus itself adds.
const TARGET_LABELS: &[&str] = &["job", "instance", "le"];

/// Takes an expression apart and holds each series, label and label value in it against the catalogue.
pub fn parts(expr: &str) -> Parts {
    let mut parts = Parts::default();
    // These patterns are constants: a failure would show in every test.
    let (Ok(variable), Ok(grouping), Ok(range), Ok(name), Ok(matcher)) = (
        Regex::new(r"\$\{?(\w+)\}?"),
        Regex::new(r"\b(?:by|on|group_left)\s*\(([^)]*)\)"),
        Regex::new(r"\[[^\]]*\]"),
        Regex::new(r"\b([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(\(|\{[^}]*\})?"),
        Regex::new(r#"^\s*(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"\s*$"#),
    ) else {
        parts.problems.push("a pattern of this crate does not compile".into());
        return parts;
    };
    for found in variable.captures_iter(expr) {
        if !found[1].starts_with("__") {
            parts.variables.insert(found[1].to_owned());
        }
    }
    let groups: BTreeSet<String> = grouping
        .captures_iter(expr)
        .flat_map(|found| found[1].split(',').map(|label| label.trim().to_owned()).collect::<Vec<_>>())
        .filter(|label| !label.is_empty())
        .collect();
    let bare = grouping.replace_all(expr, " ");
    let bare = range.replace_all(&bare, "");
    for found in name.captures_iter(&bare) {
        let word = &found[1];
        let after = found.get(2).map_or("", |after| after.as_str());
        if after == "(" && FUNCTIONS.contains(&word) || WORDS.contains(&word) || FUNCTIONS.contains(&word) {
            continue;
        }
        let Some(metric) = catalogue::series(word) else {
            parts.problems.push(format!("{word} is no series of the catalogue"));
            continue;
        };
        parts.series.insert(word.to_owned());
        let inner = after.trim_start_matches('{').trim_end_matches('}');
        for one in inner.split(',').filter(|one| !one.trim().is_empty() && after.starts_with('{')) {
            match matcher.captures(one) {
                Some(found) => check_matcher(metric, &found[1], &found[3], &mut parts.problems),
                None => parts.problems.push(format!("{word}: cannot read the matcher {one:?}")),
            }
        }
    }
    let known: BTreeSet<&str> = parts
        .metrics()
        .iter()
        .flat_map(|metric| metric.labels.iter().map(|label| label.name))
        .chain(TARGET_LABELS.iter().copied())
        .collect();
    for label in groups.iter().filter(|label| !known.contains(label.as_str())) {
        parts.problems.push(format!("groups by {label}, which none of its metrics has"));
    }
    parts
}

/// A value that is written out has to be one that the catalogue has, a pattern has to fit one; `a|b` is looked at one by one.
fn check_matcher(metric: &Metric, label: &str, value: &str, problems: &mut Vec<String>) {
    if TARGET_LABELS.contains(&label) {
        return;
    }
    let Some(known) = metric.labels.iter().find(|known| known.name == label) else {
        problems.push(format!("{} has no label {label}", metric.name));
        return;
    };
    if value.contains('$') {
        return;
    }
    for one in value.split('|') {
        // Prometheus' patterns stand for the whole value.
        let fits = match Regex::new(&format!("^(?:{one})$")) {
            Ok(pattern) if one.contains(".*") => known.values.iter().any(|value| pattern.is_match(value)),
            _ => known.values.contains(&one),
        };
        if !fits {
            problems.push(format!("{}: {label}={one:?} is no value of the catalogue", metric.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_expressions_are_taken_apart() {
        let read = parts(&latest(
            r#"whetstone_tranche_blades{tranche=~"$tranche",state="ready"}"#,
            "tranche, state",
        ));
        assert_eq!(read.problems, Vec::<String>::new());
        assert!(read.variables.contains("tranche") && read.series.contains("whetstone_tranche_blades"));
        let read = parts(&quantile(0.99, "whetstone_store_seconds", "", "op"));
        assert_eq!(read.problems, Vec::<String>::new());
        assert!(read.variables.is_empty());
        assert_eq!(read.metrics().iter().map(|m| m.name).collect::<Vec<_>>(), ["whetstone_store_seconds"]);
    }

    #[test]
    fn slips_are_found() {
        for (expr, what) in [
            ("whetstone_blade", "whetstone_blade is no series"),
            ("rate(whetstone_withhold_seconds[5m])", "whetstone_withhold_seconds is no series"),
            ("sum by (serial) (whetstone_blades)", "groups by serial"),
            (r#"whetstone_blades{state="x"}"#, "has no label state"),
            (r#"whetstone_agents{state=~"live|gone"}"#, "state=\"gone\""),
            ("median(whetstone_blades)", "median is no series"),
            (r#"whetstone_blades{phase}"#, "cannot read the matcher"),
            (r#"whetstone_burnin_metric{metric=~"m.gemm.*"}"#, "metric=\"m.gemm.*\" is no value"),
        ] {
            let problems = parts(expr).problems;
            assert!(problems.iter().any(|problem| problem.contains(what)), "{expr}: {problems:?}");
        }
    }
}
