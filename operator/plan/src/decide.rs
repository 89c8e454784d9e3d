//! From a wish to an outcome and its steps.

use std::cell::OnceCell;

use whetstone_model::ids::RunId;
use whetstone_model::lifecycle::{AfterDrain, Owner, Phase, PhaseName, PrepareStep};

use crate::admit::{self, Admission};
use crate::breaker::Decision;
use crate::cause::Cause;
use crate::decision::{BladePlan, Outcome, RunEnd, Step, WaitReason};
use crate::explain::{self, person_wait};
use crate::index::Index;
use crate::view::{BladeView, DrainState, NodeView, RunState, RunView, SiteView, TrancheView};
use crate::wish::{Away, RunWish, Wish, retest_asked, retries, run_of_phase, unfinished};
use crate::{breaker, cohort, drain, gate, node};

/// Suite of a blade that neither its tranche nor a person gives one.
const DEFAULT_SUITE: &str = "standard";

/// One look at the site.
pub(crate) struct Look<'a> {
    pub site: &'a SiteView,
    pub index: &'a Index,
    pub now_ms: i64,
    admission: OnceCell<Admission<'a>>,
    breaker: OnceCell<Decision<'a>>,
}

/// What was decided: the outcome, the steps between which the node's come, and whether the node may be touched.
struct Decided {
    outcome: Outcome,
    steps: Vec<Step>,
    node: NodeWish,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum NodeWish {
    Withheld,
    Released,
    /// The breaker holds back, or what it depends on is not known: neither way.
    AsItIs,
}

impl<'a> Look<'a> {
    pub(crate) fn new(site: &'a SiteView, index: &'a Index, now_ms: i64) -> Self {
        Look { site, index, now_ms, admission: OnceCell::new(), breaker: OnceCell::new() }
    }

    pub(crate) fn breaker(&self) -> &Decision<'a> {
        self.breaker.get_or_init(|| Decision::new(self.site, self.index, self.now_ms))
    }

