//! Blades, names, phases and cases, on both databases.

use crate::common::*;
use whetstone_model::action::Action;
use whetstone_model::ids::{BladeName, RackName, TrancheName};
use whetstone_model::lifecycle::{Owner, Phase, PhaseName, Rung};
use whetstone_model::verdict::Outcome;
use whetstone_store::{NewCase, RunEndState, Stale, UpsertOutcome};

both!(
    a_manifest_is_entered_once,
    a_blade_moves_to_the_tranche_that_lists_it_alone,
    names_are_unique_among_blades_on_the_site,
    history_follows_a_blade_through_renames_moves_and_repairs,
    a_stale_writer_loses_and_stops_nobody,
    an_illegal_step_is_not_written,
    proof_and_doubt_keep_their_order,
    a_case_is_opened_once_and_closed_once,
    a_row_that_cannot_be_read_holds_up_nobody,
    a_wish_is_acted_on_once,
    the_schema_itself_refuses_what_may_not_be,
);

async fn a_manifest_is_entered_once(db: Db) {
    let store = db.store().await;
    let mut blades: Vec<_> = (0..1_203).map(expected).collect();
    let outcomes = upsert(&store, &blades, 5).await;
    assert!(outcomes.iter().all(|outcome| *outcome == UpsertOutcome::New));
    let row = blade(&store, 7).await;
    assert_eq!((row.phase, row.sequence, row.since_ms), (Phase::Expected, 1, 5));
    assert_eq!(row.why, "on the manifest of t-07");

    let outcomes = upsert(&store, &blades, 6).await;
    assert!(outcomes.iter().all(|outcome| *outcome == UpsertOutcome::Same));
    assert_eq!(store.load_site().await.unwrap().blades.len(), 1_203);

    // One that another tranche has, one twice, one moved, one new.
    let t8 = Some(TrancheName::new("t-08").unwrap());
    blades.truncate(2);
    blades[0].tranche = t8.clone();
    blades[1].rack = Some(RackName::new("r-99").unwrap());
    blades.push(blades[1].clone());
    blades.push(expected(5_000));
    let outcomes = upsert(&store, &blades, 7).await;
    let t7 = Some(TrancheName::new("t-07").unwrap());
    assert_eq!(
        outcomes,
        [
            UpsertOutcome::Duplicate { tranche: t7.clone() },
            UpsertOutcome::Updated,
            UpsertOutcome::Duplicate { tranche: t7.clone() },
            UpsertOutcome::New
        ]
    );
    assert_eq!(blade(&store, 0).await.tranche, t7);
    assert_eq!(blade(&store, 1).await.rack.unwrap().as_str(), "r-99");

    // A retired blade may come back with another delivery.
    go(&store, 0, Phase::Retired, 8).await;
    assert_eq!(upsert(&store, &blades[..1], 9).await, [UpsertOutcome::Updated]);
    assert_eq!(blade(&store, 0).await.tranche, t8);
}

async fn a_blade_moves_to_the_tranche_that_lists_it_alone(db: Db) {
    let store = db.store().await;
    enter(&store, 2).await;
    go(&store, 0, Phase::Discovered, 5).await;
    let tranche = |name: &str| Some(TrancheName::new(name).unwrap());
    let mut moving = [expected(0), expected(1), expected(0)];
    for (blade, to) in moving.iter_mut().zip(["t-08", "t-08", "t-09"]) {
        blade.tranche = tranche(to);
    }
    moving[0].rack = Some(RackName::new("r-77").unwrap());
    // SN00001 is still on its tranche's list. Of two that list SN00000 the first has it.
    let may_move = [serial(0)].into();
    let outcomes = store.upsert_moving(&moving, &may_move, 10).await.unwrap();
    assert_eq!(
        outcomes,
        [
            UpsertOutcome::Updated,
            UpsertOutcome::Duplicate { tranche: tranche("t-07") },
            UpsertOutcome::Duplicate { tranche: tranche("t-08") },
        ]
    );
    let row = blade(&store, 0).await;
    assert_eq!((row.tranche, row.phase, row.sequence), (tranche("t-08"), Phase::Discovered, 2));
    assert_eq!(blade(&store, 1).await.tranche, tranche("t-07"));
    let history = store.history("SN00000").await.unwrap().unwrap();
    let places: Vec<_> = history.places.iter().map(|p| (p.tranche.clone(), p.from_ms)).collect();
    assert_eq!(places, [(tranche("t-07"), 1_000), (tranche("t-08"), 10)]);
    assert_eq!(history.transitions.len(), 2);
    // Once there, it is as fast there as it was before.
    assert_eq!(
        upsert(&store, &[expected(0)], 11).await,
        [UpsertOutcome::Duplicate { tranche: tranche("t-08") }]
    );
}

