//! Speed of each SM, and which one is slower than its sisters.
//!
//! All SMs of a GPU share one clock and do the same work, so they must take the same time. The rule, inside one GPU:
//! an SM is slow if the median of its rates lies below the median of all SMs by more than six robust standard
//! deviations *and* more than [`WARN`] (a warning) or [`FAULT`] (a fault). Both must hold: the spread alone would accuse
//! an SM of a very even GPU for 0.1 %, the fixed limit alone one of a noisy GPU. Placement (distance to the L2 slice)
//! explains a few per cent at most and no more than that is forgiven. Times too short for the timer are not judged.

use std::collections::BTreeMap;

use crate::cuda::driver::Tile;

/// Shortfall against the median SM, as a part.
pub const WARN: f64 = 0.05;
pub const FAULT: f64 = 0.10;
/// Robust standard deviations that a shortfall must exceed.
const SIGMAS: f64 = 6.0;
/// Fewer SMs have no meaningful median.
const FEWEST_SMS: usize = 8;

/// Rates gathered over launches.
#[derive(Debug, Default)]
pub struct SmRates {
    /// Operations per second, per SM, one value per launch.
    rates: BTreeMap<u32, Vec<f64>>,
    /// Shortest busy time of an SM, ns.
    shortest_ns: Option<u64>,
    /// The timer's step: the greatest common divisor of all differences between its readings, ns.
    step_ns: u64,
}

/// An SM that is slower than its sisters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowSm {
    pub sm: u32,
    /// Part of the median rate that is missing.
    pub shortfall: f64,
    pub fault: bool,
}

impl SmRates {
    /// Books one launch whose tiles took `operations` each.
    pub fn add(&mut self, tiles: &[Tile], operations: f64) {
        let mut spans: BTreeMap<u32, (u64, u64, u32)> = BTreeMap::new();
        for tile in tiles.iter().filter(|t| t.end_ns > t.start_ns) {
            let span = spans.entry(tile.smid).or_insert((u64::MAX, 0, 0));
            *span = (span.0.min(tile.start_ns), span.1.max(tile.end_ns), span.2 + 1);
        }
        // An SM that got more or fewer blocks than the others shares differently: not comparable.
        let mut counts: Vec<u32> = spans.values().map(|s| s.2).collect();
        counts.sort_unstable();
        let usual = counts.get(counts.len() / 2).copied().unwrap_or(0);
        if let Some((first, ..)) = spans.values().next().copied() {
            let readings = spans.values().flat_map(|(start, end, _)| [*start, *end]);
            self.step_ns = readings.fold(self.step_ns, |step, at| divisor(step, at.abs_diff(first)));
        }
        for (sm, (start, end, count)) in spans.into_iter().filter(|(_, s)| s.2 == usual) {
            let ns = end - start;
            self.shortest_ns = Some(self.shortest_ns.map_or(ns, |s| s.min(ns)));
            self.rates.entry(sm).or_default().push(operations * f64::from(count) / (ns as f64 * 1e-9));
        }
    }

    /// SMs that did any work.
    pub fn seen(&self, sm: u32) -> bool {
        self.rates.contains_key(&sm)
    }

    /// Operations per second of each SM (median of its launches), by SM id.
    pub fn profile(&self, sms: u32) -> Vec<Option<f64>> {
        (0..sms).map(|sm| median(self.rates.get(&sm)?)).collect()
    }

