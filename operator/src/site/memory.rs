//! The site as the loop holds it: rows of the store, the planner's view of them, and the planner's own counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kube::ResourceExt;
use whetstone_model::ids::{Serial, TrancheName};
use whetstone_plan::{Intent, Planner, SiteLimits, SiteView};
use whetstone_store::{BladeRow, RunState};

use super::judge::Judging;
use super::status::is_wish;
use super::view::{self, NamedSuite};
use crate::cluster::Seen;
use crate::cluster::drain::Drains;

pub struct Memory {
    pub rows: BTreeMap<Serial, BladeRow>,
    pub site: SiteView,
    pub planner: Planner,
    /// Suites of the tranches.
    pub suites: BTreeMap<TrancheName, NamedSuite>,
    /// Tranches whose runs are being compared.
    pub judging: Judging,
    names: HashMap<String, Serial>,
    nodes: HashMap<String, Serial>,
    node_names: HashMap<Serial, String>,
    /// Blades whose objects cannot be understood: why. Their last intent stays.
    pub invalid: BTreeMap<Serial, String>,
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
            names: HashMap::new(),
            nodes: HashMap::new(),
            node_names: HashMap::new(),
            invalid: BTreeMap::new(),
        }
    }

    pub fn by_name(&self, name: &str) -> Option<&Serial> {
        self.names.get(name)
    }

    pub fn by_node(&self, node: &str) -> Option<&Serial> {
        self.nodes.get(node)
    }

    /// Takes new rows for `dirty` and builds their views anew. A blade of `dirty` without a row is gone.
    pub fn update(&mut self, dirty: &BTreeSet<Serial>, rows: Vec<BladeRow>, seen: &Seen, drains: &Drains) {
        let mut fresh: BTreeMap<Serial, BladeRow> =
            rows.into_iter().map(|row| (row.serial.clone(), row)).collect();
        for serial in dirty {
            if let Some(old) = self.rows.get(serial) {
                self.names.remove(old.name.as_str());
                if let Some(node) = self.node_names.remove(serial) {
                    self.nodes.remove(&node);
                }
            }
            match fresh.remove(serial) {
                Some(row) => {
                    self.view(&row, seen, drains);
                    self.names.insert(row.name.to_string(), serial.clone());
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
                self.nodes.remove(&node);
            }
            self.view(&row, seen, drains);
            self.rows.insert(serial, row);
        }
        self.planner.refresh(&self.site, shown);
    }

    fn view(&mut self, row: &BladeRow, seen: &Seen, drains: &Drains) {
        let asked = run_asked_for(seen, row.name.as_str());
        let asked = asked.is_some_and(|made_ms| still_asked(row, made_ms));
        let object = seen.blade(row.name.as_str());
        let understood = object.as_ref().map(|guard| match &guard.0 {
            Ok(blade) => view::intent(blade, row.retested, asked).map_err(|e| e.to_string()),
            Err(invalid) => Err(invalid.error.clone()),
        });
        let last = || {
            let before = self.site.blades.get(&row.serial).map(|view| view.intent.clone());
            before.unwrap_or(Intent { retested: row.retested, ..Intent::default() })
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
        self.nodes.insert(node_name, row.serial.clone());
        self.site.blades.insert(row.serial.clone(), view::blade(row, intent, node));
    }

    /// After tranches changed: the planner's counts are made anew.
    pub fn tranches_changed(&mut self) {
        self.planner = Planner::new(&self.site);
    }
}

/// When a person last made a `BurnIn` of this blade that has no run yet, ms.
fn run_asked_for(seen: &Seen, blade: &str) -> Option<i64> {
    let runs = seen.runs_of(blade);
    let wishes = runs.iter().filter_map(|guard| guard.0.as_ref().ok()).filter(|burnin| is_wish(burnin));
    wishes.map(|burnin| burnin.creation_timestamp().map_or(0, |time| time.0.as_millisecond())).max()
}

/// A wish that came after the blade's last run was made. One that comes while a run goes on is for after it.
fn still_asked(row: &BladeRow, made_ms: i64) -> bool {
    // The apiserver's times have seconds.
    row.run.as_ref().is_none_or(|run| {
        !matches!(run.state, RunState::Ordered | RunState::Running) && run.created_ms < made_ms + 1000
    })
}
