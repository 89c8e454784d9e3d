//! The Lease by which one replica leads: what it says, who may take it, until when its holder may act. Times come from outside.
//!
//! Nobody trusts another machine's clock: a Lease is taken from its holder when its words have not changed for as long as it
//! lasts, by one's own watch. Every write names the version that was read, so of two that want it one gets it.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// How long the others wait for a leader that says nothing.
pub const DURATION: Duration = Duration::from_secs(10);
/// The leader stops acting so much earlier: what it has sent is carried out before another one leads.
const MARGIN: Duration = Duration::from_secs(3);
/// Between two renewals, and between two looks of one that stands by.
pub const PERIOD: Duration = Duration::from_secs(2);
/// Longest that one call may take: there is time for another one.
pub const CALL: Duration = Duration::from_secs(3);
/// Between a renewal that failed and the next: a whole period would be most of the time that is left.
const AGAIN: Duration = Duration::from_millis(300);
/// Bounds of what a Lease says of itself.
const LONGEST_S: i32 = 60;

/// What the holder has time for, by the last renewal that was confirmed.
#[derive(Debug, Clone, Copy)]
pub struct Term {
    /// It may act until then.
    pub until: Instant,
    /// The next renewal is asked for then, or, where the answer to the last one takes longer, as soon as it is there.
    pub next: Instant,
}

impl Term {
    /// By a renewal that was asked for then. The others count from when they see it, which is later.
    pub fn of(asked: Instant) -> Term {
        Term { until: asked + (DURATION - MARGIN), next: asked + PERIOD }
    }

    /// A renewal failed, or had no answer.
    pub fn again(&mut self, now: Instant) {
        self.next = now + AGAIN;
    }
}

/// What tells one state of a Lease from the next.
type Words = (Option<String>, Option<MicroTime>, Option<MicroTime>);

fn words(spec: &LeaseSpec) -> Words {
    (spec.holder_identity.clone(), spec.acquire_time.clone(), spec.renew_time.clone())
}

/// One that wants to lead.
pub struct Candidate {
    identity: String,
    /// What the Lease said, and since when.
    seen: Option<(Words, Instant)>,
}

impl Candidate {
    pub fn new(identity: &str) -> Candidate {
        Candidate { identity: identity.to_owned(), seen: None }
    }

    /// Whether the Lease may be taken now.
    pub fn may_take(&mut self, lease: &Lease, now: Instant) -> bool {
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        // An own one is what an earlier process of this name left, or a call of ours that got no answer.
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let (now_says, lasts) = (words(&spec), spec.lease_duration_seconds);
        let since = match &self.seen {
            Some((said, since)) if *said == now_says => *since,
            _ => {
                self.seen = Some((now_says, now));
                now
            }
        };
        let lasts = lasts.and_then(|seconds| u64::try_from(seconds.clamp(1, LONGEST_S)).ok());
        now.saturating_duration_since(since) >= lasts.map_or(DURATION, Duration::from_secs)
    }
}

/// A Lease that is held.
#[derive(Debug, Clone)]
pub struct Held {
    identity: String,
    /// Tells this holding from all others, those of the same name too.
    acquired: MicroTime,
    version: Option<String>,
}

fn seconds() -> u64 {
    DURATION.as_secs()
}

/// The patch that takes it, if nobody was faster.
pub fn take(lease: &Lease, identity: &str, now: Timestamp) -> Value {
    let before = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0);
    json!({
        "metadata": { "resourceVersion": lease.metadata.resource_version },
        "spec": {
            "holderIdentity": identity,
            "acquireTime": MicroTime(now),
            "renewTime": MicroTime(now),
            "leaseDurationSeconds": seconds(),
            "leaseTransitions": before.saturating_add(1),
        },
    })
}

impl Held {
    /// What a Lease says that was just taken; `None` if another one has it.
    pub fn of(lease: &Lease, identity: &str) -> Option<Held> {
        let spec = lease.spec.as_ref()?;
        let mine = spec.holder_identity.as_deref() == Some(identity);
        let acquired = spec.acquire_time.clone().filter(|_| mine)?;
        Some(Held {
            identity: identity.to_owned(),
            acquired,
            version: lease.metadata.resource_version.clone(),
        })
    }

    /// Takes over what the Lease says now; false if it is held by another one, or was in between.
    pub fn still(&mut self, lease: &Lease) -> bool {
        match Held::of(lease, &self.identity) {
            Some(now) if now.acquired == self.acquired => {
                self.version = now.version;
                true
            }
            _ => false,
        }
    }

    pub fn renew(&self, now: Timestamp) -> Value {
        json!({
            "metadata": { "resourceVersion": self.version },
            "spec": { "renewTime": MicroTime(now), "leaseDurationSeconds": seconds() },
        })
    }

