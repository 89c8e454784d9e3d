//! What the operator remembers of a blade, in the order in which it happened.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::table::clean;

/// As the ops API answers. What it does not say is left out. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    pub serial: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The operator's own sentence about where the blade is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explain: Option<String>,
    pub names: Vec<Named>,
    pub transitions: Vec<Transition>,
    pub verdicts: Vec<Verdict>,
    pub cases: Vec<Case>,
    pub runs: Vec<Run>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Named {
    pub name: String,
    pub from_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    pub sequence: i64,
    #[serde(default)]
    pub from: Option<Value>,
    /// A phase's name, or the phase with its data.
    pub to: Value,
    #[serde(default)]
    pub why: String,
    #[serde(default)]
    pub run: Option<i64>,
    #[serde(default)]
    pub case: Option<i64>,
    pub at_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub run: i64,
    pub outcome: String,
    #[serde(default)]
    pub code: String,
    #[serde(default)]
    pub why: String,
    #[serde(default)]
    pub action: String,
    #[serde(default)]
    pub evidence: Vec<String>,
    pub at_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Case {
    #[serde(alias = "id")]
    pub case: i64,
    /// Of a list over many blades.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", alias = "name")]
    pub blade: Option<String>,
    #[serde(default)]
    pub code: String,
    #[serde(default)]
    pub device: Option<String>,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub detail: String,
    #[serde(default)]
    pub action: String,
    pub opened_ms: i64,
    #[serde(default)]
    pub closed_ms: Option<i64>,
    #[serde(default)]
    pub close_why: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub run: i64,
    #[serde(default)]
    pub suite: String,
    #[serde(default)]
    pub state: Value,
    #[serde(default)]
    pub created_ms: i64,
    #[serde(default)]
    pub started_ms: Option<i64>,
    #[serde(default)]
    pub ended_ms: Option<i64>,
    #[serde(default)]
    pub progress: String,
    #[serde(default)]
    pub end_why: Option<String>,
}

/// Evidence ids shown of one verdict; all of them are in `--json`.
const SHOWN_EVIDENCE: usize = 3;

/// The name in a phase, whether it came with its data or without.
fn phase_name(phase: &Value) -> String {
    let name = phase.as_str().or_else(|| phase.get("phase")?.as_str());
    clean(name.unwrap_or("?"))
}

impl History {
    /// What happened, oldest first: time and words.
    pub fn events(&self) -> Vec<(i64, String)> {
        let mut events: Vec<(i64, u8, i64, String)> = Vec::new();
        for (i, transition) in self.transitions.iter().enumerate() {
            let to = phase_name(&transition.to);
            let from = transition.from.as_ref().map(phase_name).filter(|_| i == 0);
            let run = transition.run.filter(|_| to == "BurningIn").map(|run| format!(" run {run}"));
            let case = transition.case.map(|case| format!(", case {case}"));
            // The verdict of the same run has just been told.
            let told = |verdict: &&Verdict| Some(verdict.run) == transition.run && !verdict.why.is_empty();
            let told = self.verdicts.iter().find(told).is_some_and(|v| transition.why.contains(&v.why));
            // A run's number says it all; the rest wants its reason.
            let why = match (&run, transition.why.is_empty() || told) {
                (None, false) => format!(" ({})", clean(&transition.why)),
                _ => String::new(),
            };
            let from = from.map(|from| format!("{from} ")).unwrap_or_default();
            // The first one comes from nowhere.
            let arrow = if i == 0 && from.is_empty() { "" } else { "→ " };
            let text =
                format!("{from}{arrow}{to}{}{why}{}", run.unwrap_or_default(), case.unwrap_or_default());
            events.push((transition.at_ms, 2, transition.sequence, text));
        }
        for verdict in &self.verdicts {
            let evidence = match verdict.evidence.len() {
                0 => String::new(),
                n => {
                    let shown = verdict.evidence.iter().take(SHOWN_EVIDENCE).map(|id| clean(id));
                    let more = n.checked_sub(SHOWN_EVIDENCE).filter(|more| *more > 0);
                    let more = more.map(|more| format!(" and {more} more")).unwrap_or_default();
                    format!(", evidence {}{more}", shown.collect::<Vec<_>>().join(" "))
                }
            };
            let what = if verdict.why.is_empty() { &verdict.code } else { &verdict.why };
            let what = if verdict.outcome == "pass" { String::new() } else { format!(": {}", clean(what)) };
            let text = format!("run {} {}{what}{evidence}", verdict.run, clean(&verdict.outcome));
            // The verdict stands before the transition that follows from it.
            events.push((verdict.at_ms, 1, verdict.run, text));
        }
        for case in &self.cases {
            let device = case.device.as_deref().filter(|device| !device.is_empty());
            let device = device.map(|device| format!(" {}", clean(device))).unwrap_or_default();
            let text = format!("case {} opened: {}{device}", case.case, clean(&case.code));
            events.push((case.opened_ms, 3, case.case, text));
            if let Some(closed) = case.closed_ms {
                let why = clean(case.close_why.as_deref().unwrap_or("no reason on record"));
                events.push((closed, 3, case.case, format!("case {} closed: {why}", case.case)));
            }
        }
        for run in &self.runs {
            let judged = self.verdicts.iter().any(|verdict| verdict.run == run.run);
            if let Some(ended) = run.ended_ms.filter(|_| !judged) {
                let why = clean(run.end_why.as_deref().unwrap_or("without a verdict"));
                events.push((ended, 1, run.run, format!("run {} ended: {why}", run.run)));
            }
        }
        for pair in self.names.windows(2) {
            if let [before, after] = pair
                && before.name != after.name
            {
                let text = format!("renamed {} → {}", clean(&before.name), clean(&after.name));
                events.push((after.from_ms, 0, 0, text));
            }
        }
        events.sort_by_key(|(at, kind, number, _)| (*at, *kind, *number));
        events.into_iter().map(|(at, .., text)| (at, text)).collect()
    }
}

/// Longest line before the history is broken, characters.
const WIDTH: usize = 140;

/// Events with their times, `·` between them: the time where it is another minute, the day where it is another day.
pub fn lines(events: &[(i64, String)], zone: &TimeZone) -> String {
    let (mut text, mut line, mut day) = (String::new(), String::new(), String::new());
    let mut by_time: BTreeMap<i64, Vec<&str>> = BTreeMap::new();
    for (at, what) in events {
        by_time.entry(*at).or_default().push(what);
    }
    for (at, whats) in by_time {
        let Ok(time) = jiff::Timestamp::from_millisecond(at) else { continue };
        let time = time.to_zoned(zone.clone());
        let date = time.strftime("%Y-%m-%d").to_string();
        let mut stamp = time.strftime("%H:%M").to_string();
        if date != day {
            if !day.is_empty() {
                text += &format!("{line}\n");
                line.clear();
            }
            stamp = format!("{date} {stamp}");
            day = date;
        }
        for what in whats {
            let piece = format!("{stamp} {what}");
            if line.is_empty() {
                line = format!("  {piece}");
            } else if line.chars().count() + 3 + piece.chars().count() > WIDTH {
                text += &format!("{line}\n");
                line = format!("  {piece}");
            } else {
                line += &format!(" · {piece}");
            }
        }
    }
    if line.is_empty() { text } else { text + &line + "\n" }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"serial":"SN3","something_new":1,
      "names":[{"name":"sn3","from_ms":0},{"name":"b-003","from_ms":43379000}],
      "transitions":[
        {"sequence":1,"from":"Expected","to":"Discovered","why":"join token t-07","run":null,"case":null,"at_ms":43380000},
        {"sequence":2,"from":"Discovered","to":{"phase":"BurningIn","run":41},"why":"tranche t-07","run":41,"case":null,"at_ms":43440000},
        {"sequence":3,"from":null,"to":"Quarantined","why":"burn-in run 41: gpu5 computes wrong bits","run":41,"case":7,"at_ms":43800000}],
      "verdicts":[{"run":41,"outcome":"fail","code":"gemm-wrong-bits","why":"gpu5 computes wrong bits","evidence":["e-1","e-2","e-3","e-4"],"at_ms":43800000}],
      "cases":[{"id":7,"code":"gemm-wrong-bits","device":"gpu5","opened_ms":43800000}],
      "runs":[{"run":41,"state":{"Finished":"Fail"}},{"run":40,"state":"lost","ended_ms":86400000,"end_why":"agent away"}]}"#;

    #[test]
    fn a_history_reads_as_a_story_in_order() {
        let history: History = serde_json::from_str(TEXT).unwrap();
        assert_eq!(
            lines(&history.events(), &TimeZone::UTC),
            "  1970-01-01 12:02 renamed sn3 → b-003 · 12:03 Expected → Discovered (join token t-07) · 12:04 → BurningIn run 41\n  \
             12:10 run 41 fail: gpu5 computes wrong bits, evidence e-1 e-2 e-3 and 1 more · 12:10 → Quarantined, case 7\n  \
             12:10 case 7 opened: gemm-wrong-bits gpu5\n  \
             1970-01-02 00:00 run 40 ended: agent away\n"
        );
    }

    #[test]
    fn nothing_happened_and_times_that_do_not_exist_are_no_crash() {
        assert_eq!(lines(&[], &TimeZone::UTC), "");
        assert_eq!(lines(&[(i64::MAX, "x".into())], &TimeZone::UTC), "");
        assert_eq!(serde_json::from_str::<History>("{}").unwrap().events(), []);
    }
}
