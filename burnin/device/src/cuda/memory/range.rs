//! The memory under test: allocations that make one range of words, and sweeps over it.

use cudarc::driver::CudaFunction;

use crate::cuda::driver::{Arguments, Buffer, Gpu, MemoryFault};
use crate::cuda::errors::CudaError;
use crate::cuda::gemm::speed::median;

/// Bytes of one allocation at most: small enough that a fragmented heap can be filled, large enough for full bandwidth.
const CHUNK_BYTES: u64 = 1 << 30;
/// Bytes of one allocation at least; what is left over is not worth the calls.
const LEAST_CHUNK_BYTES: u64 = 4 << 20;
/// Wrong words that one sweep logs.
const LOG_ENTRIES: u32 = 1024;
const THREADS: u32 = 256;
/// Blocks that fill an SM with so many threads.
const BLOCKS_PER_SM: u32 = 8;
/// Words per thread at the least; fewer threads do for little memory.
const WORDS_PER_THREAD: u64 = 64;

/// A pattern as the kernels know it (ABI.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    code: u32,
    seed: u64,
}

impl Pattern {
    pub fn address(seed: u64) -> Pattern {
        Pattern { code: 0, seed }
    }
    pub fn walking_one(seed: u64) -> Pattern {
        Pattern { code: 1, seed }
    }
    pub fn walking_zero(seed: u64) -> Pattern {
        Pattern { code: 2, seed }
    }
    pub fn constant(word: u64) -> Pattern {
        Pattern { code: 3, seed: word }
    }
    pub fn random(seed: u64) -> Pattern {
        Pattern { code: 4, seed }
    }
    pub fn complement(self) -> Pattern {
        Pattern { code: self.code ^ 1 << 31, ..self }
    }
}

/// A wrong word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Bytes from the start of the tested range.
    pub offset: u64,
    pub address: u64,
    pub expected: u64,
    pub got: u64,
    pub smid: u32,
    pub pass: u32,
}

/// All memory under test.
pub struct Range<'g> {
    gpu: &'g Gpu,
    chunks: Vec<Buffer>,
    log: Buffer,
    count: Buffer,
    fill: CudaFunction,
    verify: CudaFunction,
    invert: CudaFunction,
    copy: CudaFunction,
}