async fn names_are_unique_among_blades_on_the_site(db: Db) {
    let store = db.store().await;
    enter(&store, 3).await;
    let mut other = expected(9);
    other.name = expected(1).name;
    let taken = UpsertOutcome::NameTaken { by: serial(1) };
    assert_eq!(upsert(&store, &[other.clone()], 2).await, [taken]);
    // A name is given up only by who gets another one: here the last of a chain does not, and none before it.
    let taken = |by: usize| UpsertOutcome::NameTaken { by: serial(by) };
    let (mut a, mut b) = (expected(0), expected(1));
    (a.name, b.name) = (expected(1).name, expected(2).name);
    let chain = [a.clone(), b.clone()];
    assert_eq!(upsert(&store, &chain, 2).await, [taken(1), taken(2)]);
    let chain = [b, a.clone()];
    assert_eq!(upsert(&store, &chain, 2).await, [taken(2), taken(1)]);
    // Nor by one that is another tranche's.
    let mut elsewhere = expected(1);
    elsewhere.name = BladeName::new("free").unwrap();
    elsewhere.tranche = Some(TrancheName::new("t-08").unwrap());
    let outcomes = upsert(&store, &[a, elsewhere], 2).await;
    assert_eq!(outcomes, [taken(1), UpsertOutcome::Duplicate { tranche: expected(1).tranche }]);
    assert_eq!(blade(&store, 1).await.name, expected(1).name);
    // Two new ones in one list.
    let (mut a, mut b) = (expected(20), expected(21));
    a.name = BladeName::new("same").unwrap();
    b.name = a.name.clone();
    let outcomes = upsert(&store, &[a, b], 2).await;
    assert_eq!(outcomes, [UpsertOutcome::New, UpsertOutcome::NameTaken { by: serial(20) }]);
    // Two that change names with each other.
    let (mut a, mut b) = (expected(0), expected(2));
    std::mem::swap(&mut a.name, &mut b.name);
    let outcomes = upsert(&store, &[a, b], 3).await;
    assert_eq!(outcomes, [UpsertOutcome::Updated, UpsertOutcome::Updated]);
    assert_eq!(store.resolve("b-00000").await.unwrap(), Some(serial(2)));
    // The name of a retired one is free.
    go(&store, 1, Phase::Retired, 4).await;
    assert_eq!(upsert(&store, &[other], 5).await, [UpsertOutcome::New]);
    assert_eq!(store.resolve("b-00001").await.unwrap(), Some(serial(9)));
}

async fn history_follows_a_blade_through_renames_moves_and_repairs(db: Db) {
    let store = db.store().await;
    enter(&store, 2).await;
    let first = to_run(&store, 0, 10).await;
    store.store_result(result(0, first, Outcome::Fail), 20).await.unwrap();
    go(&store, 0, quarantined(), 21).await;
    let case = NewCase {
        serial: serial(0),
        code: "sdc".into(),
        device: Some("GPU-5".into()),
        reason: "burn-in".into(),
        detail: "wrong bits".into(),
        action: Action::Replace,
        at_ms: 21,
    };
    let case = open_case(&store, &case).await;
    let mut moved = expected(0);
    moved.name = BladeName::new("spare-1").unwrap();
    moved.rack = Some(RackName::new("bench").unwrap());
    upsert(&store, &[moved], 22).await;
    go(&store, 0, Phase::Repairing { rung: Rung::Replace }, 23).await;
    let second = run_again(&store, 0, 24).await;
    store.store_result(result(0, second, Outcome::Pass), 30).await.unwrap();
    go(&store, 0, Phase::Ready, 31).await;
    store.close_case(case, "passed run", 31).await.unwrap();

    for by in ["SN00000", "spare-1", "b-00000"] {
        let history = store.history(by).await.unwrap().unwrap();
        assert_eq!(history.serial, serial(0), "{by}");
        let places: Vec<_> =
            history.places.iter().map(|place| (place.name.as_str(), place.from_ms)).collect();
        assert_eq!(places, [("b-00000", 1_000), ("spare-1", 22)]);
        let phases: Vec<_> = history.transitions.iter().map(|step| step.to.name().as_str()).collect();
        assert_eq!(
            phases,
            ["Expected", "Discovered", "BurningIn", "Quarantined", "Repairing", "BurningIn", "Ready"]
        );
        for pair in history.transitions.windows(2) {
            assert_eq!(pair[1].from.as_ref(), Some(&pair[0].to));
            assert_eq!(pair[1].sequence, pair[0].sequence + 1);
        }
        assert_eq!(history.transitions[5].run, Some(second));
        let verdicts: Vec<_> =
            history.verdicts.iter().map(|verdict| (verdict.run, verdict.outcome)).collect();
        assert_eq!(verdicts, [(first, Outcome::Fail), (second, Outcome::Pass)]);
        assert_eq!(history.verdicts[0].evidence, [1, 8812]);
        assert_eq!(history.runs.len(), 2);
        assert_eq!(history.cases[0].closed_ms, Some(31));
    }
    assert_eq!(store.history("nobody").await.unwrap(), None);
}

