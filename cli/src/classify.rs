//! `whet classify`: what the lines of a kernel log mean. Streams; holds one line at a time.
//!
//! Exit code 10 if a line is a fault (`severity` fault), else 0: warnings (an application's own error, a corrected
//! error) and notes do not make a blade unfit.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use whetstone_model::action::Severity;
use whetstone_model::fault::lines::{Line, Splitter};
use whetstone_model::fault::{Classifier, DriverVersion, Fault, Rules};

#[derive(clap::Args)]
pub struct Args {
    /// Kernel log: dmesg, /dev/kmsg records, syslog or journalctl's short forms; `-` or nothing for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// One JSON object per input line
    #[arg(long)]
    json: bool,
    /// Version of the NVIDIA driver that wrote the log, such as 570 or 580.65.06; it decides how NVLink 5 errors
    /// (XID 144-150) are read. Without it the log's own word is taken, and where it has none the layout is "unknown"
    #[arg(long, value_name = "V")]
    driver_version: Option<DriverVersion>,
}

/// Read at a time, in bytes; with one line of the splitter this is all that is held.
const CHUNK: usize = 256 * 1024;

/// One line of JSON output.
#[derive(Serialize)]
struct Record<'a> {
    line_no: u64,
    /// Only where the line was cut.
    #[serde(skip_serializing_if = "is_false")]
    cut: bool,
    fault: Option<&'a Fault>,
}

fn is_false(value: &bool) -> bool {
    !value
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let rules = Rules::builtin().map_err(|e| anyhow::anyhow!("built-in fault tables: {e}"))?;
    let name = args.file.display().to_string();
    let unreadable = |e: io::Error| crate::input_error(format!("{name}: {e}"));
    let mut input: Box<dyn Read> = if args.file.as_os_str() == "-" {
        Box::new(io::stdin().lock())
    } else {
        // A directory opens but cannot be read: say so before any output.
        let file = File::open(&args.file).map_err(unreadable)?;
        if file.metadata().map_err(unreadable)?.is_dir() {
            return Err(crate::input_error(format!("{name}: is a directory")));
        }
        Box::new(file)
    };
    let out = BufWriter::with_capacity(CHUNK, io::stdout().lock());
    let mut report =
        Report { out, json: args.json, line_no: 0, cut: 0, shown: 0, counts: BTreeMap::new(), worst: None };
    let mut classifier = Classifier::new(rules, args.driver_version);
    match stream(&mut input, &mut classifier, &mut report) {
        Ok(()) => {}
        // The reader of our output went away: nobody is left to tell.
        Err(Stop::Write(e)) if e.kind() == io::ErrorKind::BrokenPipe => {}
        Err(Stop::Write(e)) => return Err(anyhow::Error::new(e).context("standard output")),
        Err(Stop::Read(e)) => return Err(unreadable(e)),
    }
    Ok(ExitCode::from(if report.worst == Some(Severity::Fault) { 10 } else { 0 }))
}

/// Why a stream ended before its end.
enum Stop {
    Read(io::Error),
    Write(io::Error),
}

fn stream<W: Write>(
    input: &mut dyn Read,
    classifier: &mut Classifier<'_>,
    report: &mut Report<W>,
) -> Result<(), Stop> {
    let mut chunk = vec![0; CHUNK];
    let mut splitter = Splitter::default();
    loop {
        let read = match input.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Stop::Read(e)),
        };
        splitter
            .push(&chunk[..read], |line| report.line(line, classifier.line(line.bytes)))
            .map_err(Stop::Write)?;
        // Less than a full chunk came: a pipe whose writer waits. Whoever reads us should not wait as well.
        if read < CHUNK {
            report.out.flush().map_err(Stop::Write)?;
        }
    }
    splitter.finish(|line| report.line(line, classifier.line(line.bytes))).map_err(Stop::Write)?;
    report.end().map_err(Stop::Write)
}

struct Report<W: Write> {
    out: W,
    json: bool,
    line_no: u64,
    cut: u64,
    shown: u64,
    /// By kind, code and severity; bounded by the number of codes a line can hold (six digits, four kinds with numbers).
    counts: BTreeMap<(Severity, String), u64>,
    worst: Option<Severity>,
}

/// Different faults that the summary tells apart; more are counted together.
const MAX_COUNTED: usize = 1000;

