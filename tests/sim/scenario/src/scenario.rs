//! Scenario files: what a person writes, and how it becomes a [`BladeScenario`].
//!
//! ```toml
//! name = "b-003"
//! sku = "h100"
//! [[fault]]
//! gpu = 5
//! kind = "sm_flip"
//! sm = 41
//! bit = 9
//! format = "bf16"
//! ```
//! Every other key has a default; all of them are in `docs/simulated-silicon.md`. What makes no sense is refused
//! with file and line.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use crate::blade::{BLADE_VERSION, BladeScenario, Fabric, GpuScenario, Variation};
use crate::check;
use crate::fault::{About, Fault};
use crate::seed::Seed;
use crate::sku::SimSku;
use crate::state::MAX_GPUS;

/// What the simulated driver calls itself; the field numbering of NVML depends on the number.
pub const DRIVER: &str = "580.95.05-sim";
/// CUDA 13.0.
const CUDA: i32 = 13_000;
/// Faults of one GPU or of the blade at most: the state keeps a bit for each.
pub const MAX_FAULTS: usize = 60;
/// Spread of healthy parts of one SKU around their mean.
const SIGMA: f64 = 0.005;

/// What is wrong with a scenario file. The line counts from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct ScenarioError {
    pub file: String,
    pub line: usize,
    pub what: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: Spanned<String>,
    sku: Spanned<String>,
    serial: Option<Spanned<String>>,
    #[serde(default = "default_seed")]
    seed: u64,
    driver: Option<Spanned<String>>,
    gpus: Option<Spanned<i64>>,
    sms: Option<Spanned<i64>>,
    hbm_backed_mib: Option<Spanned<i64>>,
    thermal_s: Option<Spanned<f64>>,
    domain: Option<Domain>,
    #[serde(default)]
    fault: Vec<Spanned<BTreeMap<Spanned<String>, Spanned<toml::Value>>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Domain {
    cluster_uuid: Option<Spanned<String>>,
    #[serde(default = "default_clique")]
    clique: u32,
    chassis_serial: Option<String>,
    #[serde(default)]
    slot: u32,
    #[serde(default)]
    tray: u32,
}

fn default_seed() -> u64 {
    1
}

fn default_clique() -> u32 {
    1
}

