//! `whet probe`: what this blade is and how it feels now.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use whetstone_agent::probe::{Probe, ProbeOptions, check_root, probe};
use whetstone_model::action::Severity;
use whetstone_model::evidence::Finding;
use whetstone_model::facts::{Facts, GpuFacts, SourceState};
use whetstone_model::health;

#[derive(clap::Args)]
pub struct Args {
    /// One JSON document: {"facts":…,"findings":[…]}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    places: Places,
}

/// Where facts are read from: of every verb that looks at the blade.
#[derive(clap::Args)]
pub struct Places {
    /// NVML library to load; without it the loader's usual search, and a machine without one has no GPUs
    #[arg(long, value_name = "PATH", env = "WHETSTONE_NVML_LIB")]
    nvml_lib: Option<PathBuf>,
    /// What stands for / when sysfs and procfs are read
    #[arg(long, value_name = "DIR", env = "WHETSTONE_ROOT", default_value = "/")]
    root: PathBuf,
    /// Seconds that a source has to answer (NVML: to open, and again to read)
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    timeout: f64,
}

impl Places {
    /// Checked: a root that can be read, a time limit that makes sense.
    pub fn options(self) -> anyhow::Result<ProbeOptions> {
        if !(0.1..=600.0).contains(&self.timeout) {
            return Err(crate::input_error(format!("--timeout {}: 0.1 to 600 seconds", self.timeout)));
        }
        check_root(&self.root).map_err(crate::input_error)?;
        let nvml_lib = self.nvml_lib.filter(|path| !path.as_os_str().is_empty());
        Ok(ProbeOptions { nvml_lib, root: self.root, timeout: Duration::from_secs_f64(self.timeout) })
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let probe = probe(&args.places.options()?);
    let text = if args.json { serde_json::to_string(&probe)? } else { table(&probe) };
    let mut out = std::io::stdout();
    writeln!(out, "{}", text.trim_end())?;
    out.flush()?;
    // Not by returning: a library that hangs would hold its thread, and the answer is out.
    std::process::exit(i32::from(exit_code(&probe.findings)))
}

fn exit_code(findings: &[Finding]) -> u8 {
    if findings.iter().any(|finding| finding.severity == Severity::Fault) {
        10
    } else if findings.iter().any(health::is_gap) {
        20
    } else {
        0
    }
}

/// For people: the machine, its GPUs, ports and drives, and what is wrong.
fn table(probe: &Probe) -> String {
    let facts = &probe.facts;
    let mut text = machine(facts);
    for part in [gpus(facts), ports(facts), drives(facts), silent(facts), findings(probe)] {
        if !part.is_empty() {
            text += "\n";
            text += &part;
        }
    }
    text
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}

fn machine(facts: &Facts) -> String {
    let mut lines = Vec::new();
    let host = &facts.host;
    let words = |parts: &[Option<&str>]| {
        let known: Vec<&str> = parts.iter().flatten().copied().collect();
        known.join(" ")
    };
    let name = host.hostname.as_deref().unwrap_or("this machine");
    let serial = host.serial.as_ref().map(|serial| format!("serial {serial}"));
    lines.push(words(&[Some(name), host.vendor.as_deref(), host.product.as_deref(), serial.as_deref()]));
    let sockets = facts.cpu.sockets.map(|sockets| format!("{sockets} ×"));
    let cores = facts.cpu.cores.map(|cores| format!("({cores} cores)"));
    let memory = facts.memory.total_mib.map(|mib| format!("{:.0} GiB memory", mib as f64 / 1024.0));
    let cpu = words(&[sockets.as_deref(), facts.cpu.model.as_deref(), cores.as_deref(), memory.as_deref()]);
    let kernel = facts.kernel.release.as_ref().map(|release| format!("kernel {release}"));
    lines.push(words(&[Some(cpu.as_str()), kernel.as_deref()]));
    if let Some(driver) = &facts.gpu_driver {
        let version = driver.version.as_deref().unwrap_or("?");
        let cuda =
            driver.cuda_version.as_ref().map(|version| format!(", CUDA {version}")).unwrap_or_default();
        lines.push(format!("NVIDIA driver {version}{cuda}"));
    }
    if facts.simulated() {
        lines.push("SIMULATED GPUs: nothing here is a hardware result".to_owned());
    }
    lines.join("\n") + "\n"
}

fn gpus(facts: &Facts) -> String {
    if facts.gpus.is_empty() && facts.gpu_gaps.is_empty() {
        return String::new();
    }
    let mut rows = vec![
        ["GPU", "NAME", "UUID", "PCI", "TEMP", "MARGIN", "POWER", "MEMORY", "ECC", "LINK", "NVLINKS"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(facts.gpus.iter().map(gpu_row));
    for gap in &facts.gpu_gaps {
        let mut row = vec![format!("gpu{}", gap.index), gap.detail.clone(), or_dash(gap.uuid.as_ref())];
        row.push(or_dash(gap.pci.as_ref()));
        row.resize(11, "–".to_owned());
        rows.push(row);
    }
    columns(&rows)
}

fn gpu_row(gpu: &GpuFacts) -> Vec<String> {
    let degrees = |value: Option<i32>| or_dash(value.map(|degrees| format!("{degrees} C")));
    let limit = gpu.power.enforced_limit_w.map(|watts| format!("/{watts:.0}")).unwrap_or_default();
    let up = gpu.nvlinks.iter().filter(|link| link.up == Some(true)).count();
    vec![
        gpu.label(),
        or_dash(gpu.name.as_ref()),
        gpu.uuid.to_string(),
        or_dash(gpu.identity.pci.as_ref()),
        degrees(gpu.thermal.gpu_c),
        degrees(gpu.thermal.margin_c),
        or_dash(gpu.power.draw_w.map(|watts| format!("{watts:.0}{limit} W"))),
        or_dash(gpu.memory.total_mib.map(|mib| format!("{mib} MiB"))),
        or_dash(gpu.ecc.enabled.map(|on| if on { "on" } else { "off" })),
        or_dash(
            gpu.pcie
                .generation
                .zip(gpu.pcie.width)
                .map(|(generation, width)| format!("Gen{generation} x{width}")),
        ),
        if gpu.nvlinks.is_empty() { "–".to_owned() } else { format!("{up}/{}", gpu.nvlinks.len()) },
    ]
}

fn ports(facts: &Facts) -> String {
    if facts.ib_ports.is_empty() {
        return String::new();
    }
    let mut rows = vec![["PORT", "LAYER", "STATE", "RATE", "FIRMWARE", "PCI"].map(str::to_owned).to_vec()];
    rows.extend(facts.ib_ports.iter().map(|port| {
        vec![
            port.id(),
            or_dash(port.link_layer.as_ref()),
            or_dash(port.state.as_ref()),
            or_dash(port.rate_text.as_ref()),
            or_dash(port.firmware.as_ref()),
            or_dash(port.pci.as_ref()),
        ]
    }));
    columns(&rows)
}

fn drives(facts: &Facts) -> String {
    if facts.nvme.is_empty() {
        return String::new();
    }
    let mut rows = vec![["DRIVE", "MODEL", "SERIAL", "SIZE", "STATE", "USED"].map(str::to_owned).to_vec()];
    rows.extend(facts.nvme.iter().map(|drive| {
        vec![
            drive.name.clone(),
            or_dash(drive.model.as_ref()),
            or_dash(drive.serial.as_ref()),
            or_dash(drive.size_bytes.map(|bytes| format!("{:.2} TB", bytes as f64 / 1e12))),
            or_dash(drive.state.as_ref()),
            or_dash(
                drive.smart.as_ref().and_then(|smart| smart.percentage_used).map(|used| format!("{used} %")),
            ),
        ]
    }));
    columns(&rows)
}

/// Sources that gave nothing, and why: an absent one is normal, but it is said.
fn silent(facts: &Facts) -> String {
    let line = |state: SourceState| {
        let names: Vec<String> = facts
            .sources
            .iter()
            .filter(|source| source.state == state)
            .map(|source| format!("{} ({})", source.name, source.detail))
            .collect();
        let word = match state {
            SourceState::Ok => return None,
            SourceState::Absent => "not here",
            SourceState::Timeout => "no answer",
            SourceState::Error => "error",
        };
        (!names.is_empty()).then(|| format!("{word}: {}\n", names.join(", ")))
    };
    [SourceState::Absent, SourceState::Timeout, SourceState::Error].into_iter().filter_map(line).collect()
}

fn findings(probe: &Probe) -> String {
    if probe.findings.is_empty() {
        return "no findings\n".to_owned();
    }
    let mut rows = vec![["SEVERITY", "CODE", "DEVICE", "WHY", "NEXT"].map(str::to_owned).to_vec()];
    rows.extend(probe.findings.iter().map(|finding| {
        let gpu = probe.facts.gpus.iter().find(|gpu| Some(&gpu.uuid) == finding.device.as_ref());
        vec![
            finding.severity.as_str().to_owned(),
            finding.code.clone(),
            gpu.map_or_else(|| or_dash(finding.device.as_ref()), GpuFacts::label),
            cut(&finding.detail),
            finding.action.next_step().to_owned(),
        ]
    }));
    columns(&rows)
}

/// Longest sentence in the table, characters; JSON has it whole.
const MAX_WHY: usize = 120;

fn cut(detail: &str) -> String {
    if detail.chars().count() <= MAX_WHY {
        return detail.to_owned();
    }
    detail.chars().take(MAX_WHY - 1).chain(['…']).collect()
}

/// Columns as wide as their widest cell, the last one as it is.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width.saturating_sub(cell.chars().count()))))
            .collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use whetstone_model::action::Action;

    fn finding(code: &str, severity: Severity) -> Finding {
        Finding {
            code: code.into(),
            device: None,
            severity,
            action: Action::None,
            detail: String::new(),
            reading: None,
        }
    }

    #[test]
    fn a_fault_beats_a_gap_and_a_gap_beats_a_warning() {
        assert_eq!(exit_code(&[]), 0);
        assert_eq!(exit_code(&[finding("persistence-off", Severity::Warning)]), 0);
        assert_eq!(exit_code(&[finding("source-timeout", Severity::Warning)]), 20);
        let both = [finding("source-timeout", Severity::Warning), finding("gpu-lost", Severity::Fault)];
        assert_eq!(exit_code(&both), 10);
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["A".to_owned(), "B".to_owned()], vec!["long".to_owned(), "x".to_owned()]];
        assert_eq!(columns(&rows), "A     B\nlong  x\n");
    }
}
