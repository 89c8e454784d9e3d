//! Rules about InfiniBand and RoCE ports.

use super::{Judge, device, hours_up};
use crate::action::Action;
use crate::evidence::Reading;
use crate::facts::{Facts, IbPort};
use crate::unit::Unit;

pub(super) fn judge(facts: &Facts, judge: &mut Judge<'_>) {
    for port in &facts.ib_ports {
        state(port, facts, judge);
        rate(port, facts, judge);
        counters(port, facts, judge);
    }
}

fn is_active(port: &IbPort) -> bool {
    port.state.as_deref() == Some("ACTIVE")
}

/// Ports of the same board and link layer: built and cabled for the same purpose.
fn peers<'a>(port: &'a IbPort, facts: &'a Facts) -> impl Iterator<Item = &'a IbPort> {
    facts.ib_ports.iter().filter(move |other| {
        other.id() != port.id()
            && other.link_layer == port.link_layer
            && other.adapter_type == port.adapter_type
            && other.board_id == port.board_id
    })
}

fn state(port: &IbPort, facts: &Facts, judge: &mut Judge<'_>) {
    let Some(state) = port.state.as_deref().filter(|_| !is_active(port)) else { return };
    let phys = port.phys_state.as_deref().unwrap_or("?");
    let (active, all) = peers(port, facts)
        .fold((0, 0), |(active, all), peer| (active + usize::from(is_active(peer)), all + 1));
    let detail = format!("port {} is {state} ({phys})", port.id());
    // Unused ports are common: a second port, a storage adapter without a cable. A port whose like are mostly in
    // use was meant to be used.
    if active * 2 > all {
        let detail = format!("{detail}; {active} of {all} ports like it are active");
        judge.fault("ib-port-down", device(&port.id()), Action::CheckLink, detail);
    } else {
        judge.info("ib-port-down", device(&port.id()), detail);
    }
}

fn rate(port: &IbPort, facts: &Facts, judge: &mut Judge<'_>) {
    let Some(rate) = port.rate_gbps.filter(|_| is_active(port)) else { return };
    let best = peers(port, facts)
        .filter(|peer| is_active(peer))
        .filter_map(|peer| peer.rate_gbps)
        .fold(0.0, f64::max);
    if rate < best * 0.99 {
        let text = port.rate_text.clone().unwrap_or_else(|| format!("{rate} Gb/s"));
        let detail = format!("port {} runs at {text}, ports like it at {best} Gb/s", port.id());
        judge.fault("ib-port-rate", device(&port.id()), Action::CheckLink, detail);
    }
}

fn counters(port: &IbPort, facts: &Facts, judge: &mut Judge<'_>) {
    let who = || device(&port.id());
    let count = |name: &str| port.counters.get(name).copied().unwrap_or(0);
    let downs = Reading::new("ib.link_downed.count", count("link_downed") as f64, Unit::Count);
    let what = format!(
        "port {}: link went down {} times since its driver was loaded",
        port.id(),
        count("link_downed")
    );
    judge.reading("ib-link-downed", who(), Action::CheckLink, &what, downs);
    let rates = [
        ("symbol_error", "ib.symbol_error.rate", "symbol errors", "ib-symbol-errors"),
        ("link_error_recovery", "ib.link_recovery.rate", "link error recoveries", "ib-link-recovery"),
    ];
    let Some(hours) = hours_up(facts, 1.0) else { return };
    for (counter, metric, words, code) in rates {
        let value = count(counter);
        if value > 0 {
            let what = format!("port {}: {value} {words}, a mean since boot", port.id());
            let reading = Reading::new(metric, value as f64 / hours, Unit::PerHour);
            judge.reading(code, who(), Action::CheckLink, &what, reading);
        }
    }
}