impl<'g> Range<'g> {
    /// Takes `fraction` of the memory that is free now, as far as it can be had.
    pub fn allocate(gpu: &'g Gpu, fraction: f64) -> Result<Range<'g>, CudaError> {
        let kernel = |name: &str| gpu.kernel(name);
        let (fill, verify) = (kernel("mem_fill")?, kernel("mem_verify")?);
        let (invert, copy) = (kernel("mem_invert")?, kernel("mem_copy")?);
        let log = Buffer::new(gpu, LOG_ENTRIES as usize * size_of::<MemoryFault>())?;
        let count = Buffer::new(gpu, size_of::<u32>())?;
        let (free, _) = gpu.memory()?;
        let mut left = (free as f64 * fraction.clamp(0.0, 1.0)) as u64;
        // At least two allocations, for the copy between them.
        let mut size = (left / 2).clamp(LEAST_CHUNK_BYTES, CHUNK_BYTES) / 4096 * 4096;
        let mut chunks: Vec<Buffer> = Vec::new();
        while left >= LEAST_CHUNK_BYTES {
            size = size.min(left / 4096 * 4096);
            match Buffer::new(gpu, size as usize) {
                Ok(chunk) => {
                    chunks.push(chunk);
                    left -= size;
                }
                // 2 = out of memory: fragments are left, or another program was faster.
                Err(error) if error.code() == Some(2) && size / 2 >= LEAST_CHUNK_BYTES => size /= 2,
                Err(error) if error.code() == Some(2) => break,
                Err(error) => return Err(error),
            }
        }
        if chunks.is_empty() {
            return Err(CudaError::Other(format!(
                "only {} MiB of GPU memory are free: nothing to test",
                free >> 20
            )));
        }
        Ok(Range { gpu, chunks, log, count, fill, verify, invert, copy })
    }

    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|c| c.bytes() as u64).sum()
    }

    pub fn allocations(&self) -> usize {
        self.chunks.len()
    }

    fn blocks(&self, words: u64) -> u32 {
        let wanted = words.div_ceil(u64::from(THREADS) * WORDS_PER_THREAD);
        wanted.clamp(1, u64::from(self.gpu.sms * BLOCKS_PER_SM).max(1)) as u32
    }

    /// Each allocation with the index of its first word in the range.
    fn parts(&self) -> impl Iterator<Item = (&Buffer, u64, u64)> {
        let mut first = 0;
        self.chunks.iter().map(move |chunk| {
            let words = chunk.bytes() as u64 / 8;
            first += words;
            (chunk, words, first - words)
        })
    }

    /// Writes the pattern everywhere; does not wait.
    pub fn fill(&self, pattern: Pattern) -> Result<(), CudaError> {
        for (chunk, words, first) in self.parts() {
            let arguments =
                Arguments::new().pointer(chunk).u64(words).u64(first).u32(pattern.code).u64(pattern.seed);
            self.gpu.launch("mem_fill", &self.fill, self.blocks(words), THREADS, &arguments)?;
        }
        Ok(())
    }

    /// Number of words that are not the pattern, and the first of them.
    pub fn verify(&self, pattern: Pattern, pass: u32) -> Result<(u64, Vec<Fault>), CudaError> {
        self.sweep(|chunk, words, first| self.verify_part(chunk.pointer(), words, first, pattern, pass))
    }

    fn verify_part(
        &self,
        address: u64,
        words: u64,
        first: u64,
        pattern: Pattern,
        pass: u32,
    ) -> Result<(), CudaError> {
        let arguments = Arguments::new()
            .u64(address)
            .u64(words)
            .u64(first)
            .u32(pattern.code)
            .u64(pattern.seed)
            .pointer(&self.log)
            .u32(LOG_ENTRIES)
            .pointer(&self.count)
            .u32(pass);
        self.gpu.launch("mem_verify", &self.verify, self.blocks(words), THREADS, &arguments)
    }

    /// Like [`Range::verify`], and each word becomes the complement of the pattern.
    pub fn invert(
        &self,
        pattern: Pattern,
        descending: bool,
        pass: u32,
    ) -> Result<(u64, Vec<Fault>), CudaError> {
        self.sweep(|chunk, words, first| {
            let arguments = Arguments::new()
                .pointer(chunk)
                .u64(words)
                .u64(first)
                .u32(pattern.code)
                .u64(pattern.seed)
                .u32(u32::from(descending))
                .pointer(&self.log)
                .u32(LOG_ENTRIES)
                .pointer(&self.count)
                .u32(pass);
            self.gpu.launch("mem_invert", &self.invert, self.blocks(words), THREADS, &arguments)
        })
    }

    /// Runs a verifying kernel over all allocations, and reads its log where it found something. The count and the log
    /// go over all allocations of the sweep, so a clean sweep costs one small copy.
    fn sweep(
        &self,
        launch: impl Fn(&Buffer, u64, u64) -> Result<(), CudaError>,
    ) -> Result<(u64, Vec<Fault>), CudaError> {
        self.count.clear(self.gpu)?;
        for (chunk, words, first) in self.parts() {
            launch(chunk, words, first)?;
        }
        let count = self.count.count(self.gpu, "the number of wrong words")?;
        if count == 0 {
            return Ok((0, Vec::new()));
        }
        let logged = count.min(LOG_ENTRIES) as usize;
        let entries: Vec<MemoryFault> = self.log.download(self.gpu, 0, logged)?;
        let faults = entries.into_iter().map(|entry| Fault {
            offset: entry.word_index * 8,
            address: self.address(entry.word_index),
            expected: entry.expected,
            got: entry.got,
            smid: entry.smid,
            pass: entry.pass,
        });
        let mut faults: Vec<Fault> = faults.collect();
        faults.sort_by_key(|f| f.offset);
        Ok((u64::from(count), faults))
    }

    /// Device address of a word of the range.
    fn address(&self, word: u64) -> u64 {
        self.parts()
            .find(|(_, words, first)| (*first..first + words).contains(&word))
            .map_or(0, |(chunk, _, first)| chunk.pointer() + (word - first) * 8)
    }

    /// Fills everything, copies the first allocation to the second `times` times, and verifies everything: also what a copy
    /// has moved.
    pub fn copy_rate(&self, pattern: Pattern, times: usize, pass: u32) -> Result<Copied, CudaError> {
        self.fill(pattern)?;
        let mut rates = Vec::new();
        let mut copied_words = 0;
        if let [from, to, ..] = &self.chunks[..] {
            let words = (from.bytes().min(to.bytes()) / 8) as u64;
            copied_words = words;
            let arguments = Arguments::new().pointer(to).pointer(from).u64(words);
            // The first copy warms up.
            for i in 0..=times {
                let before = self.gpu.mark()?;
                self.gpu.launch("mem_copy", &self.copy, self.blocks(words), THREADS, &arguments)?;
                let after = self.gpu.mark()?;
                self.gpu.wait("mem_copy")?;
                let seconds = self.gpu.seconds(&before, &after)?;
                if i > 0 {
                    rates.push(words as f64 * 16.0 / seconds);
                }
            }
        }
        let second = self.chunks.get(1).map(Buffer::pointer);
        let faults = self.sweep(|chunk, words, first| {
            if Some(chunk.pointer()) != second {
                return self.verify_part(chunk.pointer(), words, first, pattern, pass);
            }
            // The copy has the pattern of the first allocation, which starts at word 0; the rest is its own.
            self.verify_part(chunk.pointer(), copied_words, 0, pattern, pass)?;
            let (rest, own) = (words - copied_words, first + copied_words);
            if rest == 0 {
                return Ok(());
            }
            self.verify_part(chunk.pointer() + copied_words * 8, rest, own, pattern, pass)
        })?;
        Ok(Copied { rate: median(&rates), faults })
    }
}

/// What copying on the device gave.
pub struct Copied {
    /// Bytes per second, read plus written, the median; `None` with one allocation only.
    pub rate: Option<f64>,
    /// Wrong words: their number and the first ones. Those of the second allocation are told as of the first, from which
    /// they were copied.
    pub faults: (u64, Vec<Fault>),
}
