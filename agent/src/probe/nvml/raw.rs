//! NVML calls that the safe wrapper lacks or decodes wrongly. The only unsafe code of the agent.
//!
//! Each function takes a [`Device`] of a live [`Nvml`], so handle and library are valid by construction.
#![allow(unsafe_code)]

use nvml_wrapper::Device;
use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper_sys::bindings::*;
use whetstone_model::facts::{Fabric, FabricHealth, FabricState, FabricSummary, Platform, RemapHistogram};

type Result<T> = std::result::Result<T, NvmlError>;

/// The function pointer, or the error of a library that does not export it.
macro_rules! symbol {
    ($device:expr, $name:ident) => {
        $device.nvml().lib().$name.as_ref().map_err(|_| NvmlError::FunctionNotFound)
    };
}

/// `NVML_STRUCT_VERSION`: size in the low 24 bits, version above.
fn struct_version<T>(version: u32) -> u32 {
    size_of::<T>() as u32 | version << 24
}

/// One field to ask for: id by the current header's numbering, and scope (the link, for fields of links).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldAsk {
    pub id: u32,
    pub scope: u32,
}

/// A field's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FieldValue {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
}

impl FieldValue {
    pub fn as_u64(self) -> Option<u64> {
        match self {
            FieldValue::Unsigned(value) => Some(value),
            FieldValue::Signed(value) => u64::try_from(value).ok(),
            FieldValue::Float(_) => None,
        }
    }

    /// Some drivers give signed thresholds in an unsigned int: those are read as 32-bit two's complement.
    pub fn as_i32(self) -> Option<i32> {
        match self {
            FieldValue::Unsigned(value) => u32::try_from(value).ok().map(|bits| bits as i32),
            FieldValue::Signed(value) => i32::try_from(value).ok(),
            FieldValue::Float(_) => None,
        }
    }
}

/// Values in one call at most; keeps the time of a single call short.
const FIELDS_PER_CALL: usize = 128;

/// The values of `asks`, in their order; `None` where the library has no value for a field.
///
/// The ids are sent as they are: the wrapper renumbers some of them by driver version and reads signed ints as
/// an unknown type, so its own call is not used.
pub fn field_values(device: &Device<'_>, asks: &[FieldAsk]) -> Result<Vec<Option<FieldValue>>> {
    let call = symbol!(device, nvmlDeviceGetFieldValues)?;
    let mut out = Vec::with_capacity(asks.len());
    for chunk in asks.chunks(FIELDS_PER_CALL) {
        let mut values: Vec<nvmlFieldValue_t> = chunk
            .iter()
            .map(|ask| nvmlFieldValue_t {
                fieldId: ask.id,
                scopeId: ask.scope,
                timestamp: 0,
                latencyUsec: 0,
                valueType: 0,
                // A library that leaves an entry untouched must not look as if it had answered zero.
                nvmlReturn: nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED,
                value: nvmlValue_st { ullVal: 0 },
            })
            .collect();
        // SAFETY: `values` holds exactly the count that is passed and lives over the call; the handle is live.
        nvml_try(unsafe { call(device.handle(), values.len() as i32, values.as_mut_ptr()) })?;
        out.extend(values.iter().map(decode));
    }
    Ok(out)
}

fn decode(field: &nvmlFieldValue_t) -> Option<FieldValue> {
    if field.nvmlReturn != nvmlReturn_enum_NVML_SUCCESS {
        return None;
    }
    // SAFETY: every member of the union is a plain number and any bit pattern is valid for each of them; the
    // union was zeroed before the call, so bytes that the library did not write are zero, not uninitialised.
    let value = unsafe {
        match field.valueType {
            0 => FieldValue::Float(field.value.dVal),
            1 => FieldValue::Unsigned(u64::from(field.value.uiVal)),
            2 => FieldValue::Unsigned(field.value.ulVal),
            3 => FieldValue::Unsigned(field.value.ullVal),
            4 => FieldValue::Signed(field.value.sllVal),
            5 => FieldValue::Signed(i64::from(field.value.siVal)),
            6 => FieldValue::Unsigned(u64::from(field.value.usVal)),
            _ => return None,
        }
    };
    Some(value)
}

