//! Limits that are far from those of sister SKUs.

use std::collections::BTreeMap;

use super::super::import::{Limit, Measure};
use super::super::judge::number;
use super::super::{Better, Role};
use super::{Bench, Code, Issue, issue, median, shown, whose};

/// A limit this factor from its neighbours is not a choice any more. Sister SKUs scaled by their size differ by
/// less than 3 in every table that we have looked at; the usual slips are 8, 10, 60, 1000, 1024 and 3600.
const SLIP: f64 = 5.0;
/// The same against limits of any chip, after scaling by size.
const SLIP_FAR: f64 = 10.0;
/// The same where neither hardware limit nor power tells how big the SKUs are, and they are of other chips.
const SLIP_UNSCALED: f64 = 20.0;
/// Limits of one chip for one test that differ by more are hardly of the same test.
const SPREAD: f64 = 1.6;

/// How the sizes of SKUs compare.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scale {
    Hardware,
    Power,
}

pub(super) fn unit_slips(bench: &Bench<'_>) -> Vec<Issue> {
    let mut pools: BTreeMap<(&str, Better), Vec<&Limit>> = BTreeMap::new();
    // Lanes and generations are whole numbers with a right answer (see `below_spec`), not sizes.
    let sized = |l: &&Limit| l.value > 0.0 && matches!(l.measure, Measure::Unit(_));
    for limit in bench.limits.iter().filter(|l| matches!(l.role, Role::Fail | Role::Warn)).filter(sized) {
        pools.entry((&limit.metric, limit.better)).or_default().push(limit);
    }
    let sizes = Sizes::new(bench);
    let mut issues = Vec::new();
    for ((metric, _), own) in &pools {
        let reference =
            bench.reference.iter().filter(|l| l.metric == *metric && l.role == Role::Fail && l.value > 0.0);
        let pool: Vec<&Limit> = own.iter().copied().chain(reference).collect();
        for limit in own {
            issues.extend(foreign_unit(limit, &pool).or_else(|| slip(limit, &pool, &sizes)));
        }
    }
    issues
}

/// A unit that measures another thing than most of the neighbours' units do.
fn foreign_unit(limit: &Limit, pool: &[&Limit]) -> Option<Issue> {
    let others: Vec<&Limit> = pool.iter().copied().filter(|l| l.value_in(&limit.measure).is_none()).collect();
    let alike = pool.len() - others.len();
    if others.len() <= alike {
        return None;
    }
    let message = format!(
        "{} is in {}, while {} neighbours are in {}",
        whose(limit),
        limit.measure.as_str(),
        others.len(),
        others[0].measure.as_str()
    );
    Some(issue(limit, Code::UnitSlip, message, &others))
}

fn slip(limit: &Limit, pool: &[&Limit], sizes: &Sizes<'_>) -> Option<Issue> {
    let others: Vec<&Limit> = pool
        .iter()
        .copied()
        .filter(|l| !std::ptr::eq(*l, limit) && l.role == limit.role && l.value_in(&limit.measure).is_some())
        .filter(|l| (l.file.as_str(), l.line) != (limit.file.as_str(), limit.line))
        .collect();
    let (neighbours, near) = neighbours(limit, &others)?;
    let raw = ratio(limit, &neighbours, |_| Some(1.0))?;
    let scaled = [Scale::Hardware, Scale::Power]
        .into_iter()
        .find_map(|scale| ratio(limit, &neighbours, |l| sizes.of(l, scale)));
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
    let middle = median(neighbours.iter().filter_map(|l| l.value_in(&limit.measure)).collect())?;
    let message = format!(
        "{}: {} is a factor {} {side} its neighbours (median {} {})",
        whose(limit),
        shown(limit),
        number((factor * 10.0).round() / 10.0),
        number(middle),
        limit.measure.as_str(),
    );
    Some(issue(limit, Code::UnitSlip, message, &neighbours))
}

/// The limits to compare with: of the same chip, else of the same generation, else all. True = same generation.
fn neighbours<'a>(limit: &Limit, others: &[&'a Limit]) -> Option<(Vec<&'a Limit>, bool)> {
    let chip = limit.chip();
    let with = |same: &dyn Fn(&Limit) -> bool| others.iter().copied().filter(|l| same(l)).collect::<Vec<_>>();
    if let Some(chip) = chip {
        for group in [
            with(&|l| l.chip().is_some_and(|c| c.name == chip.name)),
            with(&|l| l.chip().is_some_and(|c| c.generation == chip.generation)),
        ] {
            if group.len() >= 2 {
                return Some((group, true));
            }
        }
    }
    (others.len() >= 3).then(|| (others.to_vec(), false))
}

/// The limit against the median of its neighbours, each divided by its size.
fn ratio(limit: &Limit, neighbours: &[&Limit], size: impl Fn(&Limit) -> Option<f64>) -> Option<f64> {
    let own = limit.value / size(limit)?;
    let others: Option<Vec<f64>> =
        neighbours.iter().map(|l| Some(l.value_in(&limit.measure)? / size(l)?)).collect();
    let middle = median(others?)?;
    (middle > 0.0).then(|| own / middle)
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

    fn of(&self, limit: &Limit, scale: Scale) -> Option<f64> {
        match scale {
            Scale::Hardware => self.by_sku.get(&(limit.sku.as_str(), limit.metric.as_str())).copied(),
            Scale::Power => self.power.get(&(limit.sku.as_str(), limit.product.as_str())).copied(),
        }
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
