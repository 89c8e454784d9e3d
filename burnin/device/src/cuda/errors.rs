//! What a CUDA error says about the GPU: the one table that decides between "faulty" and "could not test".

use whetstone_burnin::protocol::GpuTarget;
use whetstone_model::action::{Action, Severity};
use whetstone_model::evidence::Finding;

use crate::Done;

/// Why a GPU test could not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    #[error("no CUDA driver: libcuda.so.1 is not on this machine's library path")]
    NoDriver,
    #[error("CUDA sees {seen} GPUs, none of them is {uuid}")]
    NoSuchGpu { uuid: String, seen: i32 },
    #[error("this build carries no GPU kernels; build them with `make kernels`")]
    NoKernels,
    #[error("no GPU kernel of this build runs on {chip} (compute capability {major}.{minor})")]
    NoImage { chip: String, major: u32, minor: u32 },
    #[error("no kernel image has {kernel}")]
    NoKernel { kernel: String },
    #[error("{what}: CUDA error {code} ({name})")]
    Call { what: String, code: u32, name: String },
    /// The same number read back twice, differently.
    #[error("{what} was read back as {first}, then as {second}: copies from this GPU arrive changed")]
    Unreliable { what: &'static str, first: u32, second: u32 },
    #[error("{0}")]
    Other(String),
}

impl CudaError {
    /// The driver's answer to `what`.
    pub fn call(what: impl Into<String>, error: cudarc::driver::DriverError) -> CudaError {
        let code = error.0 as u32;
        // By name from cudarc's own list: asking the driver could panic or hang once it has failed.
        CudaError::Call { what: what.into(), code, name: format!("{:?}", error.0) }
    }

