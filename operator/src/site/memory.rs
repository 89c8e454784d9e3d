//! The site as the loop holds it: rows of the store, the planner's view of them, and the planner's own counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kube::ResourceExt;
use whetstone_api::{BurnIn, RUN_LABEL};
use whetstone_model::ids::{Serial, TrancheName};
use whetstone_model::lifecycle::PhaseName;
use whetstone_plan::{Planner, SiteLimits, SiteView};
use whetstone_store::{BladeRow, RunRow, RunState};

use super::judge::Judging;
use super::status::is_wish;
use super::view::{self, NamedSuite};
use crate::cluster::Seen;
use crate::cluster::drain::Drains;
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
        }
    }

    pub fn by_name(&self, name: &str) -> impl Iterator<Item = &Serial> {
        self.names.get(name)
    }

    pub fn by_node(&self, node: &str) -> impl Iterator<Item = &Serial> {
        self.nodes.get(node)
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
        for serial in dirty {
            if let Some(old) = self.rows.get(serial) {
                self.names.remove(old.name.as_str(), serial);
                if let Some(node) = self.node_names.remove(serial) {
                    self.nodes.remove(&node, serial);
                }
            }
            match fresh.remove(serial) {
                Some(row) => {
                    self.view(&row, seen, drains);
                    self.names.insert(row.name.to_string(), serial);
                    self.rows.insert(serial.clone(), row);
                }
                None => {
                    self.rows.remove(serial);
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
            if let Some(node) = self.node_names.remove(&serial) {
                self.nodes.remove(&node, &serial);
            }
            self.view(&row, seen, drains);
            self.rows.insert(serial, row);
        }
        self.planner.refresh(&self.site, shown);
    }

    fn view(&mut self, row: &BladeRow, seen: &Seen, drains: &Drains) {
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
        let node_name = object
            .as_ref()
            .and_then(|guard| guard.0.as_ref().ok())
            .map_or(row.name.as_str(), |blade| blade.node_name())
            .to_owned();
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
