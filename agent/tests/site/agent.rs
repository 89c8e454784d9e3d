//! The shipped binary on a blade that is a directory.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use whetstone_model::wire::ItemBody;

use super::operator::{Operator, TOKEN};

/// Longest wait for anything; what is waited for takes seconds, the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until `done` gives something.
pub fn wait<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let limit = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < limit, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A blade's directory: its state outlives the agents that run on it.
pub struct Blade {
    dir: tempfile::TempDir,
    /// The serial that its agents are given; with `None` the firmware's counts.
    pub serial: Option<&'static str>,
}

pub struct Agent {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Blade {
    pub fn new() -> Blade {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        std::fs::write(dir.path().join("kmsg"), "").unwrap();
        std::fs::write(dir.path().join("token"), TOKEN).unwrap();
        Blade { dir, serial: Some("S-1") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn start(&self, operator: &Operator, more: &[&str]) -> Agent {
        operator.write_ca(&self.path("ca.pem"));
        let own = [format!("--operator=https://{}", operator.address)];
        let pace = ["--interval=1s"];
        let given = |option: &str| more.iter().any(|arg| arg.starts_with(option));
        let mut child = Command::new(env!("CARGO_BIN_EXE_whetstone-agent"))
            .args(["run", "--report-interval", "1s", "--backend", "cpu"])
            .args(pace.iter().filter(|_| !given("--interval")))
            .arg("--ca")
            .arg(self.path("ca.pem"))
            .arg("--token-file")
            .arg(self.path("token"))
            .env_remove("WHETSTONE_SERIAL")
            .envs(self.serial.map(|serial| ("WHETSTONE_SERIAL", serial)))
            .arg("--state")
            .arg(self.path("state"))
            .arg("--root")
            .arg(self.path("root"))
            .arg("--kmsg")
            .arg(self.path("kmsg"))
            .args(own.iter().filter(|_| !given("--operator")))
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, kept) = (BufReader::new(child.stderr.take().unwrap()).lines(), log.clone());
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| kept.lock().unwrap().push(line))
        });
        Agent { child, log }
    }

    /// Writes a file of the blade's root.
    pub fn root(&self, name: &str, text: &str) {
        let path = self.path("root").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Writes kernel lines that are faults: Xid 79 of the GPU with this bus number.
    pub fn kernel(&self, buses: impl IntoIterator<Item = u32>) {
        let mut file = std::fs::OpenOptions::new().append(true).open(self.path("kmsg")).unwrap();
        for bus in buses {
            writeln!(file, "NVRM: Xid (PCI:{bus:04x}:01:00): 79, pid=1, GPU has fallen off the bus.")
                .unwrap();
        }
    }
}

impl Agent {
    pub fn said(&self, what: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(what))
    }

    /// Lines that say this.
    pub fn count(&self, what: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(what)).count()
    }

    /// The word that follows `what` in the log.
    pub fn field(&self, what: &str) -> String {
        wait(what, || {
            let log = self.log.lock().unwrap();
            let line = log.iter().find_map(|line| line.split_once(what))?;
            line.1.split_whitespace().next().map(str::to_owned)
        })
    }

    pub fn wait_for_log(&self, what: &str) {
        wait(&format!("{what:?} in the log {:#?}", self.log.lock().unwrap()), || {
            self.said(what).then_some(())
        });
    }

    pub fn errors(&self) -> Vec<String> {
        self.log.lock().unwrap().iter().filter(|line| line.contains(" ERROR ")).cloned().collect()
    }

    /// The end of power, as far as a process can tell.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// An orderly end; the exit code.
    pub fn stop(mut self) -> Option<i32> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        wait("the agent's end", || self.child.try_wait().unwrap()).code()
    }

    pub fn wait_for_end(mut self) -> (Option<i32>, String) {
        let status = wait("the agent's end", || self.child.try_wait().unwrap());
        wait("its last words", || (Arc::strong_count(&self.log) == 1).then_some(()));
        let log = self.log.lock().unwrap().join("\n");
        (status.code(), log)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("agent's log:\n{}", self.log.lock().unwrap().join("\n"));
        }
    }
}

/// Devices of the kernel faults that the operator has, each as often as it has it.
pub fn kernel_devices(operator: &Operator) -> Vec<String> {
    operator.books(|books| {
        let mut devices: Vec<String> = books
            .items
            .values()
            .filter_map(|item| match &item.body {
                ItemBody::Kernel { finding, .. } => finding.device.as_ref().map(ToString::to_string),
                _ => None,
            })
            .collect();
        devices.sort();
        devices
    })
}

pub fn device(bus: u32) -> String {
    format!("{bus:04x}:01:00")
}

pub fn devices(buses: impl IntoIterator<Item = u32>) -> Vec<String> {
    buses.into_iter().map(device).collect()
}
