//! Wrong and slow arithmetic, bad memory.

use serde_json::json;
use whetstone_burnin::suite::TestKind;
use whetstone_model::report::TestOutcome;

use crate::child::{blade, h100};
use crate::has_kernels;

pub fn kind(name: &str, params: serde_json::Value) -> TestKind {
    serde_json::from_value(json!({ "kind": name, "params": params })).unwrap()
}

/// One round, as small as it gets.
pub fn gemm(formats: &[&str]) -> TestKind {
    let small = json!({ "formats": formats, "max_k": 64, "iterations": 1, "blocks_per_sm": 1, "min_rounds": 1, "fill_budget": false });
    kind("gpu_gemm", small)
}

fn memory() -> TestKind {
    kind("gpu_memory", json!({ "fade_s": 0, "min_fraction_of_total": 0.0, "fill_budget": false }))
}

const ALL: [&str; 8] = ["fp64", "fp32", "tf32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8"];

#[test]
fn clean_silicon_passes_in_every_format_and_says_how() {
    if !has_kernels() {
        return;
    }
    let blade = h100("");
    let said = blade.run(gemm(&ALL), &[2]);
    said.assert_clean();
    let device = blade.uuid(2);
    for format in ALL {
        let bits = said.reading(Some(&device), &format!("gemm.{format}.accumulator_bits"));
        let expected = match format {
            "fp64" => 53.0,
            "int8" => 31.0,
            // Hopper's FP8 pipe, as it is simulated.
            "fp8_e4m3" | "fp8_e5m2" => 14.0,
            _ => 24.0,
        };
        assert_eq!(bits, Some(expected), "{format}");
        assert!(said.reading(Some(&device), &format!("gemm.{format}.throughput")).unwrap() > 1.0);
    }
    assert!(
        said.notes().contains("fp8_e4m3 ran through mma.sync, which this chip executes on its FP16 pipe")
    );
    assert!(said.notes().contains("fp32 ran on cuda") && said.notes().contains("bf16 ran on mma"));
    // Tensor cores and CUDA cores are different silicon: where both take a format, both are tested.
    for format in ["fp64_cuda", "fp16_cuda", "bf16_cuda", "int8_cuda"] {
        assert!(said.reading(Some(&device), &format!("gemm.{format}.throughput")).unwrap() > 1.0, "{format}");
    }
    assert_eq!(said.digests().len(), ALL.len() + 4);
}

#[test]
fn two_gpus_of_one_model_have_the_same_digests() {
    if !has_kernels() {
        return;
    }
    let blade = h100("");
    let (first, second) = (blade.run(gemm(&["bf16"]), &[0]), blade.run(gemm(&["bf16"]), &[5]));
    let (first, second) = (first.digests()[0].clone(), second.digests()[0].clone());
    assert_eq!((&first.key, &first.value), (&second.key, &second.value));
    assert_ne!(first.device, second.device);
}

#[test]
fn a_chip_without_a_format_is_not_accused_of_it() {
    if !has_kernels() {
        return;
    }
    let said = blade("a100", "").run(gemm(&["fp8_e4m3", "fp16"]), &[0]);
    assert_eq!(said.outcome, TestOutcome::Pass, "{}", said.detail);
    assert!(said.notes().contains("fp8_e4m3 was not tested"), "{}", said.notes());
}

/// Any bit of the accumulator, in any format: found, on that GPU, on that SM.
#[test]
fn a_flipped_bit_of_one_sm_is_found_with_its_sm() {
    if !has_kernels() {
        return;
    }
    for (format, sm, bit) in
        [("bf16", 41, 0), ("fp16", 0, 31), ("tf32", 131, 22), ("int8", 7, 12), ("fp64", 77, 40)]
    {
        let fault = format!(
            "[[fault]]\nkind = \"sm_flip\"\ngpu = 3\nsm = {sm}\nbit = {bit}\nformat = \"{format}\"\n"
        );
        let blade = h100(&fault);
        let said = blade.run(gemm(&[format]), &[3]);
        let text = said.assert_fault("sdc", &blade.uuid(3));
        assert!(
            text.contains(&format!("gemm {format} ")) && text.contains(&format!("all on SM {sm} ")),
            "{text}"
        );
        assert!(text.contains("(bit-exact test)") && text.contains("1 wrong bit in 1 element"), "{text}");
        assert!(text.contains(&format!("xor {:#x}", 1u64 << bit)), "{text}");
        // Its sister is not accused.
        blade.run(gemm(&[format]), &[4]).assert_clean();
    }
}

