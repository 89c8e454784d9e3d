//! A site of a test's own: control plane, operator, store, simulated agents.

pub mod check;
pub mod cluster;
pub mod operator;
pub mod postgres;
pub mod site;
pub mod way;

use std::fmt::Debug;
use std::time::{Duration, Instant};

pub use site::{Site, listed, serial};

/// Asks until the answer is there; what it was instead, at the end of `seconds`, is the panic's text.
#[track_caller]
pub fn until<T, E: Debug>(seconds: u64, what: &str, mut ask: impl FnMut() -> Result<T, E>) -> T {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(last) if begun.elapsed() > Duration::from_secs(seconds) => {
                panic!("{what}: not within {seconds} s: {last:#?}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