    pub fn code(&self) -> Option<u32> {
        match self {
            CudaError::Call { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// What one CUDA error code means in a burn-in, where the program's own calls are known to be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    pub code: u32,
    /// Code of the finding.
    pub finding: &'static str,
    /// `Fault` only where the driver itself blames the hardware.
    pub severity: Severity,
    pub action: Action,
    pub why: &'static str,
}

const fn meaning(
    code: u32,
    finding: &'static str,
    severity: Severity,
    action: Action,
    why: &'static str,
) -> Meaning {
    Meaning { code, finding, severity, action, why }
}

/// Codes that say something about the GPU or its driver. All others are *inconclusive* without a finding:
/// they speak of the call, not of the hardware.
///
/// Source of the codes: CUDA Driver API, `cudaError_enum`. The judgement is ours.
pub const MEANINGS: &[Meaning] = &[
    meaning(
        214,
        "ecc-uncorrectable",
        Severity::Fault,
        Action::ResetGpu,
        "the driver hit an uncorrectable ECC error in this GPU's memory",
    ),
    meaning(
        220,
        "nvlink-uncorrectable",
        Severity::Fault,
        Action::CheckLink,
        "the driver hit an uncorrectable NVLink error",
    ),
    meaning(
        226,
        "gpu-error-contained",
        Severity::Fault,
        Action::ResetGpu,
        "the driver contained a hardware error of this GPU",
    ),
    meaning(
        714,
        "gpu-exception",
        Severity::Fault,
        Action::Replace,
        "the SM's call stack hardware failed; our kernels do not use a stack that could overflow",
    ),
    // A wrong address or instruction in a kernel that is the same on every GPU speaks for broken hardware, but a
    // kernel that has never run on this chip may be wrong itself: a warning, and the kernel log decides.
    meaning(
        700,
        "gpu-exception",
        Severity::Warning,
        Action::DrainAndTest,
        "illegal address in a kernel that is the same on all GPUs",
    ),
    meaning(
        715,
        "gpu-exception",
        Severity::Warning,
        Action::DrainAndTest,
        "illegal instruction in a kernel that is the same on all GPUs",
    ),
    meaning(
        716,
        "gpu-exception",
        Severity::Warning,
        Action::DrainAndTest,
        "misaligned address in a kernel that is the same on all GPUs",
    ),
    meaning(
        717,
        "gpu-exception",
        Severity::Warning,
        Action::DrainAndTest,
        "invalid address space in a kernel that is the same on all GPUs",
    ),
    meaning(
        718,
        "gpu-exception",
        Severity::Warning,
        Action::DrainAndTest,
        "invalid program counter in a kernel that is the same on all GPUs",
    ),
    meaning(
        719,
        "gpu-exception",
        Severity::Warning,
        Action::DrainAndTest,
        "a kernel that is the same on all GPUs ended with an exception (also when the GPU falls off the bus)",
    ),
    meaning(
        46,
        "gpu-unavailable",
        Severity::Warning,
        Action::Reboot,
        "the GPU is busy, in exclusive use or needs a reset",
    ),
    meaning(
        702,
        "gpu-timeout",
        Severity::Warning,
        Action::ResetGpu,
        "a kernel ran into the driver's time limit",
    ),
    meaning(
        802,
        "fabric-not-ready",
        Severity::Warning,
        Action::Reboot,
        "the system is not ready: on NVSwitch machines the fabric manager does not run",
    ),
    meaning(
        803,
        "driver-mismatch",
        Severity::Warning,
        Action::Reboot,
        "libcuda and the kernel module are of different versions",
    ),
    meaning(
        919,
        "fabric-not-ready",
        Severity::Warning,
        Action::Reboot,
        "the GPU has not joined its NVLink fabric",
    ),
    meaning(
        999,
        "gpu-exception",
        Severity::Warning,
        Action::DrainAndTest,
        "the driver failed for an unknown reason",
    ),
];

/// The row for a code.
pub fn meaning_of(code: u32) -> Option<&'static Meaning> {
    MEANINGS.iter().find(|m| m.code == code)
}

/// How a test ends that met `error` on `gpu`, and the finding that goes with it.
pub fn judge(error: &CudaError, gpu: Option<&GpuTarget>) -> (Option<Finding>, Done) {
    let label = gpu.map_or_else(String::new, |g| format!("{}: ", g.label));
    if let CudaError::Unreliable { .. } = error {
        let finding = Finding {
            code: "copy-corruption".to_owned(),
            device: gpu.map(|g| g.uuid.clone()),
            severity: Severity::Fault,
            action: Action::Replace,
            detail: error.to_string(),
            reading: None,
        };
        return (Some(finding), Done::fail(format!("{label}{error}")));
    }
    let Some(meaning) = error.code().and_then(meaning_of) else {
        return (None, Done::inconclusive(format!("{label}{error}")));
    };
    let finding = Finding {
        code: meaning.finding.to_owned(),
        device: gpu.map(|g| g.uuid.clone()),
        severity: meaning.severity,
        action: meaning.action,
        detail: format!("{error}: {}", meaning.why),
        reading: None,
    };
    let detail = format!("{label}{error}: {}", meaning.why);
    let done =
        if meaning.severity == Severity::Fault { Done::fail(detail) } else { Done::inconclusive(detail) };
    (Some(finding), done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use whetstone_model::report::TestOutcome;

    fn outcome(code: u32) -> (Option<Finding>, Done) {
        judge(&CudaError::Call { what: "x".into(), code, name: "Y".into() }, None)
    }

    #[test]
    fn only_what_the_driver_blames_on_hardware_fails() {
        let (finding, done) = outcome(214);
        assert_eq!((finding.unwrap().code.as_str(), done.outcome), ("ecc-uncorrectable", TestOutcome::Fail));
        let (finding, done) = outcome(719);
        assert_eq!((finding.unwrap().severity, done.outcome), (Severity::Warning, TestOutcome::Inconclusive));
        let (finding, done) = outcome(2);
        assert_eq!((finding, done.outcome), (None, TestOutcome::Inconclusive));
    }

    #[test]
    fn each_code_has_one_row() {
        for (i, row) in MEANINGS.iter().enumerate() {
            assert!(MEANINGS[i + 1..].iter().all(|other| other.code != row.code), "{}", row.code);
        }
    }
}
