//! The simulated fleet's readings and floods, as the benchmark uses them, against the real intake.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use whetstone_model::wire::MAX_ITEMS;
use whetstone_sim_fleet::{Fleet, FleetBlade, Options};

use crate::site::*;

const BLADES: usize = 3;

/// A site and a fleet that has joined it.
fn joined(readings_per_minute: u32) -> (Site, Arc<Fleet>) {
    let site = Site::start(BLADES);
    let blades = (1..=BLADES)
        .map(|number| {
            let serial = serial(&format!("S{number}"));
            FleetBlade { token: site.token(&serial, 60_000), serial, script: Vec::new() }
        })
        .collect();
    let options = Options {
        operator: format!("127.0.0.1:{}", site.port()),
        server_name: "localhost".into(),
        ca_pem: std::fs::read_to_string(site.dir.path().join("ca.crt")).unwrap(),
        run_time: Duration::from_millis(100),
        report_every: Some(Duration::from_millis(50)),
        gpus: 8,
        sku: "hgx-h100".into(),
        machine: String::new(),
    };
    let fleet = {
        let _inside = site.runtime.enter();
        Arc::new(Fleet::start(options, blades).unwrap())
    };
    fleet.command_quietly(&[], |command| command.readings_per_minute = readings_per_minute);
    site.until("all have joined", || fleet.stats.joined.load(Ordering::Relaxed) == BLADES as u64);
    (site, fleet)
}

fn stored(site: &Site) -> u64 {
    site.metric("whetstone_evidence_items_total", &[("kind", "reading")]) as u64
}

#[test]
fn what_a_flood_counts_as_acknowledged_is_in_the_store_once() {
    let (site, fleet) = joined(0);
    let acked = || fleet.stats.acked.load(Ordering::Relaxed);
    assert_eq!(acked(), 0, "a fleet that was told nothing has something to say");
    fleet.command(&[serial("S1"), serial("S2")], |command| command.flood = true);
    let wanted = 4 * MAX_ITEMS as u64;
    site.until("four full reports were acknowledged", || acked() >= wanted);
    fleet.command(&[], |command| command.flood = false);
    // What was under way comes to its end: a second of reports that bring nothing.
    site.until("all that was said is acknowledged", || {
        let reports = fleet.stats.reports.load(Ordering::Relaxed);
        let before = acked();
        site.until("reports without items", || fleet.stats.reports.load(Ordering::Relaxed) > reports + 60);
        before == acked()
    });
    assert_eq!(acked(), fleet.stats.items.load(Ordering::Relaxed), "an item was sent and never acknowledged");
    assert_eq!(stored(&site), acked());
    let of = |name| site.wait(site.store.evidence_of(&serial(name), false, 10_000)).unwrap().len();
    assert_eq!((of("S1") + of("S2")) as u64, acked());
    assert_eq!(of("S3"), 0, "a blade that was not told to");
    assert_eq!(of("S1") % MAX_ITEMS, 0, "a report of a flood is a full one");
}

#[test]
fn readings_come_a_minute_at_a_time_and_the_blades_do_not_come_together() {
    let (site, fleet) = joined(24);
    // The first blade's place is 0: its minute begins at once. The next ones' at 37 and 14 seconds.
    site.until("the first minute of the first blade", || stored(&site) >= 24);
    let reports = fleet.stats.reports.load(Ordering::Relaxed);
    site.until("some reports more", || fleet.stats.reports.load(Ordering::Relaxed) > reports + 9);
    assert_eq!(stored(&site), 24, "more than a minute's readings, or another blade's with them");
    let of = |name| site.wait(site.store.evidence_of(&serial(name), false, 100)).unwrap().len();
    assert_eq!([of("S1"), of("S2"), of("S3")], [24, 0, 0]);
}
