//! Memory order that x86 and ARM promise to acquire, release and sequentially consistent accesses.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::{Own, Trial, on_two, spin_until};

/// Trials of one batch, each on lines of its own.
const BATCH: usize = 1024;

#[derive(Default)]
struct Place {
    x: Own<AtomicU64>,
    y: Own<AtomicU64>,
}

impl Trial<'_> {
    pub(super) fn litmus(&self, until: Instant) -> u64 {
        let places: Vec<Place> = (0..BATCH).map(|_| Place::default()).collect();
        let (mut rounds, mut said) = (0u64, None::<Instant>);
        let count = self.cores.len();
        while Instant::now() < until {
            if said.is_none_or(|said| said.elapsed().as_millis() > 300) {
                self.bench.tick(&format!("memory order, round {}", rounds + 1));
                said = Some(Instant::now());
            }
            // Over the rounds every core meets others at every distance.
            let a = rounds as usize % count;
            let b = (a + 1 + rounds as usize / count % (count - 1)) % count;
            let pair = (&self.cores[a], &self.cores[b]);
            if self.message(pair, &places, rounds, until).is_none()
                || self.store(pair, &places, until).is_none()
            {
                break;
            }
            rounds += 1;
        }
        rounds
    }

    /// Message passing: who sees the flag sees the data that was written before it.
    fn message(
        &self,
        (a, b): (&super::Core, &super::Core),
        places: &[Place],
        round: u64,
        until: Instant,
    ) -> Option<()> {
        clear(places);
        let tag = round << 16;
        let write = || {
            for (i, place) in places.iter().enumerate() {
                place.x.0.store(tag + i as u64 + 1, Ordering::Relaxed);
                place.y.0.store(1, Ordering::Release);
            }
            true
        };
        let read = || {
            places.iter().enumerate().all(|(i, place)| {
                if !spin_until(until, || place.y.0.load(Ordering::Acquire) == 1) {
                    return false;
                }
                let (expected, got) = (tag + i as u64 + 1, place.x.0.load(Ordering::Relaxed));
                let got = self.seen("message", got);
                if got != expected {
                    self.fault(b, format!(
                        "message from {a} to {b}: the flag was seen, the data before it not: expected {expected:#x}, got \
                         {got:#x}"
                    ));
                }
                true
            })
        };
        matches!(on_two((a, b), write, read), Some((true, true))).then_some(())
    }

    /// Store buffering: of two cores that each write one word and read the other's, at least one sees a write.
    fn store(&self, (a, b): (&super::Core, &super::Core), places: &[Place], until: Instant) -> Option<()> {
        clear(places);
        let ready = AtomicU64::new(0);
        let side = |first: bool| {
            ready.fetch_add(1, Ordering::SeqCst);
            // Both begin at once, or the stores would never meet.
            if !spin_until(until, || ready.load(Ordering::SeqCst) == 2) {
                return None;
            }
            let meet = |place: &Place| {
                let (mine, other) = if first { (&place.x.0, &place.y.0) } else { (&place.y.0, &place.x.0) };
                mine.store(1, Ordering::SeqCst);
                other.load(Ordering::SeqCst)
            };
            Some(places.iter().map(meet).collect::<Vec<u64>>())
        };
        let (one, two) = on_two((a, b), || side(true), || side(false))?;
        for (i, (one, two)) in one?.into_iter().zip(two?).enumerate() {
            let saw = self.seen("store", one << 1 | two);
            if !(1..=3).contains(&saw) {
                self.fault(a, format!(
                    "stores of {a} and {b} passed each other's loads, trial {i}: expected 1, 2 or 3 (who saw a write), got {saw}"
                ));
            }
        }
        Some(())
    }
}

fn clear(places: &[Place]) {
    for place in places {
        place.x.0.store(0, Ordering::SeqCst);
        place.y.0.store(0, Ordering::SeqCst);
    }
}
