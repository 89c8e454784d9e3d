//! Names of the parts of a blade that a finding can be about.

use serde::{Deserialize, Serialize};

/// Longest device id that is kept; real ones (UUIDs, PCI addresses, serials) are under 64 bytes.
pub const MAX_DEVICE_ID: usize = 128;

/// A stable id: GPU UUID, PCI address (`dddd:bb:dd.f`, lower case), serial. Never an index alone.
///
/// Printable ASCII, 1 to [`MAX_DEVICE_ID`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceId(String);

/// A device id that is empty, too long or not printable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device id {0:?} is not 1 to {MAX_DEVICE_ID} printable ASCII characters")]
pub struct BadDeviceId(String);

impl DeviceId {
    pub fn new(id: impl Into<String>) -> Result<Self, BadDeviceId> {
        let id = id.into();
        let fits = (1..=MAX_DEVICE_ID).contains(&id.len()) && id.bytes().all(|b| (0x20..0x7f).contains(&b));
        if fits { Ok(Self(id)) } else { Err(BadDeviceId(id.chars().take(40).collect())) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for DeviceId {
    type Error = BadDeviceId;
    fn try_from(id: String) -> Result<Self, BadDeviceId> {
        Self::new(id)
    }
}

impl From<DeviceId> for String {
    fn from(id: DeviceId) -> String {
        id.0
    }
}

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What sort of part a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    Gpu,
    NvSwitch,
    NicPort,
    Nvme,
    Cpu,
    Dimm,
    Pci,
    Other,
}

/// A device as a report lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    pub id: DeviceId,
    pub kind: DeviceKind,
    /// Short name for people, such as `gpu5`; unique inside one blade's report, not stable over reboots.
    pub label: String,
    /// Product name as the device says it; ends in `(sim)` for a simulated one.
    pub model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci: Option<String>,
}
