//! Temperature, power, clocks, utilization: they follow the load.

use std::ffi::{c_int, c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::*;
use whetstone_scenario::{Fault, Gpu};

use crate::call::{INVALID_ARGUMENT, NOT_SUPPORTED, export, put, version};

/// The T.Limit is this far below the slowdown temperature.
const SLOWDOWN_MARGIN: f64 = 2.0;
/// Lowest power limit that can be set, as a part of the default.
const MIN_LIMIT: f64 = 0.3;

/// Bits of the clock event reasons.
const IDLE: u64 = 0x1;
const SW_POWER_CAP: u64 = 0x4;
const HW_SLOWDOWN: u64 = 0x8;
const HW_THERMAL: u64 = 0x40;

/// Temperature at which the margin is 0.
fn limit_c(gpu: Gpu<'_>) -> f64 {
    gpu.sku().slowdown_c - SLOWDOWN_MARGIN
}

/// Margins are told since Ada.
pub fn has_margins(gpu: Gpu<'_>) -> bool {
    gpu.sku().architecture >= 8
}

/// T.Limit thresholds of fields 193 to 196: shutdown, slowdown, memory, GPU maximum.
pub fn tlimit(gpu: Gpu<'_>, field: u32) -> Option<i32> {
    if !has_margins(gpu) {
        return None;
    }
    match field {
        193 => Some((limit_c(gpu) - gpu.sku().shutdown_c) as i32),
        194 => Some(-SLOWDOWN_MARGIN as i32),
        195 | 196 => Some(0),
        _ => None,
    }
}

pub fn reasons(gpu: Gpu<'_>) -> u64 {
    let health = gpu.health();
    match (health.loaded, health.thermal_slowdown, health.power_capped) {
        (false, ..) => IDLE,
        (true, true, _) => HW_SLOWDOWN | HW_THERMAL,
        (true, false, true) => SW_POWER_CAP,
        (true, false, false) => 0,
    }
}

pub fn milliwatts(watts: f64) -> c_uint {
    (watts * 1000.0) as c_uint
}

pub fn min_limit_mw(gpu: Gpu<'_>) -> c_uint {
    milliwatts((gpu.sku().power_limit_w * MIN_LIMIT).round())
}

fn clock(gpu: Gpu<'_>, kind: c_uint) -> Result<c_uint, nvmlReturn_t> {
    match kind {
        nvmlClockType_enum_NVML_CLOCK_GRAPHICS | nvmlClockType_enum_NVML_CLOCK_SM => {
            Ok(gpu.health().sm_clock_mhz as c_uint)
        }
        nvmlClockType_enum_NVML_CLOCK_MEM => Ok(gpu.sku().memory_clock_mhz),
        nvmlClockType_enum_NVML_CLOCK_VIDEO => Ok((gpu.health().sm_clock_mhz * 0.9) as c_uint),
        _ => Err(INVALID_ARGUMENT),
    }
}

fn max_clock(gpu: Gpu<'_>, kind: c_uint) -> Result<c_uint, nvmlReturn_t> {
    match kind {
        nvmlClockType_enum_NVML_CLOCK_GRAPHICS | nvmlClockType_enum_NVML_CLOCK_SM => {
            Ok(gpu.sku().max_sm_clock_mhz)
        }
        nvmlClockType_enum_NVML_CLOCK_MEM => Ok(gpu.sku().memory_clock_mhz),
        nvmlClockType_enum_NVML_CLOCK_VIDEO => Ok(gpu.sku().max_sm_clock_mhz * 9 / 10),
        _ => Err(INVALID_ARGUMENT),
    }
}

/// Nanoseconds for which a policy has held the clocks down so far.
fn violation_ns(gpu: Gpu<'_>, policy: c_uint) -> u64 {
    let health = gpu.health();
    let seconds = match policy {
        nvmlPerfPolicyType_enum_NVML_PERF_POLICY_THERMAL => {
            let after = gpu
                .faults()
                .iter()
                .find_map(|f| if let Fault::ThermalThrottle { after_s } = f { Some(*after_s) } else { None });
            after.map_or(0.0, |after| (health.loaded_s - after).max(0.0))
        }
        nvmlPerfPolicyType_enum_NVML_PERF_POLICY_POWER if gpu.limit_w() < gpu.sku().power_limit_w => {
            health.loaded_s
        }
        _ => 0.0,
    };
    (seconds * 1e9) as u64
}

export! {
    fn nvmlDeviceGetTemperature(gpu, sensor: c_uint, degrees: *mut c_uint) {
        if sensor != 0 {
            return Err(INVALID_ARGUMENT);
        }
        put(degrees, gpu.health().celsius as c_uint)
    }
    fn nvmlDeviceGetTemperatureV(gpu, temperature: *mut nvmlTemperature_v1_t) {
        version(temperature, 1)?;
        if (*temperature).sensorType != 0 {
            return Err(INVALID_ARGUMENT);
        }
        (*temperature).temperature = gpu.health().celsius as c_int;
        Ok(())
    }
    fn nvmlDeviceGetMarginTemperature(gpu, margin: *mut nvmlMarginTemperature_v1_t) {
        if !has_margins(gpu) {
            return Err(NOT_SUPPORTED);
        }
        version(margin, 1)?;
        (*margin).marginTemperature = (limit_c(gpu) - gpu.health().celsius).round() as c_int;
        Ok(())
    }
    fn nvmlDeviceGetTemperatureThreshold(gpu, kind: c_uint, degrees: *mut c_uint) {
        let sku = gpu.sku();
        put(degrees, match kind {
            nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_SHUTDOWN => sku.shutdown_c,
            nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_SLOWDOWN => sku.slowdown_c,
            nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_MEM_MAX => sku.memory_max_c,
            nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_GPU_MAX => limit_c(gpu),
            _ => return Err(NOT_SUPPORTED),
        } as c_uint)
    }
    fn nvmlDeviceGetPowerUsage(gpu, power: *mut c_uint) { put(power, milliwatts(gpu.health().watts)) }
    fn nvmlDeviceGetEnforcedPowerLimit(gpu, limit: *mut c_uint) { put(limit, milliwatts(gpu.limit_w())) }
    fn nvmlDeviceGetPowerManagementLimit(gpu, limit: *mut c_uint) { put(limit, milliwatts(gpu.limit_w())) }
    fn nvmlDeviceGetPowerManagementDefaultLimit(gpu, limit: *mut c_uint) { put(limit, milliwatts(gpu.sku().power_limit_w)) }
    fn nvmlDeviceGetPowerManagementMode(_gpu, mode: *mut c_uint) { put(mode, 1) }
    fn nvmlDeviceGetPowerManagementLimitConstraints(gpu, min: *mut c_uint, max: *mut c_uint) {
        put(min, min_limit_mw(gpu))?;
        put(max, milliwatts(gpu.sku().power_limit_w))
    }
    fn nvmlDeviceGetPowerSource(_gpu, source: *mut c_uint) { put(source, 0) }
    fn nvmlDeviceGetTotalEnergyConsumption(gpu, energy: *mut c_ulonglong) { put(energy, gpu.health().energy_mj) }
    fn nvmlDeviceGetClockInfo(gpu, kind: c_uint, mhz: *mut c_uint) { put(mhz, clock(gpu, kind)?) }
    fn nvmlDeviceGetMaxClockInfo(gpu, kind: c_uint, mhz: *mut c_uint) { put(mhz, max_clock(gpu, kind)?) }
    fn nvmlDeviceGetClock(gpu, kind: c_uint, id: c_uint, mhz: *mut c_uint) {
        // 0 current, 1 and 2 application clocks, 3 highest by customer's boost.
        put(mhz, match id {
            0 => clock(gpu, kind)?,
            1..=3 => max_clock(gpu, kind)?,
            _ => return Err(INVALID_ARGUMENT),
        })
    }
    fn nvmlDeviceGetApplicationsClock(gpu, kind: c_uint, mhz: *mut c_uint) { put(mhz, max_clock(gpu, kind)?) }
    fn nvmlDeviceGetMaxCustomerBoostClock(gpu, kind: c_uint, mhz: *mut c_uint) { put(mhz, max_clock(gpu, kind)?) }
    fn nvmlDeviceGetCurrentClocksEventReasons(gpu, bits: *mut c_ulonglong) { put(bits, reasons(gpu)) }
    fn nvmlDeviceGetCurrentClocksThrottleReasons(gpu, bits: *mut c_ulonglong) { put(bits, reasons(gpu)) }
    fn nvmlDeviceGetSupportedClocksEventReasons(_gpu, bits: *mut c_ulonglong) { put(bits, 0x1ff) }
    fn nvmlDeviceGetSupportedClocksThrottleReasons(_gpu, bits: *mut c_ulonglong) { put(bits, 0x1ff) }
    fn nvmlDeviceGetPerformanceState(gpu, state: *mut c_uint) {
        // Boards with HBM stay in P0; one with GDDR rests in P8.
        put(state, if gpu.sku().nvlinks == 0 && !gpu.health().loaded { 8 } else { 0 })
    }
    fn nvmlDeviceGetPowerState(gpu, state: *mut c_uint) {
        put(state, if gpu.sku().nvlinks == 0 && !gpu.health().loaded { 8 } else { 0 })
    }
    fn nvmlDeviceGetUtilizationRates(gpu, rates: *mut nvmlUtilization_t) {
        let loaded = gpu.health().loaded;
        put(rates, if loaded { nvmlUtilization_t { gpu: 100, memory: 42 } } else { nvmlUtilization_t { gpu: 0, memory: 0 } })
    }
    fn nvmlDeviceGetViolationStatus(gpu, policy: c_uint, time: *mut nvmlViolationTime_t) {
        put(time, nvmlViolationTime_t { referenceTime: gpu.sim().now_ns() / 1000, violationTime: violation_ns(gpu, policy) })
    }
    // Liquid or chassis-cooled boards have no fan of their own.
    fn nvmlDeviceGetFanSpeed(_gpu, _percent: *mut c_uint) { Err(NOT_SUPPORTED) }
    fn nvmlDeviceGetNumFans(_gpu, fans: *mut c_uint) { put(fans, 0) }
}