impl BladeScenario {
    /// Reads a scenario and decides everything that it leaves open. `file` names it in errors.
    pub fn parse(file: &str, text: &str) -> Result<BladeScenario, ScenarioError> {
        let line_at = |offset: usize| {
            1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count()
        };
        let fail = |offset: usize, what: String| ScenarioError {
            file: file.to_owned(),
            line: line_at(offset),
            what,
        };
        let raw: Raw = toml::from_str(text)
            .map_err(|e| fail(e.span().map_or(0, |s| s.start), e.message().trim().replace('\n', ", ")))?;

        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.';
        let printable = |what: &str, value: &Spanned<String>, max: usize| {
            let good = (1..=max).contains(&value.get_ref().len()) && value.get_ref().bytes().all(legal);
            let text =
                format!("{what} = {:?}: 1 to {max} letters, digits, '-', '_' and '.'", value.get_ref());
            if good { Ok(()) } else { Err(fail(value.span().start, text)) }
        };
        let range = |what: &str, value: &Spanned<i64>, low: i64, high: i64| {
            let text = format!("{what} = {}: {low} to {high}", value.get_ref());
            if (low..=high).contains(value.get_ref()) { Ok(()) } else { Err(fail(value.span().start, text)) }
        };

        printable("name", &raw.name, 40)?;
        if let Some(serial) = &raw.serial {
            printable("serial", serial, 29)?;
        }
        let mut sku = SimSku::built_in(raw.sku.get_ref()).ok_or_else(|| {
            let what = format!("unknown sku {:?}; known: {}", raw.sku.get_ref(), SimSku::names().join(", "));
            fail(raw.sku.span().start, what)
        })?;
        let slots = match &raw.gpus {
            None => sku.gpus_per_blade,
            Some(gpus) => {
                range("gpus", gpus, 0, sku.pci.len().min(MAX_GPUS) as i64)?;
                *gpus.get_ref() as usize
            }
        };
        if let Some(sms) = &raw.sms {
            range("sms", sms, 1, i64::from(sku.sms))?;
            sku.sms = *sms.get_ref() as u32;
        }
        let hbm_backed_mib = match &raw.hbm_backed_mib {
            None => 64,
            Some(mib) => {
                range("hbm_backed_mib", mib, 1, 4096)?;
                *mib.get_ref() as u64
            }
        };
        let thermal_s = match &raw.thermal_s {
            None => 2.0,
            Some(s) if (0.01..=3600.0).contains(s.get_ref()) => *s.get_ref(),
            Some(s) => {
                return Err(fail(s.span().start, format!("thermal_s = {}: 0.01 to 3600", s.get_ref())));
            }
        };
        let driver = match raw.driver {
            None => DRIVER.to_owned(),
            Some(driver) if driver.get_ref().contains("sim") && driver.get_ref().len() < 80 => {
                driver.into_inner()
            }
            Some(driver) => {
                let what =
                    format!("driver = {:?}: has to say \"sim\", in under 80 characters", driver.get_ref());
                return Err(fail(driver.span().start, what));
            }
        };
        let (name, seed) = (raw.name.into_inner(), raw.seed);
        let fabric = fabric(&sku, seed, &name, raw.domain).map_err(|(at, what)| fail(at, what))?;
        let mut blade = BladeScenario {
            version: BLADE_VERSION,
            serial: raw.serial.map_or_else(|| serial(seed, &name), Spanned::into_inner),
            gpus: (0..slots).map(|slot| gpu(&sku, seed, &name, slot)).collect(),
            name,
            seed,
            sku,
            driver,
            cuda: CUDA,
            hbm_backed_mib,
            thermal_s,
            fabric,
            faults: Vec::new(),
        };

        let mut missing = Vec::new();
        for entry in raw.fault {
            let at = entry.span().start;
            let Planted { slot, fault, keys } =
                planted(entry.into_inner()).map_err(|(key, what)| fail(key.unwrap_or(at), what))?;
            let placed = place(&blade, slot, &fault)
                .and_then(|()| check::fault(&blade.sku, slots, hbm_backed_mib, &fault));
            // Messages about one value begin with its key.
            placed.map_err(|what| {
                fail(what.split(' ').next().and_then(|k| keys.get(k).copied()).unwrap_or(at), what)
            })?;
            let list = match slot.and_then(|s| blade.gpus.get_mut(s)) {
                Some(gpu) => &mut gpu.faults,
                None => &mut blade.faults,
            };
            if list.len() >= MAX_FAULTS {
                return Err(fail(at, format!("more than {MAX_FAULTS} faults in one place")));
            }
            match (&fault, slot) {
                (Fault::GpuMissing, Some(slot)) => missing.push(slot),
                _ => list.push(fault),
            }
        }
        for gpu in &mut blade.gpus {
            if gpu.faults.contains(&Fault::OddVbios) {
                // An older build of the same board.
                gpu.vbios = format!("{}99", &gpu.vbios[..gpu.vbios.len().saturating_sub(2)]);
            }
        }
        blade.gpus.retain(|gpu| !missing.contains(&gpu.slot));
        Ok(blade)
    }
}

/// A fault, the slot it is planted in, and where its keys stand in the file.
struct Planted {
    slot: Option<usize>,
    fault: Fault,
    keys: BTreeMap<String, usize>,
}

