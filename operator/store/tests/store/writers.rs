//! Several programs that write the same blades: each decision is written once, or not at all.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use whetstone_model::lifecycle::{Owner, Phase, Rung};
use whetstone_store::Stale;

use crate::common::*;

both!(of_two_writers_exactly_one_wins, what_is_written_is_what_still_holds);

/// Two programs that both believe to lead. Whatever the timing, each decision is written once.
async fn of_two_writers_exactly_one_wins(db: Db) {
    let (a, b) = (db.store().await, db.store().await);
    const BLADES: usize = 40;
    enter(&a, BLADES).await;
    let steps = |at_ms: i64, reverse: bool| {
        let mut steps: Vec<_> =
            (0..BLADES).map(|number| step(&serial(number), 1, Phase::Discovered, at_ms)).collect();
        if reverse {
            steps.reverse();
        }
        steps
    };
    // In pieces, so that they meet in the middle.
    let write = |store: whetstone_store::Store, steps: Vec<whetstone_store::NewTransition>| async move {
        let mut won = Vec::new();
        for piece in steps.chunks(4) {
            let answers = store.transition(piece).await.unwrap();
            for (step, answer) in piece.iter().zip(answers) {
                match answer {
                    Ok(2) => won.push(step.serial.clone()),
                    Err(Stale::Moved { sequence: 2 }) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        won
    };
    let (won_a, won_b) =
        tokio::join!(tokio::spawn(write(a.clone(), steps(2, false))), tokio::spawn(write(b, steps(3, true))));
    let mut won = won_a.unwrap();
    won.extend(won_b.unwrap());
    won.sort();
    assert_eq!(won, (0..BLADES).map(serial).collect::<Vec<_>>());
    for number in 0..BLADES {
        let name = serial(number).to_string();
        assert_eq!(a.history(&name).await.unwrap().unwrap().transitions.len(), 2);
    }
}

/// What a decision of one of two programs was made for (how far behind the truth) and where it leads.
#[derive(Debug, Clone)]
struct Decision {
    blade: usize,
    behind: i64,
    to: usize,
}

fn targets() -> [Phase; 7] {
    let owner = Owner::Kubernetes("k".into());
    [
        Phase::Discovered,
        preparing(),
        Phase::Ready,
        Phase::InService { owner },
        quarantined(),
        Phase::Repairing { rung: Rung::Reboot },
        Phase::Retired,
    ]
}

/// Whatever two programs decide, each at its time: exactly what still holds and is legal is written, once, in order.
async fn what_is_written_is_what_still_holds(db: Db) {
    let decision = (0..3_usize, prop_oneof![4 => Just(0_i64), 1 => 1..3_i64], 0..7_usize)
        .prop_map(|(blade, behind, to)| Decision { blade, behind, to });
    let batches = prop::collection::vec(prop::collection::vec(decision, 1..6), 1..8);
    let cases = if db.url.starts_with("sqlite") { 24 } else { 8 };
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[3; 32]));
    let handle = tokio::runtime::Handle::current();
    let stores = [db.store().await, db.store().await];
    // Each case has blades of its own.
    let first = std::sync::atomic::AtomicUsize::new(0);
    let outcome = tokio::task::block_in_place(|| {
        runner.run(&batches, |batches| {
            let first = first.fetch_add(3, std::sync::atomic::Ordering::Relaxed);
            handle.block_on(decide(&stores, first, &batches))
        })
    });
    outcome.unwrap();
}

async fn decide(
    stores: &[whetstone_store::Store; 2],
    first: usize,
    batches: &[Vec<Decision>],
) -> Result<(), TestCaseError> {
    let blades: Vec<_> = (first..first + 3).map(expected).collect();
    upsert(&stores[0], &blades, 1).await;
    let mut truth = vec![vec![Phase::Expected]; 3];
    for (turn, batch) in batches.iter().enumerate() {
        let mut steps = Vec::new();
        let mut answers = Vec::new();
        for decision in batch {
            let known = &mut truth[decision.blade];
            let sequence = known.len() as i64;
            let to = targets()[decision.to].clone();
            let serial = serial(first + decision.blade);
            steps.push(step(&serial, sequence - decision.behind, to.clone(), turn as i64));
            let from = known[known.len() - 1].name();
            answers.push(if decision.behind > 0 {
                Err(Stale::Moved { sequence })
            } else if !from.may_become(to.name()) {
                Err(Stale::Illegal { from, to: to.name() })
            } else {
                known.push(to);
                Ok(sequence + 1)
            });
        }
        prop_assert_eq!(stores[turn % 2].transition(&steps).await.unwrap(), answers);
    }
    for (number, known) in truth.iter().enumerate() {
        let name = serial(first + number).to_string();
        let history = stores[0].history(&name).await.unwrap().unwrap();
        let written: Vec<Phase> = history.transitions.into_iter().map(|step| step.to).collect();
        prop_assert_eq!(&written, known);
        let row = blade(&stores[1], first + number).await;
        prop_assert_eq!((&row.phase, row.sequence), (&known[known.len() - 1], known.len() as i64));
    }
    Ok(())
}
