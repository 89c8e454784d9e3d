//! One cohort: devices against their siblings, blades against blades.

use crate::judge::group::Group;
use crate::judge::robust;
use crate::judge::scan::{self, Look, Seen};
use crate::judge::types::Better;

/// Part of the level that goes to devices among their siblings when whole blades can be judged too.
const DEVICE_PART: f64 = 0.7;
/// Devices at which the level is halved, see [`Look::small`]. Whole blades need none: they are few, but their least
/// width is known from their devices.
const SMALL_COHORT: f64 = 20.0;
/// A rounding step is believed up to this much of the median: steps beyond it are differences.
const COARSEST_STEP: f64 = 0.02;
/// A cohort in which only a device this much worse than the median would be accused is not judged.
const WORST_DETECTABLE: f64 = 0.5;
/// Nobody replaces a part for less than this much of the median, however sure it is.
const LEAST_LAG: f64 = 0.01;
/// A blade this much of the median behind the others is mentioned where they are too few to accuse it …
const NOTED_LAG: f64 = 0.03;
/// … if that is at least so many standard deviations of a blade's median by the noise of its devices alone.
const NOTED_DEVIATIONS: f64 = 5.0;
/// Fewer blades than this hardly show how much blades differ.
const FEW_BLADES: usize = 8;
/// Values that differ by more than this are not compared.
const WIDEST: f64 = 1e150;
/// Variance of the median of n normal values, times n.
const MEDIAN_VARIANCE: f64 = 1.5;

/// What was found in a cohort.
pub struct Weighed {
    /// Index of the device, probability, and whether it is the whole blade that stands apart.
    pub accused: Vec<(usize, f64, bool)>,
    pub device_level: f64,
    pub blade_level: f64,
    /// Median and robust standard deviation over devices.
    pub center: f64,
    pub spread: f64,
    /// Smallest shift (in the metric's unit) that would have been accused.
    pub detectable: Option<f64>,
    pub detectable_blade: Option<f64>,
    pub why_not: Option<String>,
    pub notes: Vec<String>,
}

