//! The site as the loop holds it: rows of the store, the planner's view of them, and the planner's own counts.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use kube::ResourceExt;
use whetstone_api::node::BLADE;
use whetstone_api::{BurnIn, RUN_LABEL};
use whetstone_model::ids::{Serial, TrancheName};
use whetstone_model::lifecycle::{Phase, PhaseName};
use whetstone_plan::{Planner, SiteLimits, SiteView};
use whetstone_store::{BladeRow, RunRow, RunState};

use super::judge::Judging;
use super::status::is_wish;
use super::view::{self, NamedSuite};
use crate::cluster::Seen;
use crate::cluster::drain::Drains;
use crate::cluster::node;
use crate::ops::Refused;

pub struct Memory {
    pub rows: BTreeMap<Serial, BladeRow>,
    pub site: SiteView,
    pub planner: Planner,
    /// Suites of the tranches.
    pub suites: BTreeMap<TrancheName, NamedSuite>,
    /// Tranches whose runs are being compared.
    pub judging: Judging,
    /// By name of the blade and of its node. A retired blade may share its name with the one that replaced it.
    names: Index,
    nodes: Index,
    node_names: HashMap<Serial, String>,
    /// Blades whose objects cannot be understood: why. Their last intent stays.
    pub invalid: BTreeMap<Serial, String>,
    /// What of the tranches' lists could not be entered.
    pub refused: BTreeMap<TrancheName, Vec<Refused>>,
    /// Blades that the circuit breaker holds back, or held back until they were let through: how long they took is its doing.
    pub held_back: BTreeSet<Serial>,
}

#[derive(Default)]
struct Index(HashMap<String, BTreeSet<Serial>>);

impl Index {
    fn insert(&mut self, name: String, serial: &Serial) {
        self.0.entry(name).or_default().insert(serial.clone());
    }

    fn remove(&mut self, name: &str, serial: &Serial) {
        if let Some(serials) = self.0.get_mut(name) {
            serials.remove(serial);
            if serials.is_empty() {
                self.0.remove(name);
            }
        }
    }

    fn get(&self, name: &str) -> impl Iterator<Item = &Serial> {
        self.0.get(name).into_iter().flatten()
    }
}

impl Memory {
    pub fn new(limits: SiteLimits) -> Memory {
        let site = SiteView { limits, ..SiteView::default() };
        Memory {
            rows: BTreeMap::new(),
            planner: Planner::new(&site),
            site,
            suites: BTreeMap::new(),
            judging: Judging::default(),
            names: Index::default(),
            nodes: Index::default(),
            node_names: HashMap::new(),
            invalid: BTreeMap::new(),
            refused: BTreeMap::new(),
            held_back: BTreeSet::new(),
        }
    }

    pub fn by_name(&self, name: &str) -> impl Iterator<Item = &Serial> {
        self.names.get(name)
    }

    pub fn by_node(&self, node: &str) -> impl Iterator<Item = &Serial> {
        self.nodes.get(node)
    }

    /// Name of a blade's node.
    pub fn node_of(&self, serial: &Serial) -> Option<&str> {
        self.node_names.get(serial).map(String::as_str)
    }

    /// A blade that is being drained has this node.
    pub fn drains(&self, node: &str) -> bool {
        let mut blades = self.by_node(node).filter_map(|serial| self.site.blades.get(serial));
        blades.any(|blade| blade.phase.name() == PhaseName::Draining && blade.node.is_some())
    }

    /// Takes new rows for `dirty` and builds their views anew. A blade of `dirty` without a row is gone.
    pub fn update(&mut self, dirty: &BTreeSet<Serial>, rows: Vec<BladeRow>, seen: &Seen, drains: &Drains) {
        let mut fresh: BTreeMap<Serial, BladeRow> =
            rows.into_iter().map(|row| (row.serial.clone(), row)).collect();
        let marks = LazyCell::new(|| Marks::read(seen));
        for serial in dirty {
            let old = self.rows.remove(serial);
            let had = old.as_ref().and_then(|old| {
                self.names.remove(old.name.as_str(), serial);
                self.forget_node(old)
            });
            match fresh.remove(serial) {
                Some(row) => {
                    // A new delivery has no node yet; of what is new to this process alone the nodes tell.
                    let told = old.is_none() && row.phase != Phase::Expected;
                    let had = if told { marks.node_of(&row) } else { had };
                    self.view(&row, had, seen, drains);
                    self.names.insert(row.name.to_string(), serial);
                    self.rows.insert(serial.clone(), row);
                }
                None => {
                    self.site.blades.remove(serial);
                    self.invalid.remove(serial);
                }
            }
        }
        self.planner.refresh(&self.site, dirty);
    }

