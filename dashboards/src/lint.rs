//! What can be wrong with dashboards and alerts without a Prometheus.

use std::collections::BTreeSet;

use crate::alerts::{self, Alert};
use crate::expr;
use crate::panel::{Dashboard, Draw, Panel};

/// Everything that is wrong, one line each with its place; empty is right.
pub fn all(boards: &[Dashboard], alerts: &[Alert]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut names = BTreeSet::new();
    for board in boards {
        if !names.insert(board.name) {
            problems.push(format!("{}: two dashboards have this name", board.name));
        }
        dashboard(board, &mut problems);
    }
    let mut names = BTreeSet::new();
    for alert in alerts {
        if !names.insert(alert.name) {
            problems.push(format!("{}: two alerts have this name", alert.name));
        }
        rule(alert, &mut problems);
    }
    problems
}

fn dashboard(board: &Dashboard, problems: &mut Vec<String>) {
    let mut used = BTreeSet::new();
    let mut titles = BTreeSet::new();
    for panel in board.panels() {
        let place = format!("{}/{}", board.name, panel.title);
        if !titles.insert(&panel.title) {
            problems.push(format!("{place}: two panels have this title"));
        }
        used.extend(self::panel(&place, panel, problems));
    }
    let defined: BTreeSet<String> = board.variables.iter().map(|variable| variable.name.to_owned()).collect();
    for dead in defined.difference(&used) {
        problems.push(format!("{}: nothing uses the variable ${dead}", board.name));
    }
    for unknown in used.difference(&defined) {
        problems.push(format!("{}: ${unknown} is not defined", board.name));
    }
    for variable in &board.variables {
        let read = expr::parts(&format!("sum by ({}) ({})", variable.label, variable.series));
        problems
            .extend(read.problems.into_iter().map(|p| format!("{}: ${}: {p}", board.name, variable.name)));
    }
    if board.description.len() < 20 {
        problems.push(format!("{}: has no description", board.name));
    }
}

/// Looks at one panel; the answer is the variables that it uses.
fn panel(place: &str, panel: &Panel, problems: &mut Vec<String>) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    let mut say = |what: String| problems.push(format!("{place}: {what}"));
    if panel.description.len() < 20 {
        say("has no description".into());
    }
    if panel.title.is_empty() || panel.width == 0 || panel.width > 24 || panel.height == 0 {
        say("has no title or no size".into());
    }
    if panel.draw == Draw::Text {
        if panel.text.is_empty() || !panel.targets.is_empty() {
            say("a text panel has text and no query".into());
        }
        return used;
    }
    if panel.unit.is_empty() {
        say("has no unit".into());
    }
    if panel.targets.is_empty() {
        say("has no query".into());
    }
    for target in &panel.targets {
        if target.legend.is_empty() {
            say(format!("{} has no legend", target.expr));
        }
        for label in braces(&target.legend) {
            // A label that the expression does not keep would be an empty place in the legend.
            if label != "le" && !target.expr.contains(&label) {
                say(format!("the legend names {label}, which {} does not keep", target.expr));
            }
        }
        let read = expr::parts(&target.expr);
        for problem in read.problems {
            say(problem);
        }
        used.extend(read.variables);
    }
    used
}

fn braces(legend: &str) -> Vec<String> {
    legend
        .split("{{")
        .skip(1)
        .filter_map(|rest| rest.split_once("}}"))
        .map(|(label, _)| label.trim().to_owned())
        .collect()
}

fn rule(alert: &Alert, problems: &mut Vec<String>) {
    let mut say = |what: String| problems.push(format!("{}: {what}", alert.name));
    if !alert.name.starts_with("Whetstone") {
        say("an alert's name begins with Whetstone".into());
    }
    if alert.summary.len() < 10 || alert.description.len() < 20 {
        say("has no summary or description".into());
    }
    if alert.signals.is_empty() {
        say("says nothing of what it measures".into());
    }
    for expr in alert.signals.iter().chain([&alert.expr]) {
        let read = expr::parts(expr);
        for problem in read.problems {
            say(problem);
        }
        if !read.variables.is_empty() {
            say("an alert has no dashboard's variables".into());
        }
    }
    if alert.runbook_url("").contains("//") || matches!(alert.runbook, alerts::Runbook::Page("")) {
        say("has no page".into());
    }
}
