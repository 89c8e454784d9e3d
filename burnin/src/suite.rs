//! Suites: lists of tests with parameters, as data (`burnin/suites/*.toml`).

use serde::{Deserialize, Serialize};

/// The suites that every binary carries.
pub const BUILT_IN: [(&str, &str); 3] = [
    ("quick", include_str!("../suites/quick.toml")),
    ("standard", include_str!("../suites/standard.toml")),
    ("soak", include_str!("../suites/soak.toml")),
];

/// Tests in one suite at most; a bound on what a hand-written file can ask for.
pub const MAX_TESTS: usize = 100;
/// Longest budget of one test: a week, in seconds.
pub const MAX_BUDGET_S: u64 = 7 * 24 * 3600;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Suite {
    pub name: String,
    pub description: String,
    pub tests: Vec<Test>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// Unique in its suite; lower-case letters, digits and dashes.
    pub name: String,
    /// Seconds after which the test ends itself with what it has.
    pub budget_s: u64,
    pub kind: TestKind,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident($params:ident) = $name:literal, $scope:ident;)*) => {
        /// What a test does, with its parameters.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind", content = "params", rename_all = "snake_case")]
        pub enum TestKind { $($(#[$doc])* $variant($params),)* }

        impl TestKind {
            pub const NAMES: &'static [&'static str] = &[$($name,)*];
            pub fn name(&self) -> &'static str { match self { $(TestKind::$variant(_) => $name,)* } }
            pub fn scope(&self) -> Scope { match self { $(TestKind::$variant(_) => Scope::$scope,)* } }
            fn parse(name: &str, params: toml::Table) -> Option<Result<TestKind, toml::de::Error>> {
                match name { $($name => Some(params.try_into::<$params>().map(TestKind::$variant)),)* _ => None }
            }
        }
    };
}

/// How a test is spread over processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// By the agent itself, from facts.
    Facts,
    /// One process, the host's own parts.
    Host,
    /// One process for each GPU, all at once.
    EachGpu,
    /// One process with all GPUs.
    AllGpus,
}

kinds! {
    /// The blade against its SKU profile.
    Inventory(InventoryParams) = "inventory", Facts;
    /// Arithmetic of each core: exact GEMM, hash, crypto, compression.
    CpuCompute(CpuComputeParams) = "cpu_compute", Host;
    /// Atomics and cache lines passed between cores.
    CpuCoherence(CpuCoherenceParams) = "cpu_coherence", Host;
    /// Patterns and bandwidth of main memory.
    Dram(DramParams) = "dram", Host;
    /// Write, read back, verify in a file of its own.
    Disk(DiskParams) = "disk", Host;
    /// Loopback and NIC throughput with content verified.
    Network(NetworkParams) = "network", Host;
    /// Clocks against each other.
    Clock(ClockParams) = "clock", Host;
    /// Patterns over HBM.
    GpuMemory(GpuMemoryParams) = "gpu_memory", EachGpu;
    /// Silent data corruption: bit-exact GEMM.
    GpuGemm(GpuGemmParams) = "gpu_gemm", EachGpu;
    /// Power and heat.
    GpuPower(GpuPowerParams) = "gpu_power", EachGpu;
    /// Host-device and peer-to-peer copies.
    GpuBandwidth(GpuBandwidthParams) = "gpu_bandwidth", AllGpus;
    /// NCCL inside the blade.
    GpuCollectives(GpuCollectivesParams) = "gpu_collectives", AllGpus;
}

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $type:ty = $default:expr,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$fdoc])* pub $field: $type,)* }
        impl Default for $name { fn default() -> Self { Self { $($field: $default,)* } } }
    )*};
}

