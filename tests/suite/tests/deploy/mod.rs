//! A real Kubernetes for the tests of `deploy/`: started by `whet-local`, spoken to by `kubectl` and `helm`, taken down at the end.
#![allow(dead_code, reason = "each of the tests uses a part")]

pub mod site;

use std::fmt::Debug;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The folder `deploy/`.
pub fn deploy() -> PathBuf {
    whetstone_suite::workspace().join("deploy")
}

fn built(script: &str, program: &str) -> PathBuf {
    let status = Command::new("bash").arg(deploy().join(script)).status().unwrap();
    assert!(status.success(), "{script}");
    whetstone_suite::workspace().join("target/local/bin").join(program)
}

/// The local Kubernetes' programs, built at need.
pub fn local_program(name: &str) -> PathBuf {
    built("local/build.sh", name)
}

/// helm, built at need.
pub fn helm() -> PathBuf {
    built("helm/build.sh", "helm")
}

/// The folder with the shipped programs, built at need: those of this test's own profile, or those in `WHETSTONE_TEST_PROGRAMS`
/// (such as a release's).
pub fn programs() -> PathBuf {
    if let Some(dir) = std::env::var_os("WHETSTONE_TEST_PROGRAMS") {
        return dir.into();
    }
    let status = Command::new(env!("CARGO"))
        .current_dir(whetstone_suite::workspace())
        .args([
            "build",
            "--quiet",
            "-p",
            "whetstone-operator",
            "-p",
            "whetstone-agent",
            "-p",
            "whet",
            "--bins",
        ])
        .status();
    assert!(status.unwrap().success(), "cargo build");
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().to_owned()
}

/// What a program said.
#[derive(Debug)]
pub struct Said {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

impl Said {
    fn new(output: Output) -> Said {
        Said {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Its standard output, if all went well.
    pub fn expect_ok(self) -> String {
        assert!(self.ok, "{}{}", self.out, self.err);
        self.out
    }

    /// Its complaint, which has to hold `part`.
    pub fn expect_refused(self, part: &str) -> String {
        assert!(!self.ok, "was not refused: {}", self.out);
        assert!(self.err.contains(part), "refused without {part:?}: {}", self.err);
        self.err
    }
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Said {
    Said::new(command.output().unwrap())
}

/// Asks until the answer is there; what it was instead, at the end of `seconds`, is the panic's text.
#[track_caller]
pub fn until<T, E: Debug>(seconds: u64, what: &str, mut ask: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(last) if Instant::now() >= deadline => panic!("{what}: not within {seconds} s: {last:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// A cluster of its own; gone when it is dropped.
pub struct Cluster {
    whet_local: PathBuf,
    kubectl: PathBuf,
    scratch: tempfile::TempDir,
    instance: u16,
}

impl Cluster {
    /// Starts one in a place that is free: others may run on this machine.
    pub fn up(more: &[&str]) -> Cluster {
        let (whet_local, kubectl) = (local_program("whet-local"), local_program("kubectl"));
        for instance in (0..10).rev() {
            let (whet_local, kubectl) = (whet_local.clone(), kubectl.clone());
            let cluster = Cluster { whet_local, kubectl, scratch: tempfile::tempdir().unwrap(), instance };
            let number = instance.to_string();
            let said = cluster.local(&[&["up", "--instance", &number, "--network"], more].concat());
            if said.ok {
                return cluster;
            }
            assert!(said.err.contains(" is taken "), "{}", said.err);
        }
        panic!("each of the ten places for a cluster is taken");
    }

    /// Which of the ten places it has.
    pub fn instance(&self) -> u16 {
        self.instance
    }

    /// The machine's own address on the link that the nodes hang on: where pods find what runs on the machine itself.
    pub fn bridge(&self) -> String {
        format!("10.77.{}.1", self.instance)
    }

    fn dir(&self) -> PathBuf {
        self.scratch.path().join("cluster")
    }

    /// For files of the test that outlive a step.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("admin.kubeconfig")
    }

    /// `whet-local ARGS`.
    pub fn local(&self, args: &[&str]) -> Said {
        run(Command::new(&self.whet_local).args(args).arg("--dir").arg(self.dir()))
    }

    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(args);
        command
    }

    /// `kubectl ARGS`.
    pub fn kubectl(&self, args: &[&str]) -> Said {
        run(&mut self.kubectl_command(args))
    }

    /// `kubectl ARGS -f -`.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Said {
        let mut child = self
            .kubectl_command(args)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Said::new(child.wait_with_output().unwrap())
    }

    /// An object, as JSON.
    pub fn get(&self, args: &[&str]) -> Value {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        serde_json::from_str(&self.kubectl(&all).expect_ok()).unwrap()
    }

    /// `helm ARGS`.
    pub fn helm(&self, args: &[&str]) -> Said {
        run(Command::new(helm())
            .args(args)
            .env("KUBECONFIG", self.kubeconfig())
            // Nobody's own settings, and nothing left in a home folder.
            .env("HELM_CONFIG_HOME", self.scratch().join("helm/config"))
            .env("HELM_CACHE_HOME", self.scratch().join("helm/cache"))
            .env("HELM_DATA_HOME", self.scratch().join("helm/data")))
    }

    /// What the daemons said last, for who reads why a test failed.
    fn print_logs(&self) {
        for entry in std::fs::read_dir(self.dir().join("log")).into_iter().flatten().flatten() {
            let text = std::fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}", entry.file_name().to_string_lossy());
            for line in &lines[lines.len().saturating_sub(20)..] {
                eprintln!("{}", line.chars().take(300).collect::<String>());
            }
        }
    }

    pub fn node(&self, name: &str) -> NodeSeen {
        NodeSeen(self.get(&["node", name]))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            self.print_logs();
        }
        let down = self.local(&["down"]);
        if !failed {
            down.expect_ok();
        }
    }
}

/// A Node as the apiserver has it.
#[derive(Debug)]
pub struct NodeSeen(pub Value);

impl NodeSeen {
    /// Taints as `key=value:effect`, sorted, those of Kubernetes' own controllers left out.
    pub fn taints(&self) -> Vec<String> {
        let mut taints: Vec<String> = self.all_taints();
        taints.retain(|t| !t.starts_with("node.kubernetes.io/"));
        taints
    }

    pub fn all_taints(&self) -> Vec<String> {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let one = |t: &Value| format!("{}={}:{}", text(&t["key"]), text(&t["value"]), text(&t["effect"]));
        let mut taints: Vec<String> =
            self.0["spec"]["taints"].as_array().into_iter().flatten().map(one).collect();
        taints.sort();
        taints
    }

    pub fn unschedulable(&self) -> bool {
        self.0["spec"]["unschedulable"].as_bool().unwrap_or_default()
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.0["metadata"]["annotations"][key].as_str()
    }

    pub fn ready(&self) -> bool {
        let conditions = self.0["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
    }
}