    /// Builds the views of `shown` anew from the rows that are known: their objects or nodes changed.
    pub fn show(&mut self, shown: &BTreeSet<Serial>, seen: &Seen, drains: &Drains) {
        for serial in shown {
            let Some((serial, row)) = self.rows.remove_entry(serial) else { continue };
            let had = self.forget_node(&row);
            self.view(&row, had, seen, drains);
            self.rows.insert(serial, row);
        }
        self.planner.refresh(&self.site, shown);
    }

    /// Answers the node that the blade had, if that is not called as the blade was: somebody has said so once.
    fn forget_node(&mut self, row: &BladeRow) -> Option<String> {
        let node = self.node_names.remove(&row.serial)?;
        self.nodes.remove(&node, &row.serial);
        (node != row.name.as_str()).then_some(node)
    }

    /// `had`: its node, where its object says nothing of it.
    fn view(&mut self, row: &BladeRow, had: Option<String>, seen: &Seen, drains: &Drains) {
        let suite = row.tranche.as_ref().and_then(|name| self.suites.get(name));
        let asked = run_asked_for(seen, row, suite);
        let object = seen.blade(row.name.as_str()).filter(|guard| match &guard.0 {
            // A name that a retired blade had may be another's by now, and its object with it.
            Ok(blade) => blade.spec.serial == row.serial.as_str(),
            Err(_) => true,
        });
        let understood = object.as_ref().map(|guard| match &guard.0 {
            Ok(blade) => view::intent(blade, row.retested, asked).map_err(|e| e.to_string()),
            Err(invalid) => Err(invalid.error.clone()),
        });
        let last = || {
            let before = self.site.blades.get(&row.serial).map(|view| view.intent.clone());
            before.unwrap_or_else(|| {
                let tranche = row.tranche.as_ref().and_then(|name| self.site.tranches.get(name));
                view::intent_of_phase(row, tranche.and_then(|tranche| tranche.owner.as_ref()))
            })
        };
        let intent = match understood {
            Some(Ok(intent)) => {
                self.invalid.remove(&row.serial);
                intent
            }
            Some(Err(why)) => {
                let intent = last();
                self.invalid.insert(row.serial.clone(), why);
                intent
            }
            // Its object is not there (yet, or lost): what was wanted last stays.
            None => last(),
        };
        // A blade does not move because its object is lost, or cannot be read: what work is on its node is there still.
        let named = object.as_ref().and_then(|guard| guard.0.as_ref().ok()).map(|blade| blade.node_name());
        let node_name = named.map(str::to_owned).or(had).unwrap_or_else(|| row.name.to_string());
        let node = seen.node(&node_name).and_then(|node| view::node_view(&node, drains.status(&node_name)));
        self.node_names.insert(row.serial.clone(), node_name.clone());
        self.nodes.insert(node_name, &row.serial);
        self.site.blades.insert(row.serial.clone(), view::blade(row, intent, node));
    }

    /// After tranches changed: the planner's counts are made anew.
    pub fn tranches_changed(&mut self) {
        self.planner = Planner::new(&self.site);
    }
}

/// Nodes by whose mark they carry: the serial of our note or, on one that was let go, the name of our label.
#[derive(Default)]
struct Marks {
    noted: HashMap<Serial, String>,
    labelled: HashMap<String, String>,
}

impl Marks {
    fn read(seen: &Seen) -> Marks {
        let mut marks = Marks::default();
        for node in seen.nodes() {
            let name = node.name_any();
            if let Some(serial) = node::noted(&node) {
                marks.noted.insert(serial, name);
            } else if let Some(blade) = node.labels().get(BLADE)
                // An old label may be left on another one.
                && (*blade == name || !marks.labelled.contains_key(blade))
            {
                marks.labelled.insert(blade.clone(), name);
            }
        }
        marks
    }

    fn node_of(&self, row: &BladeRow) -> Option<String> {
        self.noted.get(&row.serial).or_else(|| self.labelled.get(row.name.as_str())).cloned()
    }
}

/// The suite of the `BurnIn` that a person made last of this blade and that has no run yet.
fn run_asked_for(seen: &Seen, row: &BladeRow, of_tranche: Option<&NamedSuite>) -> Option<String> {
    if row.run.as_ref().is_some_and(going) {
        return None;
    }
    let runs = seen.runs_of(row.name.as_str());
    let runs: Vec<&BurnIn> = runs.iter().filter_map(|guard| guard.0.as_ref().ok()).collect();
    // A run with an object is no wish's any more; of one without, the wish may be about to be it.
    let last = row.run.as_ref().filter(|run| !runs.iter().any(|burnin| is_of(burnin, run)));
    let wishes = runs.iter().filter(|burnin| {
        is_wish(burnin)
            && view::suite_of_wish(&burnin.spec.suite, of_tranche).is_ok()
            && !last.is_some_and(|run| fulfils(run, burnin))
    });
    wishes.max_by_key(|burnin| made_ms(burnin)).map(|burnin| burnin.spec.suite.clone())
}

