//! Field values. Ids by the numbering of the current `nvml.h`.

use std::ffi::c_int;
use std::sync::atomic::Ordering::Relaxed;

use nvml_wrapper_sys::bindings::field_id::*;
use nvml_wrapper_sys::bindings::*;
use whetstone_scenario::{Fault, Gpu};

use crate::call::{INVALID_ARGUMENT, NOT_SUPPORTED, SUCCESS, export};
use crate::memory::{dram_errors, ecc_on, remapped};
use crate::sensors::{milliwatts, min_limit_mw, reasons, tlimit};
use crate::system::has;

/// Most values in one call; more is a broken caller.
const MAX_VALUES: c_int = 10_000;

enum Value {
    Int(i32),
    Uint(u32),
    Long(u64),
}

fn value(gpu: Gpu<'_>, id: u32, scope: u32) -> Result<Value, nvmlReturn_t> {
    use Value::{Int, Long, Uint};
    let sku = gpu.sku();
    let link = |version: std::ops::RangeInclusive<u32>| match sku.nvlinks {
        links if !version.contains(&sku.nvlink_version) || links == 0 => Err(NOT_SUPPORTED),
        links if scope >= links => Err(INVALID_ARGUMENT),
        _ => Ok(()),
    };
    let ecc = |aggregate: bool| ecc_on(gpu).map(|()| dram_errors(gpu, aggregate));
    Ok(match id {
        NVML_FI_DEV_ECC_CURRENT | NVML_FI_DEV_ECC_PENDING => Uint(u32::from(ecc_on(gpu).is_ok())),
        NVML_FI_DEV_ECC_SBE_VOL_TOTAL | NVML_FI_DEV_ECC_SBE_VOL_DEV => Long(ecc(false)?.0),
        NVML_FI_DEV_ECC_DBE_VOL_TOTAL | NVML_FI_DEV_ECC_DBE_VOL_DEV => Long(ecc(false)?.1),
        NVML_FI_DEV_ECC_SBE_AGG_TOTAL | NVML_FI_DEV_ECC_SBE_AGG_DEV => Long(ecc(true)?.0),
        NVML_FI_DEV_ECC_DBE_AGG_TOTAL | NVML_FI_DEV_ECC_DBE_AGG_DEV => Long(ecc(true)?.1),
        NVML_FI_DEV_MEMORY_TEMP => Uint(gpu.health().memory_celsius as u32),
        NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION | NVML_FI_DEV_ENERGY => Long(gpu.health().energy_mj),
        NVML_FI_DEV_NVLINK_LINK_COUNT => Uint(sku.nvlinks),
        NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON => {
            if sku.nvlinks == 0 {
                return Err(NOT_SUPPORTED);
            }
            Uint(sku.nvlink_reported_mbps)
        }
        NVML_FI_DEV_NVLINK_GET_SPEED => {
            link(1..=9)?;
            Uint(if gpu.link_up(scope) { sku.nvlink_reported_mbps } else { 0 })
        }
        NVML_FI_DEV_NVLINK_GET_STATE => {
            link(1..=9)?;
            Uint(u32::from(gpu.link_up(scope)))
        }
        NVML_FI_DEV_NVLINK_GET_VERSION => {
            link(1..=9)?;
            Uint(sku.nvlink_version)
        }
        NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY | NVML_FI_DEV_NVLINK_ERROR_DL_CRC => {
            link(4..=4)?;
            Long(gpu.nvlink_errors(scope))
        }
        NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY => {
            link(4..=4)?;
            Long(0)
        }
        NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES | NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES => {
            link(5..=9)?;
            Long(gpu.state().nvlink_bytes.load(Relaxed) / u64::from(sku.nvlinks))
        }
        NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS | NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_ERRORS => {
            link(5..=9)?;
            Long(gpu.nvlink_errors(scope))
        }
        // Forward error correction repairs most symbols: there are always more of these.
        NVML_FI_DEV_NVLINK_COUNT_SYMBOL_ERRORS => {
            link(5..=9)?;
            Long(gpu.nvlink_errors(scope) * 4)
        }
        NVML_FI_DEV_NVLINK_COUNT_XMIT_PACKETS..=NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS => {
            link(5..=9)?;
            Long(0)
        }
        // Mantissa in bits 8 to 11, negative exponent below: 1e-8 where errors are planted, else under 1e-15.
        NVML_FI_DEV_NVLINK_COUNT_SYMBOL_BER | NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_BER => {
            link(5..=9)?;
            Long(if gpu.nvlink_errors(scope) > 0 { 0x108 } else { 0xfff })
        }
        NVML_FI_DEV_PCIE_REPLAY_COUNTER => Long(gpu.pcie_replays()),
        NVML_FI_DEV_PCIE_REPLAY_ROLLOVER_COUNTER => Long(0),
        NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS
        | NVML_FI_DEV_PCIE_COUNT_NAKS_SENT
        | NVML_FI_DEV_PCIE_COUNT_BAD_TLP => Long(gpu.pcie_replays()),
        NVML_FI_DEV_PCIE_COUNT_NAKS_RECEIVED..=NVML_FI_DEV_PCIE_COUNT_LANE_ERROR
        | NVML_FI_DEV_PCIE_L0_TO_RECOVERY_COUNTER => Long(0),
        NVML_FI_DEV_PCIE_COUNT_TX_BYTES => Long(gpu.state().pcie_tx_bytes.load(Relaxed)),
        NVML_FI_DEV_PCIE_COUNT_RX_BYTES => Long(gpu.state().pcie_rx_bytes.load(Relaxed)),
        NVML_FI_DEV_REMAPPED_COR => Uint(remapped(gpu).0),
        NVML_FI_DEV_REMAPPED_UNC => Uint(remapped(gpu).1),
        NVML_FI_DEV_REMAPPED_PENDING => Uint(u32::from(remapped(gpu).2)),
        NVML_FI_DEV_REMAPPED_FAILURE => Uint(u32::from(remapped(gpu).3)),
        NVML_FI_DEV_POWER_AVERAGE | NVML_FI_DEV_POWER_INSTANT => Uint(milliwatts(gpu.health().watts)),
        NVML_FI_DEV_POWER_MIN_LIMIT => Uint(min_limit_mw(gpu)),
        NVML_FI_DEV_POWER_MAX_LIMIT | NVML_FI_DEV_POWER_DEFAULT_LIMIT => Uint(milliwatts(sku.power_limit_w)),
        NVML_FI_DEV_POWER_CURRENT_LIMIT | NVML_FI_DEV_POWER_REQUESTED_LIMIT => {
            Uint(milliwatts(gpu.limit_w()))
        }
        // Signed, unlike everything else here.
        NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT..=NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT => {
            Int(tlimit(gpu, id).ok_or(NOT_SUPPORTED)?)
        }
        NVML_FI_DEV_C2C_LINK_COUNT => {
            if !sku.rack_scale {
                return Err(NOT_SUPPORTED);
            }
            Uint(10)
        }
        NVML_FI_DEV_GET_GPU_RECOVERY_ACTION => {
            // A remap takes effect with a reset.
            let reset = has(gpu, &Fault::RemapPending) || gpu.ecc_uncorrectable() > 0;
            Uint(u32::from(reset))
        }
        NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN => Long(0),
        NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN => {
            Long(if reasons(gpu) & 0x40 != 0 { 1 } else { 0 })
        }
        _ => return Err(NOT_SUPPORTED),
    })
}

export! {
    fn nvmlDeviceGetFieldValues(gpu, count: c_int, values: *mut nvmlFieldValue_t) {
        if values.is_null() || !(1..=MAX_VALUES).contains(&count) {
            return Err(INVALID_ARGUMENT);
        }
        let now_us = gpu.sim().now_ns() as i64 / 1000;
        for i in 0..count as usize {
            let field = &mut *values.add(i);
            field.timestamp = now_us;
            field.latencyUsec = 1;
            field.nvmlReturn = SUCCESS;
            field.value.ullVal = 0;
            match value(gpu, field.fieldId, field.scopeId) {
                Ok(Value::Int(v)) => {
                    field.valueType = nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_INT;
                    field.value.siVal = v;
                }
                Ok(Value::Uint(v)) => {
                    field.valueType = nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT;
                    field.value.uiVal = v;
                }
                Ok(Value::Long(v)) => {
                    field.valueType = nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
                    field.value.ullVal = v;
                }
                Err(code) => field.nvmlReturn = code,
            }
        }
        Ok(())
    }
}
