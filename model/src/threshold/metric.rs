//! Every metric that Whetstone knows: name, unit, direction, meaning. `docs/metrics.md` lists the same.

use crate::unit::Unit;

use super::Better;

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    /// The unit that readings and thresholds use; another one of the same dimension converts.
    pub unit: Unit,
    /// `None`: good is what is near the others (the fleet judge decides), or it depends.
    pub better: Option<Better>,
    pub meaning: &'static str,
}

macro_rules! metrics {
    ($(#[$doc:meta])* $list:ident; $($name:literal $unit:ident $better:ident $meaning:literal;)*) => {
        $(#[$doc])*
        pub const $list: &[Metric] = &[$(Metric {
            name: $name,
            unit: Unit::$unit,
            better: metrics!(@ $better),
            meaning: $meaning,
        },)*];
    };
    (@ higher) => { Some(Better::Higher) };
    (@ lower) => { Some(Better::Lower) };
    (@ neither) => { None };
}

metrics! {
    /// What thresholds speak of, by part: each has a limit or is `unknown` on an HGX blade.
    METRICS;
    "gemm.fp64.throughput" Tflops higher "exact GEMM in fp64 on the tensor cores";
    "gemm.fp32.throughput" Tflops higher "exact GEMM in fp32 on the CUDA cores";
    "gemm.tf32.throughput" Tflops higher "exact GEMM in tf32 on the tensor cores";
    "gemm.fp16.throughput" Tflops higher "exact GEMM in fp16 on the tensor cores";
    "gemm.bf16.throughput" Tflops higher "exact GEMM in bf16 on the tensor cores";
    "gemm.fp8_e4m3.throughput" Tflops higher "exact GEMM in fp8 (e4m3) on the tensor cores";
    "gemm.fp8_e5m2.throughput" Tflops higher "exact GEMM in fp8 (e5m2) on the tensor cores";
    "gemm.int8.throughput" Tops higher "exact GEMM in int8 on the tensor cores";
    "hbm.bandwidth" GBps higher "GPU memory, bytes read plus bytes written";
    "pcie.h2d.bandwidth" GBps higher "host to GPU, pinned memory, one GPU";
    "pcie.d2h.bandwidth" GBps higher "GPU to host, pinned memory, one GPU";
    "pcie.bidir.bandwidth" GBps higher "both directions at once, sum";
    "p2p.bandwidth" GBps higher "GPU to GPU, one direction, one pair";
    "p2p.bidir.bandwidth" GBps higher "GPU to GPU, both directions at once, sum, one pair";
    "p2p.latency" Microsecond lower "GPU to GPU, smallest copy";
    "nccl.all_reduce.busbw" GBps higher "bus bandwidth as nccl-tests defines it";
    "nccl.all_gather.busbw" GBps higher "bus bandwidth as nccl-tests defines it";
    "nccl.reduce_scatter.busbw" GBps higher "bus bandwidth as nccl-tests defines it";
    "nccl.all_to_all.busbw" GBps higher "bus bandwidth as nccl-tests defines it";
    "nccl.send_recv_ring.busbw" GBps higher "each GPU sends to the next and receives from the one before";
    "power.mean" Watt higher "mean draw of a GPU while it is to hold its limit";
    "power.limit" Watt higher "enforced power limit of a GPU";
    "temperature.gpu" Celsius lower "hottest GPU temperature under load";
    "temperature.memory" Celsius lower "hottest memory temperature under load";
    "temperature.margin" CelsiusMargin higher "least T.Limit margin under load; 0 = the highest operating temperature";
    "clock.sm" MegaHertz higher "mean SM clock under load";
    "ecc.correctable.rate" PerHour lower "corrected GPU memory errors per hour under load";
    "ecc.correctable.count" Count lower "corrected GPU memory errors since the driver was loaded";
    "ecc.uncorrectable.count" Count lower "uncorrectable GPU memory errors since the driver was loaded";
    "ecc.sram.threshold_exceeded" Count lower "1 if the GPU says that its SRAM errors are over NVIDIA's limit";
    "row_remap.pending" Count lower "1 if a row remap waits for a reset";
    "row_remap.failure" Count lower "1 if a row could not be remapped";
    "row_remap.uncorrectable.count" Count lower "rows remapped after an uncorrectable error, life-time";
    "retired_pages.count" Count lower "retired pages (before Ampere)";
    "nvlink.error.rate" PerHour lower "NVLink errors (replay, recovery, CRC) of a GPU per hour under load";
    "nvlink.inactive" Count lower "NVLinks of a GPU that are down";
    "pcie.replay.rate" PerHour lower "PCIe replays of a GPU per hour under load";
    "pcie.aer.correctable.rate" PerHour lower "corrected PCIe errors (AER) of a device per hour under load";
    "pcie.aer.uncorrectable.count" Count lower "uncorrected PCIe errors (AER) of a device since boot";
    "throttle.hw.rate" PerHour lower "hardware slowdowns of a GPU per hour under load";
    "ib.port.rate" Gbps higher "negotiated rate of an InfiniBand or RoCE port";
    "ib.write.bandwidth" Gbps higher "RDMA write through one port";
    "ib.symbol_error.rate" PerHour lower "symbol errors of a port per hour";
    "ib.link_downed.count" Count lower "times that a port went down since the counters were cleared";
    "ib.link_recovery.rate" PerHour lower "link error recoveries of a port per hour";
    "cpu.gemm.throughput" Gflops higher "exact GEMM on all cores, verified results per second";
    "dram.bandwidth" GBps higher "main memory, pattern pass, bytes read plus bytes written";
    "edac.correctable.rate" PerHour lower "corrected memory errors of a DIMM per hour";
    "edac.uncorrectable.count" Count lower "uncorrected memory errors of a DIMM since boot";
    "disk.read.bandwidth" MBps higher "reading the test's own file past the page cache";
    "disk.write.bandwidth" MBps higher "writing the test's own file to the medium";
    "nvme.wear" Percent lower "NVMe percentage used";
    "nvme.spare" Percent higher "NVMe available spare";
    "nvme.media_errors.count" Count lower "NVMe media and data integrity errors, life-time";
    "nvme.critical_warning" Count lower "NVMe critical warning bits, as a number";
    "nvme.temperature" Celsius lower "NVMe composite temperature";
    "net.loopback.bandwidth" GBps higher "TCP through the loopback interface, content verified";
    "net.nic.bandwidth" GBps higher "TCP through a NIC port, content verified";
    "clock.drift" Ppm lower "clock of the CPU against the system's clock, absolute";
    "clock.offset" Millisecond lower "system clock against its time source, absolute";
}

metrics! {
    /// What is recorded beside them: evidence, or the reading of a finding. No built-in threshold speaks of it.
    /// A `*` stands for one word.
    RECORDED;
    "gemm.fp64_cuda.throughput" Tflops higher "exact GEMM in fp64 on the CUDA cores";
    "gemm.fp16_cuda.throughput" Tflops higher "exact GEMM in fp16 on the CUDA cores";
    "gemm.bf16_cuda.throughput" Tflops higher "exact GEMM in bf16 on the CUDA cores";
    "gemm.int8_cuda.throughput" Tops higher "exact GEMM in int8 on the CUDA cores";
    "gemm.*.sm_throughput" Tflops higher "exact GEMM in this format, one value per SM (TOP/s for int8)";
    "gemm.*.sm_shortfall" Percent lower "how far an SM is below the median of its GPU's SMs";
    "gemm.*.accumulator_bits" Count neither "width of the accumulator in this format, measured on the chip";
    "gemm.*.verified_tiles" Count neither "tiles whose every element was compared";
    "gemm.*.wrong_tiles" Count lower "tiles with a wrong element";
    "gemm.*.wrong_bits" Count lower "wrong bits of all wrong elements";
    "hbm.covered" Percent higher "part of a GPU's memory that the patterns covered";
    "nccl.wrong_elements" Count lower "elements of a collective's result that were wrong";
    "power.draw" Watt neither "draw of a GPU at one moment";
    "power.duty" Percent higher "part of the power test that the load was on";
    "power.launch_rate" PerSecond neither "launches of the power test's kernel";
    "clock.memory" MegaHertz neither "memory clock at one moment";
    "clock.step" Millisecond lower "largest jump of the system clock during the test";
    "cpu.*.*.throughput" Gflops higher "one family and unit of the CPU test, all cores (GB/s for hash, crypto, compression)";
    "cpu.gemm.core_throughput" Gflops higher "exact GEMM in the widest unit, one value per core";
    "cpu.core_to_core.latency" Nanosecond lower "a cache line passed between two cores; a matrix";
    "dram.copy.bandwidth" GBps higher "plain copy in main memory, bytes read plus bytes written";
    "disk.random_read.p50" Microsecond lower "median of random reads of the test's own file";
    "disk.random_read.p99" Microsecond lower "99th percentile of the same";
    "net.nic.speed" Gbps higher "negotiated speed of an Ethernet port";
    "net.nic.*" Count lower "growth of an error counter of a port during the test, by the counter's name";
}

/// The metric of this name, of either list.
pub fn find(name: &str) -> Option<&'static Metric> {
    METRICS.iter().chain(RECORDED).find(|m| matches(m.name, name))
}

/// True if `name` is the pattern, where a `*` of the pattern stands for one word.
fn matches(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.split('.'), name.split('.'));
    loop {
        match (pattern.next(), name.next()) {
            (None, None) => return true,
            (Some(p), Some(n)) if p == "*" || p == n => {}
            _ => return false,
        }
    }
}

/// Dotted words of lower-case letters, digits and `_`, at most 80 bytes.
pub fn is_well_formed(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    !name.is_empty() && name.len() <= 80 && name.split('.').all(|w| !w.is_empty() && w.bytes().all(legal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_one_word_and_names_are_found_once() {
        assert_eq!(find("gemm.bf16.wrong_bits").map(|m| m.name), Some("gemm.*.wrong_bits"));
        assert_eq!(find("gemm.bf16.throughput").map(|m| m.name), Some("gemm.bf16.throughput"));
        assert_eq!(find("cpu.hash.sha256.throughput").map(|m| m.unit), Some(Unit::Gflops));
        assert!(
            find("gemm.wrong_bits").is_none() && find("gemm.a.b.wrong_bits").is_none() && find("").is_none()
        );
        for (i, m) in METRICS.iter().enumerate() {
            assert!(is_well_formed(m.name), "{}", m.name);
            assert!(!METRICS[..i].iter().any(|o| o.name == m.name), "{} twice", m.name);
        }
    }
}
