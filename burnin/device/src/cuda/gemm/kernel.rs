//! The GEMM kernels: which one runs for a format on this chip, and one launch of it.

use cudarc::driver::CudaFunction;
use whetstone_burnin::exact;
use whetstone_burnin::suite::GemmFormat;

use crate::cuda::driver::{Arguments, Buffer, Gpu, Tile};
use crate::cuda::errors::CudaError;

/// Which units of the chip multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    Tcgen05,
    Wgmma,
    Mma,
    Cuda,
}

/// The two kinds of multipliers that a chip has. They are different silicon, so each is tested for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pipe {
    Tensor,
    CudaCores,
}

impl Pipe {
    /// Where a format is multiplied.
    pub fn of(format: GemmFormat) -> &'static [Pipe] {
        match format {
            GemmFormat::F64 | GemmFormat::F16 | GemmFormat::Bf16 | GemmFormat::S8 => {
                &[Pipe::Tensor, Pipe::CudaCores]
            }
            GemmFormat::F32 => &[Pipe::CudaCores],
            GemmFormat::Tf32 | GemmFormat::E4m3 | GemmFormat::E5m2 => &[Pipe::Tensor],
        }
    }

    /// Best first: the earlier ones are the only way to a newer chip's tensor cores.
    fn paths(self) -> &'static [Path] {
        match self {
            Pipe::Tensor => &[Path::Tcgen05, Path::Wgmma, Path::Mma],
            Pipe::CudaCores => &[Path::Cuda],
        }
    }

    /// The format's name in metrics: the CUDA cores' own where tensor cores take the format too.
    pub fn metric(self, format: GemmFormat) -> String {
        match (self, Pipe::of(format)) {
            (Pipe::CudaCores, [_, _]) => format!("{}_cuda", format.as_str()),
            _ => format.as_str().to_owned(),
        }
    }
}

impl Path {
    pub fn as_str(self) -> &'static str {
        match self {
            Path::Tcgen05 => "tcgen05",
            Path::Wgmma => "wgmma",
            Path::Mma => "mma",
            Path::Cuda => "cuda",
        }
    }
}

/// Threads of a GEMM block and of a digest block (ABI.md).
const THREADS: u32 = 128;

/// A GEMM kernel of the chip.
pub struct Kernel {
    pub format: GemmFormat,
    pub pipe: Pipe,
    pub path: Path,
    pub name: String,
    function: CudaFunction,
    /// Tile.
    pub rows: usize,
    pub columns: usize,
}

