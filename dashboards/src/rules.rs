//! The alerts as a rule file for Prometheus.

use serde::Serialize;

use crate::alerts::{Severity, all};

#[derive(Serialize)]
struct RuleFile<'a> {
    groups: Vec<Group<'a>>,
}

#[derive(Serialize)]
struct Group<'a> {
    name: String,
    rules: Vec<Rule<'a>>,
}

#[derive(Serialize)]
struct Rule<'a> {
    alert: &'a str,
    expr: &'a str,
    #[serde(rename = "for")]
    hold: &'a str,
    labels: Labels,
    annotations: Annotations<'a>,
}

#[derive(Serialize)]
struct Labels {
    severity: Severity,
}

#[derive(Serialize)]
struct Annotations<'a> {
    summary: &'a str,
    description: &'a str,
    runbook_url: String,
}

/// The rule file for Prometheus, with pages below `runbooks`.
pub fn yaml(runbooks: &str) -> Result<String, serde_norway::Error> {
    let alerts = all();
    let mut groups: Vec<Group<'_>> = Vec::new();
    for alert in &alerts {
        let name = format!("whetstone-{}", alert.group);
        let rule = Rule {
            alert: alert.name,
            expr: &alert.expr,
            hold: alert.hold,
            labels: Labels { severity: alert.severity },
            annotations: Annotations {
                summary: alert.summary,
                description: alert.description,
                runbook_url: alert.runbook_url(runbooks),
            },
        };
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.rules.push(rule),
            None => groups.push(Group { name, rules: vec![rule] }),
        }
    }
    Ok(format!(
        "# Written by 'whetstone-dashboards generate'.\n{}",
        serde_norway::to_string(&RuleFile { groups })?
    ))
}
