//! Samples of every GPU at a fixed interval, for as long as a test runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, Instant};

use whetstone_model::facts::GpuSample;

use super::nvml::Gpus;
use super::{Depth, ProbeOptions, now_ms};

/// Samples waiting for their reader at most; further ones are counted and dropped.
const QUEUE: usize = 4096;

/// A thread that samples until this is dropped. A GPU that hangs stops giving samples, the others go on: what a
/// reader sees of it is the time of its last sample.
pub struct Sampler {
    samples: Receiver<GpuSample>,
    dropped: Arc<AtomicU64>,
    /// Dropping it ends the thread.
    _running: Sender<()>,
}

impl Sampler {
    /// Starts sampling. Without GPUs there are no samples; that is no error here.
    pub fn start(options: &ProbeOptions, interval: Duration) -> std::io::Result<Sampler> {
        let (sender, samples) = sync_channel(QUEUE);
        let (running, stopped) = channel();
        let dropped = Arc::new(AtomicU64::new(0));
        let gpus = Gpus::new(options.nvml_lib.clone());
        let timeout = options.timeout;
        let lost = dropped.clone();
        std::thread::Builder::new()
            .name("telemetry".to_owned())
            .spawn(move || run(gpus, timeout, interval, &sender, &lost, &stopped))?;
        Ok(Sampler { samples, dropped, _running: running })
    }

    /// The next sample, if one comes in time.
    pub fn receive(&self, timeout: Duration) -> Option<GpuSample> {
        self.samples.recv_timeout(timeout).ok()
    }

    /// All samples that wait.
    pub fn drain(&self) -> Vec<GpuSample> {
        self.samples.try_iter().collect()
    }

    /// Samples that were lost because nobody took them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn run(
    mut gpus: Gpus,
    timeout: Duration,
    interval: Duration,
    sender: &SyncSender<GpuSample>,
    dropped: &AtomicU64,
    stopped: &Receiver<()>,
) {
    let mut next = Instant::now();
    loop {
        if gpus.ask(Depth::Watch, Instant::now() + timeout).is_ok() {
            for gpu in gpus.collect(Instant::now() + timeout).gpus {
                match sender.try_send(GpuSample::of(&gpu, now_ms())) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => {
                        dropped.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(TrySendError::Disconnected(_)) => return,
                }
            }
        }
        // A look that took longer than the interval is not made up for.
        next = (next + interval).max(Instant::now());
        match stopped.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
