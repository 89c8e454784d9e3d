//! Each planted fault shows as the table in the library's documentation says, and a healthy blade shows none.
use std::sync::mpsc;
use std::time::Duration;

use crate::blade::{Gemm, Gpu, config, on_blade, ptx};
use cudarc::driver::sys::CUresult as Code;
use cudarc::driver::{CudaContext, DriverError, PushKernelArg, result};
use whetstone_burnin::exact;
use whetstone_burnin::suite::GemmFormat;
use whetstone_scenario::Sim;

fn code<T>(result: Result<T, DriverError>) -> Code {
    result.err().map_or(Code::CUDA_SUCCESS, |e| e.0)
}

/// One launch in bf16 on each SM of a small GPU, with its right answer.
fn gemm(gpu: &Gpu, kernel: &str, blocks: u32, iterations: u32) -> (Result<Gemm, DriverError>, Vec<u64>) {
    let operands = exact::exact_plan(GemmFormat::Bf16, 24, 64)[0].operands(64, 64, 7);
    let expected = exact::reference(&operands);
    (gpu.gemm(kernel, &operands, blocks, iterations), expected)
}

#[test]
fn a_stuck_cell_spoils_its_word_only() {
    let scenario =
        "gpus = 1\nhbm_backed_mib = 1\n[[fault]]\ngpu = 0\nkind = \"hbm_flip\"\nword = 5000\nbit = 17\n";
    on_blade("faults::a_stuck_cell_spoils_its_word_only", "h100", scenario, || {
        let gpu = Gpu::open(0);
        let mut memory = gpu.stream.alloc_zeros::<u64>(100_000).unwrap();
        let (mut wrong, mut seen) = (0, 0);
        for pattern in [3, 3 | 1 << 31] {
            gpu.fill(&mut memory, 0, pattern, 0).unwrap();
            let (faults, found) = gpu.verify(&memory, 0, pattern, 0);
            wrong += found;
            seen += faults.iter().filter(|f| f.word_index == 5000 && f.got ^ f.expected == 1 << 17).count();
        }
        // Zeros show a bit that is stuck at one, ones do not.
        assert_eq!((wrong, seen), (1, 1));
        // Copies go through the same cell.
        gpu.stream.memcpy_htod(&vec![0_u64; 100_000], &mut memory).unwrap();
        let back = gpu.stream.clone_dtoh(&memory).unwrap();
        assert_eq!(back.iter().filter(|w| **w != 0).count(), 1);
        assert_eq!(back[5000], 1 << 17);
    });
}

#[test]
fn a_transient_flip_happens_once() {
    let scenario =
        "gpus = 1\n[[fault]]\ngpu = 0\nkind = \"hbm_flip\"\nword = 77\nbit = 3\nmode = \"transient\"\n";
    on_blade("faults::a_transient_flip_happens_once", "h100", scenario, || {
        let gpu = Gpu::open(0);
        let mut memory = gpu.stream.alloc_zeros::<u64>(1000).unwrap();
        let found: Vec<u32> = (0..3)
            .map(|seed| {
                gpu.fill(&mut memory, 0, 4, seed).unwrap();
                gpu.verify(&memory, 0, 4, seed).1
            })
            .collect();
        assert_eq!(found, [1, 0, 0]);
    });
}

