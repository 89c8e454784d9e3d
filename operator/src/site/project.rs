//! Says in the objects what is: status of blades and tranches, one `BurnIn` for each run.
//!
//! Behind the loop and slower than it: an apiserver that is slow or away holds up no quarantine. What waits to be written is
//! kept by object, the latest word alone. Progress of a run is written every few seconds, everything else at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use tracing::warn;
use whetstone_api::{Blade, BurnInPhase, SpecError};
use whetstone_model::lifecycle::{Phase, PhaseName};
use whetstone_plan::{BladePlan, Plan, Step};
use whetstone_store::{BladeRow, RunRow};

use super::memory::Memory;
use super::writer::{Queue, Write, Writer};
use super::{Parts, status, view};
use crate::clock::now_ms;

/// Between two writes of mere progress of one object.
const PROGRESS: Duration = Duration::from_secs(5);

pub struct Projector {
    parts: Parts,
    queue: Arc<Queue>,
    progress: Progress,
    said: HashMap<String, String>,
}

/// When mere progress of an object was last handed on.
#[derive(Default)]
struct Progress(HashMap<String, Instant>);

impl Progress {
    /// When a word is due: at once, or, for mere progress, when the last one is old enough.
    fn due(&mut self, key: &str, urgent: bool, now: Instant) -> Instant {
        let due = match self.0.get(key) {
            // One waits already: a newer word goes with it and does not put it off.
            Some(next) if !urgent && *next > now => *next,
            Some(last) if !urgent => (*last + PROGRESS).max(now),
            _ => now,
        };
        self.0.insert(key.to_owned(), due);
        due
    }

    /// Drops what puts nothing off any more: every run has a key of its own.
    fn forget(&mut self, now: Instant) {
        self.0.retain(|_, last| *last + PROGRESS > now);
    }
}

impl Projector {
    pub fn start(parts: Parts) -> Projector {
        let queue = Writer::start(&parts);
        Projector { parts, queue, progress: Progress::default(), said: HashMap::new() }
    }

    /// The runs of the blades that were planned for, and the status of those that do not move on in this very turn.
    pub fn blades(&mut self, memory: &Memory, plan: &Plan) {
        self.progress.forget(Instant::now());
        let now = now_ms();
        for blade in &plan.blades {
            let Some(row) = memory.rows.get(&blade.serial) else { continue };
            // Also of a blade that moves on: the next look may know another run, and this one's object would stay as it is.
            if let Some(run) = row.run.as_ref().filter(|_| row.phase.name() != PhaseName::Expected) {
                self.run(row, run);
            }
            if moves(blade) {
                continue;
            }
            let Some(guard) = self.parts.seen.blade(row.name.as_str()) else { continue };
            let Ok(object) = &guard.0 else { continue };
            if object.spec.serial != row.serial.as_str() || memory.invalid.contains_key(&row.serial) {
                continue;
            }
            let node = memory.site.blades.get(&row.serial).and_then(|view| view.node.as_ref());
            let before = object.status.as_ref();
            let after = status::blade(
                row,
                blade,
                node.map(|node| node.name.as_str()),
                before,
                object.meta().generation,
                now,
            );
            if before == Some(&after) {
                continue;
            }
            let patch = match status::difference(before, &after) {
                Ok(Some(patch)) => patch,
                Ok(None) => continue,
                Err(error) => {
                    warn!(blade = %row.name, %error, "its status cannot be written");
                    continue;
                }
            };
            let urgent = before.is_none_or(|before| {
                (before.sequence, &before.phase, before.conditions.len())
                    != (after.sequence, &after.phase, after.conditions.len())
                    || before.verdict != after.verdict
            });
            let key = format!("blade/{}", row.name);
            let due = self.progress.due(&key, urgent, Instant::now());
            let write = Write::Blade { row: Box::new(row.clone()), status: Box::new(after), patch };
            self.queue.put(key, write, due);
        }
    }

    /// Says of people's `BurnIn`s for `blades` what is wrong with them: no such blade, no such suite.
    pub fn wishes(&mut self, memory: &Memory, blades: &BTreeSet<String>) {
        for name in blades {
            let row = memory.by_name(name).find_map(|serial| memory.rows.get(serial));
            let suite = row.and_then(|row| memory.suites.get(row.tranche.as_ref()?));
            for guard in self.parts.seen.runs_of(name) {
                let Some(burnin) = guard.0.as_ref().ok().filter(|burnin| status::is_wish(burnin)) else {
                    continue;
                };
                let wanted = match (row, view::suite_of_wish(&burnin.spec.suite, suite)) {
                    (_, Err(error)) => Some(status::burnin_refused(&error.to_string())),
                    (None, Ok(())) => Some(status::burnin_waits(&format!("there is no blade {name} (yet)"))),
                    // It was waited for, and has come.
                    (Some(_), Ok(())) => burnin.status.is_some().then(|| status::burnin_waits("")),
                };
                let Some(wanted) = wanted else { continue };
                if let Ok(Some(patch)) = status::difference(burnin.status.as_ref(), &wanted) {
                    let key = format!("wish/{}", burnin.name_any());
                    self.queue.put(key, Write::Wish { patch }, Instant::now());
                }
            }
        }
    }

