//! Compiles the product's kernels and the fiber runtime for this machine.

use std::path::Path;

fn main() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kernels = here.join("../../../burnin/device/kernels");
    let runtime = here.join("runtime");
    println!("cargo::rerun-if-changed={}", kernels.display());
    println!("cargo::rerun-if-changed={}", runtime.display());

    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        // The emulated matrix instructions are the whole cost of a simulated burn-in, in debug builds too.
        .opt_level(2)
        .debug(false)
        // An fma only where the source says so: the device's results are bit-exact, so must these be.
        .flag("-ffp-contract=off")
        .flag("-fno-exceptions")
        .flag("-fno-rtti")
        .flag("-fno-threadsafe-statics")
        .flag("-fno-gnu-unique")
        .flag("-fvisibility=hidden")
        .flag("-Wall")
        .flag("-Wextra")
        // Nothing of the C++ library is used: no version of it can clash with the program's own.
        .cpp_link_stdlib(None)
        .include(&kernels)
        .include(&runtime);
    // The library is used where it is built; `check_processor` in the library says so if it is not.
    if host_has_fma() {
        build.flag("-mavx2").flag("-mfma").flag("-mf16c");
        println!("cargo::rustc-cfg=needs_fma");
    }
    println!("cargo::rustc-check-cfg=cfg(needs_fma)");
    for source in ["runtime.cpp", "fiber.cpp", "mma.cpp", "kernels.cpp"] {
        build.file(runtime.join(source));
    }
    build.compile("whetstone_sim_cuda_runtime");

    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    println!("cargo::rustc-link-lib=m");
}

/// Software fma is some fifty times slower.
fn host_has_fma() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("f16c")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}