/// (corrected, uncorrected, pending, failure)
pub fn remapped_rows(device: &Device<'_>) -> Result<(u32, u32, bool, bool)> {
    let call = symbol!(device, nvmlDeviceGetRemappedRows)?;
    let (mut corrected, mut uncorrected, mut pending, mut failure) = (0, 0, 0, 0);
    // SAFETY: four valid pointers to c_uint that outlive the call; the handle is live.
    nvml_try(unsafe { call(device.handle(), &mut corrected, &mut uncorrected, &mut pending, &mut failure) })?;
    Ok((corrected, uncorrected, pending != 0, failure != 0))
}

pub fn remap_histogram(device: &Device<'_>) -> Result<RemapHistogram> {
    let call = symbol!(device, nvmlDeviceGetRowRemapperHistogram)?;
    let mut values = nvmlRowRemapperHistogramValues_t { max: 0, high: 0, partial: 0, low: 0, none: 0 };
    // SAFETY: a valid pointer to a struct of the layout that the library's header gives; the handle is live.
    nvml_try(unsafe { call(device.handle(), &mut values) })?;
    Ok(RemapHistogram {
        max: values.max,
        high: values.high,
        partial: values.partial,
        low: values.low,
        none: values.none,
    })
}

/// Degrees left until the T.Limit.
pub fn margin_c(device: &Device<'_>) -> Result<i32> {
    let call = symbol!(device, nvmlDeviceGetMarginTemperature)?;
    let mut margin = nvmlMarginTemperature_t {
        version: struct_version::<nvmlMarginTemperature_t>(1),
        marginTemperature: 0,
    };
    // SAFETY: a valid pointer to a versioned struct of the size that its version field says.
    nvml_try(unsafe { call(device.handle(), &mut margin) })?;
    Ok(margin.marginTemperature)
}

pub fn event_reasons(device: &Device<'_>) -> Result<u64> {
    let lib = device.nvml().lib();
    // The old name answers the same question on drivers before 535.
    let call =
        match (&lib.nvmlDeviceGetCurrentClocksEventReasons, &lib.nvmlDeviceGetCurrentClocksThrottleReasons) {
            (Ok(call), _) | (_, Ok(call)) => call,
            _ => return Err(NvmlError::FunctionNotFound),
        };
    let mut reasons = 0;
    // SAFETY: both functions take the handle and a pointer to one unsigned long long.
    nvml_try(unsafe { call(device.handle(), &mut reasons) })?;
    Ok(reasons)
}

