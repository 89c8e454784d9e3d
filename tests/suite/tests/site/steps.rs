//! The operator dies at every step that it takes, and at moments that chance picks; what it had begun is brought to its end.

use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use whetstone_model::verdict::Outcome;
use whetstone_sim_fleet::End;

use crate::harness::{Site, listed, until};

/// Deaths that a round may need; it takes some thirty.
const MOST: usize = 150;
const ROUND: Duration = Duration::from_secs(150);

fn round<'a>(site: &Site, names: [&'a str; 3]) -> [(&'a str, &'static str); 3] {
    for name in names {
        site.node(name, json!({}));
    }
    let manifest: Vec<Value> = names.iter().map(|name| listed(name, names[0])).collect();
    site.tranche(&format!("t-{}", names[0]), &manifest, json!({ "owner": "inference", "concurrency": 2 }));
    until(20, "the blades are known", || {
        names.iter().all(|name| site.row(name).is_some()).then_some(()).ok_or(names)
    });
    site.join(&[
        (names[0], &[End::Pass]),
        (names[1], &[End::Fail]),
        (names[2], &[End::Inconclusive, End::Pass]),
    ]);
    [(names[0], "InService"), (names[1], "Quarantined"), (names[2], "InService")]
}

/// All are where they belong, and each verdict is there once.
fn ended(site: &Site, wanted: &[(&str, &str)]) {
    site.wait_phases(60, wanted);
    site.check();
    let outcomes = |name: &str| site.history(name).verdicts.iter().map(|v| v.outcome).collect::<Vec<_>>();
    use Outcome::{Fail, Inconclusive, Pass};
    assert_eq!(outcomes(wanted[0].0), [Pass]);
    assert_eq!(outcomes(wanted[1].0), [Fail]);
    assert_eq!(outcomes(wanted[2].0), [Inconclusive, Pass]);
    assert_eq!(site.row(wanted[1].0).unwrap().cases.len(), 1, "one fault, one case");
    let free = site.seen_node(wanted[0].0);
    assert_eq!((free.taint, free.cordoned), (None, false));
    assert_eq!(site.seen_node(wanted[1].0).taint.as_deref(), Some("burn-in"));
}

#[test]
fn an_operator_that_dies_at_every_step_leaves_nothing_undone() {
    let mut site = Site::up();
    // Each process takes one step, then two, then three: every boundary between two steps is a death's in one of them.
    for (number, steps) in ["1", "2", "3"].into_iter().enumerate() {
        let names = [format!("p-{number}"), format!("q-{number}"), format!("r-{number}")];
        let names = [names[0].as_str(), names[1].as_str(), names[2].as_str()];
        let wanted = round(&site, names);
        site.operator().kill();
        let begun = Instant::now();
        let mut deaths = 0;
        loop {
            site.operator().start(&["--abort-after-steps", steps]);
            // It ends by itself, or there is nothing left to do.
            let quiet = Instant::now();
            let done = loop {
                if let Some(status) = site.operator().ended() {
                    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(6), "{status}");
                    break false;
                }
                let there = |(name, phase): &(&str, &str)| {
                    site.row(name).is_some_and(|row| row.phase.name().as_str() == *phase)
                };
                if wanted.iter().all(there) && quiet.elapsed() > Duration::from_secs(2) {
                    break true;
                }
                assert!(begun.elapsed() < ROUND, "round {steps}: {deaths} deaths");
                std::thread::sleep(Duration::from_millis(20));
            };
            if done {
                break;
            }
            deaths += 1;
            assert!(deaths < MOST, "round {steps}: it never ends");
        }
        // Steps of several blades are taken at once: with three a process, fewer die.
        assert!(deaths >= 4, "round {steps}: only {deaths} deaths");
        eprintln!("{deaths} deaths at {steps} steps each in {:?}", begun.elapsed());
        site.operator().kill();
        site.operator().start(&[]);
        site.operator().wait_leading();
        ended(&site, &wanted);
    }
}

#[test]
fn an_operator_killed_at_any_moment_leaves_nothing_undone() {
    let mut site = Site::up();
    let mut chance = StdRng::seed_from_u64(7);
    let wanted = round(&site, ["k-1", "k-2", "k-3"]);
    let begun = Instant::now();
    let there = |site: &Site, (name, phase): &(&str, &str)| {
        site.row(name).is_some_and(|row| row.phase.name().as_str() == *phase)
    };
    while !wanted.iter().all(|one| there(&site, one)) {
        std::thread::sleep(Duration::from_millis(chance.random_range(0..900)));
        site.operator().kill();
        site.operator().start(&[]);
        // Some die before they lead.
        if chance.random_bool(0.7) {
            site.operator().wait_leading();
        }
        assert!(begun.elapsed() < ROUND, "it never ends: {:?}", site.row("k-3"));
    }
    ended(&site, &wanted);
}
