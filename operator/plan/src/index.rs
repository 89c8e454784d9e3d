//! Counts over all blades. Each blade adds its mark and takes it back when it changed, so that the counts follow the site
//! at the cost of the blades that changed. Nothing here depends on the time or on the site's limits.

use std::collections::{BTreeMap, BTreeSet};

use whetstone_model::ids::{BladeName, DomainName, RackName, RunId, Serial, TrancheName};
use whetstone_model::lifecycle::PhaseName;

use crate::breaker;
use crate::cohort::{self, Part};
use crate::drain;
use crate::gate;
use crate::view::{BladeView, NodeView, SiteView};
use crate::wish::{Class, Wish, unfinished, wish};

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Index {
    marks: BTreeMap<Serial, Mark>,
    pub tranches: BTreeMap<TrancheName, TrancheTally>,
    racks: BTreeMap<RackName, BTreeMap<Option<TrancheName>, RackPart>>,
    pub domains: BTreeMap<DomainName, GateTally>,
    /// Blades that want a run, in the order in which they get it.
    pub queue: BTreeSet<(Class, BladeName, Serial)>,
    /// Ready or in service.
    pub serving: usize,
    /// Withheld for a fault, since when.
    pub faulted: BTreeSet<(i64, Serial)>,
    /// To be withheld for a fault; the oldest fault first.
    pub fault_wanted: BTreeSet<(i64, BladeName, Serial)>,
    /// Drains that go on, with the time when they last got on. One of each node, whoever else names it.
    pub drains: BTreeSet<(i64, Serial)>,
    pub drains_wanted: BTreeSet<(BladeName, Serial)>,
    /// Which blades name a node. The first has the say there, alone: two of which one withholds what the other releases would
    /// leave it open half of the time.
    nodes: BTreeMap<String, Vec<Claim>>,
}

/// A blade's claim to the node that it names, in the order of who has more to say there: a blade that has left the site, or
/// that nobody has heard of, must not get in the way of one that is there; nor one that names the node by mistake in the way
/// of the one that is called like it, or that it was last withheld for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    standing: Standing,
    other_name: bool,
    other_label: bool,
    serial: Serial,
    name: BladeName,
    /// If its drain goes on: when that last got on.
    drain: Option<i64>,
    drain_wanted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    There,
    Expected,
    Leaves,
}

