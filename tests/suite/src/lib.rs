//! What the end-to-end tests in `tests/` share: the built binaries and the simulated libraries.
//!
//! Each is built at most once per test process; after `make build` that costs a look at the files.
#![allow(clippy::expect_used, clippy::panic, reason = "test support: a missing build is a failed test")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The workspace's top folder.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace is there")
}

/// Where cargo put this test, and so the binaries of the same profile.
fn binaries() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    test.ancestors().nth(2).expect("target/<profile>/deps/<test>").to_owned()
}

fn cargo(args: &[&str]) {
    let status =
        Command::new(env!("CARGO")).current_dir(workspace()).args(args).status().expect("cargo runs");
    assert!(status.success(), "cargo {}", args.join(" "));
}

/// The shipped command line.
pub fn whet() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        cargo(&["build", "--quiet", "-p", "whet"]);
        binaries().join("whet")
    };
    BUILT.get_or_init(build).clone()
}

/// The simulator's command line.
pub fn whet_sim() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        cargo(&["build", "--quiet", "-p", "whetstone-scenario", "--bins"]);
        binaries().join("whet-sim")
    };
    BUILT.get_or_init(build).clone()
}

/// The folder with the simulated `libnvidia-ml.so.1`, `libcuda.so.1` and `libnccl.so.2`.
pub fn sim_libraries() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let dir = workspace().join("target/sim");
        let status =
            Command::new(whet_sim()).current_dir(workspace()).args(["libs", "--dir"]).arg(&dir).status();
        assert!(status.expect("whet-sim runs").success(), "whet-sim libs");
        dir
    };
    BUILT.get_or_init(build).clone()
}

/// A blade's directory made by `whet-sim blade` from a scenario's text.
pub fn sim_blade(dir: &Path, scenario: &str) -> PathBuf {
    let file = dir.join("scenario.toml");
    std::fs::write(&file, scenario).expect("the scenario is written");
    let blade = dir.join("blade");
    let made =
        Command::new(whet_sim()).args(["blade", "--scenario"]).arg(&file).arg("--out").arg(&blade).status();
    assert!(made.expect("whet-sim runs").success(), "whet-sim blade");
    blade
}

/// `whet` with the simulated libraries and the blade in `blade` in place of this machine.
pub fn whet_on(blade: &Path) -> Command {
    let mut command = Command::new(whet());
    command
        .env("LD_LIBRARY_PATH", sim_libraries())
        .env("WHETSTONE_SIM", blade)
        .env("WHETSTONE_ROOT", blade.join("root"))
        .env("WHETSTONE_KMSG", blade.join("kmsg"))
        .env("WHETSTONE_KEY", blade.join("signing-key.pem"));
    command
}
