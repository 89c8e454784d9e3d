//! Processes of a site: started in sessions of their own, known by pid and start time, so that a pid that was given to
//! somebody else meanwhile is never touched.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};

/// In the environment of all that a site started: the site's folder.
pub const MARK: &str = "WHETSTONE_SITE_OF";
/// To end in order. An operator gives its lease back, an agent ends its tests.
const IN_ORDER: Duration = Duration::from_secs(10);
/// To be gone after SIGKILL: only a process that hangs in the kernel takes longer.
const AT_ONCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// One process, for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: ticks from boot to its start.
    pub start: u64,
}

/// What is read of /proc/PID/stat.
struct Stat {
    state: char,
    session: i32,
    start: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in parentheses may hold anything; what follows its last one is fields 3 and on.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let session = fields.nth(2)?.parse().ok()?;
    Some(Stat { state, session, start: fields.nth(15)?.parse().ok()? })
}

impl Process {
    pub fn of(pid: u32) -> Option<Process> {
        let pid = i32::try_from(pid).ok()?;
        Some(Process { pid, start: stat(pid)?.start })
    }

    /// Whether this very process lives; one that only waits to be reaped does not.
    pub fn lives(self) -> bool {
        stat(self.pid).is_some_and(|now| now.start == self.start && !matches!(now.state, 'Z' | 'X'))
    }

    fn signal(self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.lives()) {
            // It leads its group. Gone in between is fine.
            let _ = kill_process_group(pid, signal);
            let _ = kill_process(pid, signal);
        }
    }

    /// Proportional set size of its session, bytes: memory that is shared counts in part.
    pub fn pss(self) -> Option<u64> {
        let all = self.lives().then(pids)?;
        let session =
            all.filter(|pid| *pid == self.pid || stat(*pid).is_some_and(|now| now.session == self.pid));
        Some(session.filter_map(pss).sum())
    }
}

fn pss(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// All processes there are.
fn pids() -> impl Iterator<Item = i32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten();
    all.filter_map(|item| item.ok()?.file_name().to_str()?.parse().ok())
}

/// Starts a program in a session of its own; all that it says goes to `log`. With `again` it is started again whenever it fails.
pub fn start(
    site: &Path,
    log: &Path,
    again: bool,
    program: &Path,
    args: &[&OsStr],
    environment: &[(&str, PathBuf)],
) -> anyhow::Result<Process> {
    let out = OpenOptions::new().create(true).append(true).open(log);
    let out: File = out.with_context(|| log.display().to_string())?;
    let mut command = Command::new(std::env::current_exe().context("own path")?);
    command.args(["site", "detached"]).args(again.then_some("--again")).arg("--").arg(program).args(args);
    command.env(MARK, site).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    // Its folder must not keep a file system busy that somebody wants to unmount.
    command.current_dir("/");
    for (name, value) in environment {
        command.env(name, value);
    }
    let child = command.spawn().with_context(|| program.display().to_string())?;
    Process::of(child.id()).with_context(|| format!("{} ended at once", program.display()))
}

/// Ends processes in order, with force where that takes too long, then what is left of their sessions.
/// The answer is what could not be ended.
pub fn end(site: &Path, processes: &[Process]) -> Vec<Process> {
    let living = |of: &[Process]| of.iter().copied().filter(|p| p.lives()).collect::<Vec<_>>();
    let mut left = living(processes);
    for (signal, limit) in [(Signal::TERM, IN_ORDER), (Signal::KILL, AT_ONCE)] {
        left.iter().for_each(|process| process.signal(signal));
        let until = Instant::now() + limit;
        while !left.is_empty() && Instant::now() < until {
            std::thread::sleep(POLL);
            left = living(&left);
        }
    }
    let orphans = orphans(site, processes);
    orphans.iter().for_each(|process| process.signal(Signal::KILL));
    let until = Instant::now() + AT_ONCE;
    left.extend(orphans);
    while !left.is_empty() && Instant::now() < until {
        left = living(&left);
        std::thread::sleep(POLL);
    }
    left
}

/// Processes in the sessions that a site's processes led (tests of a burn-in whose agent was killed). The site's mark in
/// their environment tells them from strangers whose session has a pid that was used again.
fn orphans(site: &Path, processes: &[Process]) -> Vec<Process> {
    let mark = [MARK.as_bytes(), b"=", site.as_os_str().as_bytes()].concat();
    pids()
        .filter_map(|pid| {
            let now = stat(pid)?;
            let ours = processes.iter().any(|process| process.pid == now.session);
            let process = Process { pid, start: now.start };
            if !ours || !process.lives() {
                return None;
            }
            let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
            environment.split(|byte| *byte == 0).any(|entry| entry == mark).then_some(process)
        })
        .collect()
}

/// The last lines of a log, for an error.
pub fn last_lines(log: &Path) -> String {
    /// Bytes from the end that are looked at.
    const LOOKED_AT: usize = 4096;
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes.get(bytes.len().saturating_sub(LOOKED_AT)..).unwrap_or(&bytes));
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let shown = lines.get(lines.len().saturating_sub(5)..).unwrap_or_default();
    shown.iter().map(|line| format!("\n    {}", crate::site::table::clean(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_whatever_the_process_calls_itself() {
        let text = "42 (a) b (c) S 1 42 41 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 9 9";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.state, stat.session, stat.start), ('S', 41, 777));
        for bad in ["", "42 (a", "42 (a) S 1 2", "42 (a) S 1 42 x 0 -1"] {
            assert!(parse_stat(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_process_is_known_by_its_start_time_and_only_that_one_is_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(process.lives() && process.pss().is_some());
        // As if the pid had been given to another process.
        let other = Process { start: process.start + 1, ..process };
        assert!(!other.lives());
        assert_eq!(end(Path::new("/no/such/site"), &[other]), []);
        assert!(process.lives());
        assert_eq!(end(Path::new("/no/such/site"), &[process]), []);
        assert!(!process.lives());
        child.wait().unwrap();
    }
}
