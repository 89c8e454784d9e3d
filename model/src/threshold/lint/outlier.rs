//! Limits that are far from those of sister SKUs.

use std::collections::{BTreeMap, BTreeSet};

use super::super::chip::Chip;
use super::super::import::{Limit, Measure};
use super::super::judge::number;
use super::super::{Better, Role};
use super::{Bench, Code, Issue, issue, shown, whose};

/// A limit this factor from its neighbours is not a choice any more. Sister SKUs scaled by their size differ by
/// less than 3 in every table that we have looked at; the usual slips are 8, 10, 60, 1000, 1024 and 3600.
const SLIP: f64 = 5.0;
/// The same against limits of any chip, after scaling by size.
const SLIP_FAR: f64 = 10.0;
/// The same where neither hardware limit nor power tells how big the SKUs are, and they are of other chips.
const SLIP_UNSCALED: f64 = 20.0;
/// Limits of one chip for one test that differ by more are hardly of the same test.
const SPREAD: f64 = 1.6;

pub(super) fn unit_slips(bench: &Bench<'_>) -> Vec<Issue> {
    let mut pools: BTreeMap<(&str, Better, Role), Vec<&Limit>> = BTreeMap::new();
    // Lanes and generations are whole numbers with a right answer (see `below_spec`), not sizes.
    let sized = |l: &&Limit| l.value > 0.0 && matches!(l.measure, Measure::Unit(_));
    for limit in bench.limits.iter().filter(|l| matches!(l.role, Role::Fail | Role::Warn)).filter(sized) {
        pools.entry((&limit.metric, limit.better, limit.role)).or_default().push(limit);
    }
    let sizes = Sizes::new(bench);
    let mut issues = Vec::new();
    for ((metric, _, role), own) in &pools {
        let reference =
            bench.reference.iter().filter(|l| l.metric == *metric && l.role == *role).filter(sized);
        let pool: Vec<&Limit> = own.iter().copied().chain(reference).collect();
        let classes = by_dimension(&pool);
        let examined: BTreeSet<*const Limit> = own.iter().map(|l| std::ptr::from_ref(*l)).collect();
        for class in &classes {
            // The examined limits come first in the pool, and so in each class of it.
            let examined = class.iter().filter(|l| examined.contains(&std::ptr::from_ref(**l))).count();
            let others = pool.len() - class.len();
            if others > class.len() {
                let stranger = |l: &&Limit| l.value_in(&class[0].measure).is_none();
                let others: Vec<&Limit> = pool.iter().copied().filter(stranger).collect();
                issues.extend(class[..examined].iter().map(|l| foreign_unit(l, &others)));
            } else {
                issues.extend(slips(class, examined, &sizes));
            }
        }
    }
    issues
}

/// The limits by what their units measure.
fn by_dimension<'a>(pool: &[&'a Limit]) -> Vec<Vec<&'a Limit>> {
    let mut classes: Vec<Vec<&Limit>> = Vec::new();
    for limit in pool {
        match classes.iter_mut().find(|class| limit.value_in(&class[0].measure).is_some()) {
            Some(class) => class.push(limit),
            None => classes.push(vec![limit]),
        }
    }
    classes
}

/// A unit that measures another thing than most of the neighbours' units do.
fn foreign_unit(limit: &Limit, others: &[&Limit]) -> Issue {
    let message = format!(
        "{} is in {}, while {} neighbours are in {}",
        whose(limit),
        limit.measure.as_str(),
        others.len(),
        others[0].measure.as_str()
    );
    issue(limit, Code::UnitSlip, message, others)
}

/// Limits that compare, with what is needed of each.
struct Entry<'a> {
    limit: &'a Limit,
    /// In one unit for all.
    value: f64,
    hardware: Option<f64>,
    power: Option<f64>,
}

/// A set of entries with its sorted values, so that each entry is compared in little time.
#[derive(Default)]
struct Group {
    members: Vec<usize>,
    raw: Vec<f64>,
    /// Divided by size; empty if the size of any member is not known.
    hardware: Vec<f64>,
    power: Vec<f64>,
}

