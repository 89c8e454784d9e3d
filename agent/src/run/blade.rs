//! The blade as a run sees it: one look after another, each compared with what was known before.

use std::time::Instant;

use whetstone_burnin::protocol::GpuTarget;
use whetstone_model::evidence::Finding;
use whetstone_model::facts::Facts;
use whetstone_model::health::{self, Counters};
use whetstone_model::threshold::Table;

use crate::probe::{Depth, ProbeOptions, Prober};

/// What is known of the blade.
pub(super) struct Blade {
    prober: Prober,
    pub table: Table,
    /// The first look: what is gone later was there then.
    first: Facts,
    pub facts: Facts,
    /// Last value of every counter, also of a device that did not answer since.
    counters: Counters,
    looked: Instant,
    /// Every GPU that ever gave facts in this run.
    pub gpus: Vec<GpuTarget>,
}

impl Blade {
    /// The first look and what is wrong by it.
    pub fn first_look(options: &ProbeOptions, table: Table) -> (Blade, Vec<Finding>) {
        let mut prober = Prober::new(options.clone());
        let facts = prober.look(Depth::Full);
        let findings = health::findings(&facts, &table);
        let counters = Counters::of(&facts);
        let looked = Instant::now();
        let mut blade =
            Blade { prober, table, first: facts.clone(), facts, counters, looked, gpus: Vec::new() };
        blade.learn_gpus();
        (blade, findings)
    }

    /// Looks again: what is wrong now, and what came since the last look.
    pub fn look(&mut self, sku: Option<&str>) -> Looked {
        let facts = self.prober.look(Depth::Full);
        let after = Counters::of(&facts);
        let seconds = self.looked.elapsed().as_secs_f64();
        let mut since = health::deltas(&self.counters, &after, seconds, sku, &self.table);
        since.extend(health::vanished(&self.first, &facts, &self.table));
        let now = health::findings(&facts, &self.table);
        self.counters.update(after);
        self.looked = Instant::now();
        self.facts = facts;
        self.learn_gpus();
        Looked { now, since }
    }

    fn learn_gpus(&mut self) {
        for gpu in &self.facts.gpus {
            if !self.gpus.iter().any(|known| known.uuid == gpu.uuid) {
                self.gpus.push(GpuTarget { uuid: gpu.uuid.clone(), label: gpu.label() });
            }
        }
    }
}

/// What a look found.
pub(super) struct Looked {
    /// States, as they are now.
    pub now: Vec<Finding>,
    /// What counted up or went away since the look before.
    pub since: Vec<Finding>,
}
