//! A cache line handed to and fro between two cores, its content checked at each hand-over; how long that takes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use whetstone_model::report::Matrix;
use whetstone_model::unit::Unit;

use super::{Own, Trial, on_two, spin_until};
use crate::host::cores::Core;
use crate::host::stream::{self, Stream};

/// Hand-overs in each direction for one pair: under a millisecond, and enough to tell 50 ns from 60.
const TURNS: u64 = 2_000;
/// Largest matrix drawn (cores on an edge); of a larger machine a spread of cores is taken.
const EDGE: usize = 64;

/// One line: what is handed over, and whose turn it is.
#[derive(Default)]
struct Line {
    turn: AtomicU64,
    words: [AtomicU64; 7],
}

impl Trial<'_> {
    pub(super) fn pairs(&self, until: Instant) -> u64 {
        let step = self.cores.len().div_ceil(EDGE);
        let chosen: Vec<&Core> = self.cores.iter().step_by(step).collect();
        let count = chosen.len();
        let mut pairs: Vec<(usize, usize)> =
            (0..count).flat_map(|i| (i + 1..count).map(move |j| (i, j))).collect();
        // In a seeded order: if time is short, what was left out is spread over all cores.
        let mut stream = Stream::new(self.bench.seed);
        for i in (1..pairs.len()).rev() {
            pairs.swap(i, stream.below(i as u64 + 1) as usize);
        }
        let mut values = vec![vec![None; count]; count];
        let (mut measured, mut said) = (0, Instant::now());
        for (number, (i, j)) in pairs.iter().enumerate() {
            if said.elapsed().as_millis() > 300 || number == 0 {
                self.bench.tick(&format!("core to core, pair {} of {}", number + 1, pairs.len()));
                said = Instant::now();
            }
            let Some(nanoseconds) = self.pair(chosen[*i], chosen[*j], until) else { break };
            values[*i][*j] = Some(nanoseconds);
            values[*j][*i] = Some(nanoseconds);
            measured += 1;
        }
        if measured < pairs.len() {
            self.bench.note(format!("core to core: {measured} of {} pairs in the time given", pairs.len()));
        }
        let names: Vec<String> = chosen.iter().map(|core| format!("{}", core.cpu)).collect();
        let metric = "cpu.core_to_core.latency".to_owned();
        self.bench.matrix(Matrix {
            metric,
            unit: Unit::Nanosecond,
            rows: names.clone(),
            columns: names,
            values,
        });
        measured as u64
    }

    /// Nanoseconds of one hand-over.
    fn pair(&self, a: &Core, b: &Core, until: Instant) -> Option<f64> {
        let line = Own(Line::default());
        let line = &line.0;
        let seed = self.bench.seed ^ (a.cpu as u64) << 32 ^ b.cpu as u64;
        let side = |parity: u64, me: &Core, other: &Core| {
            let mut started = None;
            for turn in (parity..2 * TURNS).step_by(2) {
                if !spin_until(until, || line.turn.load(Ordering::Acquire) == turn) {
                    return None;
                }
                started.get_or_insert_with(Instant::now);
                if turn > 0 {
                    for (i, word) in line.words.iter().enumerate() {
                        let expected = stream::at(seed, turn * 8 + i as u64);
                        let got = word.load(Ordering::Relaxed);
                        // Only the first of each hand-over goes past the tap: it is for tests.
                        let got = if i == 0 { self.seen("ping-pong", got) } else { got };
                        if got != expected {
                            self.fault(me, format!(
                                "line from {other} to {me}, word {i} of turn {turn}: expected {expected:#018x}, got \
                                 {got:#018x}, flipped {:#x}",
                                expected ^ got
                            ));
                        }
                    }
                }
                for (i, word) in line.words.iter().enumerate() {
                    word.store(stream::at(seed, (turn + 1) * 8 + i as u64), Ordering::Relaxed);
                }
                line.turn.store(turn + 1, Ordering::Release);
            }
            started.map(|started: Instant| started.elapsed())
        };
        let (one, _two) = on_two((a, b), || side(0, a, b), || side(1, b, a))?;
        Some(one?.as_nanos() as f64 / (2 * TURNS) as f64)
    }
}