params! {
    InventoryParams {}
    CpuComputeParams {
        families: Vec<CpuFamily> = CpuFamily::ALL.to_vec(),
        /// Rounds of every family on every core at the least, whatever the budget.
        min_rounds: u32 = 1,
    }
    CpuCoherenceParams {}
    DramParams {
        /// Part of the available memory (percent), and never more than `max_mib` MiB.
        percent_of_available: u32 = 50,
        max_mib: u64 = 1 << 20,
        min_passes: u32 = 1,
    }
    DiskParams {
        /// Size of the file, MiB; refused if it would leave less than a tenth of the file system free.
        mib: u64 = 512,
    }
    NetworkParams {
        /// MiB sent over each path.
        mib: u64 = 512,
    }
    ClockParams {}
    GpuMemoryParams {
        /// Part of the free HBM to cover.
        fraction_of_free: f64 = 0.95,
        /// Inconclusive if less than this part of all HBM could be covered.
        min_fraction_of_total: f64 = 0.90,
        patterns: Vec<MemoryPattern> = MemoryPattern::ALL.to_vec(),
        /// Seconds that a pattern rests before it is read again.
        fade_s: u64 = 5,
        min_passes: u32 = 1,
        /// Go on until the budget is spent; without it the test ends after `min_passes`.
        fill_budget: bool = true,
    }
    GpuGemmParams {
        formats: Vec<GemmFormat> = GemmFormat::ALL.to_vec(),
        /// Longest inner dimension of the exact layer; shorter ones follow from each format's bound.
        max_k: u32 = 4096,
        /// Times the tile is computed in one launch.
        iterations: u32 = 64,
        /// Blocks per SM in one launch.
        blocks_per_sm: u32 = 2,
        min_rounds: u32 = 2,
        /// Go on until the budget is spent; without it the test ends after `min_rounds`.
        fill_budget: bool = true,
    }
    GpuPowerParams {
        /// `hold` or `pulse`.
        shape: PowerShape = PowerShape::Hold,
        /// Milliseconds on and off of a pulse.
        pulse_ms: u64 = 500,
        /// Lowest mean power under load as a part of the enforced limit; 0 judges nothing.
        min_fraction_of_limit: f64 = 0.85,
        iterations: u32 = 256,
        /// Inner dimension and blocks per SM of the load.
        k: u32 = 1024,
        blocks_per_sm: u32 = 4,
    }
    GpuBandwidthParams {
        /// Size of one copy; each of the repeats is verified.
        mib: u64 = 64,
        repeats: u32 = 10,
    }
    GpuCollectivesParams {
        /// Size of each GPU's buffer; each of the repeats is verified.
        mib: u64 = 256,
        repeats: u32 = 10,
        operations: Vec<Collective> = Collective::ALL.to_vec(),
    }
}

macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant,)* }
        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];
            pub fn as_str(self) -> &'static str { match self { $($name::$variant => $text,)* } }
        }
    )*};
}

choices! {
    CpuFamily { Gemm = "gemm", Hash = "hash", Crypto = "crypto", Compression = "compression", }
    MemoryPattern {
        Address = "address",
        WalkingOnes = "walking_ones",
        WalkingZeros = "walking_zeros",
        MovingInversions = "moving_inversions",
        Random = "random",
        BitFade = "bit_fade",
    }
    GemmFormat {
        F64 = "fp64",
        F32 = "fp32",
        Tf32 = "tf32",
        F16 = "fp16",
        Bf16 = "bf16",
        E4m3 = "fp8_e4m3",
        E5m2 = "fp8_e5m2",
        S8 = "int8",
    }
    PowerShape { Hold = "hold", Pulse = "pulse", }
    Collective {
        AllReduce = "all_reduce",
        AllGather = "all_gather",
        ReduceScatter = "reduce_scatter",
        AllToAll = "all_to_all",
        SendRecvRing = "send_recv_ring",
    }
}

