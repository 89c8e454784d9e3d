//! Results on their way: one file per run, sent until the operator has it, whatever happens to the agent meanwhile.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use whetstone_model::ids::{RunId, Serial};
use whetstone_model::wire::{MAX_RESULT, MAX_RESULT_SENT, RunResult, error_code};

use super::client::CallError;
use super::log::{self, Lasting, Level};
use super::pace::Backoff;
use super::shared::{Shared, lock};
use super::state::{self, StateDir, StateError};
use crate::bundle::manifest::{MANIFEST, SIGNATURE};

pub(super) const RUNS: &str = "runs";
const RESULT: &str = "result.json.zst";
/// Holds what the operator said to it.
const DELIVERED: &str = "delivered";
/// Bundles that are kept after they were delivered, for whoever looks at the blade itself.
const KEEP: usize = 4;
/// zstd's own default: a report of some MiB becomes some hundred KiB in milliseconds.
const LEVEL: i32 = 3;

#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("result of {bytes} bytes is over the limit")]
    TooLarge { bytes: u64 },
}

/// Who sends results.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub serial: Serial,
    pub instance: String,
}

impl Packet {
    /// Writes the file that is sent, from a signed bundle.
    pub fn write(&self, dir: &Path, bundle: &Path, run: RunId) -> Result<(), PacketError> {
        let mut bytes = 0;
        let mut text = |name: &str| {
            let path = bundle.join(name);
            let io = |source| PacketError::Io { path: path.clone(), source };
            bytes += fs::metadata(&path).map_err(io)?.len();
            if bytes > MAX_RESULT as u64 {
                return Err(PacketError::TooLarge { bytes });
            }
            fs::read_to_string(&path).map_err(io)
        };
        let result = RunResult {
            run,
            serial: self.serial.clone(),
            instance: self.instance.clone(),
            report_json: text("report.json")?,
            samples_jsonl: text("samples.jsonl")?,
            manifest_json: text(MANIFEST)?,
            signature: text(SIGNATURE)?,
        };
        let path = dir.join(RESULT);
        let temporary = path.with_added_extension("partial");
        let written = (|| -> io::Result<(u64, u64)> {
            let mut plain = Count { to: zstd::Encoder::new(File::create(&temporary)?, LEVEL)?, bytes: 0 };
            serde_json::to_writer(&mut plain, &result)?;
            let file = plain.to.finish()?;
            file.sync_all()?;
            Ok((plain.bytes, file.metadata()?.len()))
        })();
        let sizes = written.map_err(|source| PacketError::Io { path: path.clone(), source });
        let kept = sizes.and_then(|(plain, sent)| {
            if plain > MAX_RESULT as u64 || sent > MAX_RESULT_SENT as u64 {
                return Err(PacketError::TooLarge { bytes: plain });
            }
            fs::rename(&temporary, &path)
                .and_then(|()| File::open(dir)?.sync_all())
                .map_err(|source| PacketError::Io { path, source })
        });
        kept.inspect_err(|_| drop(fs::remove_file(&temporary)))
    }
}

/// Counts what goes through.
struct Count<W> {
    to: W,
    bytes: u64,
}

impl<W: Write> Write for Count<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The runs that are kept, oldest first.
pub(super) fn runs(dir: &Path) -> Vec<(RunId, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut runs: Vec<(RunId, PathBuf)> = entries
        .filter_map(|entry| Some((RunId(entry.file_name().to_str()?.parse().ok()?), entry.path())))
        .collect();
    runs.sort();
    runs
}

/// Nothing is left to do but, perhaps, to send it.
pub(super) fn is_settled(dir: &Path) -> bool {
    dir.join(RESULT).exists() || dir.join(DELIVERED).exists()
}

pub(super) fn delivered_before(dir: &Path, age: Duration) -> bool {
    let at = fs::metadata(dir.join(DELIVERED)).and_then(|file| file.modified());
    at.is_ok_and(|at| at.elapsed().is_ok_and(|old| old >= age))
}

