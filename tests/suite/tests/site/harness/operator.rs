//! The operator as a process of its own, to be killed and started again.

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use super::{cluster::print_tail, until};

/// The operator's program, built with this test. Not built from here: cargo would make it again with other features.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("whetstone-operator");
    assert!(program.exists(), "{} is not built: run `make build`", program.display());
    program
}

/// A port below those that the kernel gives out by itself, so that it stays free while the operator is down. None is tried twice
/// in this process, and each process begins at a place of its own.
pub fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 10_000 + (std::process::id() % 9_000) as u16;
    (0..2_000)
        .map(|_| start + NEXT.fetch_add(1, Ordering::Relaxed))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// How an operator is started.
#[derive(Debug, Clone)]
pub struct Settings {
    pub store: String,
    pub pki: PathBuf,
    pub kubeconfig: PathBuf,
    pub listen: u16,
    pub http: u16,
    pub log: PathBuf,
    pub more: Vec<String>,
}

pub struct Operator {
    pub settings: Settings,
    child: Option<Child>,
}

impl Operator {
    pub fn new(settings: Settings) -> Operator {
        Operator { settings, child: None }
    }

    /// Starts it, with `more` arguments for this time only.
    pub fn start(&mut self, more: &[&str]) {
        assert!(self.child.is_none(), "it runs already");
        let log = OpenOptions::new().create(true).append(true).open(&self.settings.log).unwrap();
        let settings = &self.settings;
        let child = Command::new(program())
            .args(["run", "--store", &settings.store, "--pki-create", "--pki-dir"])
            .arg(&settings.pki)
            .arg("--kubeconfig")
            .arg(&settings.kubeconfig)
            .args(["--listen", &format!("127.0.0.1:{}", settings.listen)])
            .args(["--http", &format!("127.0.0.1:{}", settings.http)])
            .args(["--server-name", "localhost", "--report-interval", "200ms"])
            .args(&settings.more)
            .args(more)
            .env("WHETSTONE_LOG", "info,kube_client=warn,kube_runtime=warn,whetstone_operator=debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// `kill -9`; nothing if it does not run.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends it a signal: `STOP` pauses it, `CONT` lets it go on, `TERM` asks it to end.
    #[track_caller]
    pub fn signal(&self, signal: &str) {
        let process = self.child.as_ref().expect("it runs").id().to_string();
        let sent = Command::new("kill").args([&format!("-{signal}"), &process]).status().unwrap();
        assert!(sent.success(), "kill -{signal}: {sent}");
    }

    /// Waits until it has ended.
    #[track_caller]
    pub fn wait_ended(&mut self, seconds: u64) -> ExitStatus {
        until(seconds, "the operator ends", || self.ended().ok_or("it runs"))
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap();
        if status.is_some() {
            self.child = None;
        }
        status
    }

    fn get(&self, path: &str) -> Result<(u16, String), String> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(5)))
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .into();
        let url = format!("http://127.0.0.1:{}{path}", self.settings.http);
        let mut answer = agent.get(url).call().map_err(|e| e.to_string())?;
        Ok((answer.status().as_u16(), answer.body_mut().read_to_string().map_err(|e| e.to_string())?))
    }

    /// `/readyz`: whether all is well, and what it says.
    pub fn ready(&self) -> Result<(bool, String), String> {
        self.get("/readyz").map(|(status, page)| (status == 200, page))
    }

    /// `/metrics`.
    pub fn metrics(&self) -> Result<String, String> {
        self.get("/metrics").map(|(_, text)| text)
    }

    /// Sum of the samples of a metric whose line holds all of `labels`; 0 where there is none.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64, String> {
        Ok(self
            .metrics()?
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    /// It leads, and all that it looks after is well.
    #[track_caller]
    pub fn wait_leading(&mut self) {
        until(60, "the operator leads", || {
            if let Some(status) = self.ended() {
                panic!("the operator ended: {status}");
            }
            match self.metric("whetstone_leader", &[])? {
                1.0 => Ok(()),
                _ => Err("it does not lead".to_owned()),
            }
        });
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            print_tail(&self.settings.log, 80);
        }
    }
}