#[test]
fn a_slow_sm_is_found_and_nothing_else() {
    if !has_kernels() {
        return;
    }
    let blade = h100("[[fault]]\nkind = \"slow_sm\"\ngpu = 6\nsm = 99\npercent = 25.0\n");
    let said = blade.run(gemm(&["fp16"]), &[6]);
    let text = said.assert_fault("slow-sm", &blade.uuid(6));
    assert!(text.contains("SM 99 is "), "{text}");
    // Once on the tensor cores, once on the CUDA cores.
    assert_eq!(said.findings().len(), 2);
    assert!(said.findings().iter().all(|f| f.detail.contains("SM 99 is ")), "{:?}", said.findings());
}

#[test]
fn clean_memory_passes_with_its_bandwidth() {
    if !has_kernels() {
        return;
    }
    let blade = h100("");
    let said = blade.run(memory(), &[1]);
    said.assert_clean();
    let bandwidth = said.reading(Some(&blade.uuid(1)), "hbm.bandwidth").unwrap();
    assert!((2500.0..3500.0).contains(&bandwidth), "{bandwidth}");
}

#[test]
fn bad_cells_are_named_by_bit_and_place() {
    if !has_kernels() {
        return;
    }
    for (mode, bit) in [("sticky", 17), ("transient", 63), ("sticky", 0)] {
        let fault = format!(
            "[[fault]]\nkind = \"hbm_flip\"\ngpu = 5\nword = 1000000\nbit = {bit}\nmode = \"{mode}\"\n"
        );
        let blade = h100(&fault);
        let said = blade.run(memory(), &[5]);
        let text = said.assert_fault("hbm-bit-error", &blade.uuid(5));
        assert!(
            text.contains(&format!("bit {bit} wrong")) && text.contains("memory offset 0x79"),
            "{mode}: {text}"
        );
        assert!(text.contains("read by SM "), "{text}");
        assert!(said.detail.contains("of 1 words"), "{}", said.detail);
    }
}

#[test]
fn too_little_free_memory_is_inconclusive_not_a_failure() {
    if !has_kernels() {
        return;
    }
    let kind = kind("gpu_memory", json!({ "patterns": ["random"], "fade_s": 0, "fill_budget": false }));
    let said = h100("").run(kind, &[0]);
    assert_eq!((said.outcome, said.findings().len()), (TestOutcome::Inconclusive, 0));
    assert!(said.detail.contains("of the GPU's memory could be tested"), "{}", said.detail);
}

#[test]
fn corruption_under_power_load_is_found() {
    if !has_kernels() {
        return;
    }
    let load = |shape: &str| {
        let params = json!({ "shape": shape, "pulse_ms": 300, "iterations": 1, "k": 64, "blocks_per_sm": 1 });
        kind("gpu_power", params)
    };
    for shape in ["hold", "pulse"] {
        h100("").run(load(shape), &[3]).assert_clean();
        let blade = h100("[[fault]]\nkind = \"sm_flip\"\ngpu = 3\nsm = 12\nbit = 9\nevery_n = 3\n");
        let said = blade.run(load(shape), &[3]);
        let text = said.assert_fault("sdc", &blade.uuid(3));
        assert!(text.contains("all on SM 12") && text.contains("under power load"), "{text}");
        let duty = said.reading(Some(&blade.uuid(3)), "power.duty").unwrap();
        assert!(if shape == "hold" { duty > 90.0 } else { duty < 95.0 }, "{shape}: {duty} %");
    }
}
