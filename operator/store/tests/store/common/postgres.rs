//! A PostgreSQL of this test binary's own: started once, reached through a socket in a temporary folder, gone when the
//! process ends, however it ends.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Starts the server, and stops it and removes its folder when standard input ends: that is when the test process does.
const KEEPER: &str = r#"
dir=$1 bin=$2; shift 2
"$@" "$bin/postgres" -D "$dir/data" -k "$dir" -c listen_addresses= -c fsync=off -c full_page_writes=off \
    -c max_connections=200 -c shared_buffers=32MB >"$dir/log" 2>&1 &
server=$!
read -r _
kill -INT $server
wait $server
rm -rf "$dir"
"#;

struct Cluster {
    dir: PathBuf,
    /// Its standard input is held open: the end of that is what stops the server.
    _keeper: Mutex<Child>,
}

static CLUSTER: OnceLock<Cluster> = OnceLock::new();
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The URL of a new, empty database.
pub async fn database() -> String {
    let cluster = tokio::task::spawn_blocking(|| CLUSTER.get_or_init(start)).await.unwrap();
    let name = format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let admin = super::raw(&url(&cluster.dir, "postgres")).await;
    let create = format!("CREATE DATABASE {name}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&admin).await.unwrap();
    admin.close().await;
    url(&cluster.dir, &name)
}

fn url(dir: &Path, database: &str) -> String {
    format!("postgres://postgres@localhost/{database}?host={}", dir.display())
}

fn bin() -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("PostgreSQL is needed for this test: apt-get install postgresql")
}

fn start() -> Cluster {
    let bin = bin();
    let dir = tempfile::Builder::new().prefix("wt-pg").tempdir().unwrap().keep();
    // PostgreSQL does not run as root; its package brings a user for it.
    let root = std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    let user: &[&str] = if root {
        run(Command::new("chown").arg("postgres").arg(&dir));
        &["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
    } else {
        &["env"]
    };
    run(Command::new(user[0])
        .args(&user[1..])
        .arg(bin.join("initdb"))
        .arg("-D")
        .arg(dir.join("data"))
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"])
        .current_dir("/"));
    let mut keeper = Command::new("sh")
        .args(["-c", KEEPER, "keeper"])
        .arg(&dir)
        .arg(&bin)
        .args(user)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // An interrupt from the terminal is for the tests; this one ends after them.
        .process_group(0)
        .spawn()
        .unwrap();
    let socket = dir.join(".s.PGSQL.5432");
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::os::unix::net::UnixStream::connect(&socket).is_err() || !ready(&dir) {
        let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "PostgreSQL did not start:\n{}", log());
        assert!(keeper.try_wait().unwrap().is_none(), "PostgreSQL ended:\n{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
    Cluster { dir, _keeper: Mutex::new(keeper) }
}

/// The last line of the file that the server keeps about itself.
fn ready(dir: &Path) -> bool {
    std::fs::read_to_string(dir.join("data/postmaster.pid"))
        .is_ok_and(|text| text.lines().nth(7).is_some_and(|line| line.trim() == "ready"))
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