#[test]
fn a_wrong_sm_spoils_its_own_tiles_in_its_format() {
    let fault = "[[fault]]\ngpu = 0\nkind = \"sm_flip\"\nsm = 4\nbit = 9\nformat = \"bf16\"\n";
    on_blade(
        "faults::a_wrong_sm_spoils_its_own_tiles_in_its_format",
        "h100",
        &format!("sms = 6\ngpus = 2\n{fault}"),
        || {
            let gpu = Gpu::open(0);
            for kernel in ["gemm_bf16_mma", "gemm_bf16_cuda"] {
                let (result, expected) = gemm(&gpu, kernel, 12, 3);
                let result = result.unwrap();
                for (block, tile) in result.tiles.iter().enumerate() {
                    let wrong = exact::diff(&expected, &result.bits[block]);
                    if tile.smid == 4 {
                        // Every iteration is wrong alike: only the oracle sees it.
                        assert_eq!((wrong.len(), tile.mismatches), (1, 0), "{kernel} block {block}");
                        assert_eq!(wrong[0].xor(), 1 << 9);
                        assert_eq!(tile.digest, exact::digest(&result.bits[block]));
                    } else {
                        assert!(wrong.is_empty(), "{kernel} block {block} on SM {}", tile.smid);
                    }
                }
            }
            // Another format, and the GPU's sister, are right.
            let case = exact::exact_plan(GemmFormat::F16, 24, 64)[0].operands(64, 64, 1);
            let result = gpu.gemm("gemm_f16_mma", &case, 6, 1).unwrap();
            assert!(result.bits.iter().all(|bits| *bits == exact::reference(&case)));
            let (result, expected) = gemm(&Gpu::open(1), "gemm_bf16_mma", 6, 1);
            assert!(result.unwrap().bits.iter().all(|bits| *bits == expected));
        },
    );
}

#[test]
fn a_now_and_then_wrong_sm_disagrees_with_itself() {
    let fault = "[[fault]]\ngpu = 0\nkind = \"sm_flip\"\nsm = 1\nbit = 20\nevery_n = 3\n";
    on_blade(
        "faults::a_now_and_then_wrong_sm_disagrees_with_itself",
        "h100",
        &format!("sms = 3\ngpus = 1\n{fault}"),
        || {
            let (result, expected) = gemm(&Gpu::open(0), "gemm_bf16_mma", 3, 4);
            let result = result.unwrap();
            // Tiles 1 to 4 on SM 1, the third is wrong: it differs from the first, and the last is right again.
            let mismatches: Vec<u32> = result.tiles.iter().map(|t| t.mismatches).collect();
            assert_eq!(mismatches, [0, 1, 0]);
            assert_eq!(result.bits[1], expected);
        },
    );
}

#[test]
fn a_launch_error_stays() {
    let scenario = "gpus = 1\nsms = 4\n[[fault]]\ngpu = 0\nkind = \"launch_error\"\ncode = 214\nnth = 3\n";
    on_blade("faults::a_launch_error_stays", "h100", scenario, || {
        let gpu = Gpu::open(0);
        let mut memory = gpu.stream.alloc_zeros::<u64>(10).unwrap();
        let codes: Vec<Code> = (0..4).map(|_| code(gpu.fill(&mut memory, 0, 0, 0))).collect();
        let ecc = Code::CUDA_ERROR_ECC_UNCORRECTABLE;
        assert_eq!(codes, [Code::CUDA_SUCCESS, Code::CUDA_SUCCESS, ecc, ecc]);
        assert_eq!(code(gpu.stream.synchronize()), ecc);
        assert_eq!(code(gpu.stream.clone_dtoh(&memory)), ecc);
        // The driver counts it and says it in the kernel log, once.
        let sim = Sim::open().unwrap();
        assert_eq!(sim.gpu(0).unwrap().ecc_uncorrectable(), 1);
        assert_eq!(sim.xids_from(0), [(0, 94)]);
    });
}

#[test]
fn a_lost_gpu_fails_and_its_sister_goes_on() {
    let scenario = "gpus = 2\nsms = 4\n[[fault]]\ngpu = 1\nkind = \"gpu_lost\"\nat_s = 0.0\n";
    on_blade("faults::a_lost_gpu_fails_and_its_sister_goes_on", "h100", scenario, || {
        result::init().unwrap();
        assert_eq!(result::device::get_count().unwrap(), 2);
        assert_eq!(code(CudaContext::new(1)), Code::CUDA_ERROR_DEVICE_UNAVAILABLE);
        let (result, expected) = gemm(&Gpu::open(0), "gemm_bf16_mma", 4, 1);
        assert!(result.unwrap().bits.iter().all(|bits| *bits == expected));
    });
}

