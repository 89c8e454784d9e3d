//! A Kubernetes control plane of a test's own: started by `whet-local`, gone when dropped.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Clusters of these tests at once, over all test processes and developers of this machine.
const INSTANCES: u8 = 5;
const WAIT: Duration = Duration::from_secs(300);

pub struct Cluster {
    whet_local: PathBuf,
    kubectl: PathBuf,
    dir: PathBuf,
    instance: String,
    /// Holds the instance for as long as the cluster is there; a process that dies lets go of it.
    _lock: File,
}

fn program(name: &str) -> PathBuf {
    let path = whetstone_suite::workspace().join("target/local/bin").join(name);
    assert!(path.exists(), "{} is not built: run `make build`", path.display());
    path
}

impl Cluster {
    pub fn up() -> Cluster {
        let begun = Instant::now();
        loop {
            let mut refused = String::new();
            for instance in 0..INSTANCES {
                match Cluster::try_up(instance) {
                    Ok(cluster) => return cluster,
                    Err(why) => refused.push_str(&format!("\n{instance}: {why}")),
                }
            }
            assert!(begun.elapsed() < WAIT, "no cluster could be started within {WAIT:?}:{refused}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn try_up(instance: u8) -> Result<Cluster, String> {
        let place = |what: &str| std::env::temp_dir().join(format!("whetstone-test-{what}-{instance}"));
        let lock = OpenOptions::new().create(true).append(true).open(place("lock")).unwrap();
        lock.try_lock().map_err(|e| e.to_string())?;
        let cluster = Cluster {
            whet_local: program("whet-local"),
            kubectl: program("kubectl"),
            dir: place("cluster"),
            instance: instance.to_string(),
            _lock: lock,
        };
        // What a killed test left.
        cluster.local(&["down"]);
        let up = cluster.local(&["up", "--instance", &cluster.instance, "--nodes", "0"]);
        match up.status.success() {
            true => Ok(cluster),
            // Its ports are taken: by a developer's own.
            false => Err(String::from_utf8_lossy(&up.stderr).into_owned()),
        }
    }

    /// `whet-local ARGS`.
    pub fn local(&self, args: &[&str]) -> Output {
        Command::new(&self.whet_local).args(args).arg("--dir").arg(&self.dir).output().unwrap()
    }

    /// Stops or starts a daemon: `("stop", "etcd")`.
    #[track_caller]
    pub fn daemon(&self, verb: &str, daemon: &str) {
        let output = self.local(&[verb, daemon]);
        assert!(output.status.success(), "{verb} {daemon}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(args);
        command
    }

    /// Standard output of `kubectl ARGS`, or what it complained of.
    pub fn try_kubectl(&self, args: &[&str]) -> Result<String, String> {
        let output = self.kubectl_command(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(args).unwrap_or_else(|error| panic!("kubectl {}: {error}", args.join(" ")))
    }

    pub fn print_logs(&self) {
        for entry in std::fs::read_dir(self.dir.join("log")).into_iter().flatten().flatten() {
            print_tail(&entry.path(), 8);
        }
    }
}

/// The last lines of a log, for who reads why a test failed.
pub fn print_tail(path: &Path, count: usize) {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    eprintln!("--- {}", path.display());
    for line in &lines[lines.len().saturating_sub(count)..] {
        eprintln!("{}", line.chars().take(400).collect::<String>());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        let down = self.local(&["down", "--instance", &self.instance]);
        if !down.status.success() {
            eprintln!("whet-local down: {}", String::from_utf8_lossy(&down.stderr));
        }
    }
}
