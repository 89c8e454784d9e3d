//! Programs of the system that know what no file says; bounded in time and output, never required.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes of an answer at most.
const MAX_ANSWER: u64 = 256 << 10;

/// What a program prints; `None` if it is not installed, is not allowed to, prints what is not text, or takes
/// longer than `limit`.
pub fn answer(program: &str, arguments: &[&str], limit: Duration) -> Option<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let stdout = child.stdout.take()?;
    let reader = std::thread::Builder::new().name(format!("ask-{program}")).spawn(move || {
        let mut text = String::new();
        stdout.take(MAX_ANSWER).read_to_string(&mut text).ok().map(|_| text)
    });
    let deadline = Instant::now() + limit;
    let finished = match &reader {
        Ok(reader) => {
            while !reader.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            reader.is_finished()
        }
        Err(_) => false,
    };
    if !finished {
        let _ = child.kill();
    }
    // A killed child that sits in the kernel cannot be waited for; the source's own time limit reports that.
    let _ = child.wait();
    if !finished {
        return None;
    }
    reader.ok()?.join().ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_a_missing_or_hanging_program_is_none() {
        let long = Duration::from_secs(10);
        assert_eq!(answer("echo", &["yes"], long).as_deref(), Some("yes\n"));
        assert_eq!(answer("no-such-program-here", &[], long), None);
        assert_eq!(answer("sleep", &["600"], Duration::from_millis(20)), None);
    }
}