#[test]
fn a_gpu_lost_on_the_way_fails_every_call() {
    on_blade("faults::a_gpu_lost_on_the_way_fails_every_call", "h100", "gpus = 1\nsms = 4\n", || {
        let gpu = Gpu::open(0);
        let mut memory = gpu.stream.alloc_zeros::<u64>(10).unwrap();
        let sim = Sim::open().unwrap();
        sim.gpu(0).unwrap().state().lost.store(1, std::sync::atomic::Ordering::Release);
        let lost = Code::CUDA_ERROR_LAUNCH_FAILED;
        assert_eq!(code(gpu.fill(&mut memory, 0, 0, 0)), lost);
        assert_eq!(code(gpu.stream.synchronize()), lost);
        assert_eq!(code(gpu.stream.clone_dtoh(&memory)), lost);
        assert_eq!(code(gpu.stream.alloc_zeros::<u64>(10)), lost);
    });
}

#[test]
fn a_corrupting_copy_flips_one_bit_of_every_nth() {
    let fault = |direction: &str, bit| {
        format!(
            "[[fault]]\ngpu = 0\nkind = \"copy_flip\"\ndirection = \"{direction}\"\nbit = {bit}\nevery_n = 2\n"
        )
    };
    let scenario =
        format!("gpus = 2\n{}{}{}", fault("host_to_device", 1), fault("device_to_host", 2), fault("peer", 5));
    on_blade("faults::a_corrupting_copy_flips_one_bit_of_every_nth", "h100", &scenario, || {
        let (a, b) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
        let (stream, other) = (a.new_stream().unwrap(), b.new_stream().unwrap());
        let data = vec![0_u8; 1001];
        let flipped = |bytes: &[u8]| -> Vec<(usize, u8)> {
            bytes.iter().copied().enumerate().filter(|(_, b)| *b != 0).collect()
        };
        let first = stream.clone_htod(&data).unwrap();
        assert_eq!(flipped(&stream.clone_dtoh(&first).unwrap()), []);
        let second = stream.clone_htod(&data).unwrap(); // arrives with bit 1 of byte 500 inverted
        assert_eq!(flipped(&stream.clone_dtoh(&second).unwrap()), [(500, 2 ^ 4)]); // and leaves with bit 2 too
        assert_eq!(flipped(&stream.clone_dtoh(&second).unwrap()), [(500, 2)]);
        // Between GPUs: the second copy from GPU 0, read by GPU 1, whose own copies are right.
        let copies: Vec<_> = (0..3)
            .map(|_| {
                let mut target = other.alloc_zeros::<u8>(1001).unwrap();
                other.memcpy_dtod(&first, &mut target).unwrap();
                flipped(&other.clone_dtoh(&target).unwrap())
            })
            .collect();
        assert_eq!(copies, [vec![], vec![(500, 32)], vec![]]);
    });
}

#[test]
fn memory_has_an_end_and_ranges_are_checked() {
    let scenario = "gpus = 1\nhbm_backed_mib = 8\n[[fault]]\ngpu = 0\nkind = \"memory_busy\"\nmib = 3\n";
    on_blade("faults::memory_has_an_end_and_ranges_are_checked", "h100", scenario, || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        assert_eq!(context.mem_get_info().unwrap(), (5 << 20, 81_559 << 20));
        let four = stream.alloc_zeros::<u8>(4 << 20).unwrap();
        assert_eq!(code(stream.alloc_zeros::<u8>(2 << 20)), Code::CUDA_ERROR_OUT_OF_MEMORY);
        assert_eq!(context.mem_get_info().unwrap().0, 1 << 20);
        drop(four);
        let mut again = stream.alloc_zeros::<u64>(64).unwrap();
        // One word more than there is.
        let (pointer, _sync) = cudarc::driver::DevicePtrMut::device_ptr_mut(&mut again, &stream);
        // SAFETY: the driver refuses the range before it touches anything.
        let outcome = unsafe { result::memcpy_htod_sync(pointer, &[0_u64; 65]) };
        assert_eq!(code(outcome), Code::CUDA_ERROR_INVALID_VALUE);
    });
}