    pub(crate) fn tranche(&self, blade: &BladeView) -> Option<&'a TrancheView> {
        self.site.tranches.get(blade.tranche.as_ref()?)
    }

    /// Its agent was heard of lately: a run may be started.
    pub(crate) fn live(&self, blade: &BladeView) -> bool {
        let since = self.now_ms.saturating_sub(self.site.limits.agent_away_ms);
        blade.agent.joined && blade.agent.last_seen_ms.is_some_and(|seen| seen >= since)
    }

    /// Nothing was heard of its agent for long, although somebody listened: nobody waits for it any more.
    pub(crate) fn is_away(&self, blade: &BladeView) -> bool {
        let limits = &self.site.limits;
        let heard_ms = blade.agent.last_seen_ms.map_or(limits.listening_since_ms, |seen| {
            // Silence counts from when there was somebody to listen.
            seen.max(limits.listening_since_ms)
        });
        !blade.agent.joined || self.now_ms.saturating_sub(heard_ms) > limits.agent_away_ms
    }

    fn away(&self, blade: &BladeView) -> WaitReason {
        WaitReason::AgentAway { since_ms: blade.agent.last_seen_ms.unwrap_or(blade.since_ms) }
    }

    /// Another blade has the say at the node that this one names: a person has to put one of the two right.
    pub(crate) fn contested(&self, blade: &BladeView) -> Option<WaitReason> {
        let node = blade.node.as_ref()?;
        let rival = self.index.rival(&blade.serial, &node.name)?;
        Some(WaitReason::contested(&node.name, rival))
    }

    /// Why it may not start a run, whoever else is in the queue.
    pub(crate) fn no_room(&self, blade: &BladeView) -> Option<WaitReason> {
        if !self.live(blade) {
            return Some(self.away(blade));
        }
        if let Some(reason) = self.contested(blade) {
            return Some(reason);
        }
        if let Some(name) = &blade.tranche {
            match self.site.tranches.get(name) {
                None => return Some(WaitReason::undescribed(name.as_str())),
                Some(tranche) if tranche.paused => return Some(WaitReason::TranchePaused),
                Some(_) => {}
            }
        }
        admit::full(self.site, self.index, blade)
    }

    fn start(&self, blade: &BladeView) -> Option<WaitReason> {
        if let Some(reason) = self.no_room(blade) {
            return Some(reason);
        }
        let admission = self.admission.get_or_init(|| Admission::walk(self));
        if admission.admits(&blade.serial) {
            return None;
        }
        let limit = self.tranche(blade).map_or(0, |tranche| tranche.concurrency);
        Some(admission.refusal(&blade.serial).cloned().unwrap_or(WaitReason::Concurrency { limit }))
    }

    /// `None` if the blade is not in the index: it came after it was made.
    pub(crate) fn decide(&self, blade: &BladeView) -> Option<BladePlan> {
        let wish = self.index.wish(&blade.serial)?;
        let contested = self.contested(blade);
        let mut decided = match &contested {
            Some(reason) if needs_its_node(blade, wish) => wait(reason.clone()),
            _ => self.carry_out(blade, wish),
        };
        if matches!(wish, Wish::Serve | Wish::Keep) {
            // A fault went while its case was open and its node not yet withheld.
            decided.steps.splice(0..0, close_cases(blade, "gone before the blade was withheld"));
        }
        let stuck = match &decided.outcome {
            Outcome::Wait { reason } => explain::stuck(blade, reason, self.now_ms),
            _ => None,
        };
        let node = blade.node.as_ref().filter(|_| contested.is_none());
        let (outcome, steps) = self.with_node(blade, node, decided);
        let away = blade.agent.joined && self.is_away(blade);
        Some(BladePlan {
            serial: blade.serial.clone(),
            sequence: blade.sequence,
            outcome,
            steps,
            stuck,
            away,
        })
    }

    fn carry_out(&self, blade: &BladeView, wish: Wish) -> Decided {
        match wish {
            Wish::Deliver => {
                let due = self.tranche(blade).and_then(|tranche| tranche.due_ms);
                wait(WaitReason::Delivery { overdue: due.is_some_and(|due| due < self.now_ms) })
            }
            Wish::Discover => go(Phase::Discovered, "joined", Vec::new()),
            Wish::Prepare => {
                let to = Phase::Preparing { step: PrepareStep::Identity };
                go(to, "to be held against its manifest", Vec::new())
            }
            Wish::Rejoin => wait(self.away(blade)),
            Wish::Duplicate => {
                let listed = self.tranche(blade).and_then(|tranche| {
                    tranche.duplicates.iter().find(|(serial, _)| *serial == blade.serial)
                });
                match listed {
                    Some((_, other)) => wait(WaitReason::Duplicate { tranche: other.clone() }),
                    None => wait(WaitReason::BadSpec { what: "listed twice".to_owned() }),
                }
            }
            Wish::Run(why) => match self.start(blade) {
                Some(reason) => wait(reason),
                None => self.start_run(blade, why),
            },
            Wish::Follow => self.follow(blade),
            Wish::Compare => match self.tranche(blade) {
                Some(tranche) => wait(cohort_wait(self, tranche)),
                None => {
                    wait(WaitReason::undescribed(blade.tranche.as_ref().map_or("", |name| name.as_str())))
                }
            },
            Wish::Accept => self.accept(blade),
            Wish::Withhold(cause) => self.quarantine(blade, cause),
            Wish::Fault if breaker::begun(blade, wish) || self.breaker().lets(&blade.serial) => {
                self.quarantine(blade, Cause::Fault)
            }
            Wish::Fault => Decided {
                outcome: Outcome::Wait { reason: self.breaker().wait() },
                steps: Vec::new(),
                // While draining it is withheld anyway.
                node: if blade.phase.name() == PhaseName::Draining {
                    NodeWish::Withheld
                } else {
                    NodeWish::AsItIs
                },
            },
            Wish::Serve => self.serve(blade),
            Wish::Keep => Decided { outcome: Outcome::Nothing, steps: Vec::new(), node: NodeWish::Released },
            Wish::Drain(away) => {
                let (then, why) = match away {
                    Away::Release => (AfterDrain::Release, "its owner gives it back"),
                    Away::Retest => (AfterDrain::Release, "a burn-in was asked for by a person"),
                    Away::Doubt => (AfterDrain::Release, "in doubt since its last burn-in"),
                    Away::Retire => (AfterDrain::Retire, "to be retired"),
                };
                go(Phase::Draining { then }, why, Vec::new())
            }
            Wish::AwaitDrain => match &blade.node {
                Some(node) => {
                    let (reason, start) = drain::step(self, blade, node);
                    let steps = start.then(|| Step::StartDrain { node: node.name.clone() });
                    let outcome = Outcome::Wait { reason };
                    Decided { outcome, steps: steps.into_iter().collect(), node: NodeWish::Withheld }
                }
                None => {
                    wait(WaitReason::Drain { pods: 0, blocked_by: None, unreachable: false, error: None })
                }
            },
            Wish::Person => wait(person_wait(blade)),
            Wish::Retire => go(Phase::Retired, "retired by a person", close_cases(blade, "retired")),
            Wish::Return => go(Phase::Expected, "no longer retired", Vec::new()),
            Wish::Gone => Decided { outcome: Outcome::Gone, steps: Vec::new(), node: NodeWish::Withheld },
        }
    }

    fn start_run(&self, blade: &BladeView, wish: RunWish) -> Decided {
        let suite = match (wish, &blade.intent.suite, self.tranche(blade)) {
            (RunWish::Retest, Some(asked), _) => asked,
            (_, _, Some(tranche)) => &tranche.suite,
            (_, Some(asked), None) => asked,
            (_, None, None) => DEFAULT_SUITE,
        };
        let why = run_why(blade, wish, retries(self.tranche(blade)));
        let outcome = Outcome::Transition { to: Phase::BurningIn { run: RunId(0) }, why: why.clone() };
        let mut steps = vec![Step::StartRun { suite: suite.to_owned(), why }];
        // After the run was made: a wish is not lost in between.
        steps.extend(retested(blade));
        Decided { outcome, steps, node: NodeWish::Withheld }
    }

    fn follow(&self, blade: &BladeView) -> Decided {
        let Some(run) = run_of_phase(blade) else { return wait(self.away(blade)) };
        let ordered = run.state == RunState::Ordered;
        let reason = if ordered {
            WaitReason::RunPickup { run: run.run }
        } else {
            WaitReason::Run { run: run.run, progress: run.progress.clone() }
        };
        let mut decided = wait(reason);
        if let Some(why) = self.lost(run, ordered) {
            decided.steps.push(Step::EndRun { run: run.run, end: RunEnd::Lost { why } });
        } else {
            // The burn-in that goes on is the one that was asked for.
            decided.steps.extend(retested(blade));
        }
        decided
    }

    /// Nothing is to be hoped for from this run any more, and why.
    fn lost(&self, run: &RunView, ordered: bool) -> Option<String> {
        let limits = &self.site.limits;
        // Silence counts from when there was somebody to listen.
        let silent = |since_ms: i64| self.now_ms.saturating_sub(since_ms.max(limits.listening_since_ms));
        if ordered {
            let silence = silent(run.created_ms);
            let text = || format!("not taken up by the agent for {}", explain::duration_text(silence));
            return (silence > limits.run_lost_ms).then(text);
        }
        let started_ms = run.started_ms.unwrap_or(run.created_ms);
        let silence = silent(run.heard_ms.unwrap_or(started_ms));
        if silence > limits.run_lost_ms {
            return Some(format!("nothing was heard of it for {}", explain::duration_text(silence)));
        }
        let allowed = run.budget_ms.saturating_mul(2).saturating_add(limits.run_lost_ms);
        let took = silent(started_ms);
        let text = || {
            let budget = explain::duration_text(run.budget_ms);
            format!("goes on for {} although its suite takes {budget}", explain::duration_text(took))
        };
        (took > allowed).then(text)
    }

    fn accept(&self, blade: &BladeView) -> Decided {
        let run = run_of_phase(blade);
        let number = run.map_or(0, |run| run.run.0);
        let mut steps = Vec::new();
        // What was received since the run was made is not answered by it, also if it is received only now.
        if let Some(run) = run.filter(|_| !blade.faults.is_empty()) {
            steps.push(Step::ClearFaults { before_ms: run.created_ms });
        }
        steps.extend(close_cases(blade, &format!("proven by burn-in run {number}")));
        go(Phase::Ready, format!("passed burn-in run {number}"), steps)
    }

    fn serve(&self, blade: &BladeView) -> Decided {
        if let Some(reason) = gate::closed(self.site, self.index, blade) {
            // Whether its gates are open is not known: it stays let go or withheld, as they last were.
            let known = !matches!(reason, WaitReason::BadSpec { .. });
            let node = if known { NodeWish::Withheld } else { NodeWish::AsItIs };
            return Decided { node, ..wait(reason) };
        }
        let asked = blade.intent.owner.as_ref();
        let wanted = asked.or_else(|| self.tranche(blade).and_then(|tranche| tranche.owner.as_ref()));
        let (outcome, steps) = match wanted {
            None | Some(Owner::Nobody) => (Outcome::Nothing, Vec::new()),
            Some(owner @ (Owner::BurnIn | Owner::Repair)) => {
                let what = format!("{owner} cannot be given a blade to serve");
                (Outcome::Wait { reason: WaitReason::BadSpec { what } }, Vec::new())
            }
            Some(owner) => {
                let to = Phase::InService { owner: owner.clone() };
                let why = format!("given to {owner}");
                (Outcome::Transition { to: to.clone(), why: why.clone() }, vec![Step::Transition { to, why }])
            }
        };
        Decided { outcome, steps, node: NodeWish::Released }
    }

    /// First over a drain, if there is a node that work may be on; else at once.
    fn quarantine(&self, blade: &BladeView, cause: Cause) -> Decided {
        let reason = cause.reason();
        // What a free blade's own node may carry is not known while it names another's.
        let unknown = blade.phase == Phase::Ready && self.contested(blade).is_some();
        let to = if unknown || node::may_carry_work(blade) {
            Phase::Draining { then: AfterDrain::Quarantine { reason } }
        } else {
            Phase::Quarantined { reason }
        };
        go(to, cause.why(blade), cause.cases(blade))
    }

    /// Adds what the node needs, and what is left over from before. `node`: the blade's, if it is this blade that has the say
    /// there.
    fn with_node(
        &self,
        blade: &BladeView,
        node: Option<&NodeView>,
        decided: Decided,
    ) -> (Outcome, Vec<Step>) {
        let Decided { outcome, steps: own, node: wish } = decided;
        let to = match &outcome {
            Outcome::Transition { to, .. } => Some(to),
            _ => None,
        };
        // First the cases, whose numbers the node's note says; then withheld before anything else happens.
        let (mut steps, own): (Vec<Step>, Vec<Step>) =
            own.into_iter().partition(|step| matches!(step, Step::OpenCase { .. }));
        if let Some(node) = node
            && wish == NodeWish::Withheld
            && (to.is_none() || !node::is_withheld(node))
        {
            steps.extend(node::withhold(blade, node, to.unwrap_or(&blade.phase)));
        }
        if let Some(run) = unfinished(blade)
            && (to.is_some() || run_of_phase(blade).is_none())
        {
            let why = match &outcome {
                Outcome::Transition { why, .. } => why.clone(),
                _ => format!("the blade is {}", blade.phase.name()),
            };
            steps.push(Step::EndRun { run, end: RunEnd::Cancelled { why } });
        }
        if let Some(node) = node
            && node.drain != DrainState::None
            && (blade.phase.name() != PhaseName::Draining || to.is_some())
        {
            steps.push(Step::EndDrain { node: node.name.clone() });
        }
        steps.extend(own);
        if wish == NodeWish::Released {
            steps.extend(node.and_then(node::release));
        }
        (outcome, steps)
    }
}

