//! Device-test processes: started, listened to, and ended whatever they do.
//!
//! A driver can crash its caller, hang for ever or lose its GPU. So each device test runs in a process of its own,
//! and everything it can do wrong ends as *inconclusive* with the reason.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use whetstone_burnin::protocol::{Event, MAX_EVENT_BYTES, Request, SILENCE_LIMIT_S};
use whetstone_model::report::TestOutcome;

use super::Cancel;

/// Beyond its budget a test gets this long to say what it has, then it is killed.
const GRACE: Duration = Duration::from_secs(15);
/// How often the waiting loop looks at its time limits.
const TICK: Duration = Duration::from_millis(100);
/// A killed process that does not end within this sits in the kernel (a driver call); it is left behind.
const REAP_LIMIT: Duration = Duration::from_secs(3);
/// How long an ended process's stderr may take to close.
const STDERR_LIMIT: Duration = Duration::from_secs(1);
/// What is kept of a child's stderr.
const MAX_STDERR_BYTES: u64 = 256 << 10;
/// All that a child may say; the longest test says a few MiB. A broken one must fill neither memory nor disk.
const MAX_STDOUT_BYTES: usize = 64 << 20;
/// Events that wait for the runner; a child that floods waits for us, not we for it.
const MAX_WAITING_EVENTS: usize = 1024;

/// How to start a device-test process.
#[derive(Debug, Clone)]
pub struct Launcher {
    pub program: PathBuf,
    pub args: Vec<OsString>,
}

/// How one process ended.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    pub outcome: TestOutcome,
    /// One line; empty for a plain pass.
    pub detail: String,
    /// The process hung, crashed or would not start: its device is not to be used again in this run.
    pub broken: bool,
    pub stderr: Vec<u8>,
}

enum Heard {
    Event(Event),
    /// A line that is no event; the process is not to be believed.
    Rubbish(String),
    Closed,
}

struct Running {
    child: Child,
    // Kept open: a device test ends itself when this closes, so it never outlives a killed runner.
    _stdin: ChildStdin,
    stderr: Receiver<Vec<u8>>,
    last_heard: Instant,
    hard_limit: Instant,
    said_done: Option<(TestOutcome, String)>,
}

/// Runs the requests side by side and hands every event, with the index of its request, to `on_event`.
pub fn run_all(
    launcher: &Launcher,
    requests: &[Request],
    cancel: &Cancel,
    on_event: &mut dyn FnMut(usize, Event),
) -> Vec<End> {
    let (sender, heard) = sync_channel::<(usize, Heard)>(MAX_WAITING_EVENTS);
    let mut running: Vec<Option<Running>> = Vec::new();
    let mut ends: Vec<Option<End>> = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        let started = start(launcher, request, index, &sender);
        ends.push(started.as_ref().err().map(|why| broken(format!("test process: {why}"), Vec::new())));
        running.push(started.ok());
    }
    drop(sender);
    while running.iter().any(Option::is_some) {
        // All that waits is heard before anybody is called silent: this loop itself may have been held up.
        let mut next = heard.recv_timeout(TICK);
        for _ in 0..MAX_WAITING_EVENTS {
            match next {
                Ok((index, what)) => hear(index, what, &mut running[index], &mut ends[index], on_event),
                Err(RecvTimeoutError::Timeout) => break,
                // All readers are gone, and each said `Closed` before.
                Err(RecvTimeoutError::Disconnected) => {
                    thread::sleep(TICK);
                    break;
                }
            }
            next = heard.recv_timeout(Duration::ZERO);
        }
        let now = Instant::now();
        for (slot, end) in running.iter_mut().zip(&mut ends) {
            let Some(process) = slot else { continue };
            let why = if cancel.requested() {
                Some("the run was interrupted".to_owned())
            } else if now.duration_since(process.last_heard).as_secs() >= SILENCE_LIMIT_S {
                Some(format!("no answer for {SILENCE_LIMIT_S} s: the test process hung and was ended"))
            } else if now > process.hard_limit {
                Some("still running well after its time budget: it was ended".to_owned())
            } else {
                None
            };
            if let Some(why) = why {
                *end = slot.take().map(|process| kill(process, why));
            }
        }
    }
    ends.into_iter()
        .map(|end| end.unwrap_or_else(|| broken("ended without a trace".to_owned(), Vec::new())))
        .collect()
}

