//! How fast the store is: `cargo run --release -p whetstone-store --example store_speed [URL]`. Without a URL, an SQLite
//! file in a temporary folder. The database has to be empty.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Result, ensure};
use whetstone_model::action::{Action, Severity};
use whetstone_model::device::DeviceId;
use whetstone_model::evidence::{Finding, Reading};
use whetstone_model::ids::{BladeName, RackName, Serial, TrancheName};
use whetstone_model::lifecycle::{Phase, QuarantineReason};
use whetstone_model::unit::Unit;
use whetstone_model::wire::{BladeFacts, Item, ItemBody};
use whetstone_store::{
    AgentStats, ExpectedBlade, Join, NewCase, NewReport, NewRun, NewToken, NewTransition, RetainPolicy, Seen,
    Store,
};

const BLADES: usize = 5_000;
/// Reports of one transaction: what comes in while the one before is being written.
const BATCH: usize = 100;
const ITEMS: usize = 20;

fn serial(number: usize) -> Result<Serial> {
    Ok(Serial::new(format!("1655123{number:06}"))?)
}

fn say(what: &str, count: usize, since: Instant) {
    let seconds = since.elapsed().as_secs_f64();
    println!("{what:<52} {:>9.1} ms {:>10.0}/s", seconds * 1e3, count as f64 / seconds);
}

fn finding(code: &str) -> Result<Finding> {
    Ok(Finding {
        code: code.into(),
        device: Some(DeviceId::new("GPU-6f1d8a52-0001-4c22-9e6b-3f7d0a5b9c11")?),
        severity: Severity::Fault,
        action: Action::ResetGpu,
        detail: "uncorrectable ECC errors: 3 since the last look, none expected".into(),
        reading: None,
    })
}

fn report(number: usize, round: usize, bad: bool) -> Result<NewReport> {
    let mut items = Vec::with_capacity(ITEMS);
    for index in 0..ITEMS {
        let body = if bad && index == 0 {
            ItemBody::Appeared { finding: finding("ecc-uncorrectable")? }
        } else {
            let device =
                Some(DeviceId::new(format!("GPU-6f1d8a52-000{}-4c22-9e6b-3f7d0a5b9c11", index % 8))?);
            let reading = Reading::new("gpu.temperature", 40.0 + index as f64, Unit::Celsius);
            ItemBody::Reading { device, reading }
        };
        items.push(Item { seq: (round * ITEMS + index + 1) as u64, at_ms: round as i64 * 10_000, body });
    }
    Ok(NewReport {
        serial: serial(number)?,
        instance: "0123456789abcdef0123456789abcdef".into(),
        stream: format!("{number:032x}"),
        items,
        acked: None,
        at_ms: round as i64 * 10_000,
    })
}

async fn intake(store: &Store, round: usize, blades: usize, bad: bool) -> Result<usize> {
    let mut stored = 0;
    for from in (0..blades).step_by(BATCH) {
        let reports: Vec<_> = (from..blades.min(from + BATCH))
            .map(|number| report(number, round, bad))
            .collect::<Result<_>>()?;
        for answer in store.store_reports(&reports).await? {
            stored += answer?.new;
        }
    }
    Ok(stored)
}

