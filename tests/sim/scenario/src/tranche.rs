//! A tranche: blades delivered together, some of them with faults planted from a seed.
//!
//! A seed decides how many blades are bad (three eighths to a half), which, and with what. Faults that take a blade with
//! them (a hanging library, a lost GPU) get a blade of their own, half of the bad ones; of the others up to six share a
//! blade, one per GPU, so that each must be found beside the others.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::blade::BladeScenario;
use crate::fault::Fault;
use crate::home;
use crate::scenario::ScenarioError;
use crate::seed::Seed;
use crate::sku::SimSku;

/// Name of the file that says what was planted.
pub const PLANTED_FILE: &str = "planted.json";
/// Blades of one tranche at most.
pub const MAX_BLADES: usize = 512;
/// Ordinary faults that share a blade at most.
const PER_BLADE: usize = 6;

/// What was planted in a tranche.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Planted {
    pub seed: u64,
    pub sku: String,
    /// All blades, in order; a healthy one has no faults.
    pub blades: Vec<PlantedBlade>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlantedBlade {
    pub blade: String,
    pub faults: Vec<PlantedFault>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlantedFault {
    /// For people: `gpu5`, `mlx5_3`, `mc1/dimm2`, `blade`.
    pub device: String,
    /// The GPU's UUID, if it is about a GPU.
    pub uuid: Option<String>,
    pub fault: Fault,
    pub shows: Shows,
}

/// How a burn-in can show a fault at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shows {
    /// The device fails, or the fleet judge names it.
    Accused,
    /// The blade or the device cannot be tested.
    Untestable,
}

/// Parameters of a tranche.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub blades: usize,
    pub sku: String,
    pub hbm_backed_mib: u64,
}

/// A blade of a tranche: its scenario as a person would write it, resolved, and what is planted.
pub struct TrancheBlade {
    pub toml: String,
    pub blade: BladeScenario,
    pub planted: PlantedBlade,
}

/// Keys of one `[[fault]]`, without `gpu`.
type Draw = fn(&mut Seed, &SimSku, u64) -> String;

/// Faults that share a blade with others. The chances (bits, links, rates) are drawn so that a burn-in of seconds can
/// meet them: a flip of one in ten million results would need hours on hardware too.
const SHARED: [(&str, Draw); 24] = [
    ("hbm_flip", |s, _, mib| {
        // Away from both ends: the last twentieth is not covered by a test that takes 95 % of free memory.
        let words = mib << 17;
        let word = words / 16 + s.below(words / 2);
        format!("word = {word}\nbit = {}\nmode = \"sticky\"", s.below(64))
    }),
    ("sm_flip", |s, sku, _| {
        let formats = ["bf16", "fp16", "tf32", "fp8_e4m3", "fp64"];
        let has = |f: &&&str| sku.tflops.iter().any(|(own, _)| own.as_str() == **f);
        let known: Vec<&str> = formats.iter().filter(has).copied().collect();
        let format = s.pick(&known).copied().unwrap_or("bf16");
        format!("sm = {}\nbit = {}\nformat = \"{format}\"\nevery_n = 1", s.below(sku.sms.into()), s.below(32))
    }),
    ("copy_flip", |s, _, _| {
        let direction = s.pick(&["host_to_device", "device_to_host"]).copied().unwrap_or("host_to_device");
        format!("direction = \"{direction}\"\nbit = {}\nevery_n = {}", s.below(8), 3 + s.below(4))
    }),
    ("nccl_flip", |s, _, _| format!("bit = {}\nevery_n = 2", s.below(32))),
    ("slow_gpu", |s, _, _| format!("percent = {}.0", 5 + s.below(4))),
    ("slow_sm", |s, sku, _| format!("sm = {}\npercent = {}.0", s.below(sku.sms.into()), 25 + s.below(20))),
    ("slow_hbm", |s, _, _| format!("percent = {}.0", 6 + s.below(6))),
    ("slow_link", |s, _, _| format!("peer = 7\npercent = {}.0", 20 + s.below(20))),
    ("thermal_throttle", |_, _, _| "after_s = 0.2".into()),
    ("power_cap", |s, sku, _| format!("watts = {}.0", (sku.power_limit_w * (0.6 + 0.1 * s.unit())).round())),
    ("nvlink_down", |s, sku, _| format!("link = {}", s.below(sku.nvlinks.into()))),
    ("nvlink_errors", |s, sku, _| {
        format!("link = {}\nper_s = {}.0", s.below(sku.nvlinks.into()), 20 + s.below(100))
    }),
    ("pcie_width", |s, _, _| format!("now = {}", if s.below(2) == 0 { 8 } else { 4 })),
    ("pcie_gen", |_, _, _| "now = 3".into()),
    ("pcie_replays", |s, _, _| format!("per_s = {}.0", 200 + s.below(400))),
    ("fabric_incomplete", |_, _, _| String::new()),
    ("ecc_storm", |s, _, _| format!("per_s = {}.0", 200 + s.below(5000))),
    ("ecc_uncorrectable", |s, _, _| format!("count = {}\nat_s = {}.0", 1 + s.below(3), s.below(4))),
    ("sram_threshold", |_, _, _| String::new()),
    ("remap_pending", |_, _, _| String::new()),
    ("remap_failed", |_, _, _| String::new()),
    ("xid", |s, _, _| {
        // Under load: what comes before the burn-in is over when it begins.
        let code = *s.pick(&[48, 74, 95, 119]).unwrap_or(&95);
        format!("code = {code}\nat_s = 0.{}\nunder_load = true", 2 + s.below(4))
    }),
    ("ib_down", |s, sku, _| format!("port = {}", s.below(sku.pci.len() as u64))),
    ("dimm_errors", |s, _, _| format!("dimm = {}\nuncorrectable = 1", s.below(crate::DIMMS.into()))),
];

