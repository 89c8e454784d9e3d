//! Board, kernel, CPUs, memory.

use super::Tree;
use crate::blade::BladeScenario;
use crate::fault::Fault;
use crate::seed::Seed;
use crate::{DIMMS, MEMORY_CONTROLLERS};

/// Cores per socket, one thread each. Few: every core is some files, and nothing reads more than their number.
const CORES: u32 = 8;
const SOCKETS: u32 = 2;
const DIMM_MIB: u64 = 64 * 1024;

pub fn write(tree: &Tree, blade: &BladeScenario) -> std::io::Result<()> {
    kernel(tree, blade)?;
    board(tree, blade)?;
    cpus(tree, blade)?;
    memory(tree, blade)
}

fn arm(blade: &BladeScenario) -> bool {
    // Grace.
    blade.sku.rack_scale
}

fn kernel(tree: &Tree, blade: &BladeScenario) -> std::io::Result<()> {
    let machine = if arm(blade) { "aarch64" } else { "x86_64" };
    let release = "6.8.0-90-sim";
    tree.value(
        "proc/version",
        format!("Linux version {release} ({machine}) (simulated) #1 SMP PREEMPT_DYNAMIC"),
    )?;
    tree.value("proc/sys/kernel/osrelease", release)?;
    tree.value("proc/sys/kernel/version", "#1 SMP PREEMPT_DYNAMIC (simulated)")?;
    tree.value("proc/sys/kernel/ostype", "Linux")?;
    tree.value("proc/sys/kernel/hostname", &blade.name)?;
    tree.value("proc/sys/kernel/tainted", 0)?;
    let mut draw = Seed::of(blade.seed, &format!("boot {}", blade.name));
    let (a, b) = (draw.word(), draw.word());
    tree.value(
        "proc/sys/kernel/random/boot_id",
        format!(
            "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
            a >> 32,
            a >> 16 & 0xffff,
            a & 0xfff,
            b >> 48 & 0xfff,
            b & 0xffff_ffff_ffff
        ),
    )?;
    tree.value("etc/machine-id", format!("{:016x}{:016x}", draw.word(), draw.word()))?;
    tree.value("etc/hostname", &blade.name)?;
    tree.value("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/nvme0n1p2 ro quiet iommu=pt pci=realloc=off")?;
    tree.value("proc/uptime", "86400.00 9400000.00")?;
    let user = 1000;
    let total: String =
        (0..SOCKETS * CORES).map(|c| format!("cpu{c} {user} 0 500 8000000 10 0 5 0 0 0\n")).collect();
    tree.text(
        "proc/stat",
        &format!(
            "cpu  112000 0 56000 896000000 1120 0 560 0 0 0\n{total}btime 1760000000\nprocesses 90000\n"
        ),
    )?;
    tree.value("proc/loadavg", "0.10 0.08 0.05 1/1400 90000")?;
    tree.value("proc/self/cgroup", "0::/system.slice/whetstone.service")?;
    tree.value("sys/fs/cgroup/system.slice/whetstone.service/cpu.max", "max 100000")?;
    tree.value("sys/fs/cgroup/system.slice/whetstone.service/memory.max", "max")?;
    tree.value(
        "sys/fs/cgroup/system.slice/whetstone.service/cpuset.cpus.effective",
        format!("0-{}", SOCKETS * CORES - 1),
    )?;
    tree.value("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory hugetlb pids rdma misc")?;
    let clock = if arm(blade) { "arch_sys_counter" } else { "tsc" };
    tree.value("sys/devices/system/clocksource/clocksource0/current_clocksource", clock)?;
    tree.value("sys/devices/system/clocksource/clocksource0/available_clocksource", clock)
}

fn board(tree: &Tree, blade: &BladeScenario) -> std::io::Result<()> {
    let product = format!("{} blade (sim)", blade.sku.id.to_uppercase());
    let chassis = blade.fabric.as_ref().map_or(blade.serial.as_str(), |f| f.chassis_serial.as_str());
    for (name, value) in [
        ("sys_vendor", "Whetstone simulator"),
        ("product_name", product.as_str()),
        ("product_serial", blade.serial.as_str()),
        ("board_vendor", "Whetstone simulator"),
        ("board_name", product.as_str()),
        ("board_serial", blade.serial.as_str()),
        ("chassis_serial", chassis),
        ("bios_vendor", "Whetstone simulator"),
        ("bios_version", "1.0.0-sim"),
        ("bios_date", "01/15/2026"),
    ] {
        tree.value(&format!("sys/class/dmi/id/{name}"), value)?;
    }
    Ok(())
}

