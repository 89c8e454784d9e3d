//! Two replicas of the operator with a PostgreSQL, as the chart installs them: the one that leads is killed in the middle of the
//! burn-ins, the other goes on, nothing is lost and nothing is done twice. Needs root, for the nodes.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests: what fails here is a failed test"
)]

mod deploy;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use deploy::site::Site;
use deploy::{Cluster, run, until};
use serde_json::{Value, json};

/// A PostgreSQL of this test's own, that pods reach with a password; gone when it is dropped.
struct Postgres {
    /// Address and port.
    place: String,
    server: Child,
    dir: tempfile::TempDir,
}

/// Runs as the user that the package brought: PostgreSQL does not as root.
fn as_postgres(program: &PathBuf) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program).current_dir("/");
    command
}

impl Postgres {
    fn start(cluster: &Cluster) -> Postgres {
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut bins: Vec<PathBuf> =
            versions.map(|v| v.path().join("bin")).filter(|b| b.join("initdb").exists()).collect();
        bins.sort();
        let bin = bins.pop().expect("PostgreSQL is needed for this test: apt-get install postgresql");
        let dir = tempfile::Builder::new().prefix("wt-pg").tempdir().unwrap();
        fs::write(dir.path().join("password"), "s3cret").unwrap();
        run(Command::new("chown").args(["-R", "postgres"]).arg(dir.path())).expect_ok();
        let data = dir.path().join("data");
        let password = format!("--pwfile={}", dir.path().join("password").display());
        let init = ["-U", "site", "-A", "scram-sha-256", &password, "-E", "UTF8", "--locale=C", "--no-sync"];
        run(as_postgres(&bin.join("initdb")).arg("-D").arg(&data).args(init)).expect_ok();
        let access = data.join("pg_hba.conf");
        let lines =
            format!("{}\nhost all all 0.0.0.0/0 scram-sha-256\n", fs::read_to_string(&access).unwrap());
        fs::write(&access, lines).unwrap();
        let listen = format!("listen_addresses={}", cluster.bridge());
        // Below the range from which the kernel takes ports for outgoing connections.
        let number = 25_432 + cluster.instance();
        let port = format!("port={number}");
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let server = as_postgres(&bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(dir.path())
            .args(["-c", &listen, "-c", &port, "-c", "fsync=off"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let postgres = Postgres { place: format!("{}:{number}", cluster.bridge()), server, dir };
        until(60, "PostgreSQL answers", || {
            let said =
                run(Command::new("psql").arg(postgres.url("postgres")).args(["-c", "CREATE DATABASE site"]));
            if said.ok { Ok(()) } else { Err((said, fs::read_to_string(postgres.dir.path().join("log")))) }
        });
        postgres
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://site:s3cret@{}/{database}", self.place)
    }

    /// The answer's rows, columns with '|' between.
    fn ask(&self, query: &str) -> Vec<String> {
        let said =
            run(Command::new("psql").arg(self.url("site")).args(["-A", "-t", "-c", query])).expect_ok();
        said.lines().map(str::to_owned).collect()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // setpriv becomes the server: this is its own process.
        let _ = Command::new("kill").args(["-INT", &self.server.id().to_string()]).status();
        let _ = self.server.wait();
    }
}

#[test]
fn the_second_replica_goes_on_where_the_first_was_killed() {
    let settings = json!({
        "operator": {"replicas": 2},
        "store": {"kind": "postgres", "postgres": {"urlSecret": "database"}},
        "pki": {"existingSecret": "whetstone-pki"},
    });
    let site = Site::up("infra1,infra2", &[("b-001", ""), ("b-002", "")], &settings);
    let cluster = &site.cluster;
    let postgres = Postgres::start(cluster);
    let url = format!("--from-literal=url={}", postgres.url("site"));
    cluster.kubectl(&["create", "secret", "generic", "database", "-n", "whetstone", &url]).expect_ok();
    let ca = format!("pki.caCertificate={}", site.make_pki().display());
    let said = site.helm("install", &["--set-file", &ca]);
    assert!(said.ok, "{}{}{}", said.out, said.err, site.logs("whetstone", "whetstone-operator"));

    let pods = cluster.get(&["pods", "-n", "whetstone"]);
    let of = |key: &str, part: &str| {
        let items = pods["items"].as_array().into_iter().flatten();
        items.map(|pod| pod[key][part].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let mut nodes = of("spec", "nodeName");
    nodes.sort();
    assert_eq!(nodes, ["infra1", "infra2"], "both replicas on one node");
    let first = leader(&site);
    assert!(of("metadata", "name").contains(&first), "{first} leads");

    site.credentials();
    site.deliver();
    site.arrive();
    until(120, "a burn-in goes on", || {
        let phases = site.phases();
        if phases.iter().any(|p| p.ends_with("BurningIn")) { Ok(()) } else { Err((phases, site.both_logs())) }
    });
    // At once, as a machine that loses its power: the lease is not given back.
    cluster.kubectl(&["delete", "pod", &first, "-n", "whetstone", "--grace-period=0", "--force"]).expect_ok();
    until(60, "the other one leads", || {
        let now = leader(&site);
        if now != first && !now.is_empty() {
            Ok(())
        } else {
            Err((now, site.logs("whetstone", "whetstone-operator")))
        }
    });
    until(300, "all blades are ready", || {
        let phases = site.phases();
        if phases == ["b-001 Ready", "b-002 Ready"] { Ok(()) } else { Err((phases, site.both_logs())) }
    });
    for blade in &site.blades {
        until(30, "the nodes are free", || {
            let node = cluster.node(&blade.name);
            if node.taints().is_empty() && !node.unschedulable() { Ok(()) } else { Err(node) }
        });
        // One run, one verdict, and each step once.
        let of_blade = |what: &str| postgres.ask(&what.replace("SERIAL", &blade.serial));
        assert_eq!(of_blade("SELECT count(*) FROM runs WHERE serial = 'SERIAL'"), ["1"]);
        assert_eq!(of_blade("SELECT count(*) FROM verdicts WHERE serial = 'SERIAL'"), ["1"]);
        let steps =
            of_blade("SELECT sequence, to_name FROM transitions WHERE serial = 'SERIAL' ORDER BY sequence");
        let names: Vec<&str> = steps.iter().filter_map(|s| s.split_once('|')).map(|(_, name)| name).collect();
        assert_eq!(names, ["Expected", "Discovered", "Preparing", "BurningIn", "Ready"], "{steps:?}");
    }
    // With the key of the CA's folder, which no pod may write.
    site.report();
    // And there are two again.
    cluster
        .kubectl(&["rollout", "status", "deployment/whetstone-operator", "-n", "whetstone", "--timeout=60s"])
        .expect_ok();
}

/// The pod that leads, as the Lease says.
fn leader(site: &Site) -> String {
    let lease: Value = site.cluster.get(&["lease", "whetstone-operator", "-n", "whetstone"]);
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}
