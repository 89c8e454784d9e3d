//! How long a look takes: `cargo run --release -p whetstone-plan --example plan_speed`.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::time::Instant;

use whetstone_model::action::Action;
use whetstone_model::ids::{BladeName, DomainName, RackName, RunId, Serial, TrancheName};
use whetstone_model::lifecycle::{Owner, Phase};
use whetstone_model::verdict::Outcome;
use whetstone_plan::*;

fn tranche(name: &str) -> anyhow::Result<TrancheView> {
    Ok(TrancheView {
        name: TrancheName::new(name)?,
        suite: "standard".into(),
        budget_ms: 3_600_000,
        concurrency: 64,
        power: Power { blade_watts: 10_200.0, rack_watts: Some(41_000.0), tranche_watts: Some(500_000.0) },
        gates: Gates { rack_percent: 50.0, whole_domain: true },
        retries: 1,
        fpr: 0.01,
        owner: Some(Owner::Kubernetes("default".into())),
        paused: false,
        duplicates: Vec::new(),
        due_ms: None,
    })
}

/// A site in full swing: a third in service, a third burning in or waiting for the cohort, a third in the queue.
fn site(blades: usize, now_ms: i64) -> anyhow::Result<SiteView> {
    let mut site = SiteView::default();
    for number in 0..blades {
        let name = TrancheName::new(format!("t-{}", number / 1250))?;
        if !site.tranches.contains_key(&name) {
            site.tranches.insert(name.clone(), tranche(name.as_str())?);
        }
        let serial = Serial::new(format!("1655{number:09}"))?;
        let run = |state| RunView {
            run: RunId(number as i64 + 1),
            suite: "standard".into(),
            state,
            created_ms: now_ms - 1_000_000,
            started_ms: Some(now_ms - 990_000),
            heard_ms: Some(now_ms - 5_000),
            budget_ms: 3_600_000,
            cohort: None,
            progress: "gemm-bf16 3/9 41 %".into(),
        };
        let passed = || RunState::Finished {
            outcome: Outcome::Pass,
            code: "ok".into(),
            why: "all tests passed".into(),
            action: Action::None,
        };
        let burning = Phase::BurningIn { run: RunId(number as i64 + 1) };
        let (phase, run) = match number % 6 {
            0 | 1 => (Phase::InService { owner: Owner::Kubernetes("default".into()) }, Some(run(passed()))),
            2 => (burning, Some(run(RunState::Running))),
            3 => (burning, Some(run(passed()))),
            _ => (Phase::Preparing { step: whetstone_model::lifecycle::PrepareStep::Identity }, None),
        };
        let withheld = !matches!(phase, Phase::InService { .. });
        let passed_ms = (!withheld).then_some(now_ms - 900_000);
        let reason = if matches!(phase, Phase::BurningIn { .. }) { "burning-in" } else { "preparing" };
        let note = Note { serial: serial.clone(), reason: reason.into(), case: None };
        let blade = BladeView {
            serial: serial.clone(),
            name: BladeName::new(format!("b-{number:06}"))?,
            tranche: Some(name),
            rack: Some(RackName::new(format!("r-{}", number / 8))?),
            domain: Some(DomainName::new(format!("d-{number}"))?),
            sku: Some("hgx-h100".into()),
            phase,
            since_ms: now_ms - 1_000_000,
            sequence: 4,
            intent: Intent::default(),
            agent: AgentView {
                joined: true,
                last_seen_ms: Some(now_ms - 5_000),
                conflict: None,
                sku: Some("hgx-h100".into()),
                gpus: 8,
            },
            run,
            passed_ms,
            doubted_ms: None,
            faults: Vec::new(),
            cases: Vec::new(),
            node: Some(NodeView {
                name: format!("b-{number:06}"),
                unschedulable: withheld,
                our_cordon: withheld,
                our_taint: withheld.then(|| reason.to_owned()),
                our_note: withheld.then(|| note.text()),
                our_label: Some(format!("b-{number:06}")),
                pods_left: None,
                blocked_by: None,
                unreachable: false,
                drain_moved_ms: None,
                drain_error: None,
                drain: DrainState::None,
            }),
            inconclusive: 0,
        };
        site.blades.insert(serial, blade);
    }
    Ok(site)
}

/// Median of several, milliseconds.
fn median_ms(times: usize, mut what: impl FnMut()) -> f64 {
    let mut all: Vec<f64> = (0..times)
        .map(|_| {
            let start = Instant::now();
            what();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() -> anyhow::Result<()> {
    let now_ms = 1_800_000_000_000;
    println!(
        "{:>8} {:>12} {:>12} {:>14} {:>16}",
        "blades", "plan ms", "kept plan ms", "plan_some ms", "kept, 1 dirty ms"
    );
    for blades in [500, 5_000, 100_000] {
        let site = site(blades, now_ms)?;
        let times = if blades > 10_000 { 7 } else { 31 };
        let whole = median_ms(times, || _ = black_box(plan(&site, now_ms)));
        let mut planner = Planner::new(&site);
        let kept = median_ms(times, || _ = black_box(planner.plan(&site, now_ms)));
        // One of each kind in turn: in service, running, passed, in the queue.
        let dirty: Vec<BTreeSet<Serial>> =
            site.blades.keys().take(12).map(|serial| BTreeSet::from([serial.clone()])).collect();
        let some = median_ms(times, || _ = black_box(plan_some(&site, &dirty[0], now_ms)));
        let mut worst = 0.0_f64;
        for one in &dirty {
            let time = median_ms(times, || {
                planner.refresh(&site, one);
                black_box(planner.plan_some(&site, one, now_ms));
            });
            worst = worst.max(time);
        }
        println!("{blades:>8} {whole:>12.2} {kept:>12.2} {some:>14.2} {worst:>16.4}");
    }
    Ok(())
}