/// Looks at one cohort with the probability `level` to accuse a healthy device in it.
pub fn weigh(group: &Group<'_>, level: f64, fpr: f64, seed: u64) -> Weighed {
    let raw: Vec<f64> = group.devices.iter().map(|d| d.value).collect();
    let mut sorted = raw.clone();
    sorted.sort_by(f64::total_cmp);
    let center = robust::median_of_sorted(&sorted);
    let spread = robust::width(&sorted);
    let mut weighed = Weighed {
        accused: Vec::new(),
        device_level: level,
        blade_level: level,
        center,
        spread,
        detectable: None,
        detectable_blade: None,
        why_not: None,
        notes: Vec::new(),
    };
    let range = sorted.last().unwrap_or(&0.0) - sorted.first().unwrap_or(&0.0);
    weighed.why_not = group.too_small().or_else(|| {
        // No measurement: sums and squares of such differences are no numbers any more.
        (range > WIDEST).then(|| format!("values from {:e} on over {range:e} cannot be compared", sorted[0]))
    });
    if weighed.why_not.is_some() {
        return weighed;
    }
    // From here on larger is worse.
    let sign = if group.key.better == Better::Higher { -1.0 } else { 1.0 };
    let step = rounding_step(&sorted, center.abs());
    let worse: Vec<f64> = raw.iter().map(|v| sign * v).collect();
    let smooth: Vec<f64> = group
        .devices
        .iter()
        .zip(&worse)
        .map(|(d, v)| v + step * (unit_interval(seed, d.blade, d.device) - 0.5))
        .collect();
    let blades = group.blades();
    let siblings = Siblings::of(&blades, &worse, &smooth, step);
    let typical = typical_size(&blades);
    // With three blades the two others cannot say how much blades differ.
    let whole_blades = blades.len() > super::LEAST_BLADES;
    let has_devices = siblings.blades >= super::LEAST_BLADES;
    if whole_blades && has_devices {
        weighed.device_level = level * DEVICE_PART;
        weighed.blade_level = level * (1.0 - DEVICE_PART);
    }
    let reach = WORST_DETECTABLE * if center == 0.0 { 1e3 * spread } else { center.abs() };
    let mut noise = 0.0;
    let place = sign * center;
    let least_lag = LEAST_LAG * center.abs();

    if has_devices {
        let look = Look {
            core: &siblings.core,
            held: &siblings.held,
            least_width: 0.0,
            center: center.abs(),
            level: weighed.device_level,
            small: SMALL_COHORT,
            kind_level: 0.5 * fpr,
            lone_far: false,
        };
        weighed.device_level = look.level();
        let seen = scan::scan(&look);
        weighed.detectable = detectable(&seen, &look, reach);
        note_second_kind(&mut weighed.notes, &seen, "devices", center);
        for (at, p) in seen.accused {
            let device = siblings.of_device[at];
            // Slower than quick siblings, but no slower than the cohort: not worth an accusation.
            if worse[device] - place > least_lag {
                weighed.accused.push((device, p, false));
            }
        }
        let mut core = siblings.core.clone();
        core.sort_by(f64::total_cmp);
        noise = robust::width(&core);
    }
    if whole_blades {
        // A blade with fewer devices has a noisier median: it is drawn towards the middle to make up for it.
        let medians: Vec<f64> = blades.iter().filter_map(|b| robust::median(&smooth[b.clone()])).collect();
        let middle = robust::median(&medians).unwrap_or(place);
        let drawn: Vec<f64> = medians
            .iter()
            .zip(&blades)
            .map(|(m, b)| middle + (m - middle) * (b.len() as f64 / typical).min(1.0).sqrt())
            .collect();
        let held: Vec<f64> = drawn.iter().map(|m| m - 0.5 * step).collect();
        let look = Look {
            core: &drawn,
            held: &held,
            least_width: noise * (MEDIAN_VARIANCE / typical).sqrt() * 0.8,
            center: center.abs(),
            level: weighed.blade_level,
            small: 0.0,
            kind_level: 0.5 * fpr,
            lone_far: true,
        };
        let seen = scan::scan(&look);
        weighed.detectable_blade = detectable(&seen, &look, reach);
        note_second_kind(&mut weighed.notes, &seen, "blades", center);
        for (at, p) in seen.accused {
            let half = middle + 0.5 * (medians[at] - middle);
            let slow = |d: &usize| worse[*d] >= half && worse[*d] - place > least_lag;
            for device in blades[at].clone().filter(slow) {
                if !weighed.accused.iter().any(|(d, ..)| *d == device) {
                    weighed.accused.push((device, p, true));
                }
            }
        }
    }
    if !weighed.accused.iter().any(|(.., by_blade)| *by_blade) {
        note_slow_blade(&mut weighed.notes, group, &blades, &smooth, noise, center);
    }
    if weighed.detectable.is_none() && weighed.detectable_blade.is_none() && weighed.accused.is_empty() {
        weighed.why_not = Some(format!(
            "cohort too small or too noisy: {} device(s) on {} blades cannot show an outlier at p < {:.1e}",
            raw.len(),
            blades.len(),
            weighed.device_level,
        ));
    }
    weighed
}

/// Every device against the median of the other devices of its blade.
struct Siblings {
    of_device: Vec<usize>,
    core: Vec<f64>,
    held: Vec<f64>,
    /// Blades with two devices or more.
    blades: usize,
}

impl Siblings {
    fn of(blades: &[std::ops::Range<usize>], worse: &[f64], smooth: &[f64], step: f64) -> Siblings {
        let mut s = Siblings { of_device: Vec::new(), core: Vec::new(), held: Vec::new(), blades: 0 };
        for blade in blades.iter().filter(|b| b.len() >= 2) {
            s.blades += 1;
            // The fewer siblings, the noisier their median: brought to one width.
            let unit = (1.0 + MEDIAN_VARIANCE / (blade.len() - 1) as f64).sqrt();
            for device in blade.clone() {
                let others: Vec<f64> = blade.clone().filter(|o| *o != device).map(|o| smooth[o]).collect();
                let Some(middle) = robust::median(&others) else { continue };
                s.of_device.push(device);
                s.core.push((smooth[device] - middle) / unit);
                // A rounded value may be better than it reads by half a step.
                s.held.push((worse[device].min(smooth[device]) - 0.5 * step - middle) / unit);
            }
        }
        s
    }
}