impl Claim {
    fn new(blade: &BladeView, node: &NodeView, wish: Wish) -> Claim {
        let name = blade.name.as_str();
        Claim {
            standing: match wish {
                Wish::Deliver => Standing::Expected,
                Wish::Retire | Wish::Gone => Standing::Leaves,
                _ => Standing::There,
            },
            other_name: node.name != name,
            other_label: node.our_label.as_deref() != Some(name),
            serial: blade.serial.clone(),
            name: blade.name.clone(),
            drain: drain::moved_ms(blade),
            drain_wanted: drain::wanted(blade),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TrancheTally {
    pub phases: BTreeMap<PhaseName, usize>,
    /// Expected, but joined: delivered all the same.
    pub arrived: usize,
    /// Runs that go on.
    pub burning: usize,
    pub going: usize,
    pub ended: usize,
    pub to_come: BTreeSet<Serial>,
    /// Passed and not compared.
    pub passed: BTreeSet<RunId>,
}

/// The blades of one tranche (or of none) in one rack.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct RackPart {
    pub members: usize,
    pub burning: usize,
    pub gate: GateTally,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct GateTally {
    pub passed: usize,
    pub of: usize,
}

/// What one blade adds to the counts.
#[derive(Debug, Clone, PartialEq)]
struct Mark {
    wish: Wish,
    name: BladeName,
    phase: PhaseName,
    tranche: Option<TrancheName>,
    rack: Option<RackName>,
    domain: Option<DomainName>,
    part: Part,
    arrived: bool,
    burning: bool,
    counts: bool,
    passed: bool,
    faulted: Option<i64>,
    fault_wanted: Option<i64>,
    node: Option<(String, Claim)>,
}

impl Mark {
    fn new(site: &SiteView, blade: &BladeView) -> Mark {
        let tranche = blade.tranche.as_ref().and_then(|name| site.tranches.get(name));
        let wish = wish(blade, tranche);
        let oldest = blade.faults.iter().map(|fault| fault.since_ms).min();
        let wants = wish == Wish::Fault && !breaker::begun(blade, wish);
        Mark {
            wish,
            name: blade.name.clone(),
            phase: blade.phase.name(),
            tranche: blade.tranche.clone(),
            rack: blade.rack.clone(),
            domain: blade.domain.clone(),
            part: cohort::part(blade, wish),
            arrived: wish == Wish::Discover,
            burning: unfinished(blade).is_some(),
            counts: gate::counts(&blade.phase),
            passed: gate::passed(&blade.phase),
            faulted: breaker::withheld_since(blade, wish),
            // Without a fault it is in doubt since its last doubt.
            fault_wanted: wants.then(|| oldest.or(blade.doubted_ms).unwrap_or(blade.since_ms)),
            node: blade.node.as_ref().map(|node| (node.name.clone(), Claim::new(blade, node, wish))),
        }
    }
}

/// Adds or takes away one, never below nothing.
fn step(count: &mut usize, add: bool) {
    *count = if add { count.saturating_add(1) } else { count.saturating_sub(1) };
}

fn put<T: Ord>(set: &mut BTreeSet<T>, item: T, add: bool) {
    if add {
        set.insert(item);
    } else {
        set.remove(&item);
    }
}

impl Index {
    pub(crate) fn build(site: &SiteView) -> Index {
        let mut index = Index::default();
        for (serial, blade) in &site.blades {
            let mark = Mark::new(site, blade);
            index.count(serial, &mark, true);
            index.marks.insert(serial.clone(), mark);
        }
        index
    }

    pub(crate) fn refresh(&mut self, site: &SiteView, serial: &Serial) {
        if let Some(old) = self.marks.remove(serial) {
            self.count(serial, &old, false);
        }
        if let Some(blade) = site.blades.get(serial) {
            let mark = Mark::new(site, blade);
            self.count(serial, &mark, true);
            self.marks.insert(serial.clone(), mark);
        }
    }

    pub(crate) fn wish(&self, serial: &Serial) -> Option<Wish> {
        self.marks.get(serial).map(|mark| mark.wish)
    }

    pub(crate) fn rack_part(&self, rack: &RackName, tranche: Option<&TrancheName>) -> Option<&RackPart> {
        // The map's key owns its name; a rack holds a handful of tranches.
        self.racks.get(rack)?.iter().find(|(name, _)| name.as_ref() == tranche).map(|(_, part)| part)
    }

    /// The tranches that have blades in this rack, with what they have there.
    pub(crate) fn rack(&self, rack: &RackName) -> impl Iterator<Item = (Option<&TrancheName>, &RackPart)> {
        self.racks.get(rack).into_iter().flatten().map(|(name, part)| (name.as_ref(), part))
    }

    fn count(&mut self, serial: &Serial, mark: &Mark, add: bool) {
        let change = |count: &mut usize, when: bool| {
            if when {
                step(count, add);
            }
        };
        if let Some(name) = &mark.tranche {
            let tally = self.tranches.entry(name.clone()).or_default();
            step(tally.phases.entry(mark.phase).or_default(), add);
            change(&mut tally.arrived, mark.arrived);
            change(&mut tally.burning, mark.burning);
            match mark.part {
                Part::Out => {}
                Part::Going => step(&mut tally.going, add),
                Part::ToCome => put(&mut tally.to_come, serial.clone(), add),
                Part::Passed(run) => {
                    step(&mut tally.ended, add);
                    put(&mut tally.passed, run, add);
                }
                Part::Ended => step(&mut tally.ended, add),
            }
        }
        if let Some(rack) = &mark.rack {
            let parts = self.racks.entry(rack.clone()).or_default();
            let part = parts.entry(mark.tranche.clone()).or_default();
            step(&mut part.members, add);
            change(&mut part.burning, mark.burning);
            change(&mut part.gate.of, mark.counts);
            change(&mut part.gate.passed, mark.passed);
            if part.members == 0 {
                parts.remove(&mark.tranche);
            }
        }
        if let Some(domain) = &mark.domain {
            let tally = self.domains.entry(domain.clone()).or_default();
            change(&mut tally.of, mark.counts);
            change(&mut tally.passed, mark.passed);
        }
        change(&mut self.serving, mark.passed);
        if let Wish::Run(run) = mark.wish {
            put(&mut self.queue, (run.class(), mark.name.clone(), serial.clone()), add);
        }
        if let Some(since_ms) = mark.faulted {
            put(&mut self.faulted, (since_ms, serial.clone()), add);
        }
        if let Some(since_ms) = mark.fault_wanted {
            put(&mut self.fault_wanted, (since_ms, mark.name.clone(), serial.clone()), add);
        }
        if let Some((node, claim)) = &mark.node {
            self.claim(node, claim, add);
        }
    }

    /// Another one may have the say at the node then, and its drain is counted as that one sees it.
    fn claim(&mut self, node: &str, claim: &Claim, add: bool) {
        let claims = self.nodes.entry(node.to_owned()).or_default();
        let before = claims.first().cloned();
        claims.retain(|other| other.serial != claim.serial);
        if add {
            claims.push(claim.clone());
            claims.sort();
        }
        let after = claims.first().cloned();
        if after.is_none() {
            self.nodes.remove(node);
        }
        for (first, add) in [(before, false), (after, true)] {
            let Some(Claim { serial, name, drain, drain_wanted, .. }) = first else { continue };
            if let Some(moved_ms) = drain {
                put(&mut self.drains, (moved_ms, serial.clone()), add);
            }
            if drain_wanted {
                put(&mut self.drains_wanted, (name, serial), add);
            }
        }
    }

    /// Who has the say at the node that this blade names, if it is another one.
    pub(crate) fn rival(&self, serial: &Serial, node: &str) -> Option<&BladeName> {
        let first = self.nodes.get(node)?.first()?;
        (first.serial != *serial).then_some(&first.name)
    }
}
