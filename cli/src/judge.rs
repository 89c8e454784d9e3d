//! `whet judge`: the fleet judge on a file of samples.
//!
//! Exit code 0 if nothing stands out, 10 if a device does, 20 if nothing could be judged (all cohorts too small),
//! 2 for bad input with file and line.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use whetstone_burnin::judge::{self, Better, Cohort, Judgement, Options, Sample};

#[derive(clap::Args)]
pub struct Args {
    /// Samples, one JSON object per line: blade, device, test, metric, value, unit, better ("higher" or "lower"), and
    /// optionally sku, driver, firmware, suite (only like is compared with like); `-` for standard input
    #[arg(long, value_name = "FILE.jsonl")]
    samples: PathBuf,
    /// Probability that a healthy device is accused, over all its tests
    #[arg(long, default_value_t = 0.01)]
    fpr: f64,
    /// Spreads rounded values within their rounding step; the same seed gives the same judgement
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// Longest line; a sample has about 200 bytes.
const MAX_LINE: u64 = 64 * 1024;
/// Most samples: 100,000 devices with 20 metrics. They are held in memory.
const MAX_SAMPLES: usize = 2_000_000;
/// Longest name, unit or version.
const MAX_TEXT: usize = 256;

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if !judge::FPR_RANGE.contains(&args.fpr) {
        return Err(crate::input_error(format!(
            "--fpr {}: must lie between {:e} and {}",
            args.fpr,
            judge::FPR_RANGE.start(),
            judge::FPR_RANGE.end()
        )));
    }
    let name = args.samples.display().to_string();
    let samples = if args.samples.as_os_str() == "-" {
        read(io::stdin().lock(), "standard input")?
    } else {
        let unreadable = |e: io::Error| crate::input_error(format!("{name}: {e}"));
        let file = File::open(&args.samples).map_err(unreadable)?;
        if file.metadata().map_err(unreadable)?.is_dir() {
            return Err(crate::input_error(format!("{name}: is a directory")));
        }
        read(BufReader::new(file), &name)?
    };
    let judgement = judge::judge(&samples, &Options { fpr: args.fpr, seed: args.seed });
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &judgement)?;
        writeln!(out)?;
    } else {
        print(&mut out, &judgement)?;
    }
    Ok(ExitCode::from(if !judgement.outliers.is_empty() {
        10
    } else if judgement.anything_judged() {
        0
    } else {
        20
    }))
}

/// All samples, or an input error that names the line.
fn read(mut input: impl BufRead, name: &str) -> anyhow::Result<Vec<Sample>> {
    let mut samples: Vec<Sample> = Vec::new();
    // A metric that is good upwards on one line and downwards on another would split its cohort in silence.
    let mut direction: BTreeMap<(String, String, String), (Better, usize)> = BTreeMap::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let bad = |what: String| crate::input_error(format!("{name}:{number}: {what}"));
        let got = input
            .by_ref()
            .take(MAX_LINE + 1)
            .read_until(b'\n', &mut line)
            .map_err(|e| crate::input_error(format!("{name}: {e}")))?;
        if got == 0 {
            break;
        }
        if line.len() as u64 > MAX_LINE {
            return Err(bad(format!("line longer than {MAX_LINE} bytes")));
        }
        let text = std::str::from_utf8(&line).map_err(|e| bad(e.to_string()))?.trim();
        if text.is_empty() {
            continue;
        }
        let sample: Sample = serde_json::from_str(text).map_err(|e| bad(plain(&e)))?;
        check(&sample).map_err(bad)?;
        match direction.entry((sample.test.clone(), sample.metric.clone(), sample.unit.clone())) {
            Entry::Vacant(free) => drop(free.insert((sample.better, number))),
            Entry::Occupied(known) if known.get().0 != sample.better => {
                let (_, before) = known.get();
                return Err(bad(format!(
                    "\"better\" of {} {} differs from line {before}",
                    sample.test, sample.metric
                )));
            }
            Entry::Occupied(_) => {}
        }
        if samples.len() == MAX_SAMPLES {
            return Err(bad(format!("more than {MAX_SAMPLES} samples")));
        }
        samples.push(sample);
    }
    if samples.is_empty() {
        return Err(crate::input_error(format!("{name}: no samples")));
    }
    Ok(samples)
}

/// The parser's message without its own line number (it always sees one line).
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(" at line ") {
        Some((what, _)) => format!("{what} (column {})", error.column()),
        None => text,
    }
}