impl<W: Write> Report<W> {
    fn line(&mut self, line: Line<'_>, fault: Option<Fault>) -> io::Result<()> {
        self.line_no += 1;
        self.cut += u64::from(line.cut);
        self.worst = self.worst.max(fault.as_ref().map(|fault| fault.severity));
        if self.json {
            return match &fault {
                // By hand: this is nearly every line of an ordinary log.
                None if !line.cut => writeln!(self.out, "{{\"line_no\":{},\"fault\":null}}", self.line_no),
                fault => {
                    let record = Record { line_no: self.line_no, cut: line.cut, fault: fault.as_ref() };
                    serde_json::to_writer(&mut self.out, &record)?;
                    self.out.write_all(b"\n")
                }
            };
        }
        let Some(fault) = fault else { return Ok(()) };
        if self.shown == 0 {
            writeln!(self.out, "{}", row("LINE", "SEVERITY", "FAULT", "DEVICE", "ACTION", "WHAT"))?;
        }
        self.shown += 1;
        let what = format!("{} {}", fault.kind, fault.code);
        let device = fault.device.as_ref().map_or("-", |device| device.as_str());
        let meaning = fault.details.meaning.as_deref().unwrap_or(&fault.name);
        let action = fault.action.as_str();
        let line_no = self.line_no.to_string();
        writeln!(self.out, "{}", row(&line_no, fault.severity.as_str(), &what, device, action, meaning))?;
        let key = (fault.severity, what);
        let key = if self.counts.len() < MAX_COUNTED || self.counts.contains_key(&key) {
            key
        } else {
            (fault.severity, "others".to_owned())
        };
        *self.counts.entry(key).or_default() += 1;
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        if !self.json {
            if self.shown > 0 {
                writeln!(self.out)?;
            }
            let of = |wanted: Severity| -> u64 {
                self.counts
                    .iter()
                    .filter(|((severity, _), _)| *severity == wanted)
                    .map(|(_, count)| count)
                    .sum()
            };
            let (faults, warnings, notes) = (of(Severity::Fault), of(Severity::Warning), of(Severity::Info));
            writeln!(
                self.out,
                "{} lines: {faults} faults, {warnings} warnings, {notes} notes",
                self.line_no
            )?;
            for ((severity, what), count) in self.counts.iter().rev() {
                writeln!(self.out, "  {count:>6} x {what} ({})", severity.as_str())?;
            }
            if self.cut > 0 {
                writeln!(self.out, "{} lines were longer than 8 KiB and were cut", self.cut)?;
            }
        }
        self.out.flush()
    }
}

fn row(line: &str, severity: &str, fault: &str, device: &str, action: &str, what: &str) -> String {
    format!("{line:>7}  {severity:<8}  {fault:<32}  {device:<13}  {action:<15}  {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output, and the gravest severity.
    fn classify(input: &[u8], json: bool) -> (String, Option<Severity>) {
        let mut report = Report {
            out: Vec::new(),
            json,
            line_no: 0,
            cut: 0,
            shown: 0,
            counts: BTreeMap::new(),
            worst: None,
        };
        let mut classifier = Classifier::new(Rules::builtin().unwrap(), None);
        assert!(stream(&mut &input[..], &mut classifier, &mut report).is_ok());
        (String::from_utf8(report.out).unwrap(), report.worst)
    }

    #[test]
    fn json_has_one_object_per_line_whatever_the_line_is() {
        let mut input = b"\n\xff\xfe\0binary\nNVRM: Xid (PCI:0000:3B:00): 79, x\n".to_vec();
        input.extend(std::iter::repeat_n(b'y', 3 << 20));
        input.extend(b"\nOut of memory: Killed process 7 (a)");
        let (out, worst) = classify(&input, true);
        let records: Vec<serde_json::Value> =
            out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records.len(), 5);
        for (index, record) in records.iter().enumerate() {
            assert_eq!(record["line_no"], index + 1);
        }
        assert!(
            records[0]["fault"].is_null() && records[1]["fault"].is_null() && records[3]["fault"].is_null()
        );
        assert_eq!(
            (&records[2]["fault"]["device"], &records[2]["fault"]["code"]),
            (&"0000:3b:00".into(), &79.into())
        );
        assert_eq!((&records[3]["cut"], records[2].get("cut")), (&true.into(), None));
        assert_eq!(records[4]["fault"]["kind"], "memory");
        assert_eq!(worst, Some(Severity::Fault));
    }

    #[test]
    fn the_table_shows_faults_only_and_sums_them_up() {
        let (out, worst) =
            classify(b"a\nNVRM: Xid (PCI:0000:3b:00): 13, x\nb\nNVRM: Xid (PCI:0000:3b:00): 13, y\n", false);
        assert_eq!(out.lines().filter(|line| line.contains("restart_app")).count(), 2);
        assert!(
            out.contains("4 lines: 0 faults, 2 warnings, 0 notes") && out.contains("2 x xid 13 (warning)"),
            "{out}"
        );
        assert_eq!(worst, Some(Severity::Warning), "an application's error makes no blade unfit");
        assert_eq!(classify(b"", false), ("0 lines: 0 faults, 0 warnings, 0 notes\n".to_owned(), None));
    }
}
