//! Between GPUs: every ordered pair, then every pair in both directions at once.

use std::collections::BTreeMap;

use cudarc::driver::{CudaFunction, result, sys};
use whetstone_burnin::exact::{GOLDEN, mix64};
use whetstone_burnin::protocol::{Event, GpuTarget, Sink};
use whetstone_model::action::{Action, Severity};
use whetstone_model::report::Matrix;
use whetstone_model::unit::Unit;

use super::Test;
use crate::cuda::blame::culprits;
use crate::cuda::driver::{Arguments, Buffer, Gpu, MemoryFault};
use crate::cuda::errors::CudaError;
use crate::cuda::gemm::speed::median;

type Blamed = (Option<GpuTarget>, CudaError);

/// Copies between two marks when the time of one small copy is asked for.
const SMALL_COPIES: u32 = 64;
const SMALL_BYTES: usize = 8;
const THREADS: u32 = 256;
/// Wrong words that are fetched.
const LOG_ENTRIES: u32 = 64;
/// `mem_fill`'s random pattern (ABI.md).
const RANDOM: u32 = 4;
/// Shortfall of a pair against the median pair from which it is slow, with the robust deviation below.
const SLOW: f64 = 0.10;
const SIGMAS: f64 = 6.0;
/// Fewer pairs than two GPUs of three give have no meaningful median.
const FEWEST_PAIRS: usize = 6;

/// One GPU's end of the copies.
struct End<'g> {
    gpu: &'g Gpu,
    /// What it sends, and what it receives.
    source: Buffer,
    target: Buffer,
    log: Buffer,
    count: Buffer,
    fill: Option<CudaFunction>,
    verify: Option<CudaFunction>,
    seed: u64,
}

/// A copy that did not arrive as it was sent.
struct Corrupt {
    word: u64,
    xor: u64,
    words: u64,
}