/// What is wrong with a suite file, with the line (from 1) where it is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct SuiteError {
    pub file: String,
    pub line: usize,
    pub what: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSuite {
    name: String,
    description: String,
    test: Vec<toml::Spanned<RawTest>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTest {
    name: toml::Spanned<String>,
    kind: toml::Spanned<String>,
    budget_s: toml::Spanned<u64>,
    #[serde(default)]
    params: Option<toml::Spanned<toml::Table>>,
}

impl Suite {
    /// Reads a suite; `file` names it in errors.
    pub fn parse(file: &str, text: &str) -> Result<Suite, SuiteError> {
        let line_at = |offset: usize| {
            1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count()
        };
        let fail =
            |offset: usize, what: String| SuiteError { file: file.to_owned(), line: line_at(offset), what };
        let raw: RawSuite = toml::from_str(text)
            .map_err(|e| fail(e.span().map_or(0, |s| s.start), e.message().trim().replace('\n', ", ")))?;
        if raw.test.is_empty() || raw.test.len() > MAX_TESTS {
            return Err(fail(
                0,
                format!("a suite has 1 to {MAX_TESTS} tests, this one has {}", raw.test.len()),
            ));
        }
        let mut tests: Vec<Test> = Vec::with_capacity(raw.test.len());
        for entry in raw.test {
            let at = entry.span().start;
            let RawTest { name, kind, budget_s, params } = entry.into_inner();
            let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if name.get_ref().is_empty() || name.get_ref().len() > 40 || !name.get_ref().bytes().all(legal) {
                let what = format!("test name {:?}: 1 to 40 of a-z, 0-9 and '-'", name.get_ref());
                return Err(fail(name.span().start, what));
            }
            if tests.iter().any(|t| t.name == *name.get_ref()) {
                return Err(fail(name.span().start, format!("a second test named {:?}", name.get_ref())));
            }
            if !(1..=MAX_BUDGET_S).contains(budget_s.get_ref()) {
                let what = format!("budget_s = {}: 1 to {MAX_BUDGET_S} seconds", budget_s.get_ref());
                return Err(fail(budget_s.span().start, what));
            }
            let (params_at, table) =
                params.map_or((at, toml::Table::new()), |p| (p.span().start, p.into_inner()));
            let kind_value = match TestKind::parse(kind.get_ref(), table) {
                None => {
                    let what =
                        format!("unknown kind {:?}; known: {}", kind.get_ref(), TestKind::NAMES.join(", "));
                    return Err(fail(kind.span().start, what));
                }
                Some(Err(e)) => {
                    let what =
                        format!("test {:?}: {}", name.get_ref(), e.message().trim().replace('\n', ", "));
                    return Err(fail(params_at, what));
                }
                Some(Ok(kind_value)) => kind_value,
            };
            if let Err(what) = kind_value.check() {
                return Err(fail(params_at, format!("test {:?}: {what}", name.get_ref())));
            }
            tests.push(Test { name: name.into_inner(), budget_s: budget_s.into_inner(), kind: kind_value });
        }
        Ok(Suite { name: raw.name, description: raw.description, tests })
    }

    /// Seconds that the whole suite may take.
    pub fn budget_s(&self) -> u64 {
        self.tests.iter().map(|t| t.budget_s).sum()
    }
}

impl TestKind {
    /// Parameters that make no sense together or that nothing could satisfy.
    fn check(&self) -> Result<(), String> {
        let part = |name: &str, value: f64, low: f64| {
            if (low..=1.0).contains(&value) { Ok(()) } else { Err(format!("{name} = {value}: {low} to 1")) }
        };
        let range = |name: &str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(format!("{name} = {value}: {low} to {high}"))
            }
        };
        let some = |name: &str, empty: bool| {
            if empty { Err(format!("{name} is empty: nothing to test")) } else { Ok(()) }
        };
        match self {
            TestKind::Inventory(_) | TestKind::CpuCoherence(_) | TestKind::Clock(_) => Ok(()),
            TestKind::CpuCompute(p) => some("families", p.families.is_empty()),
            TestKind::Dram(p) => {
                range("percent_of_available", p.percent_of_available.into(), 1, 95)?;
                range("max_mib", p.max_mib, 1, 1 << 30)
            }
            TestKind::Disk(p) => range("mib", p.mib, 1, 1 << 24),
            TestKind::Network(p) => range("mib", p.mib, 1, 1 << 24),
            TestKind::GpuMemory(p) => {
                some("patterns", p.patterns.is_empty())?;
                part("fraction_of_free", p.fraction_of_free, 0.01)?;
                part("min_fraction_of_total", p.min_fraction_of_total, 0.0)?;
                range("fade_s", p.fade_s, 0, 24 * 3600)
            }
            TestKind::GpuGemm(p) => {
                some("formats", p.formats.is_empty())?;
                range("max_k", p.max_k.into(), 64, 65_536)?;
                range("iterations", p.iterations.into(), 1, 1 << 20)?;
                range("blocks_per_sm", p.blocks_per_sm.into(), 1, 32)
            }
            TestKind::GpuPower(p) => {
                part("min_fraction_of_limit", p.min_fraction_of_limit, 0.0)?;
                range("iterations", p.iterations.into(), 1, 1 << 20)?;
                range("k", p.k.into(), 64, 65_536)?;
                range("blocks_per_sm", p.blocks_per_sm.into(), 1, 32)?;
                range("pulse_ms", p.pulse_ms, 1, 60_000)
            }
            TestKind::GpuBandwidth(p) => {
                range("mib", p.mib, 1, 1 << 16)?;
                range("repeats", p.repeats.into(), 1, 100_000)
            }
            TestKind::GpuCollectives(p) => {
                some("operations", p.operations.is_empty())?;
                range("mib", p.mib, 1, 1 << 16)?;
                range("repeats", p.repeats.into(), 1, 100_000)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_suites_parse_and_keep_their_time() {
        for ((name, text), limit) in BUILT_IN.iter().zip([180, 1800, 24 * 3600]) {
            let suite = Suite::parse(name, text).unwrap();
            assert_eq!(suite.name, *name);
            assert!(suite.budget_s() <= limit, "{name}: {} s", suite.budget_s());
        }
    }

    #[test]
    fn errors_name_the_line() {
        let bad =
            "name = \"x\"\ndescription = \"\"\n[[test]]\nname = \"a\"\nkind = \"gpu_gem\"\nbudget_s = 3\n";
        let error = Suite::parse("x.toml", bad).unwrap_err();
        assert_eq!((error.file.as_str(), error.line), ("x.toml", 5));
        assert!(error.what.contains("unknown kind \"gpu_gem\""));
        let bad = "name = \"x\"\ndescription = \"\"\n[[test]]\nname = \"a\"\nkind = \"disk\"\nbudget_s = 3\nparams = { mbi = 3 }\n";
        assert_eq!(Suite::parse("x.toml", bad).unwrap_err().line, 7);
    }
}