#[test]
fn images_that_do_not_fit_are_refused() {
    on_blade("faults::images_that_do_not_fit_are_refused", "a100", "gpus = 1\n", || {
        let context = CudaContext::new(0).unwrap();
        let load = |version, target| code(context.load_module(ptx(version, target, &[("mem_fill", 5)])));
        assert_eq!(load("9.0", "sm_80"), Code::CUDA_SUCCESS); // CUDA 13.0
        assert_eq!(load("9.1", "sm_80"), Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
        assert_eq!(load("8.0", "sm_90"), Code::CUDA_ERROR_NO_BINARY_FOR_GPU);
        let garbage = cudarc::nvrtc::Ptx::from_src("no ptx");
        assert_eq!(code(context.load_module(garbage)), Code::CUDA_ERROR_INVALID_PTX);
        // Built from other sources: one parameter more.
        let module = context.load_module(ptx("8.0", "sm_80", &[("mem_fill", 6)])).unwrap();
        assert_eq!(code(module.load_function("mem_fill")), Code::CUDA_ERROR_INVALID_IMAGE);
        // Not in the image; in the image, but only silicon can run it.
        let gpu = Gpu::open(0);
        assert_eq!(code(gpu.module.load_function("mem_nothing")), Code::CUDA_ERROR_NOT_FOUND);
        assert_eq!(code(gpu.module.load_function("gemm_bf16_wgmma")), Code::CUDA_ERROR_NOT_FOUND);
    });
}

#[test]
fn a_planted_hang_never_returns() {
    let scenario =
        "gpus = 1\n[[fault]]\ngpu = 0\nkind = \"hang\"\ncall = \"cuStreamSynchronize\"\nat_s = 0.0\n";
    on_blade("faults::a_planted_hang_never_returns", "h100", scenario, || {
        let gpu = Gpu::open(0);
        let mut memory = gpu.stream.alloc_zeros::<u64>(10).unwrap();
        gpu.fill(&mut memory, 0, 0, 0).unwrap();
        let (said, heard) = mpsc::channel();
        let stream = gpu.stream.clone();
        std::thread::spawn(move || {
            said.send("waits").unwrap();
            let _ = stream.synchronize();
            said.send("returned").unwrap();
        });
        assert_eq!(heard.recv_timeout(Duration::from_secs(60)), Ok("waits"));
        assert_eq!(heard.recv_timeout(Duration::from_millis(300)), Err(mpsc::RecvTimeoutError::Timeout));
        // The test's process ends with the thread still in the call; dropping the GPU would hang as well.
        std::mem::forget((gpu, memory));
    });
}

/// The runtime itself: a kernel without its barrier reads what is not there yet, one that waits for two things at once
/// is ended.
#[test]
fn mistakes_in_kernels_show() {
    on_blade("faults::mistakes_in_kernels_show", "h100", "gpus = 1\n", || {
        let gpu = Gpu::open(0);
        let run = |kernel: &str| {
            let numbers: Vec<u32> = (0..128).collect();
            let mut on_device = gpu.stream.clone_htod(&numbers).unwrap();
            let f = gpu.kernel(kernel);
            let mut launch = gpu.stream.launch_builder(&f);
            launch.arg(&mut on_device);
            // SAFETY: one buffer of 128 numbers, as the kernel's comment says.
            unsafe { launch.launch(config(1, 128)) }?;
            gpu.stream.clone_dtoh(&on_device)
        };
        let turned: Vec<u32> = (0..128).rev().collect();
        assert_eq!(run("selftest_reverse").unwrap(), turned);
        let wrong = run("selftest_reverse_without_barrier").unwrap();
        assert_eq!(wrong.iter().zip(&turned).filter(|(a, b)| a != b).count(), 64);
        assert_eq!(code(run("selftest_deadlock")), Code::CUDA_ERROR_LAUNCH_FAILED);
    });
}