async fn a_stale_writer_loses_and_stops_nobody(db: Db) {
    let store = db.store().await;
    enter(&store, 3).await;
    let steps = [
        step(&serial(0), 1, Phase::Discovered, 2),
        step(&serial(1), 7, Phase::Discovered, 2),
        step(&serial(77), 1, Phase::Discovered, 2),
        step(&serial(2), 1, Phase::Discovered, 2),
        // On from the step before in the same batch.
        step(&serial(2), 2, preparing(), 3),
    ];
    let answers = store.transition(&steps).await.unwrap();
    assert_eq!(answers, [Ok(2), Err(Stale::Moved { sequence: 1 }), Err(Stale::NoSuchBlade), Ok(2), Ok(3)]);
    assert_eq!(blade(&store, 1).await.phase, Phase::Expected);
    let row = blade(&store, 2).await;
    assert_eq!((row.phase, row.sequence, row.since_ms), (preparing(), 3, 3));
    assert_eq!(store.history("SN00002").await.unwrap().unwrap().transitions.len(), 3);
}

async fn an_illegal_step_is_not_written(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    let owner = Owner::Kubernetes("k".into());
    for to in [Phase::Ready, Phase::InService { owner }, quarantined()] {
        let name = to.name();
        let answers = store.transition(&[step(&serial(0), 1, to, 2)]).await.unwrap();
        assert_eq!(answers, [Err(Stale::Illegal { from: PhaseName::Expected, to: name })]);
    }
    assert_eq!(blade(&store, 0).await.sequence, 1);
    let answer = start_run(&store, 0, 1, 3).await;
    assert_eq!(answer, Err(Stale::Illegal { from: PhaseName::Expected, to: PhaseName::BurningIn }));
    assert_eq!(blade(&store, 0).await.run, None);
}

async fn proof_and_doubt_keep_their_order(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    to_run(&store, 0, 100).await;
    go(&store, 0, Phase::Ready, 200).await;
    let row = blade(&store, 0).await;
    assert_eq!((row.passed_ms, row.doubted_ms), (Some(200), None));
    // The next leader's clock is behind: the fault is still after the pass, and the next pass after the fault.
    go(&store, 0, quarantined(), 150).await;
    assert_eq!(blade(&store, 0).await.doubted_ms, Some(200));
    let run = store.load_site().await.unwrap().blades[0].run.clone().unwrap().run;
    store.end_run(run, &RunEndState::Cancelled { why: "over".into() }, 151).await.unwrap();
    run_again(&store, 0, 152).await;
    go(&store, 0, Phase::Ready, 160).await;
    let row = blade(&store, 0).await;
    assert_eq!((row.passed_ms, row.doubted_ms), (Some(201), Some(200)));
    go(&store, 0, quarantined(), 300).await;
    go(&store, 0, Phase::Repairing { rung: Rung::Reboot }, 400).await;
    assert_eq!(blade(&store, 0).await.doubted_ms, Some(400));
}