/// Faults that keep the rest of their blade from being tested as usual: first those that leave it untested, then those
/// that show what is wrong.
const ALONE: [&[(&str, Draw)]; 2] = [
    &[
        ("hang", |_, _, _| "call = \"nvml\"".into()),
        ("nvml_version_mismatch", |_, _, _| String::new()),
        ("hang", |_, _, _| "call = \"cuLaunchKernel\"".into()),
        // 719: unspecified launch failure.
        ("launch_error", |s, _, _| format!("code = 719\nnth = {}", 5 + s.below(20))),
    ],
    &[
        ("gpu_lost", |s, _, _| format!("at_s = {}.0", 2 + s.below(4))),
        ("gpu_missing", |_, _, _| String::new()),
    ],
];

/// Decides a tranche. The error is a bug of the tables above or a SKU that is not known.
pub fn plan(plan: &Plan) -> Result<Vec<TrancheBlade>, ScenarioError> {
    let what = |what: String| ScenarioError { file: "tranche".into(), line: 1, what };
    let sku = SimSku::built_in(&plan.sku)
        .ok_or_else(|| what(format!("unknown sku {:?}; known: {}", plan.sku, SimSku::names().join(", "))))?;
    if !(1..=MAX_BLADES).contains(&plan.blades) {
        return Err(what(format!("{} blades: 1 to {MAX_BLADES}", plan.blades)));
    }
    let mut draw = Seed::of(plan.seed, "tranche");
    let least = (3 * plan.blades).div_ceil(8);
    let bad = least + draw.below((plan.blades / 2).saturating_sub(least) as u64 + 1) as usize;
    let mut places: Vec<usize> = (0..plan.blades).collect();
    draw.shuffle(&mut places);
    places.truncate(bad);
    let (alone, shared) = places.split_at(bad.div_ceil(2));
    let fits = |kind: &str| match kind {
        "nvlink_down" | "nvlink_errors" | "slow_link" => sku.nvlinks > 0,
        "fabric_incomplete" => sku.nvlink_version >= 4,
        _ => true,
    };
    let mut kinds_shared: Vec<usize> = (0..SHARED.len()).filter(|k| fits(SHARED[*k].0)).collect();
    draw.shuffle(&mut kinds_shared);

    let mut faults: Vec<Vec<(Option<usize>, String)>> = vec![Vec::new(); plan.blades];
    let mut kinds_alone: Vec<Vec<(&str, Draw)>> = ALONE.iter().map(|kinds| kinds.to_vec()).collect();
    for kinds in &mut kinds_alone {
        draw.shuffle(kinds);
    }
    for (i, blade) in alone.iter().enumerate() {
        // In turn from both lists: a tranche with two such blades has one of each sort.
        let kinds = &kinds_alone[i % ALONE.len()];
        let (name, keys) = kinds[i / ALONE.len() % kinds.len()];
        let keys = keys(&mut draw, &sku, plan.hbm_backed_mib);
        let whole = name == "nvml_version_mismatch" || keys.contains("nvml");
        let slot = (!whole).then(|| draw.below(sku.gpus_per_blade as u64) as usize);
        faults[*blade].push((slot, format!("kind = \"{name}\"\n{keys}")));
    }
    if !shared.is_empty() {
        // Every kind once if there is room, and no bad blade without a fault.
        let room = shared.len() * PER_BLADE.min(sku.gpus_per_blade - 1);
        let many = room.min(kinds_shared.len()).max(shared.len());
        for (i, kind) in kinds_shared.iter().cycle().take(many).enumerate() {
            let (name, keys) = SHARED[*kind];
            let mut keys = keys(&mut draw, &sku, plan.hbm_backed_mib);
            let list = &mut faults[shared[i % shared.len()]];
            let taken: Vec<usize> = list.iter().filter_map(|(slot, _)| *slot).collect();
            // Slot 7 stays whole on blades where a link to it is slow.
            let free: Vec<usize> = (0..sku.gpus_per_blade - 1).filter(|s| !taken.contains(s)).collect();
            let slot = draw.pick(&free).copied().filter(|_| !matches!(name, "ib_down" | "dimm_errors"));
            if name == "slow_link" {
                keys = keys.replace("peer = 7", &format!("peer = {}", sku.gpus_per_blade - 1));
            }
            list.push((slot, format!("kind = \"{name}\"\n{keys}")));
        }
    }
    let digits = plan.blades.to_string().len().max(3);
    faults
        .into_iter()
        .enumerate()
        .map(|(i, faults)| one(plan, &format!("b-{:0digits$}", i + 1), &faults))
        .collect()
}