fn cpus(tree: &Tree, blade: &BladeScenario) -> std::io::Result<()> {
    let mut cpuinfo = String::new();
    for cpu in 0..SOCKETS * CORES {
        let socket = cpu / CORES;
        let core = cpu % CORES;
        if arm(blade) {
            cpuinfo += &format!(
                "processor\t: {cpu}\nBogoMIPS\t: 2000.00\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp sve sve2\n\
                 CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd4f\nCPU revision\t: 0\n\n"
            );
        } else {
            cpuinfo += &format!(
                "processor\t: {cpu}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Simulated Xeon Platinum 8480C (sim)\n\
                 stepping\t: 8\nmicrocode\t: 0x2b000643\ncpu MHz\t\t: 2000.000\ncache size\t: 107520 KB\nphysical id\t: {socket}\nsiblings\t: {CORES}\n\
                 core id\t\t: {core}\ncpu cores\t: {CORES}\napicid\t\t: {cpu}\nflags\t\t: fpu sse sse2 avx avx2 avx512f aes\n\n"
            );
        }
        let base = format!("sys/devices/system/cpu/cpu{cpu}");
        tree.value(&format!("{base}/topology/physical_package_id"), socket)?;
        tree.value(&format!("{base}/topology/core_id"), core)?;
        tree.value(&format!("{base}/topology/thread_siblings_list"), cpu)?;
        if !arm(blade) {
            tree.value(&format!("{base}/microcode/version"), "0x2b000643")?;
            tree.value(&format!("{base}/thermal_throttle/core_throttle_count"), 0)?;
            tree.value(&format!("{base}/thermal_throttle/package_throttle_count"), 0)?;
        }
    }
    tree.text("proc/cpuinfo", &cpuinfo)?;
    let all = format!("0-{}", SOCKETS * CORES - 1);
    for name in ["online", "present", "possible"] {
        tree.value(&format!("sys/devices/system/cpu/{name}"), &all)?;
    }
    tree.value("sys/devices/system/cpu/offline", "")
}

fn memory(tree: &Tree, blade: &BladeScenario) -> std::io::Result<()> {
    let total_kib = u64::from(DIMMS) * DIMM_MIB * 1024 / 100 * 98;
    let free_kib = total_kib / 10 * 9;
    tree.text(
        "proc/meminfo",
        &format!(
            "MemTotal:       {total_kib} kB\nMemFree:        {free_kib} kB\nMemAvailable:   {free_kib} kB\nBuffers:         100000 kB\nCached:         2000000 kB\n\
             SwapTotal:             0 kB\nSwapFree:              0 kB\nHardwareCorrupted:     0 kB\nHugePages_Total:       0\nHugePages_Free:        0\nHugepagesize:       2048 kB\n"
        ),
    )?;
    tree.value("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", 0)?;
    tree.value("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", 0)?;
    tree.value("sys/devices/system/node/online", "0-1")?;
    for node in 0..2 {
        let base = format!("sys/devices/system/node/node{node}");
        tree.value(&format!("{base}/cpulist"), format!("{}-{}", node * CORES, (node + 1) * CORES - 1))?;
        tree.value(&format!("{base}/distance"), if node == 0 { "10 21" } else { "21 10" })?;
        tree.text(
            &format!("{base}/meminfo"),
            &format!(
                "Node {node} MemTotal:       {} kB\nNode {node} MemFree:        {} kB\n",
                total_kib / 2,
                free_kib / 2
            ),
        )?;
    }
    for controller in 0..MEMORY_CONTROLLERS {
        let base = format!("sys/devices/system/edac/mc/mc{controller}");
        let mut sums = (0, 0);
        for place in 0..DIMMS / MEMORY_CONTROLLERS {
            let dimm = controller * (DIMMS / MEMORY_CONTROLLERS) + place;
            let (mut ce, mut ue) = (0, 0);
            for fault in &blade.faults {
                if let Fault::DimmErrors { dimm: which, correctable, uncorrectable } = fault
                    && *which == dimm
                {
                    (ce, ue) = (ce + correctable, ue + uncorrectable);
                }
            }
            sums = (sums.0 + ce, sums.1 + ue);
            let base = format!("{base}/dimm{place}");
            tree.value(&format!("{base}/dimm_label"), format!("CPU_SrcID#{controller}_Chan#{place}_DIMM#0"))?;
            tree.value(&format!("{base}/dimm_location"), format!("channel {place} slot 0"))?;
            tree.value(&format!("{base}/size"), DIMM_MIB)?;
            tree.value(&format!("{base}/dimm_mem_type"), "Registered-DDR5")?;
            tree.value(&format!("{base}/dimm_ce_count"), ce)?;
            tree.value(&format!("{base}/dimm_ue_count"), ue)?;
        }
        tree.value(&format!("{base}/mc_name"), format!("sim_edac MC#{controller}"))?;
        tree.value(&format!("{base}/ce_count"), sums.0)?;
        tree.value(&format!("{base}/ue_count"), sums.1)?;
        tree.value(&format!("{base}/ce_noinfo_count"), 0)?;
        tree.value(&format!("{base}/ue_noinfo_count"), 0)?;
    }
    Ok(())
}