/// Reads one `[[fault]]`; the error has the offset of the key that it is about.
fn planted(
    entry: BTreeMap<Spanned<String>, Spanned<toml::Value>>,
) -> Result<Planted, (Option<usize>, String)> {
    let mut table = toml::Table::new();
    let mut keys = BTreeMap::new();
    let mut slot = None;
    for (key, value) in entry {
        keys.insert(key.get_ref().clone(), key.span().start);
        if key.get_ref() == "gpu" {
            let at = value.span().start;
            let number = value.get_ref().as_integer().and_then(|n| usize::try_from(n).ok());
            slot = Some(
                number.ok_or_else(|| (Some(at), format!("gpu = {}: a slot, 0 or more", value.get_ref())))?,
            );
        } else {
            table.insert(key.into_inner(), value.into_inner());
        }
    }
    let fault = table.try_into::<Fault>().map_err(|e| {
        let message = e.message().trim().replace('\n', ", ");
        // Serde names the key or value that it dislikes in back quotes first.
        let named = message.split('`').nth(1).and_then(|word| keys.get(word).or_else(|| keys.get("kind")));
        (named.copied(), message)
    })?;
    Ok(Planted { slot, fault, keys })
}

/// Whether the fault stands where it can: on a GPU that exists, or on the blade.
fn place(blade: &BladeScenario, slot: Option<usize>, fault: &Fault) -> Result<(), String> {
    let kind = fault.kind();
    match (fault.about(), slot) {
        (About::Gpu, None) => {
            Err(format!("{kind} is about one GPU: say gpu = 0 to {}", blade.gpus.len().saturating_sub(1)))
        }
        (About::Blade, Some(_)) => Err(format!("{kind} is about the blade: no gpu here")),
        (_, Some(slot)) if slot >= blade.gpus.len() => {
            Err(format!("gpu = {slot}: this blade has {} GPUs, from 0", blade.gpus.len()))
        }
        _ => Ok(()),
    }
}

fn fabric(
    sku: &SimSku,
    seed: u64,
    name: &str,
    domain: Option<Domain>,
) -> Result<Option<Fabric>, (usize, String)> {
    if sku.nvlinks == 0 {
        return Ok(None);
    }
    // Blades of one rack share a domain when the file says so; else each has its own.
    let mut draw = Seed::of(seed, &format!("domain {name}"));
    let drawn = uuid(&mut draw);
    let chassis = format!("18200{:08}", draw.below(100_000_000));
    let Some(domain) = domain else {
        return Ok(Some(Fabric {
            cluster_uuid: drawn,
            clique: 1,
            chassis_serial: chassis,
            slot: 0,
            tray: 0,
        }));
    };
    if let Some(given) = &domain.cluster_uuid
        && (given.get_ref().len() != 36
            || given.get_ref().bytes().filter(u8::is_ascii_hexdigit).count() != 32)
    {
        return Err((
            given.span().start,
            format!("cluster_uuid = {:?}: 8-4-4-4-12 hex digits", given.get_ref()),
        ));
    }
    Ok(Some(Fabric {
        cluster_uuid: domain.cluster_uuid.map_or(drawn, Spanned::into_inner),
        clique: domain.clique,
        chassis_serial: domain.chassis_serial.unwrap_or(chassis),
        slot: domain.slot,
        tray: domain.tray,
    }))
}

fn gpu(sku: &SimSku, seed: u64, blade: &str, slot: usize) -> GpuScenario {
    let mut names = Seed::of(seed, &format!("gpu {blade} {slot}"));
    let mut parts = Seed::of(seed, &format!("variation {blade} {slot}"));
    // Short decimals: they read back from JSON as the same numbers.
    let mut factor = |sigma: f64| ((1.0 + sigma * parts.normal()) * 1e6).round() / 1e6;
    GpuScenario {
        slot,
        uuid: format!("GPU-{}", uuid(&mut names)),
        serial: format!("165{:010}", names.below(10_000_000_000)),
        pci: sku.pci.get(slot).cloned().unwrap_or_default(),
        numa: u32::from(2 * slot >= sku.pci.len()),
        vbios: sku.vbios.clone(),
        variation: Variation {
            compute: factor(SIGMA),
            hbm: factor(SIGMA),
            pcie: factor(SIGMA),
            nvlink: factor(SIGMA),
            power: factor(2.0 * SIGMA),
            celsius: (150.0 * (factor(1.0) - 1.0)).round() / 100.0,
        },
        faults: Vec::new(),
    }
}