/// Thins the hour in which all of it came, while somebody else writes: how long that one waits at worst. Answers how many went.
async fn thin(store: &Store) -> Result<usize> {
    let start = Instant::now();
    let day = 24 * 3_600_000;
    let thinning = {
        let store = store.clone();
        tokio::spawn(async move { store.retain(&RetainPolicy::default(), 3 * day).await })
    };
    let mut waits = Vec::new();
    while !thinning.is_finished() {
        let start = Instant::now();
        store.audit("kind", "who", "what", 1).await?;
        waits.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let thinned = thinning.await??.thinned as usize;
    say("readings thinned, another writer beside it", thinned, start);
    waits.sort_by(f64::total_cmp);
    let (count, worst) = (waits.len(), waits.last().copied().unwrap_or(0.0));
    let median = waits.get(count / 2).copied().unwrap_or(0.0);
    println!("{:<52} {median:>9.1} ms (median of {count}; worst {worst:.1})", "  one write of the other");
    Ok(thinned)
}

#[tokio::main]
async fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = format!("sqlite:{}?mode=rwc", dir.path().join("store.db").display());
    let url = std::env::args().nth(1).unwrap_or(file);
    let store = Store::open(&url).await?;
    println!("{}, {BLADES} blades", url.split(':').next().unwrap_or_default());

    let blades: Vec<_> = (0..BLADES)
        .map(|number| {
            Ok(ExpectedBlade {
                serial: serial(number)?,
                name: BladeName::new(format!("b-{number:05}"))?,
                tranche: Some(TrancheName::new(format!("t-{:02}", number / 250))?),
                rack: Some(RackName::new(format!("r-{:03}", number / 8))?),
                domain: None,
                sku: Some("hgx-h100".into()),
            })
        })
        .collect::<Result<_>>()?;
    let start = Instant::now();
    store.upsert_moving(&blades, &BTreeSet::new(), 1).await?;
    say("enter blades", BLADES, start);

    let tokens: Vec<_> = (0..BLADES)
        .map(|number| Ok(NewToken { serial: serial(number)?, sha256: format!("{number:064x}") }))
        .collect::<Result<_>>()?;
    store.new_tokens(&tokens, i64::MAX, "bench", 1).await?;
    let start = Instant::now();
    for number in 0..BLADES {
        let join = Join {
            serial: serial(number)?,
            token_sha256: format!("{number:064x}"),
            instance: "0123456789abcdef0123456789abcdef".into(),
            key_fingerprint: "f".repeat(64),
            report_key: "a".repeat(64),
            facts: BladeFacts { sku: Some("hgx-h100".into()), ..BladeFacts::default() },
        };
        store.use_token(&join, 2).await?;
    }
    say("join, one at a time", BLADES, start);

    let start = Instant::now();
    let stored = intake(&store, 0, BLADES, false).await?;
    say(&format!("intake, {BATCH} reports of {ITEMS} items at once, new streams"), stored, start);
    let start = Instant::now();
    let stored = intake(&store, 1, BLADES, false).await? + intake(&store, 2, BLADES, false).await?;
    ensure!(stored == 2 * BLADES * ITEMS, "stored {stored} items");
    say("intake, streams known", stored, start);
    let start = Instant::now();
    ensure!(intake(&store, 2, BLADES, false).await? == 0, "duplicates were stored");
    say("intake, all of it duplicates", BLADES * ITEMS, start);

    let seen: Vec<_> = (0..BLADES)
        .map(|number| {
            Ok(Seen { serial: serial(number)?, at_ms: 9, facts: None, stats: AgentStats::default() })
        })
        .collect::<Result<_>>()?;
    let start = Instant::now();
    store.seen(&seen).await?;
    say("signs of life, one transaction", BLADES, start);

    let step = |number: usize, expect_sequence: i64, to: Phase| -> Result<NewTransition> {
        let why = "test".to_owned();
        Ok(NewTransition {
            serial: serial(number)?,
            expect_sequence,
            to,
            why,
            run: None,
            case: None,
            at_ms: 10,
        })
    };
    let steps: Vec<_> =
        (0..BLADES).map(|number| step(number, 1, Phase::Discovered)).collect::<Result<_>>()?;
    let start = Instant::now();
    for answer in store.transition(&steps).await? {
        answer?;
    }
    say("transitions, one transaction", BLADES, start);

    let run = NewRun {
        suite_name: "standard".into(),
        suite_text: "x".repeat(3_000),
        budget_ms: 1,
        why: "first burn-in".into(),
        seed: 1,
        sku: None,
    };
    let runs: Vec<_> =
        (0..BLADES).map(|number| Ok((serial(number)?, 2, run.clone()))).collect::<Result<_>>()?;
    let start = Instant::now();
    for answer in store.start_runs(&runs, 11).await? {
        answer?;
    }
    say("runs started, one transaction", BLADES, start);

    let start = Instant::now();
    intake(&store, 3, 1_000, true).await?;
    say("1,000 blades report a fault", 1_000, start);
    let reason = QuarantineReason::Fault;
    let steps: Vec<_> =
        (0..1_000).map(|number| step(number, 3, Phase::Quarantined { reason })).collect::<Result<_>>()?;
    let start = Instant::now();
    store.transition(&steps).await?;
    say("1,000 blades quarantined, one transaction", 1_000, start);
    let mut cases = Vec::new();
    for number in 0..1_000 {
        cases.push(NewCase {
            serial: serial(number)?,
            code: "ecc-uncorrectable".into(),
            device: Some("GPU-6f1d8a52-0001-4c22-9e6b-3f7d0a5b9c11".into()),
            reason: "fault".into(),
            detail: "uncorrectable ECC errors".into(),
            action: Action::ResetGpu,
            at_ms: 12,
        });
    }
    let start = Instant::now();
    store.open_cases(&cases).await?;
    say("1,000 cases opened, one transaction", 1_000, start);

    let mut times = Vec::new();
    for _ in 0..10 {
        let start = Instant::now();
        let site = store.load_site().await?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(site.blades.len() == BLADES && site.unreadable.is_empty(), "{} blades", site.blades.len());
    }
    times.sort_by(f64::total_cmp);
    println!("{:<52} {:>9.1} ms (median of 10; worst {:.1})", "load the site", times[5], times[9]);
    let some: Vec<_> = (0..100).map(serial).collect::<Result<_>>()?;
    let start = Instant::now();
    store.load_blades(&some).await?;
    say("load 100 blades", 100, start);

    let items = (3 * BLADES + 1_000) * ITEMS - thin(&store).await?;
    let bytes = store.size_bytes().await?;
    println!("{items} items of evidence; the database takes {:.1} MiB", bytes as f64 / f64::from(1 << 20));
    Ok(())
}