fn one(plan: &Plan, name: &str, faults: &[(Option<usize>, String)]) -> Result<TrancheBlade, ScenarioError> {
    let mut toml = format!(
        "name = \"{name}\"\nsku = \"{}\"\nseed = {}\nhbm_backed_mib = {}\nthermal_s = 0.5\n",
        plan.sku, plan.seed, plan.hbm_backed_mib
    );
    for (slot, keys) in faults {
        let gpu = slot.map_or(String::new(), |slot| format!("gpu = {slot}\n"));
        toml += &format!("\n[[fault]]\n{gpu}{}\n", keys.trim_end());
    }
    let blade = BladeScenario::parse(&format!("{name}.toml"), &toml)?;
    // A GPU that is missing is in the blade without the fault only.
    let whole = BladeScenario::parse(name, toml.split("\n[[fault]]").next().unwrap_or_default())?;
    let planted = faults
        .iter()
        .map(|(slot, keys)| {
            let fault: Fault = toml::from_str(keys).map_err(|e| ScenarioError {
                file: format!("{name}.toml"),
                line: 1,
                what: e.message().to_owned(),
            })?;
            let uuid = slot.and_then(|slot| whole.slot(slot)).map(|gpu| gpu.uuid.clone());
            Ok(PlantedFault { device: device(*slot, &fault), uuid, shows: shows(&fault), fault })
        })
        .collect::<Result<_, _>>()?;
    Ok(TrancheBlade { toml, blade, planted: PlantedBlade { blade: name.to_owned(), faults: planted } })
}

