//! A PostgreSQL of a test's own, to be stopped and started again; ends with the test's thread.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::until;

pub struct Postgres {
    dir: tempfile::TempDir,
    bin: PathBuf,
    server: Option<Child>,
}

impl Postgres {
    pub fn start() -> Postgres {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut bins: Vec<PathBuf> =
            versions.map(|v| v.path().join("bin")).filter(|bin| bin.join("initdb").exists()).collect();
        bins.sort();
        let bin = bins.pop().expect("PostgreSQL is needed for this test: apt-get install postgresql");
        let dir = tempfile::Builder::new().prefix("wt-pg").tempdir().unwrap();
        let mut postgres = Postgres { dir, bin, server: None };
        let made = Command::new("chown").arg("postgres").arg(postgres.dir.path()).status().unwrap();
        assert!(made.success(), "chown postgres");
        let made = postgres
            .program("initdb")
            .arg("-D")
            .arg(postgres.dir.path().join("data"))
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        postgres.start_again();
        postgres
    }

    /// As the user that the package brought: PostgreSQL does not run as root. It ends with who started it.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--pdeathsig=INT"])
            .arg(self.bin.join(name))
            .current_dir("/");
        command
    }

    pub fn start_again(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let server = self
            .program("postgres")
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .arg("-k")
            .arg(self.dir.path())
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=32MB"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.server = Some(server);
        until(30, "PostgreSQL answers", || {
            let said = self.program("pg_isready").arg("-h").arg(self.dir.path()).output().unwrap();
            if said.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&said.stdout).into_owned())
            }
        });
    }

    /// As if its machine were switched off: no word to anybody.
    pub fn stop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let pid = server.id().to_string();
        let _ = Command::new("kill").args(["-QUIT", &pid]).status();
        let _ = server.wait();
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@localhost/postgres?host={}", self.dir.path().display())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}
