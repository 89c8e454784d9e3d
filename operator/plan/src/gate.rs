//! Gates: what of a rack and of an NVLink domain has to have passed before a blade of it serves.

use whetstone_model::lifecycle::{Phase, PhaseName};

use crate::decision::WaitReason;
use crate::index::Index;
use crate::view::{BladeView, Gates, SiteView};

/// Has passed and not fallen since.
pub(crate) fn passed(phase: &Phase) -> bool {
    matches!(phase.name(), PhaseName::Ready | PhaseName::InService)
}

/// A retired blade is not waited for.
pub(crate) fn counts(phase: &Phase) -> bool {
    phase.name() != PhaseName::Retired
}

/// The gate that keeps a blade from serving, if one does. The gates of a tranche that is not described are not known: they
/// count as closed.
pub(crate) fn closed(site: &SiteView, index: &Index, blade: &BladeView) -> Option<WaitReason> {
    let tranche = blade.tranche.as_ref().and_then(|name| site.tranches.get(name));
    if let (Some(name), None) = (&blade.tranche, tranche) {
        return Some(WaitReason::undescribed(name.as_str()));
    }
    let gates = tranche.map_or_else(Gates::default, |tranche| tranche.gates);
    if let (Some(rack), Some(tranche)) = (&blade.rack, tranche) {
        let tally = index.rack_part(rack, Some(&tranche.name)).map(|part| part.gate).unwrap_or_default();
        let percent = gates.rack_percent.clamp(0.0, 100.0);
        if (tally.passed as f64) * 100.0 < percent * tally.of as f64 {
            return Some(WaitReason::RackGate {
                rack: rack.to_string(),
                passed: tally.passed,
                of: tally.of,
                percent,
            });
        }
    }
    let domain = blade.domain.as_ref().filter(|_| gates.whole_domain)?;
    let tally = index.domains.get(domain).copied().unwrap_or_default();
    (tally.passed < tally.of).then(|| WaitReason::DomainGate {
        domain: domain.to_string(),
        passed: tally.passed,
        of: tally.of,
    })
}
