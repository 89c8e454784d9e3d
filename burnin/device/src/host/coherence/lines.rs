//! False sharing: each core writes its own word of a line that others write too, at full speed. Nobody's word may change
//! under a neighbour's writes, and nobody may see half of a write.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::{Own, Trial};
use crate::host::cores;

/// Cores on one line of eight words.
const WORDS: usize = 8;
/// Writes of each core in a round.
const TIMES: u64 = 50_000;

/// A number with its complement above it: half of one and half of another write never fit.
fn sealed(number: u64) -> u64 {
    (number & 0xffff_ffff) | (!number << 32)
}

impl Trial<'_> {
    pub(super) fn lines(&self, until: Instant) -> u64 {
        let lines: Vec<Own<[AtomicU64; WORDS]>> =
            (0..self.cores.len().div_ceil(WORDS)).map(|_| Own::default()).collect();
        let mut rounds = 0u64;
        while Instant::now() < until {
            for line in &lines {
                line.0.iter().for_each(|word| word.store(sealed(0), Ordering::SeqCst));
            }
            let doing = || format!("shared lines, round {}", rounds + 1);
            let finished = cores::on_each(self.bench, self.cores, &doing, |index, core| {
                let line = &lines[index / WORDS].0;
                let (mine, other) = (&line[index % WORDS], &line[(index + 1) % WORDS]);
                for turn in 1..=TIMES {
                    let value = sealed(turn);
                    mine.store(value, Ordering::Relaxed);
                    let neighbour = other.load(Ordering::Relaxed);
                    let got = self.seen("line", mine.load(Ordering::Relaxed));
                    if got != value {
                        self.fault(core, format!(
                            "own word on a shared line, {core}: expected {value:#018x}, got {got:#018x}, flipped {:#x}",
                            got ^ value
                        ));
                    }
                    if neighbour != sealed(neighbour & 0xffff_ffff) {
                        self.fault(core, format!(
                            "torn write of a neighbour seen by {core}: expected a number and its complement, got {neighbour:#018x}"
                        ));
                    }
                    if turn % 1024 == 0 && Instant::now() >= until {
                        return false;
                    }
                }
                true
            });
            if finished.iter().any(|all| *all != Some(true)) {
                return rounds;
            }
            rounds += 1;
        }
        rounds
    }
}
