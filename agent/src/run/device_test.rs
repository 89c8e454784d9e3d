//! One device test in this process, so that a crash, a hang or a lost GPU takes only this process with it. One request
//! line on standard input, which the runner keeps open for as long as it lives; one event per line on standard output.

use std::io::{BufRead, Read, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use whetstone_burnin::protocol::{Event, Request, Sink};
use whetstone_device::Context;
use whetstone_device::cuda::collectives::library::REQUEST_VARIABLE;

/// Longest request that is read from standard input.
const MAX_REQUEST_BYTES: u64 = 1 << 20;

/// A request that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("request: {0}")]
pub struct BadRequest(String);

struct Lines(Mutex<std::io::Stdout>);

impl Sink for Lines {
    fn emit(&self, event: Event) {
        // A closed pipe means that the runner is gone: nobody is left to test for.
        let written = serde_json::to_string(&event).ok().is_some_and(|line| {
            self.0.lock().is_ok_and(|mut out| writeln!(out, "{line}").and_then(|()| out.flush()).is_ok())
        });
        if !written {
            whetstone_device::leave(1);
        }
    }
}

/// What a program does that was started by a [`super::Launcher`]: runs the test and ends the process. Returns only
/// if there is no request that it understands.
pub fn serve() -> BadRequest {
    let text = match std::env::var(REQUEST_VARIABLE) {
        // This process was started again by itself, to find NCCL; the line on standard input is read already.
        Ok(handed_on) => handed_on,
        Err(_) => {
            let mut line = String::new();
            match std::io::stdin().lock().take(MAX_REQUEST_BYTES).read_line(&mut line) {
                Ok(_) => line,
                Err(e) => return BadRequest(e.to_string()),
            }
        }
    };
    let request: Request = match serde_json::from_str(&text) {
        Ok(request) => request,
        Err(e) => return BadRequest(e.to_string()),
    };
    std::thread::spawn(end_with_the_runner);
    let sink = Lines(Mutex::new(std::io::stdout()));
    let done = whetstone_device::run(
        &request,
        &Context {
            sink: &sink,
            deadline: Instant::now() + Duration::from_secs(request.budget_s),
            seed: request.seed,
            scratch: &request.scratch,
            gpus: &request.gpus,
        },
    );
    sink.emit(Event::Done { outcome: done.outcome, detail: done.detail });
    // Not by returning: a vendor library's destructors may hang or crash after the result is out.
    whetstone_device::leave(0)
}

/// The runner holds our standard input open; when it closes, the runner is gone, however it ended.
fn end_with_the_runner() {
    let mut rest = [0u8; 64];
    let mut stdin = std::io::stdin().lock();
    while matches!(stdin.read(&mut rest), Ok(1..)) {}
    whetstone_device::leave(1)
}
