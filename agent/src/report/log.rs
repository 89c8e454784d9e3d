//! What the agent says about itself: one line per event on standard error. ERROR means that a person must act.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static JSON: AtomicBool = AtomicBool::new(false);

/// One JSON document per line from now on.
pub fn as_json(yes: bool) {
    JSON.store(yes, Ordering::Relaxed);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Info,
    /// Something failed that is tried again or got round.
    Warn,
    /// A person must act.
    Error,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

pub fn info(what: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
    say(Level::Info, what, fields);
}

pub fn warn(what: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
    say(Level::Warn, what, fields);
}

pub fn error(what: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
    say(Level::Error, what, fields);
}

pub fn say(level: Level, what: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
    let line = line(JSON.load(Ordering::Relaxed), jiff::Timestamp::now(), level, what, fields);
    // Nobody may be listening; the agent goes on.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn line(
    json: bool,
    at: jiff::Timestamp,
    level: Level,
    what: &str,
    fields: &[(&str, &dyn std::fmt::Display)],
) -> String {
    let at = at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
    if json {
        let mut map = serde_json::Map::new();
        map.insert("at".into(), at.to_string().into());
        map.insert("level".into(), level.as_str().into());
        map.insert("what".into(), what.into());
        map.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), value.to_string().into())));
        return serde_json::Value::Object(map).to_string();
    }
    let mut line = format!("{at} {:<5} {what}", level.as_str().to_uppercase());
    for (name, value) in fields {
        let value = value.to_string();
        let plain =
            !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c == '"' || c.is_control());
        line += &if plain { format!(" {name}={value}") } else { format!(" {name}={value:?}") };
    }
    line
}

/// A failure that lasts is said when it begins, when its reason changes, and every ten minutes.
#[derive(Debug, Default)]
pub struct Lasting(Mutex<Option<(String, Instant, u64)>>);

const AGAIN: Duration = Duration::from_secs(600);

impl Lasting {
    /// It failed (again), for this reason.
    pub fn failed(&self, level: Level, what: &str, fields: &[(&str, &dyn std::fmt::Display)], why: &str) {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let times = match &mut *state {
            Some((old, said, times)) if old == why && said.elapsed() < AGAIN => {
                *times += 1;
                return;
            }
            Some((_, _, times)) => *times + 1,
            None => 1,
        };
        *state = Some((why.to_owned(), Instant::now(), times));
        let mut all = fields.to_vec();
        all.push(("why", &why));
        if times > 1 {
            all.push(("times", &times));
        }
        say(level, what, &all);
    }

    /// It went well; says so if it had failed before.
    pub fn well(&self, what: &str) {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, _, times)) = state.take() {
            info(what, &[("after_failures", &times)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_in_either_form() {
        let at = jiff::Timestamp::from_millisecond(1_000).unwrap();
        let fields: [(&str, &dyn std::fmt::Display); 2] = [("run", &41), ("why", &"two\nlines \"x\"")];
        assert_eq!(
            line(false, at, Level::Warn, "no answer", &fields),
            r#"1970-01-01T00:00:01.000Z WARN  no answer run=41 why="two\nlines \"x\"""#
        );
        let json = line(true, at, Level::Error, "no answer", &fields);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["level"], "error");
        assert_eq!(value["why"], "two\nlines \"x\"");
        assert!(!json.contains('\n'));
    }
}
