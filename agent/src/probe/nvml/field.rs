//! Field values: one question for many numbers. Ids by the numbering of the current `nvml.h`.

use nvml_wrapper::Device;
use nvml_wrapper_sys::bindings::field_id::*;
use whetstone_model::facts::NvLink;

use super::raw::{self, FieldAsk, FieldValue};
use super::read::Asker;

pub const MEMORY_TEMP: u32 = NVML_FI_DEV_MEMORY_TEMP;
pub const SHUTDOWN_TLIMIT: u32 = NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT;
pub const SLOWDOWN_TLIMIT: u32 = NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT;
pub const MEM_MAX_TLIMIT: u32 = NVML_FI_DEV_TEMPERATURE_MEM_MAX_TLIMIT;
pub const GPU_MAX_TLIMIT: u32 = NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT;
pub const RETIRED_SBE: u32 = NVML_FI_DEV_RETIRED_SBE;
pub const RETIRED_DBE: u32 = NVML_FI_DEV_RETIRED_DBE;
pub const RETIRED_PENDING: u32 = NVML_FI_DEV_RETIRED_PENDING;
pub const PCIE_REPLAY: u32 = NVML_FI_DEV_PCIE_REPLAY_COUNTER;
pub const PCIE_REPLAY_ROLLOVER: u32 = NVML_FI_DEV_PCIE_REPLAY_ROLLOVER_COUNTER;
pub const RECOVERY_ACTION: u32 = NVML_FI_DEV_GET_GPU_RECOVERY_ACTION;
pub const LINK_COUNT: u32 = NVML_FI_DEV_NVLINK_LINK_COUNT;
pub const LINK_SPEED: u32 = NVML_FI_DEV_NVLINK_GET_SPEED;
pub const LINK_SYMBOL_BER: u32 = NVML_FI_DEV_NVLINK_COUNT_SYMBOL_BER;
pub const LINK_EFFECTIVE_BER: u32 = NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_BER;

/// Counters of the GPU's PCIe port, and our names for them.
pub const PCIE_COUNTERS: [(u32, &str); 12] = [
    (NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS, "correctable"),
    (NVML_FI_DEV_PCIE_COUNT_NON_FATAL_ERROR, "non_fatal"),
    (NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR, "fatal"),
    (NVML_FI_DEV_PCIE_COUNT_UNSUPPORTED_REQ, "unsupported_requests"),
    (NVML_FI_DEV_PCIE_COUNT_NAKS_RECEIVED, "naks_received"),
    (NVML_FI_DEV_PCIE_COUNT_NAKS_SENT, "naks_sent"),
    (NVML_FI_DEV_PCIE_COUNT_BAD_TLP, "bad_tlp"),
    (NVML_FI_DEV_PCIE_COUNT_BAD_DLLP, "bad_dllp"),
    (NVML_FI_DEV_PCIE_COUNT_RECEIVER_ERROR, "receiver"),
    (NVML_FI_DEV_PCIE_COUNT_LCRC_ERROR, "lcrc"),
    (NVML_FI_DEV_PCIE_COUNT_LANE_ERROR, "lane"),
    (NVML_FI_DEV_PCIE_L0_TO_RECOVERY_COUNTER, "l0_to_recovery"),
];

/// Error counters of NVLink 5, per link, and our names for them.
pub const LINK_COUNTERS: [(u32, &str); 12] = [
    (NVML_FI_DEV_NVLINK_COUNT_MALFORMED_PACKET_ERRORS, "malformed_packets"),
    (NVML_FI_DEV_NVLINK_COUNT_BUFFER_OVERRUN_ERRORS, "buffer_overruns"),
    (NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS, "rcv_errors"),
    (NVML_FI_DEV_NVLINK_COUNT_RCV_REMOTE_ERRORS, "rcv_remote_errors"),
    (NVML_FI_DEV_NVLINK_COUNT_RCV_GENERAL_ERRORS, "rcv_general_errors"),
    (NVML_FI_DEV_NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS, "link_integrity"),
    (NVML_FI_DEV_NVLINK_COUNT_XMIT_DISCARDS, "xmit_discards"),
    (NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_SUCCESSFUL_EVENTS, "recovery_successful"),
    (NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS, "recovery_failed"),
    (NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS, "recovery_events"),
    (NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_ERRORS, "effective_errors"),
    (NVML_FI_DEV_NVLINK_COUNT_SYMBOL_ERRORS, "symbol_errors"),
];

const OF_THE_GPU: [u32; 12] = [
    MEMORY_TEMP,
    SHUTDOWN_TLIMIT,
    SLOWDOWN_TLIMIT,
    MEM_MAX_TLIMIT,
    GPU_MAX_TLIMIT,
    RETIRED_SBE,
    RETIRED_DBE,
    RETIRED_PENDING,
    PCIE_REPLAY,
    PCIE_REPLAY_ROLLOVER,
    RECOVERY_ACTION,
    LINK_COUNT,
];

/// The values that one look at a GPU needs.
#[derive(Debug, Default)]
pub struct Fields {
    values: Vec<(FieldAsk, FieldValue)>,
}

impl Fields {
    /// Asks for the GPU's fields and those of its links, in as few calls as may be.
    pub fn read(device: &Device<'_>, ask: &mut Asker, links: &[NvLink]) -> Fields {
        let mut asks: Vec<FieldAsk> = OF_THE_GPU
            .iter()
            .copied()
            .chain(PCIE_COUNTERS.iter().map(|(id, _)| *id))
            .map(|id| FieldAsk { id, scope: 0 })
            .collect();
        let of_a_link = [LINK_SPEED, LINK_SYMBOL_BER, LINK_EFFECTIVE_BER];
        for link in links {
            let ids = of_a_link.iter().copied().chain(LINK_COUNTERS.iter().map(|(id, _)| *id));
            asks.extend(ids.map(|id| FieldAsk { id, scope: link.link }));
        }
        Self::of(device, ask, &asks)
    }

    pub fn of(device: &Device<'_>, ask: &mut Asker, asks: &[FieldAsk]) -> Fields {
        let values = ask.get("field_values", raw::field_values(device, asks)).unwrap_or_default();
        Fields {
            values: asks.iter().copied().zip(values).filter_map(|(ask, value)| Some((ask, value?))).collect(),
        }
    }

    /// Value of a field of the GPU itself.
    pub fn get(&self, id: u32) -> Option<u64> {
        self.of_link(id, 0)
    }

    /// Value of a field of one link.
    pub fn of_link(&self, id: u32, link: u32) -> Option<u64> {
        self.find(id, link).and_then(FieldValue::as_u64)
    }

    /// A signed field of the GPU itself.
    pub fn degrees(&self, id: u32) -> Option<i32> {
        self.find(id, 0).and_then(FieldValue::as_i32)
    }

    fn find(&self, id: u32, scope: u32) -> Option<FieldValue> {
        self.values.iter().find(|(ask, _)| ask.id == id && ask.scope == scope).map(|(_, value)| *value)
    }
}
