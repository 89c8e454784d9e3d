//! NVLinks of one GPU.

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::nv_link::{ErrorCounter, IntDeviceType};
use whetstone_model::facts::NvLink;

use super::field::{self, Fields};
use super::raw::FieldAsk;
use super::read::{Asker, pci_address};

/// NVLinks of one GPU at most. The header says 18; a bound on what a library may claim.
const MAX_LINKS: u32 = 72;

/// Links that NVML may have when it does not say how many (`NVML_NVLINK_MAX_LINKS`).
const LINKS_TO_TRY: u32 = 18;

const DL_COUNTERS: [(ErrorCounter, &str); 4] = [
    (ErrorCounter::DlReplay, "replay"),
    (ErrorCounter::DlRecovery, "recovery"),
    (ErrorCounter::DlCrcFlit, "crc_flit"),
    (ErrorCounter::DlCrcData, "crc_data"),
];

/// The links that the GPU has, with what does not change while it runs.
pub fn list(device: &Device<'_>, ask: &mut Asker) -> Vec<NvLink> {
    let count = Fields::of(device, ask, &[FieldAsk { id: field::LINK_COUNT, scope: 0 }])
        .get(field::LINK_COUNT)
        .and_then(|count| u32::try_from(count).ok());
    let mut links = Vec::new();
    for number in 0..count.unwrap_or(LINKS_TO_TRY).min(MAX_LINKS) {
        let link = device.link_wrapper_for(number);
        let up = ask.get("nvlink_state", link.is_active());
        // A link that the library counts is there even if it says nothing about it; one that was only tried is not.
        if up.is_none() && count.is_none() {
            continue;
        }
        links.push(NvLink {
            link: number,
            up,
            version: ask.get("nvlink_version", link.version()),
            remote_pci: ask.get("nvlink_remote_pci", link.remote_pci_info()).map(|info| pci_address(&info)),
            remote_kind: ask.get("nvlink_remote_type", link.remote_device_type(number)).and_then(kind),
            ..NvLink::default()
        });
    }
    links
}

fn kind(kind: IntDeviceType) -> Option<String> {
    let name = match kind {
        IntDeviceType::Gpu => "gpu",
        IntDeviceType::Ibmnpu => "ibmnpu",
        IntDeviceType::Switch => "switch",
        IntDeviceType::Unknown => return None,
    };
    Some(name.to_owned())
}

/// State, speed and error counters as they are now.
pub fn errors(device: &Device<'_>, ask: &mut Asker, links: &mut [NvLink], fields: &Fields) {
    for link in links {
        let handle = device.link_wrapper_for(link.link);
        link.up = ask.get("nvlink_state", handle.is_active());
        link.speed_mbps = fields.of_link(field::LINK_SPEED, link.link).filter(|speed| *speed > 0);
        for (counter, name) in DL_COUNTERS {
            if let Some(value) = ask.get("nvlink_error_counter", handle.error_counter(counter)) {
                count(link, name, value);
            }
        }
        for (id, name) in field::LINK_COUNTERS {
            if let Some(value) = fields.of_link(id, link.link) {
                count(link, name, value);
            }
        }
        link.symbol_ber = fields.of_link(field::LINK_SYMBOL_BER, link.link).map(bit_error_rate);
        link.effective_ber = fields.of_link(field::LINK_EFFECTIVE_BER, link.link).map(bit_error_rate);
    }
}

fn count(link: &mut NvLink, name: &str, value: u64) {
    match link.errors.get_mut(name) {
        Some(slot) => *slot = value,
        None => {
            link.errors.insert(name.to_owned(), value);
        }
    }
}

/// `mantissa × 10^-exponent`, mantissa in bits 8-11, exponent in bits 0-7 (nvml.h, `NVML_NVLINK_BER_*`).
fn bit_error_rate(raw: u64) -> f64 {
    let (mantissa, exponent) = (raw >> 8 & 0xf, raw & 0xff);
    mantissa as f64 * 10f64.powi(-(exponent as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_error_rates_are_mantissa_and_exponent() {
        assert!((bit_error_rate(0x50f) - 5e-15).abs() < 1e-20);
        assert_eq!(bit_error_rate(0), 0.0);
        // "No errors seen": 15e-255.
        assert!(bit_error_rate(0xfff) < 1e-250);
    }
}