impl Group {
    fn new(members: Vec<usize>, entries: &[Entry<'_>]) -> Group {
        let sorted = |value: &dyn Fn(&Entry<'_>) -> Option<f64>| {
            let values: Option<Vec<f64>> = members.iter().map(|i| value(&entries[*i])).collect();
            let mut values = values.unwrap_or_default();
            values.sort_by(f64::total_cmp);
            values
        };
        let raw = sorted(&|e| Some(e.value));
        let hardware = sorted(&|e| e.hardware.map(|size| e.value / size));
        let power = sorted(&|e| e.power.map(|size| e.value / size));
        Group { members, raw, hardware, power }
    }

    /// `own` against the median of the others.
    fn ratio(sorted: &[f64], own: f64) -> Option<f64> {
        let place = sorted.partition_point(|v| v.total_cmp(&own).is_lt());
        let without = |i: usize| sorted[if i < place { i } else { i + 1 }];
        let others = sorted.len().checked_sub(1)?;
        let middle = match others {
            0 => return None,
            n if n % 2 == 1 => without(n / 2),
            n => (without(n / 2 - 1) + without(n / 2)) / 2.0,
        };
        (middle > 0.0).then(|| own / middle)
    }
}

fn slips(class: &[&Limit], examined: usize, sizes: &Sizes<'_>) -> Vec<Issue> {
    let entries: Vec<Entry<'_>> = class
        .iter()
        .filter_map(|limit| {
            let value = limit.value_in(&class[0].measure)?;
            Some(Entry { limit, value, hardware: sizes.hardware(limit), power: sizes.power(limit) })
        })
        .collect();
    let chips: Vec<Option<Chip>> = class.iter().map(|l| l.chip()).collect();
    let mut of_chip: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut of_generation: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, chip) in chips.iter().enumerate().filter_map(|(i, c)| c.map(|c| (i, c))) {
        of_chip.entry(chip.name).or_default().push(i);
        of_generation.entry(chip.generation).or_default().push(i);
    }
    let groups = |members: BTreeMap<&'static str, Vec<usize>>| -> BTreeMap<&str, Group> {
        members.into_iter().map(|(name, list)| (name, Group::new(list, &entries))).collect()
    };
    let (of_chip, of_generation) = (groups(of_chip), groups(of_generation));
    let all = Group::new((0..entries.len()).collect(), &entries);
    let mut issues = Vec::new();
    for (i, chip) in chips.iter().enumerate().take(examined) {
        // Of the same chip, else of the same generation, else all; two or three others make a median.
        let near = chip.and_then(|c| {
            let groups = [of_chip.get(c.name), of_generation.get(c.generation)];
            groups.into_iter().flatten().find(|g| g.members.len() > 2)
        });
        let far = Some(&all).filter(|g| near.is_none() && g.members.len() > 3);
        if let Some(group) = near.or(far) {
            issues.extend(slip(i, &entries, group, near.is_some()));
        }
    }
    issues
}

