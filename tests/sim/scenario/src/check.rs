//! Faults that make no sense on the SKU that they are planted on.

use crate::fault::Fault;
use crate::sku::SimSku;

/// XIDs have at most three digits (NVIDIA's catalogue ends at 172).
const MAX_XID: u32 = 999;
/// Times lie within a day of the start.
const MAX_AT_S: f64 = 86_400.0;

/// `Err` says what is wrong, with the value and what it may be.
pub fn fault(sku: &SimSku, slots: usize, hbm_backed_mib: u64, fault: &Fault) -> Result<(), String> {
    let below = |what: &str, value: u64, bound: u64, has: &str| {
        if value < bound { Ok(()) } else { Err(format!("{what} = {value}: {has} {bound}, from 0")) }
    };
    let from_one =
        |what: &str, value: u64| if value > 0 { Ok(()) } else { Err(format!("{what} = 0: 1 or more")) };
    let real = |what: &str, value: f64, low: f64, high: f64| {
        let good = value.is_finite() && value >= low && value <= high;
        if good { Ok(()) } else { Err(format!("{what} = {value}: {low} to {high}")) }
    };
    let link = |link: u32| below("link", link.into(), sku.nvlinks.into(), "this SKU has");
    let sm = |sm: u32| below("sm", sm.into(), sku.sms.into(), "this SKU has");
    let has_format = |format: &Option<crate::Format>| match format {
        Some(f) if sku.tflops(*f).is_none() => {
            Err(format!("format = {:?}: {} does not have it", f.as_str(), sku.id))
        }
        _ => Ok(()),
    };
    if let Some(at) = fault.at_s() {
        real("at_s", at, 0.0, MAX_AT_S)?;
    }
    match fault {
        Fault::HbmFlip { word, bit, .. } => {
            below("word", *word, hbm_backed_mib << 17, "words of backed memory:")?;
            below("bit", (*bit).into(), 64, "a word has")
        }
        Fault::SmFlip { sm: which, bit, format, every_n } => {
            sm(*which)?;
            let width = format.map_or(32, crate::Format::accumulator_width);
            below("bit", (*bit).into(), width.into(), "the accumulator has")?;
            from_one("every_n", (*every_n).into())?;
            has_format(format)
        }
        Fault::CopyFlip { bit, every_n, .. } => {
            below("bit", (*bit).into(), 8, "a byte has")?;
            from_one("every_n", *every_n)
        }
        Fault::LaunchError { code, nth } => {
            from_one("code", (*code).into())?;
            from_one("nth", *nth)
        }
        Fault::NcclFlip { bit, every_n } => {
            below("bit", (*bit).into(), 32, "an element has")?;
            from_one("every_n", (*every_n).into())
        }
        Fault::SlowSm { sm: which, percent } => {
            sm(*which)?;
            real("percent", *percent, 0.0, 1000.0)
        }
        Fault::SlowGpu { percent, format } => {
            has_format(format)?;
            real("percent", *percent, 0.0, 95.0)
        }
        Fault::SlowHbm { percent } => real("percent", *percent, 0.0, 95.0),
        Fault::SlowLink { peer, percent } => {
            below("peer", *peer as u64, slots as u64, "GPUs on this blade:")?;
            real("percent", *percent, 0.0, 99.0)
        }
        Fault::ThermalThrottle { after_s } => real("after_s", *after_s, 0.0, MAX_AT_S),
        Fault::Hot { degrees } => real("degrees", *degrees, 0.0, 60.0),
        Fault::PowerCap { watts } => real("watts", *watts, sku.idle_w, sku.power_limit_w),
        Fault::NvlinkDown { link: which } => link(*which),
        Fault::NvlinkErrors { link: which, per_s } => {
            link(*which)?;
            real("per_s", *per_s, 0.0, 1e9)
        }
        Fault::PcieWidth { now } if ![1, 2, 4, 8, 16].contains(now) || *now > sku.pcie_width => {
            Err(format!("now = {now}: 1, 2, 4, 8 or 16 lanes, at most {}", sku.pcie_width))
        }
        Fault::PcieGen { now } if !(1..=sku.pcie_gen).contains(now) => {
            Err(format!("now = {now}: 1 to {}", sku.pcie_gen))
        }
        Fault::PcieReplays { per_s } | Fault::EccStorm { per_s } => real("per_s", *per_s, 0.0, 1e9),
        Fault::FabricDegraded | Fault::FabricIncomplete if sku.nvlink_version < 4 => {
            Err("this SKU does not register with an NVLink fabric".into())
        }
        Fault::EccUncorrectable { count, .. } => from_one("count", *count),
        Fault::Xid { code, text, .. } => {
            let good = (1..=MAX_XID).contains(code) && text.len() <= 500;
            if good {
                Ok(())
            } else {
                Err(format!("code = {code}: 1 to {MAX_XID}, text of at most 500 bytes"))
            }
        }
        Fault::Hang { call, .. } => {
            let good = ["nvml", "cuda", "nccl"].contains(&call.as_str())
                || ["nvml", "cu", "nccl"].iter().any(|p| call.starts_with(p))
                    && call.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if good { Ok(()) } else { Err(format!("call = {call:?}: nvml, cuda, nccl or a function's name")) }
        }
        Fault::MemoryBusy { mib } => below("mib", *mib, hbm_backed_mib, "MiB backed:"),
        Fault::IbDown { port } | Fault::IbErrors { port, .. } => {
            below("port", (*port).into(), sku.pci.len() as u64, "ports on this blade:")
        }
        Fault::DimmErrors { dimm, .. } => {
            below("dimm", (*dimm).into(), crate::DIMMS.into(), "DIMMs on this blade:")
        }
        Fault::KernelLine { text, .. } => {
            if (1..=1000).contains(&text.len()) {
                Ok(())
            } else {
                Err("text: 1 to 1000 bytes".into())
            }
        }
        Fault::FabricDegraded
        | Fault::FabricIncomplete
        | Fault::PcieWidth { .. }
        | Fault::PcieGen { .. }
        | Fault::SramThreshold
        | Fault::RemapPending
        | Fault::RemapFailed
        | Fault::GpuLost { .. }
        | Fault::GpuMissing
        | Fault::EccOff
        | Fault::PersistenceOff
        | Fault::OddVbios
        | Fault::NvmlVersionMismatch => Ok(()),
    }
}