fn device(slot: Option<usize>, fault: &Fault) -> String {
    match (slot, fault) {
        (Some(slot), _) => format!("gpu{slot}"),
        (None, Fault::IbDown { port } | Fault::IbErrors { port, .. }) => format!("mlx5_{port}"),
        (None, Fault::DimmErrors { dimm, .. }) => {
            let each = crate::DIMMS / crate::MEMORY_CONTROLLERS;
            format!("mc{}/dimm{}", dimm / each, dimm % each)
        }
        _ => "blade".into(),
    }
}

fn shows(fault: &Fault) -> Shows {
    match fault {
        Fault::Hang { .. } | Fault::NvmlVersionMismatch | Fault::LaunchError { .. } => Shows::Untestable,
        _ => Shows::Accused,
    }
}

/// Writes a tranche to `dir` (which must not exist or be empty): `<blade>/`, `<blade>/scenario.toml`, `planted.json`.
pub fn write(seed: u64, blades: &[TrancheBlade], dir: &Path) -> std::io::Result<Planted> {
    if dir.exists() && std::fs::read_dir(dir)?.next().is_some() {
        return Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, "exists and is not empty"));
    }
    std::fs::create_dir_all(dir)?;
    let planted = Planted {
        seed,
        sku: blades.first().map(|b| b.blade.sku.id.clone()).unwrap_or_default(),
        blades: blades.iter().map(|b| b.planted.clone()).collect(),
    };
    for blade in blades {
        let home = dir.join(&blade.blade.name);
        home::make(&blade.blade, &home)?;
        std::fs::write(home.join("scenario.toml"), &blade.toml)?;
    }
    let text = serde_json::to_string_pretty(&planted).map_err(std::io::Error::other)?;
    std::fs::write(dir.join(PLANTED_FILE), text + "\n")?;
    Ok(planted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tranche(seed: u64, blades: usize, sku: &str) -> Vec<TrancheBlade> {
        plan(&Plan { seed, blades, sku: sku.into(), hbm_backed_mib: 16 }).unwrap()
    }

    #[test]
    fn a_seed_always_gives_the_same_tranche_and_another_seed_another() {
        let texts = |seed| tranche(seed, 16, "h100").into_iter().map(|b| b.toml).collect::<Vec<_>>();
        assert_eq!(texts(7), texts(7));
        assert_ne!(texts(7), texts(8));
    }

    #[test]
    fn bad_blades_are_few_enough_for_the_judge_and_each_gpu_has_one_fault() {
        for seed in 0..12 {
            let blades = tranche(seed, 16, "h100");
            let bad = blades.iter().filter(|b| !b.planted.faults.is_empty()).count();
            assert!((6..=8).contains(&bad), "seed {seed}: {bad} bad blades");
            for blade in &blades {
                let mut uuids: Vec<_> = blade.planted.faults.iter().filter_map(|f| f.uuid.clone()).collect();
                uuids.dedup();
                let unique: std::collections::BTreeSet<_> = uuids.iter().collect();
                assert_eq!(
                    unique.len(),
                    uuids.len(),
                    "seed {seed} {}: two faults on one GPU",
                    blade.blade.name
                );
            }
        }
    }

    #[test]
    fn every_kind_is_planted_by_some_seed_and_every_sku_takes_a_tranche() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..24 {
            for blade in tranche(seed, 16, "h100") {
                kinds.extend(blade.planted.faults.iter().map(|f| f.fault.kind()));
            }
        }
        for (kind, _) in SHARED.iter().chain(ALONE[0]).chain(ALONE[1]) {
            assert!(kinds.contains(*kind), "{kind} was never planted");
        }
        for sku in SimSku::names() {
            tranche(1, 4, &sku);
        }
        assert!(plan(&Plan { seed: 1, blades: 2, sku: "h101".into(), hbm_backed_mib: 16 }).is_err());
        assert!(plan(&Plan { seed: 1, blades: 0, sku: "h100".into(), hbm_backed_mib: 16 }).is_err());
    }
}
