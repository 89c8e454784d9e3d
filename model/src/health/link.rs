//! Rules about NVLinks and the fabric they make.

use std::collections::BTreeMap;

use super::{Judge, hours_up};
use crate::action::Action;
use crate::evidence::Reading;
use crate::facts::{Fabric, FabricState, FabricSummary, Facts, GpuFacts, NvLink};
use crate::unit::Unit;

/// Minutes after boot in which a GPU may still be joining its fabric.
const JOINING_MINUTES: f64 = 10.0;

pub(super) fn judge(gpu: &GpuFacts, facts: &Facts, judge: &mut Judge<'_>) {
    down(gpu, facts, judge);
    speed(gpu, judge);
    errors(gpu, facts, judge);
    if let Some(fabric) = &gpu.fabric {
        self::fabric(gpu, fabric, facts, judge);
    } else if judge.profile.is_some_and(|profile| profile.expected.fabric == Some(true)) {
        let detail = "the GPU does not know of an NVLink fabric; its SKU has one".to_owned();
        judge.fault("fabric-incomplete", Some(gpu.uuid.clone()), Action::Reboot, detail);
    }
}

fn is_down(link: &NvLink) -> bool {
    link.up == Some(false)
}

fn down(gpu: &GpuFacts, facts: &Facts, judge: &mut Judge<'_>) {
    let who = || Some(gpu.uuid.clone());
    let expected = judge.profile.and_then(|profile| profile.expected.nvlinks_per_gpu);
    if let Some(expected) = expected.filter(|expected| (gpu.nvlinks.len() as u32) < *expected) {
        let detail = format!("{} NVLinks, its SKU has {expected}", gpu.nvlinks.len());
        judge.fault("nvlink-missing", who(), Action::CheckLink, detail);
    }
    let down: Vec<u32> = gpu.nvlinks.iter().filter(|link| is_down(link)).map(|link| link.link).collect();
    if down.is_empty() || expected == Some(0) {
        return;
    }
    // Cards whose links are not bridged to anything have them all down, on every GPU: that is how they were built.
    let bare = |gpu: &GpuFacts| gpu.nvlinks.iter().all(is_down);
    if expected.is_none() && facts.gpus.iter().all(bare) {
        judge.info("nvlink-unused", who(), format!("none of its {} NVLinks is connected", gpu.nvlinks.len()));
        return;
    }
    let what = format!("{} of {} NVLinks down: {}", down.len(), gpu.nvlinks.len(), list(&down));
    let reading = Reading::new("nvlink.inactive", down.len() as f64, Unit::Count);
    judge.reading("nvlink-down", who(), Action::CheckLink, &what, reading);
}

fn list(links: &[u32]) -> String {
    let names: Vec<String> = links.iter().map(u32::to_string).collect();
    format!("{} {}", if links.len() == 1 { "link" } else { "links" }, names.join(", "))
}

fn speed(gpu: &GpuFacts, judge: &mut Judge<'_>) {
    let speeds = || gpu.nvlinks.iter().filter(|link| !is_down(link)).filter_map(|link| link.speed_mbps);
    let Some(fastest) = speeds().max() else { return };
    let wanted = judge.profile.and_then(|profile| profile.expected.nvlink_mbps).unwrap_or(fastest);
    // Rounded by the library: a few MB/s are no difference.
    let slow: Vec<u32> = gpu
        .nvlinks
        .iter()
        .filter(|link| !is_down(link) && link.speed_mbps.is_some_and(|speed| speed * 100 < wanted * 99))
        .map(|link| link.link)
        .collect();
    if !slow.is_empty() {
        let slowest = speeds().min().unwrap_or(fastest);
        let detail = format!("{} at {slowest} MB/s, {wanted} MB/s is right", list(&slow));
        judge.fault("nvlink-speed", Some(gpu.uuid.clone()), Action::CheckLink, detail);
    }
}

/// Counters that are not errors by themselves: a recovery that worked is counted as an event already.
const NOT_ERRORS: [&str; 3] = ["recovery_successful", "recovery_failed", "effective_errors"];

/// Errors of all links, without those that the link's own coding repairs all the time.
pub(super) fn error_sum(gpu: &GpuFacts) -> Option<u64> {
    let counts = gpu
        .nvlinks
        .iter()
        .flat_map(|link| &link.errors)
        .filter(|(name, _)| !NOT_ERRORS.contains(&name.as_str()) && name.as_str() != "symbol_errors")
        .map(|(_, count)| *count);
    counts.fold(None, |sum: Option<u64>, count| Some(sum.unwrap_or(0).saturating_add(count)))
}