/// When an object was made, ms; the apiserver's times have seconds.
fn made_ms(burnin: &BurnIn) -> i64 {
    burnin.creation_timestamp().map_or(0, |time| time.0.as_millisecond())
}

/// A wish that comes while a run goes on is for after it.
fn going(run: &RunRow) -> bool {
    matches!(run.state, RunState::Ordered | RunState::Running)
}

/// The object of this run.
pub fn is_of(burnin: &BurnIn, run: &RunRow) -> bool {
    let said = burnin.status.as_ref().and_then(|status| status.run) == Some(run.run.0);
    said || burnin.labels().get(RUN_LABEL).is_some_and(|number| *number == run.run.to_string())
}

/// A run that may be the one that a person's `BurnIn` asked for: not made before it, of the suite that it names.
pub fn fulfils(run: &RunRow, wish: &BurnIn) -> bool {
    run.created_ms >= made_ms(wish) && run.suite == wish.spec.suite
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use whetstone_api::node::NOTE;
    use whetstone_model::lifecycle::{Owner, QuarantineReason};

    use super::*;
    use crate::site::testing::{drains, memory, object, row, seen};

    fn node(name: &str, label: Option<&str>, note: Option<&str>) -> Value {
        let labels = label.map(|blade| json!({ BLADE: blade }));
        let annotations = note.map(|note| json!({ NOTE: note }));
        json!({ "metadata": { "name": name, "labels": labels, "annotations": annotations } })
    }

    fn serial() -> Serial {
        Serial::new("S1").unwrap()
    }

    fn in_service(name: &str) -> BladeRow {
        row("S1", name, Phase::InService { owner: Owner::Spare })
    }

    /// The node that the planner sees of the blade.
    #[track_caller]
    fn has(memory: &Memory, name: &str) {
        let node = memory.site.blades[&serial()].node.as_ref().map(|node| node.name.as_str());
        assert_eq!((node, memory.node_of(&serial())), (Some(name), Some(name)));
        assert!(memory.by_node(name).eq([&serial()]));
    }

    #[tokio::test]
    async fn a_blade_stays_on_its_node_when_its_object_is_lost_or_cannot_be_read() {
        let nodes = [node("n-7", None, None), node("m-1", None, None), node("slot-7", None, None)];
        let named = seen(&[object("m-1", "S1", json!({ "nodeName": "n-7" }))], &nodes).await;
        let broken = seen(&[object("m-1", "S1", json!({ "retest": "often" }))], &nodes).await;
        let lost = seen(&[], &nodes).await;
        let (mut memory, drains) = (memory(vec![in_service("m-1")], &named), drains());
        let all = BTreeSet::from([serial()]);
        for seen in [&named, &broken, &lost] {
            memory.show(&all, seen, &drains);
            has(&memory, "n-7");
            memory.update(&all, vec![in_service("m-1")], seen, &drains);
            has(&memory, "n-7");
        }
        // Its list calls it otherwise, and it has no object of that name yet.
        memory.update(&all, vec![in_service("slot-7")], &lost, &drains);
        has(&memory, "n-7");
        assert_eq!(memory.by_node("slot-7").count(), 0);
        // An object that names none means the one that is called as the blade is; and so it stays.
        let unnamed = seen(&[object("slot-7", "S1", json!({}))], &nodes).await;
        memory.show(&all, &unnamed, &drains);
        has(&memory, "slot-7");
        memory.show(&all, &lost, &drains);
        has(&memory, "slot-7");
        memory.update(&all, vec![in_service("m-1")], &lost, &drains);
        has(&memory, "m-1");
    }

    #[tokio::test]
    async fn after_a_restart_the_marks_on_nodes_tell_where_a_blade_without_an_object_is() {
        // In service: the note was taken off with the taint.
        let labelled = seen(&[], &[node("n-7", Some("m-1"), None), node("m-1", None, None)]).await;
        has(&memory(vec![in_service("m-1")], &labelled), "n-7");
        let note = Some("serial=S1 reason=fault case=3");
        let noted = seen(&[], &[node("n-7", Some("old-name"), note), node("n-8", Some("m-1"), None)]).await;
        let quarantined = row("S1", "m-1", Phase::Quarantined { reason: QuarantineReason::Fault });
        has(&memory(vec![quarantined], &noted), "n-7");
        // Left from long ago.
        let old = seen(&[], &[node("n-7", Some("m-1"), None), node("m-1", Some("m-1"), None)]).await;
        has(&memory(vec![in_service("m-1")], &old), "m-1");
        // Of the blade that had the name before; and of one that never came there is nothing.
        let before = seen(&[], &[node("n-7", Some("m-1"), Some("serial=S0 reason=retired"))]).await;
        assert_eq!(memory(vec![in_service("m-1")], &before).node_of(&serial()), Some("m-1"));
        let expected = memory(vec![row("S1", "m-1", Phase::Expected)], &labelled);
        assert_eq!(expected.node_of(&serial()), Some("m-1"));
    }
}
