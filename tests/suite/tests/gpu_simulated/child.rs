//! A device test as the runner starts it: `whet device-test` on a simulated blade, request in, events out.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use whetstone_burnin::protocol::{Event, GpuTarget, Request};
use whetstone_burnin::suite::TestKind;
use whetstone_model::device::DeviceId;
use whetstone_model::evidence::Finding;
use whetstone_model::report::{Digest, TestOutcome};
use whetstone_scenario::BladeScenario;
use whetstone_suite::{sim_blade, whet_on};

/// More than any of these tests takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const BUDGET_S: u64 = 60;
/// Of a load, which lasts as long as its budget.
const LOAD_S: u64 = 2;

/// A simulated blade that lives as long as the test.
pub struct Blade {
    dir: tempfile::TempDir,
    path: PathBuf,
    scenario: BladeScenario,
}

/// What a device test said.
#[derive(Debug)]
pub struct Said {
    pub outcome: TestOutcome,
    pub detail: String,
    pub events: Vec<Event>,
}

/// An eight-GPU H100 blade with these `[[fault]]` tables.
pub fn h100(faults: &str) -> Blade {
    blade("h100", faults)
}

pub fn blade(sku: &str, faults: &str) -> Blade {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("name = \"b-001\"\nsku = \"{sku}\"\nhbm_backed_mib = 32\n{faults}");
    let path = sim_blade(dir.path(), &text);
    let scenario = serde_json::from_slice(&std::fs::read(path.join("blade.json")).unwrap()).unwrap();
    Blade { dir, path, scenario }
}

impl Blade {
    pub fn target(&self, slot: usize) -> GpuTarget {
        let gpu = self.scenario.slot(slot).unwrap();
        GpuTarget { uuid: DeviceId::new(gpu.uuid.clone()).unwrap(), label: gpu.label() }
    }

    pub fn uuid(&self, slot: usize) -> DeviceId {
        self.target(slot).uuid
    }

    pub fn directory(&self) -> &Path {
        &self.path
    }

    fn scratch(&self) -> PathBuf {
        let scratch = self.dir.path().join("scratch");
        std::fs::create_dir_all(&scratch).unwrap();
        scratch
    }

    /// Files that the test left in its own directory.
    pub fn left_over(&self) -> usize {
        std::fs::read_dir(self.scratch()).unwrap().count()
    }

    pub fn start(&self, kind: TestKind, slots: &[usize]) -> Running {
        self.start_with(whet_on(&self.path), kind, slots.iter().map(|s| self.target(*s)).collect())
    }

    /// With these libraries in place of the simulated ones of the build.
    pub fn start_in(&self, libraries: &Path, kind: TestKind, slots: &[usize]) -> Running {
        let mut command = whet_on(&self.path);
        command.env("LD_LIBRARY_PATH", libraries);
        self.start_with(command, kind, slots.iter().map(|s| self.target(*s)).collect())
    }

    pub fn start_with(&self, mut command: Command, kind: TestKind, gpus: Vec<GpuTarget>) -> Running {
        let name = kind.name().replace('_', "-");
        let budget_s = if matches!(kind, TestKind::GpuPower(_)) { LOAD_S } else { BUDGET_S };
        let request = Request { name, kind, seed: 7, budget_s, scratch: self.scratch(), gpus };
        let mut child = command
            .arg("device-test")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = serde_json::to_vec(&request).unwrap();
        line.push(b'\n');
        child.stdin.as_mut().unwrap().write_all(&line).unwrap();
        let (sender, events) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(serde_json::from_str(&line).unwrap()).is_err() {
                    break;
                }
            }
        });
        Running { child, events }
    }

    pub fn run(&self, kind: TestKind, slots: &[usize]) -> Said {
        self.start(kind, slots).into_end()
    }
}

/// A device test that runs. Ended with the value.
pub struct Running {
    child: Child,
    events: Receiver<Event>,
}

impl Running {
    pub fn into_end(self) -> Said {
        let mut events = Vec::new();
        loop {
            match self.events.recv_timeout(PATIENCE) {
                Ok(Event::Done { outcome, detail }) => return Said { outcome, detail, events },
                Ok(event) => events.push(event),
                Err(error) => panic!("{error} after {events:?}"),
            }
        }
    }

    /// Reads events until none has come for `silence`; true if the test is then still alive and has not said `Done`.
    pub fn falls_silent(&mut self, silence: Duration) -> bool {
        loop {
            match self.events.recv_timeout(silence) {
                Ok(Event::Done { .. }) | Err(RecvTimeoutError::Disconnected) => return false,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return self.child.try_wait().unwrap().is_none(),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Said {
    pub fn findings(&self) -> Vec<&Finding> {
        self.events.iter().filter_map(|e| if let Event::Finding(f) = e { Some(f) } else { None }).collect()
    }

    pub fn notes(&self) -> String {
        let notes = self
            .events
            .iter()
            .filter_map(|e| if let Event::Note { text } = e { Some(text.as_str()) } else { None });
        notes.collect::<Vec<_>>().join("\n")
    }

    pub fn digests(&self) -> Vec<&Digest> {
        self.events.iter().filter_map(|e| if let Event::Digest(d) = e { Some(d) } else { None }).collect()
    }

    /// The value of a reading about `device`.
    pub fn reading(&self, device: Option<&DeviceId>, metric: &str) -> Option<f64> {
        self.events.iter().find_map(|e| match e {
            Event::Reading(r) if r.device.as_ref() == device && r.reading.metric == metric => {
                Some(r.reading.value)
            }
            _ => None,
        })
    }

    /// Passed without any finding.
    pub fn assert_clean(&self) {
        assert_eq!((self.outcome, self.detail.as_str(), self.findings()), (TestOutcome::Pass, "", vec![]));
    }

    /// Failed, all faults have this code and are about this device; returns the first fault's text.
    pub fn assert_fault(&self, code: &str, device: &DeviceId) -> &str {
        use whetstone_model::action::Severity;
        assert_eq!(self.outcome, TestOutcome::Fail, "{}", self.detail);
        let faults: Vec<_> = self.findings().into_iter().filter(|f| f.severity == Severity::Fault).collect();
        assert!(!faults.is_empty(), "{}", self.detail);
        for fault in &faults {
            assert_eq!(
                (fault.code.as_str(), fault.device.as_ref()),
                (code, Some(device)),
                "{}",
                fault.detail
            );
        }
        &faults[0].detail
    }
}