async fn a_case_is_opened_once_and_closed_once(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    let mut case = NewCase {
        serial: serial(0),
        code: "xid-79".into(),
        device: None,
        reason: "fault".into(),
        detail: "fell off the bus \0".into(),
        action: Action::PowerCycle,
        at_ms: 5,
    };
    let first = open_case(&store, &case).await;
    case.at_ms = 6;
    assert_eq!(open_case(&store, &case).await, first);
    case.device = Some("GPU-1".into());
    let second = open_case(&store, &case).await;
    assert!(second > first);
    let cases = blade(&store, 0).await.cases;
    assert_eq!(cases.len(), 2);
    assert_eq!((cases[0].case, cases[0].opened_ms, cases[0].device.clone()), (first, 5, None));
    assert_eq!(cases[0].detail, "fell off the bus \u{fffd}");
    assert!(store.close_case(first, "passed", 7).await.unwrap());
    assert!(!store.close_case(first, "again", 8).await.unwrap());
    case.device = None;
    assert!(open_case(&store, &case).await > second);
    // Many at once: one that is open, one twice, one of nobody.
    let mut nobody = case.clone();
    nobody.serial = serial(5);
    let mut new = case.clone();
    new.code = "xid-31".into();
    let opened = store.open_cases(&[case.clone(), new.clone(), nobody, new]).await.unwrap();
    assert_eq!((opened[0], opened[2]), (Some(open_case(&store, &case).await), None));
    assert!(opened[1] > opened[0] && opened[1] == opened[3], "{opened:?}");
}

async fn a_row_that_cannot_be_read_holds_up_nobody(db: Db) {
    let store = db.store().await;
    enter(&store, 3).await;
    let raw = raw(&db.url).await;
    execute(&raw, "UPDATE blades SET phase = '{\"phase\":\"Asleep\"}' WHERE serial = 'SN00001'")
        .await
        .unwrap();
    let site = store.load_site().await.unwrap();
    assert_eq!(site.blades.len(), 2);
    assert_eq!(site.unreadable.len(), 1);
    assert_eq!(site.unreadable[0].0, "SN00001");
    assert!(site.unreadable[0].1.contains("Asleep"), "{:?}", site.unreadable);
}

async fn a_wish_is_acted_on_once(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    store.set_retested(&[(serial(0), 3)]).await.unwrap();
    store.set_retested(&[(serial(0), 2)]).await.unwrap();
    assert_eq!(blade(&store, 0).await.retested, 3);
}

async fn the_schema_itself_refuses_what_may_not_be(db: Db) {
    let store = db.store().await;
    enter(&store, 1).await;
    let run = to_run(&store, 0, 10).await;
    send_at(&store, 0, "s", &[item(1, appeared("a", "d"))], 11).await.unwrap();
    let raw = raw(&db.url).await;
    let insert_run = "INSERT INTO runs (serial, suite, suite_text, budget_ms, why, seed, state, created_ms) \
                      VALUES ('SN00000', 's', '', 1, '', 1, 'running', 1)";
    let verdict =
        format!("INSERT INTO verdicts VALUES ({run}, 'SN00000', 'pass', '', '', 'none', '[]', '', '', 1)");
    let case = "INSERT INTO cases (serial, code, device, reason, detail, action, opened_ms) \
                VALUES ('SN00000', 'c', '', '', '', 'none', 1)";
    let evidence = "INSERT INTO evidence (stream, seq, at_ms, received_ms, kind, code, device) \
                    SELECT id, 1, 1, 1, 1, '', '' FROM streams";
    let transition = "INSERT INTO transitions (serial, sequence, to_phase, to_name, why, at_ms) \
                      VALUES ('SN00000', 1, '{}', '', '', 1)";
    execute(&raw, &verdict).await.unwrap();
    execute(&raw, case).await.unwrap();
    for text in [insert_run, &verdict, case, evidence, transition] {
        let error = execute(&raw, text).await.unwrap_err();
        assert!(
            error.as_database_error().is_some_and(|error| error.is_unique_violation()),
            "{text}: {error}"
        );
    }
    let orphan = "INSERT INTO places (serial, number, name, from_ms) VALUES ('nobody', 1, 'n', 1)";
    let error = execute(&raw, orphan).await.unwrap_err();
    assert!(error.as_database_error().is_some_and(|error| error.is_foreign_key_violation()), "{error}");
}
