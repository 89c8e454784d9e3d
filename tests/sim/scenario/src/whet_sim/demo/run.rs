//! Runs `whet burnin` on this machine and on each simulated blade.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use whetstone_model::report::Report;

/// What all runs share. Paths are absolute.
pub struct Setting {
    pub whet: PathBuf,
    pub libs: PathBuf,
    pub out: PathBuf,
    pub suite: PathBuf,
    pub limit_s: u64,
}

/// How one run ended.
pub struct Ran {
    pub name: String,
    pub took: Duration,
    /// The report, or why there is none.
    pub report: Result<Report, String>,
}

impl Ran {
    /// `pass`, `fail`, `inconclusive`, or `no report`.
    pub fn word(&self) -> &'static str {
        self.report.as_ref().map_or("no report", |r| r.verdict.outcome.as_str())
    }

    pub fn why(&self) -> &str {
        match &self.report {
            Ok(report) => &report.verdict.why,
            Err(why) => why,
        }
    }
}

/// Largest report that is read back.
const MAX_REPORT_BYTES: u64 = 64 << 20;
/// Longest line of a run's standard error that is shown.
const MAX_SHOWN: usize = 90;

/// Burns in the machine that this runs on; its progress goes to this terminal.
pub fn own(setting: &Setting, suite: &str) -> anyhow::Result<Ran> {
    eprintln!("this machine, for real: whet burnin --suite {suite}");
    let start = Instant::now();
    let dir = setting.out.join("this-machine");
    let status = Command::new(&setting.whet)
        .args(["burnin", "--suite", suite, "--json", "--out"])
        .arg(&dir)
        .env("WHETSTONE_KEY", setting.out.join("signing-key.pem"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("whet burnin")?;
    Ok(Ran { name: "this-machine".into(), took: start.elapsed(), report: report(&dir, Some(status)) })
}

/// Burns in all blades, `jobs` at a time, in order; the answer is in the order of `names`.
pub fn tranche(setting: &Setting, names: &[String], jobs: usize) -> Vec<Ran> {
    let queue = Mutex::new(names.iter().enumerate().collect::<VecDeque<_>>());
    let done = Mutex::new(Vec::with_capacity(names.len()));
    let screen = Screen::new(names.len());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let Some((place, name)) = queue.lock().ok().and_then(|mut q| q.pop_front()) else {
                        return;
                    };
                    let ran = one(setting, name, &screen);
                    if let Ok(mut done) = done.lock() {
                        done.push((place, ran));
                        if let Some((_, ran)) = done.last() {
                            screen.finished(done.len(), names.len(), ran);
                        }
                    }
                }
            });
        }
    });
    screen.bars.clear().ok();
    let mut done = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, ran)| ran).collect()
}

fn one(setting: &Setting, name: &str, screen: &Screen) -> Ran {
    let start = Instant::now();
    let bar = screen.start(name);
    let blade = setting.out.join("silicon").join(name);
    let dir = setting.out.join(name);
    let child = Command::new(&setting.whet)
        .args(["burnin", "--backend", "cuda", "--json", "--blade", name, "--suite"])
        .arg(&setting.suite)
        .arg("--out")
        .arg(&dir)
        .env("LD_LIBRARY_PATH", &setting.libs)
        .env("WHETSTONE_SIM", &blade)
        .env("WHETSTONE_ROOT", blade.join("root"))
        .env("WHETSTONE_KMSG", blade.join("kmsg"))
        .env("WHETSTONE_KEY", setting.out.join("signing-key.pem"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let report = match child {
        Err(error) => Err(format!("{}: {error}", setting.whet.display())),
        Ok(child) => match follow(child, setting, name, &bar) {
            Ok(status) => report(&dir, status),
            Err(error) => Err(error.to_string()),
        },
    };
    bar.finish_and_clear();
    Ran { name: name.to_owned(), took: start.elapsed(), report }
}

/// Waits for a run, keeps what it says in a file beside its report; `None` if it had to be ended.
fn follow(
    mut child: Child,
    setting: &Setting,
    name: &str,
    bar: &ProgressBar,
) -> std::io::Result<Option<ExitStatus>> {
    let mut log = File::create(setting.out.join(format!("{name}.log")))?;
    let said = child.stderr.take();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let Some(mut said) = said else { return };
            let (mut piece, mut line) = ([0; 4096], Vec::new());
            // Ends with the run: its end of the pipe closes. A log that cannot be written must not block the run.
            while let Ok(n @ 1..) = said.read(&mut piece) {
                let _ = log.write_all(&piece[..n]);
                for byte in &piece[..n] {
                    match byte {
                        b'\n' | b'\r' if line.is_empty() => {}
                        b'\n' | b'\r' => {
                            bar.set_message(String::from_utf8_lossy(&line).trim().to_owned());
                            line.clear();
                        }
                        byte if line.len() < MAX_SHOWN && (0x20..0x7f).contains(byte) => line.push(*byte),
                        _ => {}
                    }
                }
            }
        });
        let until = Instant::now() + Duration::from_secs(setting.limit_s);
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() > until {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    })
}

fn report(dir: &std::path::Path, status: Option<ExitStatus>) -> Result<Report, String> {
    let how = status.map_or("ended: over its time".to_owned(), |s| s.to_string());
    let path = dir.join("report.json");
    let size = std::fs::metadata(&path).map_err(|e| format!("{how}; {}: {e}", path.display()))?.len();
    if size > MAX_REPORT_BYTES {
        return Err(format!("{}: {size} bytes", path.display()));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{how}; {}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}

/// Bars on a terminal, a line per blade elsewhere.
struct Screen {
    bars: MultiProgress,
    terminal: bool,
    start: Instant,
}

impl Screen {
    fn new(_blades: usize) -> Screen {
        Screen {
            bars: MultiProgress::new(),
            terminal: std::io::stderr().is_terminal(),
            start: Instant::now(),
        }
    }

    fn start(&self, name: &str) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix} {elapsed} {wide_msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    fn finished(&self, done: usize, all: usize, ran: &Ran) {
        let line = format!(
            "[{done:>3}/{all}] {:>4} s  {}  {:<12}  {} s",
            self.start.elapsed().as_secs(),
            ran.name,
            ran.word(),
            ran.took.as_secs()
        );
        if self.terminal {
            self.bars.println(line).ok();
        } else {
            eprintln!("{line}");
        }
    }
}