fn hear(
    index: usize,
    what: Heard,
    slot: &mut Option<Running>,
    end: &mut Option<End>,
    on_event: &mut dyn FnMut(usize, Event),
) {
    let Some(process) = slot.as_mut() else { return };
    process.last_heard = Instant::now();
    match what {
        Heard::Event(Event::Done { outcome, detail }) => process.said_done = Some((outcome, detail)),
        Heard::Event(event) => on_event(index, event),
        Heard::Rubbish(line) => *end = slot.take().map(|p| kill(p, format!("spoke out of turn: {line:?}"))),
        Heard::Closed => *end = slot.take().map(reap),
    }
}

fn start(
    launcher: &Launcher,
    request: &Request,
    index: usize,
    to: &SyncSender<(usize, Heard)>,
) -> std::io::Result<Running> {
    let mut child = Command::new(&launcher.program)
        .args(&launcher.args)
        // A group of its own: Ctrl-C reaches the runner, which ends its children in order.
        .process_group(0)
        // Clusters set NCCL_DEBUG for their jobs; its words must not stand between our events.
        .env("NCCL_DEBUG_FILE", "/dev/stderr")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let missing = || std::io::Error::other("a pipe is missing");
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut stdin, stdout, stderr) =
        (stdin.ok_or_else(missing)?, stdout.ok_or_else(missing)?, stderr.ok_or_else(missing)?);
    let sent = serde_json::to_string(request)
        .map_err(std::io::Error::from)
        .and_then(|json| writeln!(stdin, "{json}").and_then(|()| stdin.flush()));
    // One that ended before it read its request says why in its own way: status and stderr.
    if let Err(e) = sent
        && e.kind() != std::io::ErrorKind::BrokenPipe
    {
        let _ = child.kill();
        let _ = child.wait();
        return Err(e);
    }
    let to = to.clone();
    thread::spawn(move || listen(BufReader::new(stdout), index, &to));
    let (kept, stderr_kept) = channel();
    thread::spawn(move || kept.send(keep_start(stderr)));
    let now = Instant::now();
    let hard_limit = now + Duration::from_secs(request.budget_s) + GRACE;
    Ok(Running { child, _stdin: stdin, stderr: stderr_kept, last_heard: now, hard_limit, said_done: None })
}

fn listen(mut from: impl BufRead, index: usize, to: &SyncSender<(usize, Heard)>) {
    let (mut line, mut bytes) = (Vec::new(), 0);
    loop {
        line.clear();
        let heard = match (&mut from).take(MAX_EVENT_BYTES as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => Heard::Closed,
            Ok(read) if bytes + read > MAX_STDOUT_BYTES => Heard::Rubbish("too much to be a test".to_owned()),
            Ok(_) => serde_json::from_slice(&line).map_or_else(
                |_| Heard::Rubbish(String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned()),
                Heard::Event,
            ),
        };
        bytes += line.len();
        let last = !matches!(heard, Heard::Event(_));
        if to.send((index, heard)).is_err() || last {
            return;
        }
    }
}

/// The first bytes of a stream; the rest is read and dropped so that the writer never blocks.
fn keep_start(mut from: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let _ = (&mut from).take(MAX_STDERR_BYTES).read_to_end(&mut kept);
    let _ = std::io::copy(&mut from, &mut std::io::sink());
    kept
}

fn broken(detail: String, stderr: Vec<u8>) -> End {
    End { outcome: TestOutcome::Inconclusive, detail, broken: true, stderr }
}

