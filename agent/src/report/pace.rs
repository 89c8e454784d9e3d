//! When the next call to the operator is due: what it asked for, growing waits after failures, and jitter for both.

use std::time::{Duration, Instant};

/// Between two reports at the least.
pub(super) const MIN_GAP: Duration = Duration::from_secs(1);

/// Growing waits with jitter: a site that comes back is not met by all its agents at once.
#[derive(Debug, Default)]
pub(super) struct Backoff(u32);

impl Backoff {
    /// The next wait: 0.5 to 1 of 1, 2, 4, … 64 s.
    pub fn next(&mut self) -> Duration {
        let whole = Duration::from_secs(1 << self.0.min(6));
        self.0 = self.0.saturating_add(1);
        whole.mul_f64(rand::random_range(0.5..1.0))
    }
}

/// When something is due, and how long to wait after failures.
#[derive(Default)]
pub(super) struct Paced {
    due: Option<Instant>,
    backoff: Backoff,
    /// The last attempt failed.
    failing: bool,
}

impl Paced {
    /// Until it is due, where it has been tried already.
    pub fn left(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }
    pub fn is_due(&self) -> bool {
        self.left().is_none_or(|left| left.is_zero())
    }
    /// The last attempt failed.
    pub fn is_failing(&self) -> bool {
        self.failing
    }
    /// How long until it is due. What is urgent keeps to [`MIN_GAP`] alone, but not while attempts fail: their wait holds, or each
    /// fault would make it worse.
    pub fn wait(&self, urgent: bool, last: Option<Instant>) -> Duration {
        let due = self.left().unwrap_or_default();
        if !urgent || self.failing {
            return due;
        }
        due.min(last.map_or(Duration::ZERO, |at| MIN_GAP.saturating_sub(at.elapsed())))
    }
    /// `at_least` is what the operator asked for, of all agents alike; each adds its own part to it. Zero: it asked for nothing.
    pub fn failed(&mut self, at_least: Duration) {
        // A replica that does not lead says how long: asking again soon is how the one that does is found.
        let wait = match at_least.is_zero() {
            true => self.backoff.next(),
            false => at_least.mul_f64(rand::random_range(1.0..1.25)),
        };
        (self.due, self.failing) = (Some(Instant::now() + wait), true);
    }
    pub fn well(&mut self, wait: Duration) {
        *self = Paced { due: Some(Instant::now() + wait), ..Paced::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_urgent_does_not_shorten_the_wait_that_the_operator_asked_for() {
        let asked = Duration::from_secs(25);
        let mut reports = Paced::default();
        reports.well(asked);
        assert!(reports.wait(false, None) > asked / 2);
        assert_eq!(reports.wait(true, None), Duration::ZERO);
        assert_eq!(reports.wait(true, Some(Instant::now() + asked)), MIN_GAP);
        for at_least in [asked, Duration::ZERO] {
            reports.failed(at_least);
            assert!(reports.wait(true, None) > at_least.max(Duration::from_millis(400)) / 2, "{at_least:?}");
        }
        reports.well(asked);
        assert_eq!(reports.wait(true, None), Duration::ZERO, "it goes well again");
    }
}