pub(super) fn undo_delivered(dir: &Path) {
    let _ = fs::remove_file(dir.join(DELIVERED));
}

/// Sends results as they come, each until the operator took it or said that it never will.
pub(super) fn send_all(shared: &Arc<Shared>, state: &StateDir) {
    let runs_dir = state.path(RUNS);
    let (mut backoff, trouble) = (Backoff::default(), Lasting::default());
    loop {
        let waiting: Vec<_> =
            runs(&runs_dir).into_iter().filter(|(_, dir)| dir.join(RESULT).exists()).collect();
        let mut failed = false;
        for (run, dir) in waiting {
            match send(shared, run, &dir) {
                Ok(Sent::Taken) => {
                    trouble.well("results are delivered again");
                    log::info("result delivered", &[("run", &run)]);
                }
                Ok(Sent::NotWanted(why)) => {
                    log::warn("the operator does not want a result", &[("run", &run), ("why", &why)]);
                    shared.note(format!("run {run}: result not wanted: {why}"));
                }
                Ok(Sent::NoWay) => failed = true,
                Err(why) => {
                    trouble.failed(Level::Warn, "a result cannot be delivered yet", &[("run", &run)], &why);
                    failed = true;
                }
            }
        }
        forget_old(&runs_dir);
        let wait = if failed {
            backoff.next()
        } else {
            backoff = Backoff::default();
            // New ones are looked for as often as they may come.
            Duration::from_millis(500)
        };
        if shared.rest_until_stop(wait) {
            return;
        }
    }
}

enum Sent {
    Taken,
    /// It will never be taken; the bundle stays here.
    NotWanted(String),
    /// There is no certificate at the moment.
    NoWay,
}

/// Sends one result; an error is worth another try.
pub(super) fn deliver(shared: &Shared, state: &StateDir) {
    for (run, dir) in runs(&state.path(RUNS)) {
        if dir.join(RESULT).exists() {
            let _ = send(shared, run, &dir);
        }
    }
}

fn send(shared: &Shared, run: RunId, dir: &Path) -> Result<Sent, String> {
    let Some(client) = lock(&shared.client).clone() else { return Ok(Sent::NoWay) };
    let path = dir.join(RESULT);
    let file = File::open(&path).map_err(|e| e.to_string())?;
    let said = match client.put_zstd(&format!("/v1/runs/{run}/result"), file) {
        Ok(()) => None,
        Err(error) if is_final(&error) => Some(error.to_string()),
        Err(error) => return Err(error.to_string()),
    };
    let words = said.clone().unwrap_or_else(|| "delivered".to_owned());
    state::write(&dir.join(DELIVERED), words.as_bytes(), 0o644).map_err(|e| e.to_string())?;
    fs::remove_file(&path).map_err(|e| e.to_string())?;
    Ok(said.map_or(Sent::Taken, Sent::NotWanted))
}

/// Sending it again would bring the same answer. A conflict of identity or a revoked certificate may be put right.
fn is_final(error: &CallError) -> bool {
    match error {
        CallError::Refused { status: 404, code, .. } => code == error_code::NO_SUCH_RUN,
        CallError::Refused { status: 409, code, .. } => code != error_code::IDENTITY_CONFLICT,
        error => error.is_bad_request(),
    }
}

fn forget_old(runs_dir: &Path) {
    let mut delivered: Vec<PathBuf> =
        runs(runs_dir).into_iter().map(|(_, dir)| dir).filter(|dir| dir.join(DELIVERED).exists()).collect();
    let old = delivered.len().saturating_sub(KEEP);
    for dir in delivered.drain(..old) {
        if let Err(error) = fs::remove_dir_all(&dir) {
            log::warn("an old run cannot be removed", &[("path", &dir.display()), ("why", &error)]);
        }
    }
}
