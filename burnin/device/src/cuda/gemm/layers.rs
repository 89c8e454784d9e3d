//! The layers of the corruption test for one format on one kernel path, round by round.

use std::collections::{BTreeMap, BTreeSet};

use whetstone_burnin::exact::{self, ExactCase, WidthProbe, exact_plan, mix64};
use whetstone_burnin::suite::GpuGemmParams;

use super::kernel::{Bench, Launch};
use super::speed::SmRates;
use super::wrong::{Check, Damage, check, majority, minority};
use crate::cuda::driver::Gpu;
use crate::cuda::errors::CudaError;
use crate::cuda::kernels;

/// Inner dimension of the random layer at most: it needs no length, only all bits.
const RANDOM_K: usize = 1024;
/// Inner dimension of the width probe at most.
const PROBE_K: usize = 512;
/// Operands are drawn anew after so many passes over the plan; until then their references are reused.
const PASSES_PER_SEED: u32 = 16;
/// Stored results are read back by other SMs in one round of so many.
const READ_BACK_EVERY: u32 = 8;
/// Wrong tiles that are fetched and compared element by element, per layer; all are counted.
const MAX_DIFFED: u64 = 64;

/// Why a path is left.
pub enum Stop {
    /// The kernel does not do on this chip what the oracle says: another path must judge.
    Distrust(String),
}

/// Operands with the one right answer.
struct Prepared {
    seed: u64,
    a: Vec<u8>,
    b: Vec<u8>,
    digest: u64,
}

/// The state of one format's test.
pub struct Layers<'b, 'g> {
    bench: &'b Bench<'g>,
    iterations: u32,
    seed: u64,
    /// Measured significand bits of the accumulator.
    pub width: u32,
    plan: Vec<ExactCase>,
    prepared: BTreeMap<usize, Prepared>,
    random: (Vec<u8>, Vec<u8>, usize),
    /// The digest that all SMs agreed on in the first round of the random layer.
    random_digest: Option<u64>,
    exact: Damage,
    consistent: Damage,
    stored: Damage,
    memory: Damage,
    pub speed: SmRates,
    /// SMs on which a block ran.
    pub sms: BTreeSet<u32>,
    pub verified_tiles: u64,
    /// Operations and seconds of each launch.
    launches: Vec<(f64, f64)>,
}

impl<'b, 'g> Layers<'b, 'g> {
    /// Measures the accumulator and makes the plan.
    pub fn new(
        bench: &'b Bench<'g>,
        params: &GpuGemmParams,
        seed: u64,
    ) -> Result<Result<Layers<'b, 'g>, Stop>, CudaError> {
        let kernel = &bench.kernel;
        let max_k = params.max_k as usize;
        let seed = mix64(seed ^ ((0x6765_6d6d << 8) | kernel.format as u64));
        let random_k = max_k.clamp(exact::K_STEP, RANDOM_K) / exact::K_STEP * exact::K_STEP;
        let fill = |rows, salt| exact::full_range_bytes(kernel.format, rows, random_k, mix64(seed ^ salt));
        let random = (fill(kernel.rows, 1), fill(kernel.columns, 2), random_k);
        let mut layers = Layers {
            bench,
            iterations: params.iterations,
            seed,
            width: kernel.format.accumulator().significand(),
            plan: Vec::new(),
            prepared: BTreeMap::new(),
            random,
            random_digest: None,
            exact: Damage::default(),
            consistent: Damage::default(),
            stored: Damage::default(),
            memory: Damage::default(),
            speed: SmRates::default(),
            sms: BTreeSet::new(),
            verified_tiles: 0,
            launches: Vec::new(),
        };
        let probe_k = max_k.clamp(exact::K_STEP, PROBE_K) / exact::K_STEP * exact::K_STEP;
        if let Some(probe) = WidthProbe::new(kernel.format, kernel.rows, kernel.columns, probe_k) {
            bench.load(&probe.operands.a_bytes(), &probe.operands.b_bytes())?;
            let launch = bench.run(probe_k, 1)?;
            // One SM must not be able to set the width for all: the majority's result is read.
            if let Some((digest, block)) = majority(&launch.tiles) {
                let bits = bench.tile_bits(block)?;
                layers.against_majority(&launch, digest, &bits)?;
                match probe.width(&bits) {
                    Ok(width) => layers.width = width,
                    Err(error) => return Ok(Err(Stop::Distrust(error.to_string()))),
                }
            }
        }
        layers.plan = exact_plan(kernel.format, layers.width, max_k);
        if layers.plan.is_empty() {
            return Ok(Err(Stop::Distrust(format!("no exact operands for {} bits", layers.width))));
        }
        Ok(Ok(layers))
    }

    /// Round `round`: one case of the exact plan, then the random layer.
    pub fn round(&mut self, round: u32) -> Result<Result<(), Stop>, CudaError> {
        if let Err(stop) = self.exact_round(round)? {
            return Ok(Err(stop));
        }
        self.random_round()?;
        Ok(Ok(()))
    }