fn wait(reason: WaitReason) -> Decided {
    Decided { outcome: Outcome::Wait { reason }, steps: Vec::new(), node: NodeWish::Withheld }
}

fn go(to: Phase, why: impl Into<String>, mut steps: Vec<Step>) -> Decided {
    let why = why.into();
    steps.push(Step::Transition { to: to.clone(), why: why.clone() });
    // Ready: whether its gates are open is seen by the next look; until then it stays withheld.
    Decided { outcome: Outcome::Transition { to, why }, steps, node: NodeWish::Withheld }
}

/// It serves, or waits for what its own node shows. A blade may fall, and go to its end, without one.
fn needs_its_node(blade: &BladeView, wish: Wish) -> bool {
    blade.phase.name() == PhaseName::Draining || matches!(wish, Wish::Serve | Wish::Keep | Wish::Person)
}

fn close_cases(blade: &BladeView, why: &str) -> Vec<Step> {
    blade.cases.iter().map(|case| Step::CloseCase { case: case.case, why: why.to_owned() }).collect()
}

fn retested(blade: &BladeView) -> Option<Step> {
    retest_asked(blade).then_some(Step::Retested { retest: blade.intent.retest })
}

fn cohort_wait(look: &Look, tranche: &TrancheView) -> WaitReason {
    let tally = look.index.tranches.get(&tranche.name);
    let (ended, open) = tally.map_or((0, 0), |tally| (tally.ended, tally.going + tally.to_come.len()));
    WaitReason::Cohort { tranche: tranche.name.clone(), ended, of: ended + open }
}