/// Ends a process that must not go on.
fn kill(mut process: Running, why: String) -> End {
    if let Some(group) = i32::try_from(process.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let reaped = wait_until(&mut process.child, Instant::now() + REAP_LIMIT).is_some();
    let why =
        if reaped { why } else { format!("{why}; it cannot be ended, a driver call holds it in the kernel") };
    let stderr = stderr_of(&process);
    match process.said_done {
        // The result was out before the end hung: it stands.
        Some((outcome, detail)) => End { outcome, detail, broken: false, stderr },
        None => broken(why, stderr),
    }
}

/// What the process said on stderr. Bounded: something that it left behind may hold the pipe for ever.
fn stderr_of(process: &Running) -> Vec<u8> {
    process.stderr.recv_timeout(STDERR_LIMIT).unwrap_or_default()
}

/// What a process that closed its output has to say for itself.
fn reap(mut process: Running) -> End {
    let Some(status) = wait_until(&mut process.child, Instant::now() + REAP_LIMIT) else {
        return kill(process, "closed its output without a result and did not end".to_owned());
    };
    let stderr = stderr_of(&process);
    match (process.said_done, status.signal()) {
        (Some((outcome, detail)), _) => End { outcome, detail, broken: false, stderr },
        (None, Some(signal)) => broken(format!("the test process crashed ({})", signal_name(signal)), stderr),
        (None, None) => {
            let last = String::from_utf8_lossy(&stderr);
            let last = last
                .lines()
                .rev()
                .find(|l| !l.trim().is_empty())
                .unwrap_or("")
                .chars()
                .take(200)
                .collect::<String>();
            let said = if last.is_empty() { String::new() } else { format!(": {last}") };
            broken(
                format!(
                    "the test process ended without a result (exit code {}){said}",
                    status.code().unwrap_or(-1)
                ),
                stderr,
            )
        }
    }
}

fn wait_until(child: &mut Child, limit: Instant) -> Option<std::process::ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < limit => thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => return None,
        }
    }
}

fn signal_name(signal: i32) -> String {
    match signal {
        4 => "SIGILL, an illegal instruction".to_owned(),
        6 => "SIGABRT".to_owned(),
        7 => "SIGBUS".to_owned(),
        8 => "SIGFPE".to_owned(),
        9 => "SIGKILL, perhaps out of memory".to_owned(),
        11 => "SIGSEGV".to_owned(),
        other => format!("signal {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whetstone_burnin::suite::{ClockParams, TestKind};

    /// How a process that runs this shell script ends, and the events that it gave.
    fn run(script: &str, cancel: &Cancel) -> (End, Vec<Event>) {
        let launcher = Launcher { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()] };
        let request = Request {
            name: "t".into(),
            kind: TestKind::Clock(ClockParams {}),
            seed: 1,
            budget_s: 30,
            scratch: std::env::temp_dir(),
            gpus: Vec::new(),
        };
        let mut events = Vec::new();
        let mut ends = run_all(&launcher, &[request], cancel, &mut |_, event| events.push(event));
        (ends.remove(0), events)
    }

    const PASS: &str = r#"echo '{"event":"done","outcome":"pass","detail":""}'"#;

    #[test]
    fn whatever_a_process_does_ends_as_an_outcome_with_its_reason() {
        let inconclusive = |script: &str, says: &str| {
            let (end, _) = run(script, &Cancel::default());
            assert_eq!((end.outcome, end.broken), (TestOutcome::Inconclusive, true), "{script}: {end:?}");
            assert!(end.detail.contains(says), "{script}: {:?} does not say {says:?}", end.detail);
        };
        inconclusive("kill -SEGV $$", "SIGSEGV");
        inconclusive("echo no such library >&2; exit 3", "exit code 3): no such library");
        inconclusive("echo hello; exec sleep 600", "spoke out of turn: \"hello");
        inconclusive(
            r#"while :; do printf '%s\n' '{"event":"note","text":"'"$(printf %8000s)"'"}'; done"#,
            "too much to be a test",
        );
        let (end, events) =
            run(&format!(r#"echo '{{"event":"note","text":"x"}}'; {PASS}"#), &Cancel::default());
        assert_eq!((end.outcome, end.broken, events.len()), (TestOutcome::Pass, false, 1));
    }

    #[test]
    fn a_result_stands_even_if_the_process_then_hangs() {
        let (end, _) = run(&format!("{PASS}; exec >&- 2>&-; exec sleep 600"), &Cancel::default());
        assert_eq!((end.outcome, end.broken), (TestOutcome::Pass, false), "{end:?}");
    }

    #[test]
    fn an_interrupted_run_ends_its_processes() {
        let cancel = Cancel::default();
        cancel.request();
        let (end, _) = run("exec sleep 600", &cancel);
        assert_eq!(
            (end.outcome, end.detail.as_str()),
            (TestOutcome::Inconclusive, "the run was interrupted")
        );
    }
}
