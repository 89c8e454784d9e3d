//! Runs every query of every panel and alert on a Prometheus that scrapes a site: is it valid there, and does it return
//! data where the site has some.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;

use crate::expr;
use crate::panel::{Draw, Target};
use crate::{alerts, boards};

/// Queries wait no longer than this for their answer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Largest answer that is read, bytes.
const MAX_ANSWER: u64 = 16 << 20;

/// What has to return data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect<'a> {
    /// Every query.
    All,
    /// Every query that reads nothing but metrics named like this in the list (names of the catalogue).
    Metric(&'a str),
    /// The query at this place: `site/Blades by phase`, `alert/WhetstoneNoLeader`.
    Place(&'a str),
    /// The query at this place may be empty, whatever else is said.
    MayBeEmpty(&'a str),
}

/// One query and what it gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// `<dashboard>/<panel>`, or `alert/<name>`.
    pub place: String,
    /// As it was sent.
    pub expr: String,
    /// Series with a number in them (a `NaN` is none).
    pub series: usize,
}

/// What became of a check.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    pub answers: Vec<Answer>,
    /// One line each; empty is right.
    pub problems: Vec<String>,
}

/// Prometheus could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("cannot reach prometheus at {url}")]
    Unreachable { url: String, source: ureq::Error },
    #[error("prometheus gave no answer that can be read to {expr:?}")]
    Unreadable { expr: String, source: ureq::Error },
    #[error("{what} is neither a metric of the catalogue nor a place of a dashboard or alert")]
    NoSuchThing { what: String },
}

#[derive(Debug, Deserialize)]
struct Reply {
    status: String,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Debug, Deserialize)]
struct Data {
    #[serde(default)]
    result: Vec<serde_json::Value>,
}

/// A Prometheus to ask.
struct Prometheus {
    url: String,
    agent: ureq::Agent,
}

impl Prometheus {
    fn new(url: &str) -> Prometheus {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            // A site's Prometheus is at the site.
            .proxy(None)
            .http_status_as_error(false)
            .build()
            .new_agent();
        Prometheus { url: url.trim_end_matches('/').to_owned(), agent }
    }

    /// Series with a number, or the error that Prometheus found in the expression.
    fn query(&self, expr: &str) -> Result<Result<usize, String>, CheckError> {
        let mut response = self
            .agent
            .get(format!("{}/api/v1/query", self.url))
            .query("query", expr)
            .call()
            .map_err(|source| CheckError::Unreachable { url: self.url.clone(), source })?;
        let reply: Reply = response
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER)
            .read_json()
            .map_err(|source| CheckError::Unreadable { expr: expr.to_owned(), source })?;
        if reply.status != "success" {
            return Ok(Err(reply.error.unwrap_or(reply.status)));
        }
        let result = reply.data.map(|data| data.result).unwrap_or_default();
        Ok(Ok(result.iter().filter(|series| has_number(series)).count()))
    }
}

/// An element of an instant vector: `{"metric": …, "value": [time, "number"]}`.
fn has_number(series: &serde_json::Value) -> bool {
    series.pointer("/value/1").and_then(serde_json::Value::as_str).is_some_and(|value| value != "NaN")
}

/// An expression with Grafana's variables filled in as Grafana does it for "all", and `window` for its intervals.
fn filled(expr: &str, variables: &BTreeSet<String>, window: &str) -> String {
    let mut expr = expr.replace("$__rate_interval", window).replace("$__range", window);
    for variable in variables {
        expr = expr.replace(&format!("${variable}"), ".*");
    }
    expr
}

/// Runs everything on the Prometheus at `url` (`http://127.0.0.1:9090`). An alert is asked twice over: its expression has
/// to be valid, and what it measures ([`alerts::Alert::signals`]) has to return data where data is expected.
/// `window` takes the place of Grafana's intervals; it has to span a few scrapes (`"30s"`).
pub fn against_with(url: &str, window: &str, expect: &[Expect<'_>]) -> Result<Outcome, CheckError> {
    let prometheus = Prometheus::new(url);
    let mut queries: Vec<(String, String)> = Vec::new();
    let mut signals: Vec<(String, String)> = Vec::new();
    for board in boards::all() {
        for panel in board.panels().filter(|panel| panel.draw != Draw::Text) {
            for Target { expr, .. } in &panel.targets {
                let read = expr::parts(expr);
                signals
                    .push((format!("{}/{}", board.name, panel.title), filled(expr, &read.variables, window)));
            }
        }
    }
    for alert in alerts::all() {
        let place = format!("alert/{}", alert.name);
        queries.push((place.clone(), alert.expr));
        signals.extend(alert.signals.into_iter().map(|signal| (place.clone(), signal)));
    }
    known(expect, &signals)?;

    let mut outcome = Outcome::default();
    for (place, expr) in &queries {
        if let Err(error) = prometheus.query(expr)? {
            outcome.problems.push(format!("{place}: {error}: {expr}"));
        }
    }
    for (place, expr) in signals {
        match prometheus.query(&expr)? {
            Err(error) => outcome.problems.push(format!("{place}: {error}: {expr}")),
            Ok(series) => {
                if series == 0 && wanted(expect, &place, &expr) {
                    outcome.problems.push(format!("{place}: no data: {expr}"));
                }
                outcome.answers.push(Answer { place, expr, series });
            }
        }
    }
    Ok(outcome)
}

/// [`against_with`] a window of five minutes: enough for scrapes each minute.
pub fn against(url: &str, expect: &[Expect<'_>]) -> Result<Outcome, CheckError> {
    against_with(url, "5m", expect)
}

fn known(expect: &[Expect<'_>], signals: &[(String, String)]) -> Result<(), CheckError> {
    for one in expect {
        let (what, found) = match one {
            Expect::All => continue,
            Expect::Metric(name) => {
                (name, crate::catalogue::METRICS.iter().any(|metric| metric.name == *name))
            }
            Expect::Place(place) | Expect::MayBeEmpty(place) => {
                (place, signals.iter().any(|(known, _)| known == place))
            }
        };
        if !found {
            return Err(CheckError::NoSuchThing { what: (*what).to_owned() });
        }
    }
    Ok(())
}

fn wanted(expect: &[Expect<'_>], place: &str, expr: &str) -> bool {
    if expect.contains(&Expect::MayBeEmpty(place)) {
        return false;
    }
    let metrics = expr::parts(expr).metrics();
    // What only chooses the replica is not what a query is about.
    let mut about = metrics.iter().filter(|metric| metrics.len() == 1 || metric.name != "whetstone_leader");
    expect.contains(&Expect::All)
        || expect.contains(&Expect::Place(place))
        || about.all(|metric| expect.contains(&Expect::Metric(metric.name)))
}