fn slip(own: usize, entries: &[Entry<'_>], group: &Group, near: bool) -> Option<Issue> {
    let entry = &entries[own];
    let limit = entry.limit;
    let raw = Group::ratio(&group.raw, entry.value)?;
    let by_size = |sorted: &[f64], size: Option<f64>| Group::ratio(sorted, entry.value / size?);
    let scaled = by_size(&group.hardware, entry.hardware).or_else(|| by_size(&group.power, entry.power));
    let away = |r: f64, needed: f64| match r {
        r if r >= needed => 1,
        r if r <= 1.0 / needed => -1,
        _ => 0,
    };
    // Both must say so: a small board may ask for little, and scaling may mislead as well.
    let slipped = match scaled {
        Some(scaled) => {
            let side = away(scaled, if near { SLIP } else { SLIP_FAR });
            side != 0 && side == away(raw, SLIP)
        }
        None => away(raw, if near { SLIP } else { SLIP_UNSCALED }) != 0,
    };
    if !slipped {
        return None;
    }
    let (factor, side) = if raw < 1.0 { (1.0 / raw, "below") } else { (raw, "above") };
    let message = format!(
        "{}: {} is a factor {} {side} its neighbours (median {} {})",
        whose(limit),
        shown(limit),
        number((factor * 10.0).round() / 10.0),
        number(limit.value / raw),
        limit.measure.as_str(),
    );
    let others = group.members.iter().filter(|i| **i != own).map(|i| entries[*i].limit);
    let others: Vec<&Limit> = others.take(super::MAX_NEIGHBOURS).collect();
    Some(issue(limit, Code::UnitSlip, message, &others))
}

/// How big the SKUs are, as the files say it.
struct Sizes<'a> {
    by_sku: BTreeMap<(&'a str, &'a str), f64>,
    power: BTreeMap<(&'a str, &'a str), f64>,
}

impl<'a> Sizes<'a> {
    fn new(bench: &Bench<'a>) -> Sizes<'a> {
        let mut sizes = Sizes { by_sku: BTreeMap::new(), power: BTreeMap::new() };
        for l in bench.reference.iter().chain(bench.limits).filter(|l| l.value > 0.0) {
            if l.role == Role::HardwareLimit
                && let Measure::Unit(unit) = l.measure
                && let Some(base) = super::super::metric::find(&l.metric)
                    .map_or(Some(l.value), |m| unit.convert(l.value, m.unit).ok())
            {
                sizes.by_sku.insert((&l.sku, &l.metric), base);
            }
            if l.metric == "power.limit" && l.role == Role::Typical {
                sizes.power.insert((&l.sku, &l.product), l.value);
            }
        }
        sizes
    }

    fn hardware(&self, limit: &Limit) -> Option<f64> {
        self.by_sku.get(&(limit.sku.as_str(), limit.metric.as_str())).copied()
    }

    fn power(&self, limit: &Limit) -> Option<f64> {
        self.power.get(&(limit.sku.as_str(), limit.product.as_str())).copied()
    }
}

/// Entries of one chip and form factor in one source that are far apart.
pub(super) fn spread(limits: &[&Limit]) -> Vec<Issue> {
    let mut groups: BTreeMap<(&str, &str, &str, &str), Vec<&Limit>> = BTreeMap::new();
    for limit in limits.iter().filter(|l| l.role == Role::Fail && l.better == Better::Higher && l.value > 0.0)
    {
        if let Some(chip) = limit.chip() {
            let key = (chip.name, form_factor(&limit.product), limit.metric.as_str(), limit.source.as_str());
            groups.entry(key).or_default().push(limit);
        }
    }
    groups.into_iter().filter_map(|((chip, _, metric, _), group)| widest(chip, metric, &group)).collect()
}

/// Boards of one chip on a card, a module or in pairs are different products.
fn form_factor(product: &str) -> &'static str {
    let upper = product.to_ascii_uppercase();
    ["SXM", "PCI", "NVL"].into_iter().find(|word| upper.contains(word)).unwrap_or_default()
}

fn widest(chip: &str, metric: &str, group: &[&Limit]) -> Option<Issue> {
    let measured = |l: &&&Limit| matches!(l.measure, Measure::Unit(_));
    let mut sorted: Vec<&Limit> = group.iter().filter(measured).copied().collect();
    sorted.sort_by(|a, b| a.value.total_cmp(&b.value));
    let (low, high) = (*sorted.first()?, *sorted.last()?);
    let factor = high.value_in(&low.measure)? / low.value;
    if factor < SPREAD {
        return None;
    }
    let message = format!(
        "{metric}: the {} entries for {chip} ask between {} and {}, a factor {} apart for one chip and test",
        sorted.len(),
        shown(low),
        shown(high),
        number((factor * 10.0).round() / 10.0),
    );
    sorted.reverse();
    Some(issue(low, Code::Spread, message, &sorted))
}