fn check(sample: &Sample) -> Result<(), String> {
    let texts = [
        ("blade", Some(&sample.blade)),
        ("device", Some(&sample.device)),
        ("test", Some(&sample.test)),
        ("metric", Some(&sample.metric)),
        ("unit", Some(&sample.unit)),
        ("sku", sample.sku.as_ref()),
        ("driver", sample.driver.as_ref()),
        ("firmware", sample.firmware.as_ref()),
        ("suite", sample.suite.as_ref()),
    ];
    for (field, text) in texts {
        let Some(text) = text else { continue };
        if text.is_empty() && !matches!(field, "unit" | "sku" | "driver" | "firmware" | "suite") {
            return Err(format!("{field} is empty"));
        }
        if text.len() > MAX_TEXT {
            return Err(format!("{field} is longer than {MAX_TEXT} bytes"));
        }
        if text.chars().any(char::is_control) {
            return Err(format!("{field} holds a control character"));
        }
    }
    if sample.value.is_finite() { Ok(()) } else { Err("value is not a finite number".to_owned()) }
}

fn print(out: &mut impl Write, judgement: &Judgement) -> io::Result<()> {
    for o in &judgement.outliers {
        writeln!(out, "{}  {}  {}: {}", o.blade, o.device, o.test, o.reason)?;
    }
    if !judgement.outliers.is_empty() {
        writeln!(out)?;
    }
    let label = |c: &Cohort| {
        let versions = [&c.sku, &c.driver, &c.firmware, &c.suite].into_iter().flatten().map(String::as_str);
        [c.test.as_str(), c.metric.as_str()].into_iter().chain(versions).collect::<Vec<_>>().join(" ")
    };
    let wide = judgement.cohorts.iter().map(|c| label(c).chars().count()).max().unwrap_or(0).clamp(10, 70);
    let percent = |p: Option<f64>| p.map_or("–".to_owned(), |p| format!("{p:.1} %"));
    writeln!(
        out,
        "{:<wide$} {:>7} {:>6} {:>16} {:>10} {:>9} {:>9}",
        "COHORT", "DEVICES", "BLADES", "MEDIAN", "SPREAD", "FINDS", "BLADE"
    )?;
    for c in &judgement.cohorts {
        writeln!(
            out,
            "{:<wide$} {:>7} {:>6} {:>16} {:>10} {:>9} {:>9}",
            label(c),
            c.n_devices,
            c.n_blades,
            format!("{} {}", Short(c.center), c.unit),
            format!("{}", Short(c.spread)),
            percent(c.detectable_percent),
            percent(c.detectable_blade_percent),
        )?;
        if let Some(why) = &c.why_not {
            writeln!(out, "    not judged: {why}")?;
        }
        for note in &c.notes {
            writeln!(out, "    {note}")?;
        }
    }
    let judged = judgement.cohorts.iter().filter(|c| c.judged).count();
    let mut accused: Vec<(&str, &str)> =
        judgement.outliers.iter().map(|o| (o.blade.as_str(), o.device.as_str())).collect();
    accused.sort_unstable();
    accused.dedup();
    writeln!(
        out,
        "\n{} of {} devices on {} blades stand out · {judged} of {} cohorts judged · fpr {} %",
        accused.len(),
        judgement.n_devices,
        judgement.n_blades,
        judgement.cohorts.len(),
        100.0 * judgement.fpr,
    )
}

/// A number with about four significant digits.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let magnitude = if self.0 == 0.0 { 0.0 } else { self.0.abs().log10().floor() };
        if (-4.0..9.0).contains(&magnitude) {
            write!(f, "{:.*}", (3.0 - magnitude).max(0.0) as usize, self.0)
        } else {
            write!(f, "{:.3e}", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        r#"{"blade":"b","device":"d","test":"t","metric":"m","value":1,"unit":"W","better":"higher","x":[]}"#;

    fn error(text: &str) -> String {
        let error = read(text.as_bytes(), "f.jsonl").unwrap_err();
        assert!(error.is::<crate::InputError>());
        error.to_string()
    }

    #[test]
    fn reads_samples_past_empty_lines_and_unknown_fields() {
        assert_eq!(read(format!("{GOOD}\n\n{GOOD}").as_bytes(), "f").unwrap().len(), 2);
    }

    #[test]
    fn bad_lines_are_named() {
        let two = |line: &str| error(&format!("{GOOD}\n{line}\n"));
        assert!(two("{").starts_with("f.jsonl:2: EOF"), "{}", two("{"));
        assert!(two(&GOOD.replace("\"value\":1,", "")).contains("missing field `value`"));
        assert!(two(&GOOD.replace(":1,", ":1e999,")).starts_with("f.jsonl:2: number out of range"));
        assert!(two(&GOOD.replace("higher", "more")).contains("unknown variant `more`"));
        assert!(two(&GOOD.replace("higher", "lower")).contains("differs from line 1"));
        assert!(two(&GOOD.replace("\"b\"", "\"\"")).contains("blade is empty"));
        assert!(two(&GOOD.replace("\"d\"", "\"\\u001b[2J\"")).contains("control character"));
        assert!(two(&GOOD.replace("[]", &format!("\"{}\"", "x".repeat(70_000)))).contains("longer than"));
        assert!(error("").contains("no samples"));
    }
}