/// How far one more value would have to lie from the middle to be accused.
fn detectable(seen: &Seen, look: &Look<'_>, reach: f64) -> Option<f64> {
    let n = look.core.len();
    let middle = robust::median(look.core)?;
    if scan::most_accused(n, false, look) == 0 && scan::most_accused(n, true, look) == 0 {
        return None;
    }
    match &seen.tail {
        Some(tail) => {
            let at = tail.value_at(look.level(), reach)?;
            // The device that is looked for lies outside of the distribution, which then has one value fewer.
            (at - middle > 0.0).then_some((at - middle).max(LEAST_LAG * look.center))
        }
        // All equal: what lies a rounding step beyond the coarsest step that is believed.
        None => Some(2.0 * COARSEST_STEP * look.center),
    }
}

/// Mentions the worst blade of a few if it is clearly behind the others: whether blades differ so much by nature, a
/// few cannot tell, but a person may know.
fn note_slow_blade(
    notes: &mut Vec<String>,
    group: &Group<'_>,
    blades: &[std::ops::Range<usize>],
    worse: &[f64],
    noise: f64,
    center: f64,
) {
    let medians: Vec<f64> = blades.iter().filter_map(|b| robust::median(&worse[b.clone()])).collect();
    let Some(worst) = (0..medians.len()).max_by(|&a, &b| medians[a].total_cmp(&medians[b])) else { return };
    let others: Vec<f64> = medians.iter().enumerate().filter(|(i, _)| *i != worst).map(|(_, m)| *m).collect();
    let Some(middle) = robust::median(&others) else { return };
    let lag = medians[worst] - middle;
    let chance = NOTED_DEVIATIONS * noise * (MEDIAN_VARIANCE / blades[worst].len() as f64).sqrt();
    if blades.len() < FEW_BLADES && noise > 0.0 && center != 0.0 && lag > chance.max(NOTED_LAG * center.abs())
    {
        notes.push(format!(
            "blade {} is {:.1} % worse than the median of the others; {} blades are few to say whether blades differ so much by nature",
            group.devices[blades[worst].start].blade,
            100.0 * lag / center.abs(),
            blades.len()
        ));
    }
}

fn note_second_kind(notes: &mut Vec<String>, seen: &Seen, what: &str, center: f64) {
    if let Some((size, distance)) = seen.second_kind {
        let far = if center == 0.0 {
            format!("{distance:.3}")
        } else {
            format!("{:.1} %", 100.0 * distance / center.abs())
        };
        notes.push(format!(
            "{size} {what} form a group about {far} worse: too many to be called faulty; compare their firmware, cabling and cooling"
        ));
    }
}

/// The step that values are rounded to, or 0 if they are not visibly rounded.
fn rounding_step(sorted: &[f64], center: f64) -> f64 {
    let same = 1e-9 * center;
    let mut distinct = 1;
    let mut least = f64::INFINITY;
    for pair in sorted.windows(2) {
        let gap = pair[1] - pair[0];
        if gap > same {
            distinct += 1;
            least = least.min(gap);
        }
    }
    // Values of fine resolution are nearly all distinct.
    if distinct * 4 > sorted.len() * 3 || distinct == 1 {
        return 0.0;
    }
    if center > 0.0 { least.min(COARSEST_STEP * center) } else { least }
}

/// Median number of devices per blade.
fn typical_size(blades: &[std::ops::Range<usize>]) -> f64 {
    let sizes: Vec<f64> = blades.iter().map(|b| b.len() as f64).collect();
    robust::median(&sizes).unwrap_or(1.0).floor().max(1.0)
}

/// A number in [0, 1) that depends on the seed and the device's name only: FNV-1a, then the SplitMix64 finish.
fn unit_interval(seed: u64, blade: &str, device: &str) -> f64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ seed;
    for byte in blade.bytes().chain([0xff]).chain(device.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((hash ^ (hash >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}