    /// The patch that gives it back: the next one need not wait.
    pub fn release(&self) -> Value {
        json!({
            "metadata": { "resourceVersion": self.version },
            "spec": {
                "holderIdentity": null, "acquireTime": null, "renewTime": null, "leaseDurationSeconds": null,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: Option<&str>, acquired: i64, renewed: i64, version: &str) -> Lease {
        let time = |second: i64| MicroTime(Timestamp::from_second(second).unwrap());
        serde_json::from_value(json!({
            "metadata": { "name": "l", "resourceVersion": version },
            "spec": {
                "holderIdentity": holder, "acquireTime": time(acquired), "renewTime": time(renewed),
                "leaseDurationSeconds": 10, "leaseTransitions": 4,
            },
        }))
        .unwrap()
    }

    fn after(begun: Instant, seconds: u64) -> Instant {
        begun + Duration::from_secs(seconds)
    }

    /// Whatever of a call's time is lost on the way, a leader ends before another one can begin.
    #[test]
    fn a_leader_ends_before_another_one_begins() {
        let asked = Instant::now();
        for on_the_way in 0..=CALL.as_secs() {
            // At the earliest the other one sees the renewal as soon as it is written.
            let mut other = Candidate::new("other");
            let written = lease(Some("me"), 1, 2, "7");
            let seen = after(asked, on_the_way);
            assert!(!other.may_take(&written, seen));
            let ends = Term::of(asked).until;
            assert!(!other.may_take(&written, ends + MARGIN - Duration::from_millis(1)), "{on_the_way}");
            assert!(other.may_take(&written, seen + DURATION), "{on_the_way}");
        }
    }

    #[test]
    fn a_call_that_hangs_leaves_time_for_another_one() {
        let mut term = Term::of(Instant::now());
        term.again(term.next + CALL);
        assert!(term.next + Duration::from_secs(1) < term.until);
    }

    /// Whatever answers at all within a call's time can be led.
    #[test]
    fn a_slow_apiserver_costs_nobody_the_lead() {
        for milliseconds in (0..=3000).step_by(100) {
            let (asked, takes) = (Instant::now(), Duration::from_millis(milliseconds));
            let term = Term::of(asked);
            let next = term.next.max(asked + takes);
            assert!(next + takes < term.until, "{takes:?}");
        }
        assert_eq!(CALL, Duration::from_millis(3000));
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_or_its_holder_says_nothing() {
        let begun = Instant::now();
        let mut me = Candidate::new("me");
        assert!(me.may_take(&Lease::default(), begun), "nobody ever had it");
        assert!(me.may_take(&lease(None, 1, 1, "1"), begun), "given back");
        assert!(me.may_take(&lease(Some("me"), 1, 1, "1"), begun), "an earlier process of this name");
        // By the clock of its holder it ended in 1970: one's own watch counts.
        let held = lease(Some("other"), 1, 1, "1");
        assert!(!me.may_take(&held, begun));
        assert!(!me.may_take(&held, after(begun, 9)));
        // It is alive.
        let renewed = lease(Some("other"), 1, 11, "2");
        assert!(!me.may_take(&renewed, after(begun, 10)));
        assert!(!me.may_take(&renewed, after(begun, 19)));
        assert!(me.may_take(&renewed, after(begun, 20)));
    }

    #[test]
    fn a_label_that_somebody_puts_on_it_is_no_sign_of_life() {
        let begun = Instant::now();
        let mut me = Candidate::new("me");
        assert!(!me.may_take(&lease(Some("other"), 1, 1, "1"), begun));
        assert!(me.may_take(&lease(Some("other"), 1, 1, "2"), after(begun, 10)));
    }

    #[test]
    fn a_lease_that_says_nonsense_of_its_length_is_bounded() {
        let begun = Instant::now();
        let mut odd = lease(Some("other"), 1, 1, "1");
        odd.spec.as_mut().unwrap().lease_duration_seconds = Some(i32::MAX);
        let mut me = Candidate::new("me");
        assert!(!me.may_take(&odd, begun));
        assert!(me.may_take(&odd, after(begun, 60)));
    }

    #[test]
    fn what_another_one_had_meanwhile_is_lost() {
        let mut held = Held::of(&lease(Some("me"), 5, 5, "8"), "me").unwrap();
        assert_eq!(held.renew(Timestamp::UNIX_EPOCH)["metadata"]["resourceVersion"], "8");
        // A renewal of ours that got no answer, or a label.
        assert!(held.still(&lease(Some("me"), 5, 7, "9")));
        assert_eq!(held.renew(Timestamp::UNIX_EPOCH)["metadata"]["resourceVersion"], "9");
        assert!(!held.still(&lease(Some("other"), 6, 6, "10")));
        assert!(!held.still(&lease(None, 6, 6, "10")));
        assert!(!held.still(&lease(Some("me"), 6, 6, "10")), "another process of the same name");
        assert_eq!(held.release()["metadata"]["resourceVersion"], "9", "what was not ours is not given back");
        assert!(Held::of(&lease(Some("other"), 5, 5, "8"), "me").is_none());
    }

    #[test]
    fn who_takes_it_names_what_they_read() {
        let patch = take(&lease(Some("other"), 1, 1, "3"), "me", Timestamp::UNIX_EPOCH);
        assert_eq!(patch["metadata"]["resourceVersion"], "3");
        assert_eq!(patch["spec"]["leaseTransitions"], 5);
    }
}
