//! The GPU tests on simulated silicon: clean blades pass, each planted fault is found on its device, with its SM and bits.
//!
//! They need the kernel images in the binary (`make kernels` before the build). A build without them has one thing to
//! show: that it says so.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

mod child;
mod compute;
mod links;
mod trouble;

use whetstone_model::report::TestOutcome;

/// False where the binary carries no kernels, after checking that it says so.
fn has_kernels() -> bool {
    let folder = whetstone_suite::workspace().join("target/kernels");
    let images = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().into_string().ok());
    if images.into_iter().any(|name| name.ends_with(".cubin")) {
        return true;
    }
    let said = child::h100("").run(compute::gemm(&["bf16"]), &[0]);
    assert_eq!(said.outcome, TestOutcome::Inconclusive);
    assert!(said.detail.contains("make kernels"), "{}", said.detail);
    eprintln!("skipped: no kernel images, see `make kernels`");
    false
}
