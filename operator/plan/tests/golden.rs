//! Scripted sites, told step by step and compared with what stands in `tests/golden/`. After a wanted change:
//! `WHETSTONE_BLESS=1 cargo test -p whetstone-plan --test golden`, and read the difference.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use whetstone_model::action::Action;
use whetstone_model::ids::Serial;
use whetstone_model::lifecycle::Owner;
use whetstone_plan::*;
use world::*;

/// Tells what happens in a world.
struct Story {
    world: World,
    text: String,
    said: BTreeMap<Serial, String>,
    stuck: BTreeSet<Serial>,
    summaries: BTreeMap<String, String>,
}

impl Story {
    fn new(world: World) -> Story {
        Story {
            world,
            text: String::new(),
            said: BTreeMap::new(),
            stuck: BTreeSet::new(),
            summaries: BTreeMap::new(),
        }
    }

    fn note(&mut self, text: &str) {
        writeln!(self.text, "\n# {text}").unwrap();
    }

    /// Plans and carries out until nothing is left to do now.
    fn settle(&mut self) {
        for _ in 0..20 {
            self.world.now_ms += 1;
            let plan = plan(&self.world.site, self.world.now_ms);
            assert_eq!(lint(&self.world.site, &plan, self.world.now_ms), Vec::<String>::new());
            self.tell(&plan);
            let judges = plan.tranches.iter().any(|tranche| !tranche.judge.is_empty());
            self.world.apply(&plan, usize::MAX);
            if !judges && plan.blades.iter().all(|one| one.steps.is_empty()) {
                return;
            }
        }
        panic!("still steps after 20 looks:\n{}", self.text);
    }

    /// Time goes on in steps of `step_ms`, for `ms`.
    fn pass_time(&mut self, ms: i64, step_ms: i64) {
        for _ in 0..ms / step_ms {
            self.world.pass_time(step_ms);
            self.settle();
        }
    }

    fn tell(&mut self, plan: &Plan) {
        let now_ms = self.world.now_ms;
        let mut lines = Vec::new();
        for one in &plan.blades {
            let blade = &self.world.site.blades[&one.serial];
            for step in &one.steps {
                lines.push(format!("{} {}", blade.name, step_text(blade, step)));
            }
            if let Outcome::Wait { reason } = &one.outcome {
                let text = format!("{} [{}] {}", blade.name, reason.code(), explain_without_time(reason));
                if self.said.insert(one.serial.clone(), text.clone()).as_ref() != Some(&text) {
                    lines.push(text);
                }
            } else {
                self.said.remove(&one.serial);
            }
            match &one.stuck {
                Some(stuck) if self.stuck.insert(one.serial.clone()) => {
                    lines.push(format!("{} stuck {stuck}", blade.name));
                }
                Some(_) => {}
                None => _ = self.stuck.remove(&one.serial),
            }
        }
        for tranche in &plan.tranches {
            let mut text = format!("{} {}", tranche.tranche, tranche.summary);
            if !tranche.judge.is_empty() {
                write!(text, ", judge {:?}", tranche.judge.iter().map(|run| run.0).collect::<Vec<_>>())
                    .unwrap();
            }
            text.push_str(if tranche.complete { "; complete" } else { "" });
            text.push_str(if tranche.stable && !tranche.complete { "; stable" } else { "" });
            let name = tranche.tranche.to_string();
            if self.summaries.insert(name, text.clone()).as_ref() != Some(&text) {
                lines.push(text);
            }
        }
        if plan.breaker.open {
            lines.push(format!("breaker {:?}", plan.breaker));
        }
        let time = duration_text(now_ms);
        for line in lines {
            writeln!(self.text, "{time:>7}  {line}").unwrap();
        }
    }

    fn explain(&mut self, number: usize) {
        let plan = plan(&self.world.site, self.world.now_ms);
        let serial = serial(number);
        let one = plan.blades.iter().find(|one| one.serial == serial).unwrap();
        let text = explain(&self.world.site.blades[&serial], one, self.world.now_ms);
        let name = &self.world.site.blades[&serial].name;
        writeln!(self.text, "$ whet explain {name}\n{text}").unwrap();
    }