impl<'g> End<'g> {
    fn new(gpu: &'g Gpu, bytes: usize, seed: u64) -> Result<End<'g>, CudaError> {
        // A build without kernels still copies, and compares on the host.
        let optional = |name| match gpu.kernel(name) {
            Ok(function) => Ok(Some(function)),
            Err(CudaError::NoKernels | CudaError::NoImage { .. } | CudaError::NoKernel { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        let end = End {
            gpu,
            source: Buffer::new(gpu, bytes)?,
            target: Buffer::zeros(gpu, bytes)?,
            log: Buffer::zeros(gpu, LOG_ENTRIES as usize * size_of::<MemoryFault>())?,
            count: Buffer::zeros(gpu, size_of::<u32>())?,
            fill: optional("mem_fill")?,
            verify: optional("mem_verify")?,
            seed,
        };
        match &end.fill {
            Some(fill) => {
                let words = bytes as u64 / 8;
                let arguments = Arguments::new().pointer(&end.source).u64(words).u64(0).u32(RANDOM).u64(seed);
                gpu.launch("mem_fill", fill, blocks(gpu, words), THREADS, &arguments)?;
                gpu.wait("mem_fill")?;
            }
            None => {
                let words: Vec<u64> = (0..bytes as u64 / 8).map(|i| word(seed, i)).collect();
                end.source.upload(gpu, &words)?;
            }
        }
        Ok(end)
    }

    /// An error of this end.
    fn blamed(&self, error: CudaError) -> Blamed {
        (Some(self.gpu.target.clone()), error)
    }

    /// Holds what arrived here against what the end with `seed` sends; then forgets it.
    fn check(&self, seed: u64) -> Result<Option<Corrupt>, CudaError> {
        let words = self.target.bytes() as u64 / 8;
        let corrupt = match &self.verify {
            Some(verify) => {
                self.count.clear(self.gpu)?;
                let arguments = Arguments::new()
                    .pointer(&self.target)
                    .u64(words)
                    .u64(0)
                    .u32(RANDOM)
                    .u64(seed)
                    .pointer(&self.log)
                    .u32(LOG_ENTRIES)
                    .pointer(&self.count)
                    .u32(0);
                self.gpu.launch("mem_verify", verify, blocks(self.gpu, words), THREADS, &arguments)?;
                let count = self.count.count(self.gpu, "the number of wrong words")?;
                if count == 0 {
                    None
                } else {
                    let logged = count.min(LOG_ENTRIES) as usize;
                    let log: Vec<MemoryFault> = self.log.download(self.gpu, 0, logged)?;
                    log.into_iter().min_by_key(|f| f.word_index).map(|first| Corrupt {
                        word: first.word_index,
                        xor: first.expected ^ first.got,
                        words: u64::from(count),
                    })
                }
            }
            None => {
                let got: Vec<u64> = self.target.download(self.gpu, 0, words as usize)?;
                let wrong: Vec<(u64, u64)> = (0..)
                    .zip(&got)
                    .map(|(i, got)| (i, got ^ word(seed, i)))
                    .filter(|(_, xor)| *xor != 0)
                    .collect();
                wrong.first().map(|(word, xor)| Corrupt { word: *word, xor: *xor, words: wrong.len() as u64 })
            }
        };
        self.target.clear(self.gpu)?;
        Ok(corrupt)
    }
}

/// The random pattern's word, as the kernels have it.
fn word(seed: u64, index: u64) -> u64 {
    mix64(seed.wrapping_add((index + 1).wrapping_mul(GOLDEN)))
}

fn blocks(gpu: &Gpu, words: u64) -> u32 {
    words.div_ceil(u64::from(THREADS) * 64).clamp(1, u64::from(gpu.sms * 8).max(1)) as u32
}

/// Puts a copy of `bytes` from `from` to `to` into `from`'s stream.
fn copy(from: &End<'_>, to: &End<'_>, bytes: usize) -> Result<(), CudaError> {
    from.gpu.check("bind context", from.gpu.context.bind_to_thread())?;
    // SAFETY: both buffers outlive the copy (every caller waits for the stream), `bytes` is at most their length.
    let done = unsafe {
        result::memcpy_peer_async(
            to.gpu.context.cu_ctx(),
            to.target.pointer(),
            from.gpu.context.cu_ctx(),
            from.source.pointer(),
            bytes,
            from.gpu.stream.cu_stream(),
        )
    };
    from.gpu.check("cuMemcpyPeerAsync", done)
}

/// Lets `from` reach `to`'s memory directly where the hardware can; false = copies go through the host.
fn enable(from: &Gpu, to: &Gpu) -> Result<bool, CudaError> {
    let mut can = 0;
    // SAFETY: `can` is a valid place for the answer.
    let asked =
        unsafe { sys::cuDeviceCanAccessPeer(&mut can, from.context.cu_device(), to.context.cu_device()) };
    from.check("cuDeviceCanAccessPeer", asked.result())?;
    if can == 0 {
        return Ok(false);
    }
    from.check("bind context", from.context.bind_to_thread())?;
    // SAFETY: both contexts live as long as the test.
    let enabled = unsafe { sys::cuCtxEnablePeerAccess(to.context.cu_ctx(), 0) };
    match enabled {
        sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(true),
        sys::CUresult::CUDA_ERROR_TOO_MANY_PEERS => Ok(false),
        other => from.check("cuCtxEnablePeerAccess", other.result()).map(|()| true),
    }
}

type Table = Vec<Vec<Option<f64>>>;

impl<S: Sink> Test<'_, S> {
    pub(super) fn peers(&mut self) -> Result<(), Blamed> {
        if self.late() {
            self.unfinished.get_or_insert_with(|| "the time was spent before GPU to GPU copies".to_owned());
            return Ok(());
        }
        let n = self.gpus.len();
        let mut ends = Vec::new();
        for (i, gpu) in self.gpus.iter().enumerate() {
            let seed = mix64(self.context.seed ^ (i as u64 + 1));
            ends.push(End::new(gpu, self.bytes(), seed).map_err(|e| (Some(gpu.target.clone()), e))?);
        }
        let empty = || vec![vec![None; n]; n];
        let (mut one_way, mut both_ways, mut latency) = (empty(), empty(), empty());
        let (mut through_host, mut corrupt) = (0, Vec::new());
        let pairs: Vec<(usize, usize)> =
            (0..n).flat_map(|i| (0..n).filter(move |j| *j != i).map(move |j| (i, j))).collect();
        for (step, (i, j)) in pairs.iter().copied().enumerate() {
            if self.late() {
                self.unfinished = Some(format!(
                    "the time was spent after {step} of {} pairs of GPUs had copied",
                    pairs.len()
                ));
                break;
            }
            let done = 0.5 + 0.5 * step as f64 / pairs.len() as f64;
            let (from, to) = (&self.gpus[i].target.label, &self.gpus[j].target.label);
            self.context.sink.progress(done, &format!("copies {from} to {to}"));
            let blame = |e| (Some(self.gpus[i].target.clone()), e);
            through_host += usize::from(!enable(&self.gpus[i], &self.gpus[j]).map_err(blame)?);
            latency[i][j] = Some(small(&ends[i], &ends[j])? * 1e6);
            let (rate, bad) = self.one_way(&ends[i], &ends[j])?;
            one_way[i][j] = Some(rate / 1e9);
            corrupt.extend(bad.map(|bad| (i, j, bad)));
            if i > j {
                let (rate, bad) = self.both_ways(&ends[i], &ends[j])?;
                both_ways[i][j] = Some(rate / 1e9);
                both_ways[j][i] = both_ways[i][j];
                corrupt
                    .extend(bad.into_iter().map(|(back, bad)| if back { (j, i, bad) } else { (i, j, bad) }));
            }
        }
        if through_host > 0 {
            self.context.sink.note(format!(
                "{through_host} of {} GPU pairs have no direct path; their copies went through the host",
                pairs.len()
            ));
        }
        self.matrix("p2p.bandwidth", Unit::GBps, &one_way);
        self.matrix("p2p.bidir.bandwidth", Unit::GBps, &both_ways);
        self.matrix("p2p.latency", Unit::Microsecond, &latency);
        for (i, gpu) in self.gpus.iter().enumerate() {
            // The median over the peers is the GPU's own; a single slow pair is judged as a pair below.
            let own = |table: &Table| median(&table[i].iter().flatten().copied().collect::<Vec<_>>());
            let metrics = [
                ("p2p.bandwidth", &one_way, Unit::GBps),
                ("p2p.bidir.bandwidth", &both_ways, Unit::GBps),
                ("p2p.latency", &latency, Unit::Microsecond),
            ];
            for (metric, table, unit) in metrics {
                if let Some(value) = own(table) {
                    self.reading(gpu, metric, value, unit);
                }
            }
        }
        self.judge_corruption(&corrupt);
        self.judge_speed(&one_way);
        Ok(())
    }

    /// Bytes per second, and the first corruption.
    fn one_way(&self, from: &End<'_>, to: &End<'_>) -> Result<(f64, Option<Corrupt>), Blamed> {
        let bytes = self.bytes();
        let (mut rates, mut corrupt) = (Vec::new(), None);
        for _ in 0..self.params.repeats {
            let seconds = || {
                let before = from.gpu.mark()?;
                copy(from, to, bytes)?;
                let after = from.gpu.mark()?;
                from.gpu.wait("copy between GPUs")?;
                from.gpu.seconds(&before, &after)
            };
            rates.push(bytes as f64 / seconds().map_err(|e| from.blamed(e))?);
            let bad = to.check(from.seed).map_err(|e| to.blamed(e))?;
            corrupt = corrupt.or(bad);
        }
        Ok((median(&rates).unwrap_or(0.0), corrupt))
    }

    /// Bytes per second of both directions together, and what was corrupt (true = on the way back).
    fn both_ways(&self, a: &End<'_>, b: &End<'_>) -> Result<(f64, Vec<(bool, Corrupt)>), Blamed> {
        let bytes = self.bytes();
        let (mut rates, mut corrupt) = (Vec::new(), Vec::new());
        for _ in 0..self.params.repeats {
            let (of_a, of_b) = (|e| a.blamed(e), |e| b.blamed(e));
            let (a_start, b_start) = (a.gpu.mark().map_err(of_a)?, b.gpu.mark().map_err(of_b)?);
            copy(a, b, bytes).map_err(of_a)?;
            copy(b, a, bytes).map_err(of_b)?;
            let (a_end, b_end) = (a.gpu.mark().map_err(of_a)?, b.gpu.mark().map_err(of_b)?);
            a.gpu.wait("copy between GPUs").map_err(of_a)?;
            b.gpu.wait("copy between GPUs").map_err(of_b)?;
            let of_there = a.gpu.seconds(&a_start, &a_end).map_err(of_a)?;
            let of_back = b.gpu.seconds(&b_start, &b_end).map_err(of_b)?;
            rates.push(2.0 * bytes as f64 / of_there.max(of_back));
            corrupt.extend(b.check(a.seed).map_err(of_b)?.map(|bad| (false, bad)));
            corrupt.extend(a.check(b.seed).map_err(of_a)?.map(|bad| (true, bad)));
        }
        Ok((median(&rates).unwrap_or(0.0), corrupt))
    }

    fn matrix(&self, metric: &str, unit: Unit, values: &Table) {
        let labels: Vec<String> = self.gpus.iter().map(|g| g.target.label.clone()).collect();
        self.context.sink.emit(Event::Matrix(Matrix {
            metric: metric.to_owned(),
            unit,
            rows: labels.clone(),
            columns: labels,
            values: values.clone(),
        }));
    }

    /// One finding per GPU that a corruption is put down to: the one that most of the bad copies have in common.
    fn judge_corruption(&mut self, corrupt: &[(usize, usize, Corrupt)]) {
        let pairs: Vec<(usize, usize)> = corrupt.iter().map(|(from, to, _)| (*from, *to)).collect();
        let mut by_culprit: BTreeMap<usize, Vec<&(usize, usize, Corrupt)>> = BTreeMap::new();
        for (entry, guilty) in corrupt.iter().zip(culprits(&pairs)) {
            by_culprit.entry(guilty).or_default().push(entry);
        }
        for (guilty, entries) in by_culprit {
            let Some((from, to, first)) = entries.first().map(|(from, to, bad)| (*from, *to, bad)) else {
                continue;
            };
            let (from, to) = (&self.gpus[from].target.label, &self.gpus[to].target.label);
            let detail = format!(
                "copy {from} to {to}: {} wrong word{} in {} MiB, first at offset {:#x}, xor {:#x}; {} copies of {} were corrupt",
                first.words,
                if first.words == 1 { "" } else { "s" },
                self.params.mib,
                first.word * 8,
                first.xor,
                entries.len(),
                self.gpus[guilty].target.label
            );
            let device = self.gpus[guilty].target.uuid.clone();
            self.found("copy-corruption", device, Severity::Fault, Action::Replace, detail);
        }
    }

    fn judge_speed(&mut self, rates: &Table) {
        let slow = slow_pairs(rates);
        let pairs: Vec<(usize, usize)> = slow.iter().map(|(from, to, _)| (*from, *to)).collect();
        let mut by_culprit: BTreeMap<usize, Vec<(usize, usize, f64)>> = BTreeMap::new();
        for (entry, guilty) in slow.into_iter().zip(culprits(&pairs)) {
            by_culprit.entry(guilty).or_default().push(entry);
        }
        for (guilty, entries) in by_culprit {
            let list: Vec<String> = entries
                .iter()
                .take(8)
                .map(|(from, to, shortfall)| {
                    let (from, to) = (&self.gpus[*from].target.label, &self.gpus[*to].target.label);
                    format!("{from} to {to} {:.1} %", shortfall * 100.0)
                })
                .collect();
            let detail = format!("copies slower than the median pair of this blade: {}", list.join(", "));
            let device = self.gpus[guilty].target.uuid.clone();
            self.found("slow-p2p", device, Severity::Fault, Action::CheckLink, detail);
        }
    }
}

/// Seconds of one smallest copy.
fn small(from: &End<'_>, to: &End<'_>) -> Result<f64, Blamed> {
    let seconds = || {
        let before = from.gpu.mark()?;
        for _ in 0..SMALL_COPIES {
            copy(from, to, SMALL_BYTES)?;
        }
        let after = from.gpu.mark()?;
        from.gpu.wait("copy between GPUs")?;
        from.gpu.seconds(&before, &after)
    };
    let seconds = seconds().map_err(|e| from.blamed(e))?;
    to.target.clear(to.gpu).map_err(|e| to.blamed(e))?;
    Ok(seconds / f64::from(SMALL_COPIES))
}

/// Pairs slower than the median pair by more than [`SLOW`] and more than six robust deviations, with their shortfall. A
/// machine whose pairs differ by design (two sockets, no NVLink) has a wide spread, and none of its pairs is accused.
fn slow_pairs(rates: &Table) -> Vec<(usize, usize, f64)> {
    let pairs: Vec<(usize, usize, f64)> = rates
        .iter()
        .enumerate()
        .flat_map(|(i, row)| row.iter().enumerate().filter_map(move |(j, rate)| Some((i, j, (*rate)?))))
        .collect();
    let values: Vec<f64> = pairs.iter().map(|p| p.2).collect();
    let Some(middle) = median(&values).filter(|m| *m > 0.0 && values.len() >= FEWEST_PAIRS) else {
        return Vec::new();
    };
    let deviations: Vec<f64> = values.iter().map(|v| (v - middle).abs()).collect();
    let limit = SLOW.max(SIGMAS * 1.4826 * median(&deviations).unwrap_or(0.0) / middle);
    pairs
        .into_iter()
        .map(|(i, j, rate)| (i, j, 1.0 - rate / middle))
        .filter(|(_, _, shortfall)| *shortfall > limit)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(n: usize, rate: impl Fn(usize, usize) -> f64) -> Table {
        (0..n).map(|i| (0..n).map(|j| (i != j).then(|| rate(i, j))).collect()).collect()
    }

    #[test]
    fn a_slow_link_is_seen_and_two_sockets_are_not() {
        let slow =
            slow_pairs(&table(8, |i, j| if (i, j) == (2, 5) || (i, j) == (5, 2) { 280.0 } else { 390.0 }));
        assert_eq!(slow.iter().map(|s| (s.0, s.1)).collect::<Vec<_>>(), [(2, 5), (5, 2)]);
        assert!(slow_pairs(&table(8, |i, j| if i / 4 == j / 4 { 24.0 } else { 17.0 })).is_empty());
    }

    #[test]
    fn all_pairs_of_one_gpu_are_slow_when_its_links_are() {
        let slow = slow_pairs(&table(8, |i, j| if i == 6 || j == 6 { 300.0 } else { 390.0 }));
        let pairs: Vec<_> = slow.iter().map(|s| (s.0, s.1)).collect();
        assert!(pairs.len() == 14 && culprits(&pairs).iter().all(|g| *g == 6));
    }
}
