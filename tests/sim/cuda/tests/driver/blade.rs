//! A simulated blade for one test: the test runs again in a process of its own that loads this crate's library as
//! `libcuda.so.1` through cudarc, as the product does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg,
};
use whetstone_burnin::exact;
use whetstone_scenario::BladeScenario;

/// Set in the child: the test that it is to run.
const CASE: &str = "WHETSTONE_SIM_CASE";

/// Runs `body` on a blade made from `scenario` (TOML; name and SKU are given here).
pub fn on_blade(case: &str, sku: &str, scenario: &str, body: fn()) {
    if std::env::var(CASE).is_ok_and(|c| c == case) {
        return body();
    }
    let dir = tempfile::tempdir().unwrap();
    let text = format!("name = \"b-001\"\nsku = \"{sku}\"\n{scenario}");
    let blade = BladeScenario::parse("scenario", &text).unwrap();
    std::fs::write(dir.path().join("blade.json"), serde_json::to_string(&blade).unwrap()).unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::os::unix::fs::symlink(library(), dir.path().join(name)).unwrap();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([case, "--exact", "--nocapture"])
        .env(CASE, case)
        .env("WHETSTONE_SIM", dir.path())
        .env("LD_LIBRARY_PATH", dir.path())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{case}: {}\n{out}\n{err}", output.status);
    assert!(out.contains("1 passed"), "{case} did not run:\n{out}");
}

/// The library as cargo builds it now: a cdylib is no dependency that a test could name.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let output = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--lib", "--message-format=json", "--manifest-path"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let artifacts = String::from_utf8(output.stdout).unwrap();
        let paths = artifacts.lines().filter_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let ours = message["target"]["name"] == "whetstone_sim_cuda";
            let file = message["filenames"]
                .as_array()?
                .iter()
                .find_map(|f| f.as_str().filter(|f| f.ends_with(".so")));
            file.filter(|_| ours).map(PathBuf::from)
        });
        { paths }.next_back().unwrap()
    })
}

/// PTX that names kernels with their parameters, and has no code: the simulated driver brings that.
pub fn ptx(version: &str, target: &str, kernels: &[(&str, usize)]) -> cudarc::nvrtc::Ptx {
    let mut text = format!(".version {version}\n.target {target}\n.address_size 64\n");
    for (name, parameters) in kernels {
        let list: Vec<String> = (0..*parameters).map(|i| format!(".param .u64 {name}_param_{i}")).collect();
        text += &format!(".visible .entry {name}({})\n{{ ret; }}\n", list.join(", "));
    }
    cudarc::nvrtc::Ptx::from_src(text)
}

const MEMORY: [(&str, usize); 4] = [("mem_fill", 5), ("mem_verify", 9), ("mem_invert", 10), ("mem_copy", 3)];
pub const GEMMS: [&str; 12] = [
    "gemm_f64_cuda",
    "gemm_f32_cuda",
    "gemm_f16_cuda",
    "gemm_bf16_cuda",
    "gemm_s8_cuda",
    "gemm_f64_mma",
    "gemm_tf32_mma",
    "gemm_f16_mma",
    "gemm_bf16_mma",
    "gemm_e4m3_mma",
    "gemm_e5m2_mma",
    "gemm_s8_mma",
];

/// `WsTile`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tile {
    pub smid: u32,
    pub mismatches: u32,
    pub digest: u64,
    pub start_ns: u64,
    pub end_ns: u64,
}
// SAFETY: 32 bytes of integers without padding.
unsafe impl cudarc::driver::DeviceRepr for Tile {}
// SAFETY: all zeros is a value.
unsafe impl cudarc::driver::ValidAsZeroBits for Tile {}

/// `WsMemFault`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MemFault {
    pub word_index: u64,
    pub expected: u64,
    pub got: u64,
    pub smid: u32,
    pub pass: u32,
}
// SAFETY: 32 bytes of integers without padding.
unsafe impl cudarc::driver::DeviceRepr for MemFault {}
// SAFETY: all zeros is a value.
unsafe impl cudarc::driver::ValidAsZeroBits for MemFault {}

pub struct Gpu {
    pub stream: Arc<CudaStream>,
    pub module: Arc<CudaModule>,
}

pub const TILE: usize = 64 * 64;

/// What a GEMM launch left.
pub struct Gemm {
    pub tiles: Vec<Tile>,
    /// Accumulator bits of each tile.
    pub bits: Vec<Vec<u64>>,
    /// By `tile_digest`, and the SM that read each.
    pub digests: Vec<u64>,
    pub readers: Vec<u32>,
}

impl Gpu {
    pub fn open(ordinal: usize) -> Gpu {
        let context = CudaContext::new(ordinal).unwrap();
        let stream = context.new_stream().unwrap();
        let mut kernels: Vec<(&str, usize)> = MEMORY.into_iter().chain([("tile_digest", 6)]).collect();
        kernels.extend(GEMMS.iter().map(|name| (*name, 6)));
        kernels.extend(
            ["selftest_reverse", "selftest_reverse_without_barrier", "selftest_deadlock"].map(|n| (n, 1)),
        );
        kernels.push(("gemm_bf16_wgmma", 6));
        let module = context.load_module(ptx("8.0", "sm_80", &kernels)).unwrap();
        Gpu { stream, module }
    }

