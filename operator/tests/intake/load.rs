//! Many at once.

use std::time::Instant;

use whetstone_model::wire::*;

use crate::site::*;

#[test]
fn two_thousand_reports_at_once_are_all_stored_in_few_transactions() {
    const BLADES: usize = 50;
    const EACH: u64 = 40;
    let site = Site::start(BLADES);
    let agents: Vec<Agent> = (1..=BLADES).map(|number| site.joined(&format!("S{number}"))).collect();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for agent in &agents {
            scope.spawn(move || {
                for seq in 1..=EACH {
                    let answer: ReportAnswer = agent.send(&agent.report(vec![note(seq, "x")])).json();
                    assert_eq!(answer.acked, seq);
                }
            });
        }
    });
    let took = begun.elapsed();
    for agent in &agents {
        let stored = site.wait(site.store.evidence_of(&agent.serial, false, 1_000)).unwrap();
        assert_eq!(stored.len() as u64, EACH, "{}", agent.serial);
    }
    let total = BLADES as f64 * EACH as f64;
    assert_eq!(site.metric("whetstone_evidence_items_total", &[("kind", "note")]), total);
    let batches = site.metric("whetstone_intake_batch_requests", &[]);
    assert!(batches < total / 2.0, "{batches} transactions for {total} reports: nothing was batched");
    println!("{total} reports in {took:?}, {batches} transactions");
}