fn errors(gpu: &GpuFacts, facts: &Facts, judge: &mut Judge<'_>) {
    let who = || Some(gpu.uuid.clone());
    let failed: u64 = gpu.nvlinks.iter().filter_map(|link| link.errors.get("recovery_failed")).sum();
    if failed > 0 {
        let detail = format!("{failed} NVLink recoveries failed since the links came up");
        judge.fault("nvlink-recovery-failed", who(), Action::CheckLink, detail);
    }
    let Some(total) = error_sum(gpu).filter(|total| *total > 0) else { return };
    let mut by_kind: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, count) in gpu.nvlinks.iter().flat_map(|link| &link.errors).filter(|(_, count)| **count > 0) {
        *by_kind.entry(name).or_default() += count;
    }
    let kinds: Vec<String> = by_kind.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let what = format!("{total} NVLink errors since the links came up ({})", kinds.join(", "));
    let told = hours_up(facts, 1.0).is_some_and(|hours| {
        let reading = Reading::new("nvlink.error.rate", total as f64 / hours, Unit::PerHour);
        judge.reading(
            "nvlink-errors",
            who(),
            Action::CheckLink,
            &format!("{what}, a mean since boot"),
            reading,
        )
    });
    if !told {
        judge.info("nvlink-errors", who(), what);
    }
}

fn fabric(gpu: &GpuFacts, fabric: &Fabric, facts: &Facts, judge: &mut Judge<'_>) {
    let who = || Some(gpu.uuid.clone());
    match fabric.state {
        FabricState::NotSupported => {}
        FabricState::Completed if fabric.status == 0 => {}
        FabricState::Completed => {
            let detail = format!("joining the NVLink fabric failed (NVML status {})", fabric.status);
            judge.fault("fabric-failed", who(), Action::Reboot, detail);
        }
        FabricState::NotStarted | FabricState::InProgress => {
            let word =
                if fabric.state == FabricState::InProgress { "is still joining" } else { "has not joined" };
            let detail = format!("the GPU {word} its NVLink fabric (fabric manager, subnet manager)");
            let young = facts.host.uptime_s.is_some_and(|uptime| uptime < JOINING_MINUTES * 60.0);
            if young {
                judge.warn("fabric-incomplete", who(), Action::None, detail);
            } else {
                judge.fault("fabric-incomplete", who(), Action::Reboot, detail);
            }
        }
    }
    let mut told = false;
    if let Some(health) = fabric.health {
        let mask = fabric.health_mask.unwrap_or(0);
        let mut bad = |code: &str, grave: bool, action, what: &str| {
            told = true;
            let detail = format!("NVLink fabric: {what} (health mask {mask:#x})");
            if grave {
                judge.fault(code, who(), action, detail)
            } else {
                judge.warn(code, who(), action, detail)
            }
        };
        if health.degraded_bandwidth == Some(true) {
            bad("fabric-degraded", true, Action::CheckLink, "bandwidth is degraded");
        }
        if health.route_unhealthy == Some(true) {
            bad("fabric-degraded", true, Action::CheckLink, "a route is unhealthy");
        }
        if health.route_recovery == Some(true) {
            bad("fabric-recovering", false, Action::DrainAndTest, "a route is being recovered");
        }
        if health.access_timeout_recovery == Some(true) {
            bad("fabric-recovering", false, Action::DrainAndTest, "recovering from an access timeout");
        }
        let wrong = match health.incorrect_configuration {
            0 | 1 => None,
            2 => Some("incorrect system GUID"),
            3 => Some("incorrect chassis serial number"),
            4 => Some("no partition"),
            5 => Some("not enough NVLinks"),
            _ => Some("incorrect configuration"),
        };
        if let Some(wrong) = wrong {
            bad("fabric-misconfigured", true, Action::ContactSupport, wrong);
        }
    }
    if !told && matches!(fabric.summary, Some(FabricSummary::Unhealthy | FabricSummary::LimitedCapacity)) {
        let word = if fabric.summary == Some(FabricSummary::Unhealthy) {
            "unhealthy"
        } else {
            "of limited capacity"
        };
        judge.fault(
            "fabric-degraded",
            who(),
            Action::CheckLink,
            format!("the GPU's NVLink fabric is {word}"),
        );
    }
}

/// All GPUs of a blade belong to one clique of one cluster.
pub(super) fn judge_domain(facts: &Facts, judge: &mut Judge<'_>) {
    let mut cliques: BTreeMap<(Option<&str>, Option<u32>), Vec<&GpuFacts>> = BTreeMap::new();
    for gpu in &facts.gpus {
        if let Some(fabric) = gpu.fabric.as_ref().filter(|fabric| fabric.state == FabricState::Completed) {
            cliques.entry((fabric.cluster_uuid.as_deref(), fabric.clique_id)).or_default().push(gpu);
        }
    }
    let Some(most) = cliques.values().map(Vec::len).max() else { return };
    if cliques.len() < 2 {
        return;
    }
    // With a draw nobody can say which side is wrong: all are named.
    let tied = cliques.values().filter(|gpus| gpus.len() == most).count() > 1;
    for ((cluster, clique), gpus) in &cliques {
        if gpus.len() == most && !tied {
            continue;
        }
        for gpu in gpus {
            let clique = clique.map_or("?".to_owned(), |clique| clique.to_string());
            let detail = format!(
                "in clique {clique} of NVLink cluster {}, other GPUs of the blade are in another",
                cluster.unwrap_or("?")
            );
            judge.fault("fabric-split", Some(gpu.uuid.clone()), Action::ContactSupport, detail);
        }
    }
}