impl Kernel {
    /// The best kernel for `format` on `pipe` whose path comes after `after`; `None` if the images have no more.
    pub fn find(
        gpu: &Gpu,
        format: GemmFormat,
        pipe: Pipe,
        after: Option<Path>,
    ) -> Result<Option<Kernel>, CudaError> {
        for path in pipe.paths().iter().copied().filter(|p| after.is_none_or(|after| *p > after)) {
            let name = format!("gemm_{}_{}", format.kernel_name(), path.as_str());
            match gpu.kernel(&name) {
                Ok(function) => {
                    let rows = if path == Path::Tcgen05 { 128 } else { 64 };
                    return Ok(Some(Kernel { format, pipe, path, name, function, rows, columns: 64 }));
                }
                Err(CudaError::NoKernel { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Operations (2 per multiply-add) of one tile with inner dimension `k`, computed once.
    pub fn operations(&self, k: usize) -> f64 {
        2.0 * self.rows as f64 * self.columns as f64 * k as f64
    }

    /// What a reader of the report should know about this path on this chip.
    pub fn remark(&self, capability: (u32, u32)) -> Option<String> {
        let fp8 = matches!(self.format, GemmFormat::E4m3 | GemmFormat::E5m2);
        // mma.sync with FP8 operands compiles to conversions and FP16 products there (seen in the SASS).
        (fp8 && self.path == Path::Mma && matches!(capability.0, 9 | 10)).then(|| {
            format!(
                "{} ran through mma.sync, which this chip executes on its FP16 pipe: the FP8 pipe itself was not tested",
                self.format.as_str()
            )
        })
    }
}

/// A kernel with its buffers, ready to launch: `blocks` blocks that all compute the same tile.
pub struct Bench<'g> {
    gpu: &'g Gpu,
    pub kernel: Kernel,
    pub blocks: u32,
    a: Buffer,
    b: Buffer,
    d: Buffer,
    tiles: Buffer,
    digests: Buffer,
    smids: Buffer,
    tile_digest: Option<CudaFunction>,
}

/// What one launch gave.
pub struct Launch {
    pub tiles: Vec<Tile>,
    /// Between the events around it.
    pub seconds: f64,
}

impl Launch {
    /// From the first block's start to the last one's end by the device's own clock: what the SMs were busy, without the
    /// cost of the launch. Between the events where that clock is too coarse.
    pub fn busy_seconds(&self) -> f64 {
        let start = self.tiles.iter().map(|t| t.start_ns).min().unwrap_or(0);
        let end = self.tiles.iter().map(|t| t.end_ns).max().unwrap_or(0);
        if end > start { (end - start) as f64 * 1e-9 } else { self.seconds }
    }
}

impl<'g> Bench<'g> {
    pub fn new(
        gpu: &'g Gpu,
        kernel: Kernel,
        blocks_per_sm: u32,
        max_k: usize,
    ) -> Result<Bench<'g>, CudaError> {
        let blocks = (gpu.sms * blocks_per_sm).max(1);
        let element = kernel.format.element_bytes();
        let result = kernel.format.accumulator().bytes();
        let count = blocks as usize;
        let tile_digest = match gpu.kernel("tile_digest") {
            Ok(function) => Some(function),
            Err(CudaError::NoKernel { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Bench {
            a: Buffer::new(gpu, kernel.rows * max_k * element)?,
            b: Buffer::new(gpu, kernel.columns * max_k * element)?,
            d: Buffer::zeros(gpu, count * kernel.rows * kernel.columns * result)?,
            tiles: Buffer::zeros(gpu, count * size_of::<Tile>())?,
            digests: Buffer::zeros(gpu, count * size_of::<u64>())?,
            smids: Buffer::zeros(gpu, count * size_of::<u32>())?,
            gpu,
            kernel,
            blocks,
            tile_digest,
        })
    }

    /// Elements of a tile.
    fn elements(&self) -> usize {
        self.kernel.rows * self.kernel.columns
    }

    /// Brings operands to the device.
    pub fn load(&self, a: &[u8], b: &[u8]) -> Result<(), CudaError> {
        self.a.upload(self.gpu, a)?;
        self.b.upload(self.gpu, b)
    }

    /// True if the device still holds these operands.
    pub fn holds(&self, a: &[u8], b: &[u8]) -> Result<bool, CudaError> {
        Ok(self.a.download::<u8>(self.gpu, 0, a.len())? == a
            && self.b.download::<u8>(self.gpu, 0, b.len())? == b)
    }

    /// Puts one launch into the stream without waiting.
    pub fn start(&self, k: usize, iterations: u32) -> Result<(), CudaError> {
        let arguments = Arguments::new()
            .pointer(&self.a)
            .pointer(&self.b)
            .pointer(&self.d)
            .u32(k as u32)
            .u32(iterations)
            .pointer(&self.tiles);
        self.gpu.launch(&self.kernel.name, &self.kernel.function, self.blocks, THREADS, &arguments)
    }

    /// The blocks' own accounts of the latest launch.
    pub fn tiles(&self) -> Result<Vec<Tile>, CudaError> {
        self.tiles.download(self.gpu, 0, self.blocks as usize)
    }

    /// One launch, timed, waited for.
    pub fn run(&self, k: usize, iterations: u32) -> Result<Launch, CudaError> {
        // What the last launch left must not look like an answer.
        self.tiles.clear(self.gpu)?;
        let before = self.gpu.mark()?;
        self.start(k, iterations)?;
        let after = self.gpu.mark()?;
        self.gpu.wait(&self.kernel.name)?;
        let seconds = self.gpu.seconds(&before, &after)?;
        Ok(Launch { tiles: self.tiles()?, seconds })
    }

    /// The result that block `block` stored, as accumulator bits.
    pub fn tile_bits(&self, block: usize) -> Result<Vec<u64>, CudaError> {
        let element = self.kernel.format.accumulator().bytes();
        let bytes = self.elements() * element;
        let stored: Vec<u8> = self.d.download(self.gpu, block * bytes, bytes)?;
        Ok(exact::bits_from_bytes(&stored, element))
    }

    /// Digests of all stored results, read back by other SMs than those that wrote them, with the reader's SM.
    /// `None` if the images have no such kernel.
    pub fn stored_digests(&self) -> Result<Option<Vec<(u64, u32)>>, CudaError> {
        let Some(function) = &self.tile_digest else { return Ok(None) };
        self.digests.clear(self.gpu)?;
        let arguments = Arguments::new()
            .pointer(&self.d)
            .u32(self.kernel.format.accumulator().bytes() as u32)
            .u32(self.elements() as u32)
            .u32(self.blocks)
            .pointer(&self.digests)
            .pointer(&self.smids);
        self.gpu.launch("tile_digest", function, self.blocks, THREADS, &arguments)?;
        self.gpu.wait("tile_digest")?;
        let count = self.blocks as usize;
        let digests: Vec<u64> = self.digests.download(self.gpu, 0, count)?;
        let readers: Vec<u32> = self.smids.download(self.gpu, 0, count)?;
        Ok(Some(digests.into_iter().zip(readers).collect()))
    }
}