/// SRAM errors over the GPU's life, by part.
pub struct SramStatus {
    pub threshold_exceeded: bool,
    pub parity: u64,
    pub secded: u64,
    pub by_part: [(&'static str, u64); 5],
}

pub fn sram_status(device: &Device<'_>) -> Result<SramStatus> {
    let call = symbol!(device, nvmlDeviceGetSramEccErrorStatus)?;
    // SAFETY: a struct of plain integers, for which all zeroes is a valid value.
    let mut status: nvmlEccSramErrorStatus_t = unsafe { std::mem::zeroed() };
    status.version = struct_version::<nvmlEccSramErrorStatus_t>(1);
    // SAFETY: a valid pointer to a versioned struct of the size that its version field says.
    nvml_try(unsafe { call(device.handle(), &mut status) })?;
    Ok(SramStatus {
        threshold_exceeded: status.bThresholdExceeded != 0,
        parity: status.aggregateUncParity,
        secded: status.aggregateUncSecDed,
        by_part: [
            ("l2", status.aggregateUncBucketL2),
            ("sm", status.aggregateUncBucketSm),
            ("pcie", status.aggregateUncBucketPcie),
            ("mcu", status.aggregateUncBucketMcu),
            ("other", status.aggregateUncBucketOther),
        ],
    })
}

/// Fabric state, by the newest form that the library serves.
pub fn fabric(device: &Device<'_>) -> Result<Fabric> {
    let Ok(call) = symbol!(device, nvmlDeviceGetGpuFabricInfoV) else { return fabric_v1(device) };
    // SAFETY: a struct of plain integers, for which all zeroes is a valid value.
    let mut info: nvmlGpuFabricInfo_v3_t = unsafe { std::mem::zeroed() };
    info.version = struct_version::<nvmlGpuFabricInfo_v3_t>(3);
    // SAFETY: a valid pointer to a versioned struct of the size that its version field says.
    let mut code = unsafe { call(device.handle(), &mut info) };
    let mut has_summary = true;
    if code == nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH
        || code == nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT
    {
        has_summary = false;
        info.version = struct_version::<nvmlGpuFabricInfo_v2_t>(2);
        // SAFETY: version 2 is a prefix of version 3, so the library writes less than `info` holds.
        code = unsafe { call(device.handle(), &mut info) };
    }
    nvml_try(code)?;
    let mut fabric = fabric_of(&info.clusterUuid, info.status, info.cliqueId, info.state);
    if fabric.state != FabricState::NotSupported {
        fabric.health_mask = Some(info.healthMask);
        fabric.health = Some(FabricHealth::decode(info.healthMask));
        fabric.summary = has_summary.then_some(info.healthSummary).and_then(|code| {
            Some(match code {
                0 => FabricSummary::NotSupported,
                1 => FabricSummary::Healthy,
                2 => FabricSummary::Unhealthy,
                3 => FabricSummary::LimitedCapacity,
                _ => return None,
            })
        });
    }
    Ok(fabric)
}

fn fabric_v1(device: &Device<'_>) -> Result<Fabric> {
    let call = symbol!(device, nvmlDeviceGetGpuFabricInfo)?;
    // SAFETY: a struct of plain integers, for which all zeroes is a valid value.
    let mut info: nvmlGpuFabricInfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: a valid pointer to a struct of the layout that the library's header gives.
    nvml_try(unsafe { call(device.handle(), &mut info) })?;
    Ok(fabric_of(&info.clusterUuid, info.status, info.cliqueId, info.state))
}

fn fabric_of(uuid: &[u8; 16], status: u32, clique: u32, state: u8) -> Fabric {
    let state = match u32::from(state) {
        NVML_GPU_FABRIC_STATE_NOT_STARTED => FabricState::NotStarted,
        NVML_GPU_FABRIC_STATE_IN_PROGRESS => FabricState::InProgress,
        NVML_GPU_FABRIC_STATE_COMPLETED => FabricState::Completed,
        _ => FabricState::NotSupported,
    };
    let joined = state == FabricState::Completed;
    Fabric {
        state,
        status,
        clique_id: joined.then_some(clique),
        cluster_uuid: (joined && uuid.iter().any(|byte| *byte != 0)).then(|| uuid_text(uuid)),
        ..Fabric::default()
    }
}

/// `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`
fn uuid_text(bytes: &[u8; 16]) -> String {
    let hex = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

pub fn platform(device: &Device<'_>) -> Result<Platform> {
    let call = symbol!(device, nvmlDeviceGetPlatformInfo)?;
    // SAFETY: a struct of plain integers, for which all zeroes is a valid value.
    let mut info: nvmlPlatformInfo_t = unsafe { std::mem::zeroed() };
    info.version = struct_version::<nvmlPlatformInfo_t>(2);
    // SAFETY: a valid pointer to a versioned struct of the size that its version field says.
    nvml_try(unsafe { call(device.handle(), &mut info) })?;
    let serial: String = info
        .chassisSerialNumber
        .iter()
        .take_while(|byte| **byte != 0)
        .filter(|byte| byte.is_ascii_graphic())
        .map(|byte| char::from(*byte))
        .collect();
    Ok(Platform {
        chassis_serial: (!serial.is_empty()).then_some(serial),
        slot: Some(u32::from(info.slotNumber)),
        tray: Some(u32::from(info.trayIndex)),
        host: Some(u32::from(info.hostId)),
        peer_type: Some(u32::from(info.peerType)),
    })
}

pub fn module_id(device: &Device<'_>) -> Result<u32> {
    let call = symbol!(device, nvmlDeviceGetModuleId)?;
    let mut id = 0;
    // SAFETY: a valid pointer to one c_uint; the handle is live.
    nvml_try(unsafe { call(device.handle(), &mut id) })?;
    Ok(id)
}

/// Highest generation that the GPU itself can do, whatever its slot.
pub fn gpu_max_pcie_generation(device: &Device<'_>) -> Result<u32> {
    let call = symbol!(device, nvmlDeviceGetGpuMaxPcieLinkGeneration)?;
    let mut generation = 0;
    // SAFETY: a valid pointer to one c_uint; the handle is live.
    nvml_try(unsafe { call(device.handle(), &mut generation) })?;
    Ok(generation)
}

/// (channel repair pending, TPC repair pending)
pub fn repair_pending(device: &Device<'_>) -> Result<(bool, bool)> {
    let call = symbol!(device, nvmlDeviceGetRepairStatus)?;
    let mut status = nvmlRepairStatus_t {
        version: struct_version::<nvmlRepairStatus_t>(1),
        bChannelRepairPending: 0,
        bTpcRepairPending: 0,
    };
    // SAFETY: a valid pointer to a versioned struct of the size that its version field says.
    nvml_try(unsafe { call(device.handle(), &mut status) })?;
    Ok((status.bChannelRepairPending != 0, status.bTpcRepairPending != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(value_type: u32, value: nvmlValue_st) -> nvmlFieldValue_t {
        nvmlFieldValue_t {
            fieldId: 194,
            scopeId: 0,
            timestamp: 0,
            latencyUsec: 0,
            valueType: value_type,
            nvmlReturn: 0,
            value,
        }
    }

    #[test]
    fn all_seven_value_types_are_decoded() {
        assert_eq!(decode(&field(0, nvmlValue_st { dVal: 1.5 })), Some(FieldValue::Float(1.5)));
        assert_eq!(decode(&field(1, nvmlValue_st { uiVal: 7 })), Some(FieldValue::Unsigned(7)));
        assert_eq!(decode(&field(3, nvmlValue_st { ullVal: 1 << 40 })), Some(FieldValue::Unsigned(1 << 40)));
        assert_eq!(decode(&field(5, nvmlValue_st { siVal: -2 })), Some(FieldValue::Signed(-2)));
        assert_eq!(decode(&field(5, nvmlValue_st { siVal: -2 })).and_then(FieldValue::as_i32), Some(-2));
        assert_eq!(decode(&field(6, nvmlValue_st { usVal: 9 })), Some(FieldValue::Unsigned(9)));
        assert_eq!(decode(&field(9, nvmlValue_st { ullVal: 9 })), None);
        let mut failed = field(3, nvmlValue_st { ullVal: 9 });
        failed.nvmlReturn = nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;
        assert_eq!(decode(&failed), None);
    }

    #[test]
    fn versions_of_structs_are_as_the_header_computes_them() {
        // sizeof in nvml.h: 8, 32 + 4 (padded), 104 bytes.
        assert_eq!(struct_version::<nvmlMarginTemperature_t>(1), 0x0100_0008);
        assert_eq!(struct_version::<nvmlGpuFabricInfo_v3_t>(3), 0x0300_0028);
        assert_eq!(struct_version::<nvmlEccSramErrorStatus_t>(1), 0x0100_0068);
    }

    #[test]
    fn a_cluster_uuid_is_named_only_when_the_gpu_has_joined() {
        let uuid = [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 1, 2, 3, 4, 5, 6, 7, 8];
        let joined = fabric_of(&uuid, 0, 7, 3);
        assert_eq!(joined.cluster_uuid.as_deref(), Some("12345678-9abc-def0-0102-030405060708"));
        assert_eq!(joined.clique_id, Some(7));
        assert_eq!(fabric_of(&uuid, 0, 7, 2).clique_id, None);
        assert_eq!(fabric_of(&[0; 16], 0, 0, 3).cluster_uuid, None);
    }
}