    fn run(&mut self, row: &BladeRow, run: &RunRow) {
        let wanted = status::burnin(run);
        let key = format!("run/{}", run.run);
        let text = format!("{wanted:?}");
        if self.said.get(&key) == Some(&text) {
            return;
        }
        let over = !matches!(wanted.phase, Some(BurnInPhase::Pending | BurnInPhase::Running) | None);
        let due = self.progress.due(&key, over, Instant::now());
        self.said.insert(key.clone(), text);
        if self.said.len() > 20_000 {
            // Said anew is no harm: the writer compares with what is there.
            self.said.clear();
        }
        self.queue.put(key, Write::Run { blade: row.name.to_string(), run: Box::new(run.clone()) }, due);
    }

    pub fn tranches(&mut self, memory: &Memory, plan: &Plan, now_ms: i64) {
        for tranche in &plan.tranches {
            let Some(view) = memory.site.tranches.get(&tranche.tranche) else { continue };
            let Some(guard) = self.parts.seen.tranche(tranche.tranche.as_str()) else { continue };
            let Ok(object) = &guard.0 else { continue };
            let missing: Vec<_> = if tranche.counts.expected == 0 {
                Vec::new()
            } else {
                let of_it =
                    memory.site.blades.values().filter(|b| b.tranche.as_ref() == Some(&tranche.tranche));
                of_it.filter(|b| b.phase == Phase::Expected).map(|b| &b.serial).take(20).collect()
            };
            let before = object.status.as_ref();
            let after = status::tranche(
                tranche,
                &missing,
                &view.duplicates,
                memory.refused.get(&tranche.tranche).map_or(&[], Vec::as_slice),
                before,
                object.meta().generation,
                now_ms,
            );
            if let Ok(Some(patch)) = status::difference(before, &after) {
                let key = format!("tranche/{}", tranche.tranche);
                let (now, moved) = (Instant::now(), before.is_none_or(|before| before.phase != after.phase));
                let due = self.progress.due(&key, moved, now).min(now + Duration::from_secs(1));
                self.queue.put(key, Write::Tranche { patch }, due);
            }
        }
    }

    /// Objects that cannot be understood get a condition that says so.
    pub fn invalid(&mut self, now_ms: i64) {
        let mut found: BTreeMap<String, (bool, Value, String, Option<i64>)> = BTreeMap::new();
        for guard in self.parts.seen.blades.state() {
            let why = match &guard.0 {
                Err(invalid) => Some(invalid.error.clone()),
                Ok(blade) => understood(blade).err().map(|e| e.to_string()),
            };
            if let Some(why) = why {
                let before = guard.0.as_ref().ok().and_then(|blade| blade.status.as_ref());
                let before = before.map(|status| status.conditions.clone()).unwrap_or_default();
                let conditions = status::invalid(&before, guard.meta().generation, &why, now_ms);
                let key = format!("blade/{}", guard.name_any());
                found.insert(key, (true, json!({ "conditions": conditions }), why, guard.meta().generation));
            }
        }
        for guard in self.parts.seen.tranches.state() {
            let why = match &guard.0 {
                Err(invalid) => Some(invalid.error.clone()),
                Ok(tranche) => view::suite(&tranche.spec.suite, tranche.spec.suite_text.as_deref())
                    .err()
                    .or_else(|| tranche.owner().err())
                    .map(|e| e.to_string()),
            };
            if let Some(why) = why {
                let before = guard.0.as_ref().ok().and_then(|tranche| tranche.status.as_ref());
                let before = before.map(|status| status.conditions.clone()).unwrap_or_default();
                let conditions = status::invalid(&before, guard.meta().generation, &why, now_ms);
                let key = format!("tranche/{}", guard.name_any());
                found.insert(key, (false, json!({ "conditions": conditions }), why, guard.meta().generation));
            }
        }
        for (key, (blade, patch, why, generation)) in found {
            let text = format!("invalid {generation:?} {why}");
            if self.said.insert(key.clone(), text.clone()).as_ref() != Some(&text) {
                warn!(object = key, why, "cannot be understood; its last wish stays");
                let write = if blade { Write::BladeInvalid { patch } } else { Write::Tranche { patch } };
                self.queue.put(key, write, Instant::now());
            }
        }
    }
}

fn understood(blade: &Blade) -> Result<(), SpecError> {
    blade.serial()?;
    blade.owner()?;
    blade.tranche()?;
    blade.rack()?;
    blade.domain()?;
    Ok(())
}

/// A blade that moves on in this turn is shown by the next look.
fn moves(plan: &BladePlan) -> bool {
    plan.steps.iter().any(|step| matches!(step, Step::Transition { .. } | Step::StartRun { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mere_progress_waits_for_its_turn_and_what_is_over_is_forgotten() {
        let (begun, mut progress) = (Instant::now(), Progress::default());
        let after = |seconds: u64| begun + Duration::from_secs(seconds);
        assert_eq!(progress.due("run/1", false, begun), begun, "nothing was said yet");
        assert_eq!(progress.due("run/1", false, after(1)), after(5));
        assert_eq!(progress.due("run/1", false, after(2)), after(5), "it goes with the one that waits");
        assert_eq!(progress.due("run/1", true, after(3)), after(3));
        progress.forget(after(7));
        assert_eq!(progress.due("run/1", false, after(7)), after(8));
        progress.forget(after(13));
        assert!(progress.0.is_empty());
    }
}