fn uuid(draw: &mut Seed) -> String {
    let (a, b) = (draw.word(), draw.word());
    // Version 4, variant 1.
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xfff,
        0x8000 | b >> 48 & 0x3fff,
        b & 0xffff_ffff_ffff
    )
}

fn serial(seed: u64, name: &str) -> String {
    format!("SIM{:09}", Seed::of(seed, &format!("serial {name}")).below(1_000_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"b-003\"\nsku = \"h100\"\n\n[[fault]]\ngpu = 5\nkind = \"sm_flip\"\nsm = 41\nbit = 9\nformat = \"bf16\"\n";

    #[test]
    fn a_short_file_becomes_a_whole_blade_the_same_each_time() {
        let blade = BladeScenario::parse("s.toml", GOOD).unwrap();
        assert_eq!(blade, BladeScenario::parse("s.toml", GOOD).unwrap());
        assert_eq!(blade.gpus.len(), 8);
        assert_eq!(blade.gpus[5].faults[0].kind(), "sm_flip");
        assert!(blade.gpus.iter().all(|g| g.uuid.len() == 40 && (g.variation.compute - 1.0).abs() < 0.031));
        let read: BladeScenario = serde_json::from_str(&serde_json::to_string(&blade).unwrap()).unwrap();
        assert_eq!(read, blade);
        let other = BladeScenario::parse("s.toml", &GOOD.replace("b-003", "b-004")).unwrap();
        assert_ne!(other.gpus[0].uuid, blade.gpus[0].uuid);
    }

    #[test]
    fn a_missing_gpu_leaves_its_slot_empty() {
        let blade =
            BladeScenario::parse("s", "name='b'\nsku='a100'\nfault=[{gpu=2, kind='gpu_missing'}]").unwrap();
        assert_eq!(blade.gpus.iter().map(|g| g.slot).collect::<Vec<_>>(), [0, 1, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        let head = "name = \"b\"\nsku = \"h100\"\n";
        for (text, line, says) in [
            ("name = \"b\"\nsku = \"h101\"\n".to_owned(), 2, "unknown sku \"h101\"; known: a100, h100"),
            (format!("{head}gpus = 9\n"), 3, "gpus = 9: 0 to 8"),
            (format!("{head}colour = 3\n"), 3, "unknown field `colour`"),
            (format!("{head}driver = \"580.95.05\"\n"), 3, "has to say \"sim\""),
            (
                format!("{head}[[fault]]\ngpu = 8\nkind = \"remap_pending\"\n"),
                4,
                "gpu = 8: this blade has 8 GPUs",
            ),
            (format!("{head}[[fault]]\nkind = \"remap_pending\"\n"), 3, "remap_pending is about one GPU"),
            (
                format!("{head}[[fault]]\ngpu = 1\nkind = \"ib_down\"\nport = 1\n"),
                3,
                "ib_down is about the blade",
            ),
            (
                format!("{head}[[fault]]\ngpu = 1\nkind = \"nvlink_down\"\nlink = 40\n"),
                6,
                "link = 40: this SKU has 18",
            ),
            (format!("{head}[[fault]]\ngpu = 1\nkind = \"ecc_storm\"\nper_s = -4.0\n"), 6, "per_s = -4"),
            (format!("{head}[[fault]]\ngpu = 1\nkind = \"ecc_strom\"\n"), 5, "unknown variant `ecc_strom`"),
            (
                format!("{head}[[fault]]\ngpu = 1\nkind = \"slow_gpu\"\npercnt = 3.0\n"),
                6,
                "unknown field `percnt`",
            ),
            (
                format!("{head}[[fault]]\ngpu = \"one\"\nkind = \"remap_pending\"\n"),
                4,
                "gpu = \"one\": a slot",
            ),
        ] {
            let error = BladeScenario::parse("s.toml", &text).expect_err(&text);
            assert!(error.line == line && error.what.contains(says), "{text}: {error}");
        }
    }
}