    fn check(self, name: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let text = self.text.trim_start_matches('\n').to_owned();
        if std::env::var_os("WHETSTONE_BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let wanted = std::fs::read_to_string(&path).unwrap_or_default();
        for (number, (got, wanted)) in text.lines().zip(wanted.lines()).enumerate() {
            assert_eq!(got, wanted, "{name} line {}; whole story:\n{text}", number + 1);
        }
        assert_eq!(text.lines().count(), wanted.lines().count(), "{name}; whole story:\n{text}");
    }
}

fn explain_without_time(reason: &WaitReason) -> String {
    format!("{} <{}>", reason.sentence(), reason.actor().as_str())
}

fn step_text(blade: &BladeView, step: &Step) -> String {
    match step {
        Step::Transition { to, why } => {
            format!("{} → {} ({}): {why}", blade.phase.name(), to.name(), phase_sentence(to))
        }
        Step::StartRun { suite, why } => format!("{} → BurningIn, {suite}: {why}", blade.phase.name()),
        Step::EndRun { run, end: RunEnd::Lost { why } } => format!("run {run} lost: {why}"),
        Step::EndRun { run, end: RunEnd::Cancelled { why } } => format!("run {run} cancelled: {why}"),
        Step::Withhold { node, note, .. } => format!("withhold node {node}: {}", note.text()),
        Step::Release { node } => format!("release node {node}"),
        Step::StartDrain { node } => format!("start drain of {node}"),
        Step::EndDrain { node } => format!("end drain of {node}"),
        Step::OpenCase { code, device, detail, action, reason } => {
            let device = device.as_deref().unwrap_or("blade");
            format!("open case {code} of {device}, {}: {detail}; {action}", reason.as_str())
        }
        Step::CloseCase { case, why } => format!("close case {case}: {why}"),
        Step::Retested { retest } => format!("wish {retest} for a burn-in done"),
        Step::ClearFaults { before_ms } => format!("clear faults before {}", duration_text(*before_ms)),
    }
}

fn world(blades: usize, tranche: TrancheView) -> World {
    let name = tranche.name.to_string();
    World::new(vec![tranche], (1..=blades).map(|number| blade(number, Some(&name))).collect())
}

/// One of six fails, one is an outlier, one is inconclusive twice, one is not delivered; two at once by watts.
#[test]
fn a_tranche_is_accepted() {
    let mut tranche = tranche("t-07", 4);
    tranche.owner = Some(Owner::Kubernetes("default".into()));
    tranche.power =
        Power { blade_watts: 10_000.0, rack_watts: Some(20_000.0), tranche_watts: Some(30_000.0) };
    tranche.due_ms = Some(2 * HOUR);
    let mut world = world(7, tranche);
    for (number, play) in [(2, Play::Fail), (3, Play::Outlier), (5, Play::Inconclusive)] {
        world.plays.insert(serial(number), play);
    }
    let mut story = Story::new(world);
    story.note("six of seven join");
    for number in 1..=6 {
        story.world.join(number);
        let name = story.world.blade(number).name.to_string();
        story.world.blade(number).node = Some(node(&name));
    }
    story.settle();
    story.pass_time(80 * MINUTE, MINUTE);
    story.explain(2);
    story.explain(3);
    story.explain(4);
    story.explain(5);
    story.explain(7);
    story.note("the blade that failed was replaced: a person asks for a burn-in; the last one comes late");
    story.world.plays.clear();
    story.world.blade(2).intent.retest = 1;
    story.pass_time(60 * MINUTE, 5 * MINUTE);
    story.world.join(7);
    story.pass_time(30 * MINUTE, 5 * MINUTE);
    story.check("tranche.txt");
}

/// A fault in service: withheld at once, drained within the budget and with a pod in the way, repaired, proven, back.
#[test]
fn a_blade_falls_in_service_and_comes_back() {
    let mut tranche = tranche("t-01", 8);
    tranche.owner = Some(Owner::Kubernetes("default".into()));
    let mut world = world(2, tranche);
    world.site.limits.drains = 1;
    let mut story = Story::new(world);
    for number in 1..=2 {
        story.world.join(number);
        let name = story.world.blade(number).name.to_string();
        story.world.blade(number).node = Some(node(&name));
    }
    story.settle();
    story.pass_time(14 * MINUTE, MINUTE);
    story.note("pods land on both; both fault; a budget forbids one pod to go");
    for number in 1..=2 {
        let now_ms = story.world.now_ms;
        let blade = story.world.blade(number);
        blade.node.as_mut().unwrap().pods_left = Some(3);
        blade.faults.push(fault("xid-79", "gpu3", Action::PowerCycle, now_ms));
    }
    story.world.blade(1).node.as_mut().unwrap().blocked_by = Some("pod a/b: PodDisruptionBudget c".into());
    story.settle();
    story.pass_time(3 * HOUR, 90 * MINUTE);
    story.explain(1);
    story.explain(2);
    story.note("the pod goes");
    story.world.blade(1).node.as_mut().unwrap().blocked_by = None;
    story.pass_time(3 * MINUTE, MINUTE);
    story.explain(1);
    story.note("power-cycled; a person asks for a burn-in; a person's own cordon stays");
    story.world.blade(1).intent.retest = 1;
    let node = story.world.blade(1).node.as_mut().unwrap();
    (node.unschedulable, node.our_cordon) = (true, false);
    story.pass_time(14 * MINUTE, MINUTE);
    assert!(story.world.blade(1).node.as_ref().unwrap().unschedulable);
    story.check("service.txt");
}

/// Six fault at once where two may: the breaker opens and stays so, whatever time passes; it closes when nobody is held back,
/// and a person may let the rest through.
#[test]
fn the_breaker_holds_back() {
    let mut tranche = tranche("t-01", 100);
    tranche.owner = Some(Owner::Inference);
    let mut world = world(6, tranche);
    world.site.limits.breaker_least = 2;
    let mut story = Story::new(world);
    for number in 1..=6 {
        story.world.join(number);
    }
    story.settle();
    story.pass_time(13 * MINUTE, MINUTE);
    story.note("a driver update: all show the same fault");
    for number in 1..=6 {
        let now_ms = story.world.now_ms;
        story.world.blade(number).faults.push(fault("xid-62", "gpu0", Action::ResetGpu, now_ms));
    }
    story.settle();
    story.explain(6);
    story.note(
        "three were false; ten minutes later the window is over, and the last one waits for a person still",
    );
    for number in 3..=5 {
        story.world.blade(number).faults.clear();
    }
    story.pass_time(11 * MINUTE, 11 * MINUTE);
    story.note("the last one was false, too: the breaker counts afresh");
    story.world.blade(6).faults.clear();
    story.settle();
    story.note("again, and a person says that it is right");
    for number in 3..=5 {
        let now_ms = story.world.now_ms;
        story.world.blade(number).faults.push(fault("xid-62", "gpu0", Action::ResetGpu, now_ms));
    }
    story.settle();
    story.world.site.limits.breaker_override = true;
    story.settle();
    story.check("breaker.txt");
}

/// Lost runs, agents that go away, two machines with one serial, a wrong blade, a duplicate, people's wishes.
#[test]
fn what_goes_wrong_before_service() {
    let mut tranche = tranche("t-02", 2);
    tranche.gates = Gates { rack_percent: 60.0, whole_domain: true };
    tranche.duplicates = vec![(serial(5), tranche_name("t-01"))];
    let mut world = world(6, tranche);
    for number in 1..=2 {
        world.blade(number).domain = domain("d-1");
    }
    let mut story = Story::new(world);
    story.world.blade(4).agent.sku = Some("hgx-b200".into());
    for number in 1..=6 {
        story.world.join(number);
    }
    let name = story.world.blade(1).name.to_string();
    story.world.blade(1).node = Some(node(&name));
    story.note("2 falls silent after it took its run up; 3 is claimed by two machines");
    story.settle();
    story.pass_time(2 * MINUTE, MINUTE);
    story.world.silent.insert(serial(2));
    story.world.blade(3).agent.conflict = Some("instances 0a… and 7f…".into());
    story.pass_time(48 * MINUTE, 4 * MINUTE);
    story.explain(1);
    story.explain(2);
    story.explain(3);
    story.explain(4);
    story.explain(5);
    story.note("2 is back; the conflict is cleared; the manifest is corrected; a person holds 6");
    story.world.silent.clear();
    story.world.blade(3).agent.conflict = None;
    story.world.blade(4).sku = Some("hgx-b200".into());
    story.world.blade(4).intent.retest = 1;
    story.world.blade(6).intent.quarantine = Some("loose cable".into());
    story.pass_time(40 * MINUTE, 4 * MINUTE);
    story.explain(6);
    story.note("6 is released, 5 retired");
    story.world.blade(6).intent.quarantine = None;
    story.world.blade(5).intent.retired = true;
    story.pass_time(20 * MINUTE, 4 * MINUTE);
    story.explain(1);
    story.check("trouble.txt");
}