fn run_why(blade: &BladeView, wish: RunWish, retries: u32) -> String {
    match wish {
        RunWish::First => "first burn-in".to_owned(),
        RunWish::Retest => "asked for by a person".to_owned(),
        RunWish::Released => "withheld no longer".to_owned(),
        RunWish::Returned => "given back by its owner".to_owned(),
        RunWish::Doubted => "in doubt since its last burn-in".to_owned(),
        RunWish::Again => match blade.run.as_ref().map(|run| (run.run, &run.state)) {
            Some((run, RunState::Lost { why })) => {
                format!("try {} of {}: run {run} was lost, {why}", blade.inconclusive + 1, retries + 1)
            }
            Some((run, RunState::Finished { why, .. })) => {
                format!(
                    "try {} of {}: run {run} was inconclusive, {why}",
                    blade.inconclusive + 1,
                    retries + 1
                )
            }
            Some((run, RunState::Cancelled { why })) => format!("run {run} was taken back, {why}"),
            _ => "its run is not known any more".to_owned(),
        },
    }
}

/// As [`cohort::all_ended`], for the tranche's own plan.
pub(crate) fn to_judge(look: &Look, tranche: &TrancheView) -> Vec<RunId> {
    match look.index.tranches.get(&tranche.name) {
        Some(tally) if !tally.passed.is_empty() && cohort::all_ended(look, tranche) => {
            tally.passed.iter().copied().collect()
        }
        _ => Vec::new(),
    }
}