    pub fn kernel(&self, name: &str) -> CudaFunction {
        self.module.load_function(name).unwrap()
    }

    pub fn fill(
        &self,
        memory: &mut CudaSlice<u64>,
        first: u64,
        pattern: u32,
        seed: u64,
    ) -> Result<(), DriverError> {
        let (f, words) = (self.module.load_function("mem_fill")?, memory.len() as u64);
        let mut launch = self.stream.launch_builder(&f);
        launch.arg(memory).arg(&words).arg(&first).arg(&pattern).arg(&seed);
        // SAFETY: the parameters of mem_fill, a buffer of `words` words.
        unsafe { launch.launch(config(7, 64)) }.map(|_| ())
    }

    /// Faults found, and how many there were.
    pub fn verify(
        &self,
        memory: &CudaSlice<u64>,
        first: u64,
        pattern: u32,
        seed: u64,
    ) -> (Vec<MemFault>, u32) {
        self.checked("mem_verify", memory, (first, pattern, seed), None)
    }

    pub fn invert(
        &self,
        memory: &CudaSlice<u64>,
        first: u64,
        pattern: u32,
        seed: u64,
        descending: u32,
    ) -> (Vec<MemFault>, u32) {
        self.checked("mem_invert", memory, (first, pattern, seed), Some(descending))
    }

    fn checked(
        &self,
        kernel: &str,
        memory: &CudaSlice<u64>,
        (first, pattern, seed): (u64, u32, u64),
        descending: Option<u32>,
    ) -> (Vec<MemFault>, u32) {
        const CAP: u32 = 16;
        let (f, words) = (self.kernel(kernel), memory.len() as u64);
        let log: CudaSlice<MemFault> = self.stream.alloc_zeros(CAP as usize).unwrap();
        let count: CudaSlice<u32> = self.stream.alloc_zeros(1).unwrap();
        let mut launch = self.stream.launch_builder(&f);
        launch.arg(memory).arg(&words).arg(&first).arg(&pattern).arg(&seed);
        if let Some(descending) = &descending {
            launch.arg(descending);
        }
        launch.arg(&log).arg(&CAP).arg(&count).arg(&3_u32);
        // SAFETY: the parameters of the kernel, buffers as long as said.
        unsafe { launch.launch(config(7, 64)) }.unwrap();
        let found = self.stream.clone_dtoh(&count).unwrap()[0];
        let mut faults = self.stream.clone_dtoh(&log).unwrap();
        faults.truncate(found as usize);
        (faults, found)
    }

    pub fn gemm(
        &self,
        kernel: &str,
        operands: &exact::Operands,
        blocks: u32,
        iterations: u32,
    ) -> Result<Gemm, DriverError> {
        let (a, b) = (operands.a_bytes(), operands.b_bytes());
        self.gemm_bytes(
            kernel,
            &a,
            &b,
            operands.k as u32,
            operands.format.accumulator().bytes(),
            blocks,
            iterations,
        )
    }

    #[allow(clippy::too_many_arguments)]
    pub fn gemm_bytes(
        &self,
        kernel: &str,
        a: &[u8],
        b: &[u8],
        k: u32,
        element: usize,
        blocks: u32,
        iterations: u32,
    ) -> Result<Gemm, DriverError> {
        let stream = &self.stream;
        let (a, b) = (stream.clone_htod(a)?, stream.clone_htod(b)?);
        let d: CudaSlice<u8> = stream.alloc_zeros(blocks as usize * TILE * element)?;
        let tiles: CudaSlice<Tile> = stream.alloc_zeros(blocks as usize)?;
        let f = self.kernel(kernel);
        let mut launch = stream.launch_builder(&f);
        launch.arg(&a).arg(&b).arg(&d).arg(&k).arg(&iterations).arg(&tiles);
        // SAFETY: the parameters of the GEMM kernels; operands of 64 rows of k, a result tile and record per block.
        unsafe { launch.launch(config(blocks, 128)) }?;

        let digests: CudaSlice<u64> = stream.alloc_zeros(blocks as usize)?;
        let readers: CudaSlice<u32> = stream.alloc_zeros(blocks as usize)?;
        let f = self.kernel("tile_digest");
        let (size, elements) = (element as u32, TILE as u32);
        let mut launch = stream.launch_builder(&f);
        launch.arg(&d).arg(&size).arg(&elements).arg(&blocks).arg(&digests).arg(&readers);
        // SAFETY: the parameters of tile_digest; a digest and a reader per tile.
        unsafe { launch.launch(config(blocks, 128)) }?;
        let bytes = stream.clone_dtoh(&d)?;
        Ok(Gemm {
            tiles: stream.clone_dtoh(&tiles)?,
            bits: bytes
                .chunks_exact(TILE * element)
                .map(|tile| exact::bits_from_bytes(tile, element))
                .collect(),
            digests: stream.clone_dtoh(&digests)?,
            readers: stream.clone_dtoh(&readers)?,
        })
    }
}

pub fn config(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}
