//! Virtual time: counted work over the SKU's rates, whatever the host does meanwhile.
use crate::blade::{Gemm, Gpu, on_blade};
use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUevent_flags_enum::CU_EVENT_DEFAULT;
use whetstone_burnin::exact;
use whetstone_burnin::suite::GemmFormat;
use whetstone_scenario::{Format, Sim};

const K: usize = 256;
const ITERATIONS: u32 = 8;

fn run(gpu: &Gpu, blocks: u32) -> Gemm {
    let operands = exact::exact_plan(GemmFormat::Bf16, 24, K)[0].operands(64, 64, 7);
    gpu.gemm("gemm_bf16_mma", &operands, blocks, ITERATIONS).unwrap()
}

/// ns of each tile.
fn lengths(result: &Gemm) -> Vec<f64> {
    result.tiles.iter().map(|t| (t.end_ns - t.start_ns) as f64).collect()
}

/// What one tile takes on an H100's SM at the simulated rate.
fn nominal_ns() -> f64 {
    let sim = Sim::open().unwrap();
    let rate = sim.sku().tflops(Format::Bf16).unwrap() * 1e12 / f64::from(sim.sku().sms);
    2.0 * 64.0 * 64.0 * K as f64 * f64::from(ITERATIONS) / rate * 1e9
}

fn near(value: f64, wanted: f64, part: f64) -> bool {
    (value / wanted - 1.0).abs() < part
}

#[test]
fn a_tile_takes_its_operations_over_the_rate() {
    on_blade("time::a_tile_takes_its_operations_over_the_rate", "h100", "gpus = 1\nsms = 12\n", || {
        let gpu = Gpu::open(0);
        // Healthy parts spread by half a percent, SMs by a fifth of one, measurements by a tenth.
        for ns in lengths(&run(&gpu, 12)) {
            assert!(near(ns, nominal_ns(), 0.03), "{ns} ns for {} ns", nominal_ns());
        }
        // Two blocks on an SM share it.
        for ns in lengths(&run(&gpu, 24)) {
            assert!(near(ns, 2.0 * nominal_ns(), 0.03), "{ns} ns for 2 x {} ns", nominal_ns());
        }
    });
}

#[test]
fn a_slow_sm_is_slow_alone() {
    let scenario = "gpus = 1\nsms = 12\n[[fault]]\ngpu = 0\nkind = \"slow_sm\"\nsm = 7\npercent = 20.0\n";
    on_blade("time::a_slow_sm_is_slow_alone", "h100", scenario, || {
        let lengths = lengths(&run(&Gpu::open(0), 12));
        for (sm, ns) in lengths.iter().enumerate() {
            let wanted = nominal_ns() * if sm == 7 { 1.2 } else { 1.0 };
            assert!(near(*ns, wanted, 0.03), "SM {sm}: {ns} ns for {wanted} ns");
        }
    });
}

#[test]
fn a_gpu_slow_in_one_format_is_slow_there_only() {
    let scenario =
        "gpus = 2\nsms = 4\n[[fault]]\ngpu = 0\nkind = \"slow_gpu\"\npercent = 30.0\nformat = \"bf16\"\n";
    on_blade("time::a_gpu_slow_in_one_format_is_slow_there_only", "h100", scenario, || {
        let (slow, well) = (Gpu::open(0), Gpu::open(1));
        let ns = |gpu: &Gpu| lengths(&run(gpu, 4)).iter().sum::<f64>();
        assert!(near(ns(&slow) * 0.7, ns(&well), 0.03));
        let operands = exact::exact_plan(GemmFormat::F16, 24, K)[0].operands(64, 64, 7);
        let f16 =
            |gpu: &Gpu| lengths(&gpu.gemm("gemm_f16_mma", &operands, 4, 4).unwrap()).iter().sum::<f64>();
        assert!(near(f16(&slow), f16(&well), 0.03));
    });
}

#[test]
fn copies_take_their_bytes_over_the_link_and_both_directions_overlap() {
    on_blade(
        "time::copies_take_their_bytes_over_the_link_and_both_directions_overlap",
        "h100",
        "gpus = 2\n",
        || {
            const BYTES: usize = 16 << 20;
            let (a, b) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
            let event =
                |context: &std::sync::Arc<CudaContext>| context.new_event(Some(CU_EVENT_DEFAULT)).unwrap();
            let (up, down) = (a.new_stream().unwrap(), a.new_stream().unwrap());
            let host = vec![1_u8; BYTES];
            let mut back = vec![0_u8; BYTES];
            let (mut x, y) = (up.alloc_zeros::<u8>(BYTES).unwrap(), down.alloc_zeros::<u8>(BYTES).unwrap());
            let sim = Sim::open().unwrap();
            let one_way_ms = BYTES as f64 / (sim.sku().pcie_gbps * 1e9) * 1e3;

            a.synchronize().unwrap();
            let (start, end_up, end_down) = (event(&a), event(&a), event(&a));
            start.record(&up).unwrap();
            up.memcpy_htod(&host, &mut x).unwrap();
            end_up.record(&up).unwrap();
            down.memcpy_dtoh(&y, &mut back).unwrap();
            end_down.record(&down).unwrap();
            for end in [&end_up, &end_down] {
                let ms = f64::from(start.elapsed_ms(end).unwrap());
                assert!(near(ms, one_way_ms, 0.05), "{ms} ms for {one_way_ms} ms");
            }

            // To the other GPU by NVLink: 18 links, 86 % of 25 GB/s each.
            let other = b.new_stream().unwrap();
            let mut z = other.alloc_zeros::<u8>(BYTES).unwrap();
            b.synchronize().unwrap();
            let (start, end) = (event(&b), event(&b));
            start.record(&other).unwrap();
            other.memcpy_dtod(&x, &mut z).unwrap();
            end.record(&other).unwrap();
            let (ms, wanted) =
                (f64::from(start.elapsed_ms(&end).unwrap()), BYTES as f64 / (18.0 * 25e9 * 0.86) * 1e3);
            assert!(near(ms, wanted, 0.06), "{ms} ms for {wanted} ms");
        },
    );
}

/// What the simulated NVML shows: the launch counts as load.
#[test]
fn work_heats_the_gpu_that_did_it() {
    on_blade("time::work_heats_the_gpu_that_did_it", "h100", "gpus = 2\nsms = 4\n", || {
        run(&Gpu::open(1), 4);
        let sim = Sim::open().unwrap();
        let flops = |i: usize| sim.gpu(i).unwrap().state().flops.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!((flops(0), flops(1)), (0, 2 * 64 * 64 * K as u64 * u64::from(ITERATIONS) * 4));
        assert!(!sim.gpu(0).unwrap().health().loaded);
        assert!(sim.gpu(1).unwrap().health().loaded_s > 0.0);
    });
}