    /// The slow SMs, slowest first.
    pub fn slow(&self) -> Vec<SlowSm> {
        let rates: Vec<(u32, f64)> =
            self.rates.iter().filter_map(|(sm, rates)| Some((*sm, median(rates)?))).collect();
        let values: Vec<f64> = rates.iter().map(|(_, rate)| *rate).collect();
        let Some(middle) = median(&values).filter(|m| *m > 0.0 && values.len() >= FEWEST_SMS) else {
            return Vec::new();
        };
        let deviations: Vec<f64> = values.iter().map(|v| (v - middle).abs()).collect();
        let sigma = 1.4826 * median(&deviations).unwrap_or(0.0) / middle;
        // Two ticks of the timer, as a part of what it measured.
        let ticks = self.shortest_ns.map_or(0.0, |ns| 2.0 * self.step_ns as f64 / ns.max(1) as f64);
        let limit = |fixed: f64| fixed.max(SIGMAS * sigma).max(ticks);
        let mut slow: Vec<SlowSm> = rates
            .into_iter()
            .map(|(sm, rate)| (sm, 1.0 - rate / middle))
            .filter(|(_, shortfall)| *shortfall > limit(WARN))
            .map(|(sm, shortfall)| SlowSm { sm, shortfall, fault: shortfall > limit(FAULT) })
            .collect();
        slow.sort_by(|a, b| b.shortfall.total_cmp(&a.shortfall));
        slow
    }
}

/// Greatest common divisor; that of 0 and n is n.
fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { divisor(b, a % b) }
}

/// The middle value (the lower one of two).
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len().max(1) - 1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use whetstone_burnin::exact::SplitMix64;

    fn launch(sms: u32, random: &mut SplitMix64, factor: impl Fn(u32) -> f64) -> Vec<Tile> {
        (0..2 * sms)
            .map(|i| {
                let sm = i % sms;
                let ns = 1e6 * factor(sm) * (1.0 + 1e-3 * random.below(10) as f64);
                Tile { smid: sm, start_ns: 1000, end_ns: 1000 + ns as u64, ..Tile::default() }
            })
            .collect()
    }

    #[test]
    fn a_healthy_gpu_has_no_slow_sm_and_a_planted_one_is_found() {
        for seed in 0..200 {
            let mut random = SplitMix64::new(seed);
            let mut rates = SmRates::default();
            // Two groups of SMs, 2 % apart, as by the distance to the L2.
            (0..3)
                .for_each(|_| rates.add(&launch(132, &mut random, |sm| 1.0 + 0.02 * f64::from(sm % 2)), 1e9));
            assert_eq!(rates.slow(), [], "seed {seed}");
            let bad = random.below(132) as u32;
            let mut rates = SmRates::default();
            let planted = |sm| if sm == bad { 1.2 } else { 1.0 };
            (0..3).for_each(|_| rates.add(&launch(132, &mut random, planted), 1e9));
            let slow = rates.slow();
            assert_eq!((slow.len(), slow[0].sm, slow[0].fault), (1, bad, true), "seed {seed}");
            assert!((slow[0].shortfall - (1.0 - 1.0 / 1.2)).abs() < 0.02);
        }
    }

    #[test]
    fn a_few_per_cent_warn_and_no_more() {
        let mut random = SplitMix64::new(5);
        let mut rates = SmRates::default();
        rates.add(&launch(132, &mut random, |sm| if sm == 3 { 1.08 } else { 1.0 }), 1e9);
        assert_eq!(rates.slow().iter().map(|s| (s.sm, s.fault)).collect::<Vec<_>>(), [(3, false)]);
    }

    #[test]
    fn what_the_timer_cannot_see_is_not_judged() {
        let mut rates = SmRates::default();
        let tiles: Vec<Tile> = (0..32)
            .map(|sm| Tile {
                smid: sm,
                start_ns: 0,
                end_ns: if sm == 4 { 12 } else { 10 },
                ..Tile::default()
            })
            .collect();
        rates.add(&tiles, 1.0);
        assert_eq!(rates.slow(), []);
    }

    #[test]
    fn an_sm_with_another_number_of_blocks_is_left_out() {
        let mut random = SplitMix64::new(6);
        let mut tiles = launch(16, &mut random, |_| 1.0);
        tiles.push(Tile { smid: 9, start_ns: 1000, end_ns: 2_001_000, ..Tile::default() });
        let mut rates = SmRates::default();
        rates.add(&tiles, 1e9);
        assert!(!rates.seen(9) && rates.seen(8));
        assert_eq!(rates.profile(16)[9], None);
    }
}