    fn exact_round(&mut self, round: u32) -> Result<Result<(), Stop>, CudaError> {
        let index = round as usize % self.plan.len();
        let case = self.plan[index];
        let pass = round / self.plan.len() as u32;
        let seed = mix64(self.seed ^ u64::from(pass / PASSES_PER_SEED));
        let (rows, columns) = (self.bench.kernel.rows, self.bench.kernel.columns);
        if self.prepared.get(&index).is_none_or(|p| p.seed != seed) {
            let operands = case.operands(rows, columns, seed);
            let digest = exact::digest(&exact::reference(&operands));
            let (a, b) = (operands.a_bytes(), operands.b_bytes());
            self.prepared.insert(index, Prepared { seed, a, b, digest });
        }
        let Some(prepared) = self.prepared.get(&index) else { return Ok(Ok(())) };
        self.bench.load(&prepared.a, &prepared.b)?;
        let digest = prepared.digest;
        let launch = self.bench.run(case.k, self.iterations)?;
        let operations = self.book(&launch, case.k);
        match check(&launch.tiles, digest) {
            Check::Right => {}
            Check::Some(blocks) => {
                let expected = exact::reference(&case.operands(rows, columns, seed));
                for block in blocks {
                    let wrong = if self.exact.tiles < MAX_DIFFED {
                        exact::diff(&expected, &self.bench.tile_bits(block)?)
                    } else {
                        Vec::new()
                    };
                    self.exact.add(launch.tiles[block].smid, &wrong, launch.tiles[block].mismatches);
                }
            }
            Check::AllAlike => {
                let Some(prepared) = self.prepared.get(&index) else { return Ok(Ok(())) };
                if self.bench.holds(&prepared.a, &prepared.b)? {
                    return Ok(Err(Stop::Distrust(format!(
                        "every SM has the same wrong result for {case}, its operands are intact in memory"
                    ))));
                }
                let bits = self.bench.tile_bits(0)?;
                let wrong = exact::diff(&exact::reference(&case.operands(rows, columns, seed)), &bits);
                self.memory.add(launch.tiles[0].smid, &wrong, 0);
            }
        }
        // The slow SM is looked for where the work is the same for all and long enough.
        self.speed.add(&launch.tiles, operations);
        if round.is_multiple_of(READ_BACK_EVERY) {
            self.read_back(&launch)?;
        }
        Ok(Ok(()))
    }

    /// The stored results once more, read by other SMs: they must be what the writers had in their registers.
    fn read_back(&mut self, launch: &Launch) -> Result<(), CudaError> {
        let Some(stored) = self.bench.stored_digests()? else { return Ok(()) };
        for (tile, (digest, reader)) in launch.tiles.iter().zip(stored) {
            if digest != tile.digest {
                // Writer or reader: both are named, the tile itself is booked on the writer.
                self.stored.add(tile.smid, &[], 0);
                self.stored.sms.insert(reader);
            }
        }
        Ok(())
    }

    fn random_round(&mut self) -> Result<(), CudaError> {
        let (a, b, k) = &self.random;
        let k = *k;
        self.bench.load(a, b)?;
        let launch = self.bench.run(k, self.iterations)?;
        let operations = self.book(&launch, k);
        self.speed.add(&launch.tiles, operations);
        let Some((digest, block)) = majority(&launch.tiles) else { return Ok(()) };
        let bits = self.bench.tile_bits(block)?;
        self.against_majority(&launch, digest, &bits)?;
        match self.random_digest {
            None => self.random_digest = Some(digest),
            // The whole GPU has changed its mind between two rounds.
            Some(first) if first != digest => self.consistent.add(launch.tiles[block].smid, &[], 0),
            Some(_) => {}
        }
        Ok(())
    }

    /// Blocks that differ from the majority are wrong, whatever the right result is.
    fn against_majority(&mut self, launch: &Launch, digest: u64, bits: &[u64]) -> Result<(), CudaError> {
        for block in minority(&launch.tiles, digest) {
            let wrong = if self.consistent.tiles < MAX_DIFFED {
                exact::diff(bits, &self.bench.tile_bits(block)?)
            } else {
                Vec::new()
            };
            self.consistent.add(launch.tiles[block].smid, &wrong, launch.tiles[block].mismatches);
        }
        Ok(())
    }

    /// Counts a launch; returns the operations of one of its tiles.
    fn book(&mut self, launch: &Launch, k: usize) -> f64 {
        let tile = self.bench.kernel.operations(k) * f64::from(self.iterations);
        self.verified_tiles += launch.tiles.len() as u64 * u64::from(self.iterations);
        self.sms.extend(launch.tiles.iter().map(|t| t.smid));
        self.launches.push((tile * launch.tiles.len() as f64, launch.busy_seconds()));
        tile
    }

    /// Operations per second over all launches but the first (which warms up), if there are several.
    pub fn throughput(&self) -> Option<f64> {
        let counted = if self.launches.len() > 2 { &self.launches[1..] } else { &self.launches[..] };
        let (operations, seconds) = counted.iter().fold((0.0, 0.0), |sum, l| (sum.0 + l.0, sum.1 + l.1));
        (seconds > 0.0).then(|| operations / seconds)
    }

    /// The digest of the random layer, if nothing contradicted it.
    pub fn random_digest(&self) -> Option<u64> {
        self.random_digest
    }

    /// What must be equal for two digests to be comparable.
    pub fn digest_key(&self, gpu: &Gpu) -> String {
        let kernel = &self.bench.kernel;
        format!(
            "gemm {} {} {}x{}x{} seed {:016x} on {} {}.{} kernels {}",
            kernel.format.as_str(),
            kernel.path.as_str(),
            kernel.rows,
            kernel.columns,
            self.random.2,
            self.seed,
            gpu.name,
            gpu.capability.0,
            gpu.capability.1,
            kernels::sha256().map_or("none", |hash| &hash[..16])
        )
    }

    /// The layers in which something was wrong, with their names.
    pub fn damages(&self) -> impl Iterator<Item = (&Damage, &'static str)> {
        [
            (&self.exact, "bit-exact test"),
            (&self.consistent, "random data, SMs and rounds against each other"),
            (&self.stored, "stored results read back by other SMs"),
            (&self.memory, "operands changed in GPU memory"),
        ]
        .into_iter()
        .filter(|(damage, _)| !damage.is_none())
    }
}
