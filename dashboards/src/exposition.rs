//! The text that a process answers at `/metrics`, held against the catalogue.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalogue::{Kind, METRICS, Metric, Source, exported};

/// Lines of an exposition that are looked at; a process with a hundred families has some thousand.
const MAX_LINES: usize = 200_000;

/// What does not fit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    #[error("line {line}: {what}")]
    Unreadable { line: usize, what: String },
    #[error("nothing in it says whether it comes from an operator or an agent")]
    NoSource,
    #[error("{name} is exported and not in the catalogue")]
    Unknown { name: String },
    #[error("{name} is in the catalogue and the {source_name} does not export it")]
    Missing { name: &'static str, source_name: &'static str },
    #[error("{name} is in the catalogue; the {source_name} has not exported it yet")]
    NotYet { name: &'static str, source_name: &'static str },
    #[error("{name} is exported as {got}, the catalogue says {wanted}")]
    Type { name: String, got: String, wanted: &'static str },
    #[error("{name} has no help text")]
    Help { name: String },
    #[error("{name} has the labels [{got}], the catalogue says [{wanted}]")]
    Labels { name: String, got: String, wanted: String },
    #[error("{name}: {label}={value:?} is not one of the catalogue's values")]
    Value { name: String, label: &'static str, value: String },
    #[error("{name}: the greatest bucket is {got}, an alert needs {wanted}")]
    Reach { name: String, got: String, wanted: String },
}

impl Problem {
    /// False for what may be right: a metric whose first event has not happened.
    pub fn is_error(&self) -> bool {
        !matches!(self, Problem::NotYet { .. })
    }
}

/// One family as read.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: bool,
    /// Labels and values of each series, without `le`.
    series: Vec<BTreeMap<String, String>>,
    /// Greatest finite `le`.
    reach: Option<f64>,
}

/// Holds what one process exports against the catalogue, both ways. Which process it is follows from what is in it.
/// Families that are not ours (`process_*`, `go_*`) may be there or not, except those that the catalogue names.
/// A metric that has to be there from the start ([`Metric::from_the_start`]) and has no series is [`Problem::Missing`],
/// any other [`Problem::NotYet`].
pub fn compare(text: &str) -> Vec<Problem> {
    let mut problems = BTreeSet::new();
    let families = read(text, &mut problems);
    let source = if families.contains_key("whetstone_agent_up_seconds") {
        Source::Agent
    } else if families.keys().any(|name| name.starts_with("whetstone_")) {
        Source::Operator
    } else {
        problems.insert(Problem::NoSource);
        return problems.into_iter().collect();
    };
    for (name, family) in &families {
        match exported(name, source) {
            Some(metric) => fits(metric, family, &mut problems),
            None if name.starts_with("whetstone_") => {
                problems.insert(Problem::Unknown { name: name.clone() });
            }
            None => {}
        }
    }
    for metric in METRICS.iter().filter(|metric| metric.source == source) {
        if families.get(metric.name).is_none_or(|family| family.series.is_empty()) {
            let (name, source_name) = (metric.name, source.as_str());
            problems.insert(if metric.from_the_start() {
                Problem::Missing { name, source_name }
            } else {
                Problem::NotYet { name, source_name }
            });
        }
    }
    problems.into_iter().collect()
}

fn fits(metric: &Metric, family: &Family, problems: &mut BTreeSet<Problem>) {
    let name = || metric.name.to_owned();
    if family.kind != metric.kind.as_str() {
        problems.insert(Problem::Type {
            name: name(),
            got: family.kind.clone(),
            wanted: metric.kind.as_str(),
        });
    }
    if !family.help {
        problems.insert(Problem::Help { name: name() });
    }
    let wanted: BTreeSet<&str> = metric.labels.iter().map(|label| label.name).collect();
    for series in &family.series {
        let got: BTreeSet<&str> = series.keys().map(String::as_str).collect();
        if got != wanted {
            let list = |set: &BTreeSet<&str>| set.iter().copied().collect::<Vec<_>>().join(", ");
            problems.insert(Problem::Labels { name: name(), got: list(&got), wanted: list(&wanted) });
        }
        for label in metric.labels.iter().filter(|label| label.closed) {
            if let Some(value) =
                series.get(label.name).filter(|value| !label.values.contains(&value.as_str()))
            {
                problems.insert(Problem::Value { name: name(), label: label.name, value: value.clone() });
            }
        }
    }
    if metric.kind == Kind::Histogram
        && !family.series.is_empty()
        && family.reach.is_none_or(|reach| reach < metric.reach)
    {
        problems.insert(Problem::Reach {
            name: name(),
            got: family.reach.map_or_else(|| "none".into(), |reach| reach.to_string()),
            wanted: metric.reach.to_string(),
        });
    }
}

