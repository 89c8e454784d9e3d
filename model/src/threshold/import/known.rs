//! What the rows of others' tables mean, as read in their sources.

use super::super::Role;

/// What a row limits: our metrics (one row may limit several), for which purpose, and whether the limit is a
/// floor by its own words.
pub struct Meaning {
    pub metrics: &'static [&'static str],
    pub role: Role,
}

const fn floor(metrics: &'static [&'static str]) -> Option<Meaning> {
    Some(Meaning { metrics, role: Role::Fail })
}

/// DCGM `nvvs/diag-skus.yaml.in`: test and parameter. `target_*` of the stress tests are pass marks (three
/// quarters of a measured value by the file's comments), `target_power` is the power that the SKU is to reach.
pub fn dcgm(test: &str, parameter: &str) -> Option<Meaning> {
    match (test, parameter) {
        ("memory_bandwidth", "minimum_bandwidth") => floor(&["hbm.bandwidth"]),
        ("sm_stress", "target_stress") => floor(&["sm_stress.target_stress"]),
        ("targeted_stress", "target_stress") => floor(&["targeted_stress.target_stress"]),
        ("pcie", "target_stress") => floor(&["pcie.target_stress"]),
        (_, "min_pci_generation") => floor(&["pcie.generation"]),
        (_, "min_pci_width") => floor(&["pcie.width"]),
        (_, "min_bandwidth") => floor(&["pcie.h2d.bandwidth"]),
        ("targeted_power", "target_power") => {
            Some(Meaning { metrics: &["power.limit"], role: Role::Typical })
        }
        _ => None,
    }
}

/// azurehpc-health-checks `conf/*.conf`: check and parameter. One DRAM error limit holds for corrected and
/// uncorrected errors alike (`azure_gpu_ecc.nhc`); the SRAM limit is for corrected ones.
pub fn azure(check: &str, parameter: &str) -> Option<Meaning> {
    match (check, parameter) {
        ("check_gpu_bw", "host_device_bandwidth_min") => floor(&["pcie.h2d.bandwidth"]),
        ("check_gpu_bw", "p2p_bandwidth_min") => floor(&["p2p.bandwidth"]),
        ("check_nccl_allreduce" | "check_rccl_allreduce", "busbw_min") => floor(&["nccl.all_reduce.busbw"]),
        ("check_nccl_allreduce_ib_loopback", "busbw_min") => floor(&["nccl.all_reduce.ib_loopback.busbw"]),
        ("check_ib_bw_gdr", "write_bandwidth_min") => floor(&["ib.write.bandwidth"]),
        ("check_ib_bw_non_gdr", "write_bandwidth_min") => floor(&["ib.write.host.bandwidth"]),
        ("check_cpu_stream", "triad_min") => floor(&["dram.triad.bandwidth"]),
        ("check_gpu_ecc", "dram_error_limit") => {
            floor(&["ecc.dram.correctable.count", "ecc.dram.uncorrectable.count"])
        }
        ("check_gpu_ecc", "sram_error_limit") => floor(&["ecc.sram.correctable.count"]),
        ("check_hw_ib", p) if p.starts_with("port_rate") => Some(Meaning {
            metrics: &["ib.write.bandwidth", "ib.write.host.bandwidth"],
            role: Role::HardwareLimit,
        }),
        _ => None,
    }
}

/// The table of expectations in azurehpc-health-checks' README, by check.
pub fn azure_readme(check: &str) -> Option<Meaning> {
    match check {
        "check_gpu_bandwidth" | "check_gpu_bw" => floor(&["pcie.h2d.bandwidth"]),
        "check_gpu_ecc" => azure("check_gpu_ecc", "dram_error_limit"),
        "check_nccl_allreduce" | "check_nccl_allreduce_ib_loopback" => azure(check, "busbw_min"),
        "check_ib_bw_gdr" | "check_ib_bw_non_gdr" => azure(check, "write_bandwidth_min"),
        "check_cpu_stream" => azure(check, "triad_min"),
        _ => None,
    }
}

/// Our name for a metric that others call differently.
pub fn our_name(metric: &str) -> &str {
    match metric {
        "hbm_bandwidth" | "memory_bandwidth" | "minimum_bandwidth" | "gpu_memory_bandwidth" => {
            "hbm.bandwidth"
        }
        "host_device_bandwidth" | "h2d_bandwidth" | "pcie_h2d_bandwidth" => "pcie.h2d.bandwidth",
        "d2h_bandwidth" | "pcie_d2h_bandwidth" => "pcie.d2h.bandwidth",
        "p2p_bandwidth" => "p2p.bandwidth",
        "nccl_all_reduce_busbw" | "nccl_allreduce_busbw" | "all_reduce_busbw" => "nccl.all_reduce.busbw",
        "ib_write_bw" | "ib_write_bandwidth" => "ib.write.bandwidth",
        "symbol_error" | "symbol_errors" | "symbol_error_rate" => "ib.symbol_error.rate",
        other => other,
    }
}

/// What a limit is for, in others' words.
pub fn role(kind: &str) -> Option<Role> {
    match kind.to_ascii_lowercase().as_str() {
        "fail" | "fatal" | "critical" | "floor" | "minimum" | "min" | "maximum" | "max" | "limit"
        | "error" => Some(Role::Fail),
        "warn" | "warning" | "non-fatal" | "nonfatal" | "degraded" => Some(Role::Warn),
        "hardware_limit" | "spec" | "peak" => Some(Role::HardwareLimit),
        "typical" | "measured" | "target" | "expected" => Some(Role::Typical),
        _ => None,
    }
}