fn read(text: &str, problems: &mut BTreeSet<Problem>) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut problem = |line: usize, what: &str| {
        problems.insert(Problem::Unreadable { line: line + 1, what: what.into() });
    };
    for (number, line) in text.lines().enumerate() {
        if number >= MAX_LINES {
            problem(number, "too many lines");
            break;
        }
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            match rest.split_once(' ') {
                Some((name, kind)) => families.entry(name.into()).or_default().kind = kind.trim().into(),
                None => problem(number, "a TYPE without a type"),
            }
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            families.entry(name.into()).or_default().help = !help.trim().is_empty();
        } else if !line.is_empty() && !line.starts_with('#') {
            match sample(line) {
                Some((name, labels)) => add(&mut families, name, labels),
                None => problem(number, "not a sample"),
            }
        }
    }
    families
}

fn add(families: &mut BTreeMap<String, Family>, name: &str, mut labels: BTreeMap<String, String>) {
    let bound = labels.remove("le").and_then(|le| le.parse::<f64>().ok()).filter(|le| le.is_finite());
    let parent = ["_bucket", "_sum", "_count"]
        .iter()
        .filter_map(|part| name.strip_suffix(part))
        .find(|parent| families.get(*parent).is_some_and(|family| family.kind == "histogram"))
        .unwrap_or(name);
    let family = families.entry(parent.to_owned()).or_default();
    family.reach = match (family.reach, bound) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    };
    if !family.series.contains(&labels) {
        family.series.push(labels);
    }
}

/// `name{label="value",…} number [time]`
fn sample(line: &str) -> Option<(&str, BTreeMap<String, String>)> {
    let end = line.find(['{', ' ', '\t'])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner.trim_start();
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once('=')?;
            let (value, after) = quoted(after.trim_start())?;
            labels.insert(label.trim().to_owned(), value);
            rest = after.trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next()?;
    let known = matches!(value, "+Inf" | "-Inf" | "NaN") || value.parse::<f64>().is_ok();
    (known && !name.is_empty()).then_some((name, labels))
}

/// A quoted value and what comes after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let inner = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &inner[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_read_whatever_is_in_its_labels() {
        let (name, labels) = sample(r#"a_total{x="1,\"}\\ ",y=""} 3 17"#).unwrap();
        assert_eq!(name, "a_total");
        assert_eq!(labels["x"], "1,\"}\\ ");
        assert_eq!(labels["y"], "");
        assert!(sample("a 1e3").is_some() && sample("a +Inf").is_some());
        for bad in ["a", "a x", "a{x=1} 2", "a{x=\"1} 2", "{x=\"1\"} 2", "a{x"] {
            assert!(sample(bad).is_none(), "{bad}");
        }
    }

    fn only(text: &str, wanted: impl Fn(&Problem) -> bool) {
        let found = compare(text);
        assert!(found.iter().any(wanted), "{found:#?}");
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let gauge =
            |name: &str, labels: &str| format!("# HELP {name} x\n# TYPE {name} gauge\n{name}{labels} 1\n");
        only("", |p| *p == Problem::NoSource);
        only(
            &gauge("whetstone_new", ""),
            |p| matches!(p, Problem::Unknown { name } if name == "whetstone_new"),
        );
        only(&gauge("whetstone_leader", ""), |p| {
            matches!(p, Problem::Missing { name: "whetstone_blades", .. })
        });
        only(
            &gauge("whetstone_leader", "{serial=\"1\"}"),
            |p| matches!(p, Problem::Labels { got, .. } if got == "serial"),
        );
        only(
            &gauge("whetstone_agents", "{state=\"gone\"}"),
            |p| matches!(p, Problem::Value { value, .. } if value == "gone"),
        );
        only(&gauge("whetstone_joins_total", "{result=\"x\"}"), |p| {
            matches!(p, Problem::Type { wanted: "counter", .. })
        });
        only("# TYPE whetstone_leader gauge\nwhetstone_leader 1\n", |p| matches!(p, Problem::Help { .. }));
        only("whetstone_leader one\n", |p| matches!(p, Problem::Unreadable { line: 1, .. }));
        let short = "# HELP whetstone_withhold_seconds x\n# TYPE whetstone_withhold_seconds histogram\n\
                     whetstone_withhold_seconds_bucket{le=\"1\"} 1\nwhetstone_withhold_seconds_bucket{le=\"+Inf\"} 1\n\
                     whetstone_withhold_seconds_sum 1\nwhetstone_withhold_seconds_count 1\n";
        only(short, |p| matches!(p, Problem::Reach { got, .. } if got == "1"));
    }
}
