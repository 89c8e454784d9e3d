//! The vector units that this CPU has, each as a register tile. Which exist is asked at run time.

use super::block::Micro;

pub type F64 = Micro<f64, f64, f64>;
pub type F32 = Micro<f32, f32, f32>;
/// bf16 bits in, fp32 out.
pub type Bf16 = Micro<u16, u16, f32>;
/// Unsigned by signed bytes, 32-bit sums: the dot-product instructions of x86.
pub type Int8 = Micro<u8, i8, i32>;
pub type Int16 = Micro<i16, i16, i32>;

/// Widest first: the last of each is the portable one, which every CPU has.
pub fn f64_units() -> Vec<&'static F64> {
    let mut units = Vec::new();
    #[cfg(target_arch = "x86_64")]
    units.extend(x86::f64_units());
    units.push(&portable::F64_TILE);
    units
}

pub fn f32_units() -> Vec<&'static F32> {
    let mut units = Vec::new();
    #[cfg(target_arch = "x86_64")]
    units.extend(x86::f32_units());
    units.push(&portable::F32_TILE);
    units
}

pub fn bf16_units() -> Vec<&'static Bf16> {
    #[cfg(target_arch = "x86_64")]
    return x86::bf16_units();
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

pub fn int8_units() -> Vec<&'static Int8> {
    #[cfg(target_arch = "x86_64")]
    return x86::int8_units();
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

pub fn int16_units() -> Vec<&'static Int16> {
    #[cfg(target_arch = "x86_64")]
    return x86::int16_units();
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// A tile in plain Rust. The compiler turns it into the target's base vector unit: NEON with FMA on aarch64, SSE2 on
/// x86-64.
mod portable {
    use super::{F32, F64, Micro};

    macro_rules! tile {
        ($run:ident, $tile:ident, $kind:ty, $t:ty, $name:literal, $rows:literal, $columns:literal) => {
            pub static $tile: $kind =
                Micro { name: $name, rows: $rows, columns: $columns, group: 1, kc: 256, mc: 128, run: $run };

            /// # Safety
            /// The pointers are valid as [`Micro::run`] says; any CPU will do.
            unsafe fn $run(depth: usize, a: *const $t, b: *const $t, c: *mut $t, ldc: usize, first: bool) {
                let mut sum = [[0.0 as $t; $columns]; $rows];
                for p in 0..depth {
                    // SAFETY: `a` and `b` hold `depth` packed groups of this tile's size.
                    let (a, b) = unsafe {
                        (
                            &*a.add(p * $rows).cast::<[$t; $rows]>(),
                            &*b.add(p * $columns).cast::<[$t; $columns]>(),
                        )
                    };
                    for (sum, a) in sum.iter_mut().zip(a) {
                        for (sum, b) in sum.iter_mut().zip(b) {
                            // Where there is no FMA instruction, `mul_add` is a slow library call.
                            *sum = if cfg!(target_arch = "aarch64") {
                                a.mul_add(*b, *sum)
                            } else {
                                *sum + a * b
                            };
                        }
                    }
                }
                for (i, sum) in sum.iter().enumerate() {
                    // SAFETY: `c` is valid for this tile's rows at stride `ldc`.
                    let row = unsafe { &mut *c.add(i * ldc).cast::<[$t; $columns]>() };
                    for (c, sum) in row.iter_mut().zip(sum) {
                        *c = if first { *sum } else { *c + *sum };
                    }
                }
            }
        };
    }

    tile!(run_f64, F64_TILE, F64, f64, "fp64 base", 4, 8);
    tile!(run_f32, F32_TILE, F32, f32, "fp32 base", 4, 16);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Bf16, F32, F64, Int8, Int16, Micro};

    macro_rules! has {
        ($($feature:tt),*) => { $(is_x86_feature_detected!($feature))&&* };
    }

    pub fn f64_units() -> Vec<&'static F64> {
        let known: [(bool, &'static F64); 2] =
            [(has!("avx512f"), &F64_AVX512), (has!("avx2", "fma"), &F64_AVX2)];
        known.into_iter().filter_map(|(there, unit)| there.then_some(unit)).collect()
    }

    pub fn f32_units() -> Vec<&'static F32> {
        let known: [(bool, &'static F32); 2] =
            [(has!("avx512f"), &F32_AVX512), (has!("avx2", "fma"), &F32_AVX2)];
        known.into_iter().filter_map(|(there, unit)| there.then_some(unit)).collect()
    }

    pub fn bf16_units() -> Vec<&'static Bf16> {
        if has!("avx512f", "avx512bf16") { vec![&BF16_AVX512] } else { Vec::new() }
    }

    pub fn int8_units() -> Vec<&'static Int8> {
        let known: [(bool, &'static Int8); 2] =
            [(has!("avx512f", "avx512vnni"), &INT8_AVX512), (has!("avx2", "avxvnni"), &INT8_AVX)];
        known.into_iter().filter_map(|(there, unit)| there.then_some(unit)).collect()
    }

    pub fn int16_units() -> Vec<&'static Int16> {
        if has!("avx2") { vec![&INT16_AVX2] } else { Vec::new() }
    }

    /// One register tile: `$rows` x `$vectors` accumulators; each step loads `$vectors` of B and spreads one group of
    /// A after the other over a vector.
    macro_rules! tile {
        (
            $run:ident, $features:literal, $a:ty, $b:ty, $c:ty, $rows:literal, $vectors:literal, $lanes:literal,
            group $group:literal, $zero:expr, $load:expr, $spread:expr, $step:expr, $read:expr, $add:expr, $write:expr
        ) => {
            /// # Safety
            /// The CPU has the features; the pointers are valid as [`Micro::run`] says.
            #[target_feature(enable = $features)]
            unsafe fn $run(groups: usize, a: *const $a, b: *const $b, c: *mut $c, ldc: usize, first: bool) {
                // SAFETY: `a` and `b` hold `groups` packed groups of this tile's size, and `c` is valid for its rows at
                // stride `ldc`: no load or store goes past them. Prefetches touch nothing.
                unsafe {
                    let mut sum = [[$zero; $vectors]; $rows];
                    for i in 0..$rows {
                        for j in 0..$vectors {
                            _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(i * ldc + j * $lanes).cast());
                        }
                    }
                    let (mut a, mut b) = (a, b);
                    for _ in 0..groups {
                        let mut right = [$zero; $vectors];
                        for j in 0..$vectors {
                            right[j] = $load(b.add(j * $lanes * $group));
                        }
                        for i in 0..$rows {
                            let left = $spread(a.add(i * $group));
                            for j in 0..$vectors {
                                sum[i][j] = $step(sum[i][j], left, right[j]);
                            }
                        }
                        a = a.add($rows * $group);
                        b = b.add($vectors * $lanes * $group);
                    }
                    for i in 0..$rows {
                        for j in 0..$vectors {
                            let at = c.add(i * ldc + j * $lanes);
                            let value = if first { sum[i][j] } else { $add($read(at), sum[i][j]) };
                            $write(at, value);
                        }
                    }
                }
            }
        };
    }

    tile!(
        run_f64_avx512, "avx512f", f64, f64, f64, 8, 3, 8, group 1, _mm512_setzero_pd(), |p| _mm512_loadu_pd(p),
        |p: *const f64| _mm512_set1_pd(*p), |sum, a, b| _mm512_fmadd_pd(a, b, sum), |p| _mm512_loadu_pd(p),
        |x, y| _mm512_add_pd(x, y), |p, v| _mm512_storeu_pd(p, v)
    );
    tile!(
        run_f32_avx512, "avx512f", f32, f32, f32, 8, 3, 16, group 1, _mm512_setzero_ps(), |p| _mm512_loadu_ps(p),
        |p: *const f32| _mm512_set1_ps(*p), |sum, a, b| _mm512_fmadd_ps(a, b, sum), |p| _mm512_loadu_ps(p),
        |x, y| _mm512_add_ps(x, y), |p, v| _mm512_storeu_ps(p, v)
    );
    tile!(
        run_f64_avx2, "avx2,fma", f64, f64, f64, 6, 2, 4, group 1, _mm256_setzero_pd(), |p| _mm256_loadu_pd(p),
        |p: *const f64| _mm256_set1_pd(*p), |sum, a, b| _mm256_fmadd_pd(a, b, sum), |p| _mm256_loadu_pd(p),
        |x, y| _mm256_add_pd(x, y), |p, v| _mm256_storeu_pd(p, v)
    );
    tile!(
        run_f32_avx2, "avx2,fma", f32, f32, f32, 6, 2, 8, group 1, _mm256_setzero_ps(), |p| _mm256_loadu_ps(p),
        |p: *const f32| _mm256_set1_ps(*p), |sum, a, b| _mm256_fmadd_ps(a, b, sum), |p| _mm256_loadu_ps(p),
        |x, y| _mm256_add_ps(x, y), |p, v| _mm256_storeu_ps(p, v)
    );
    // The dot-product kernels keep their operands as integer vectors: a group is a 32-bit lane of them.
    tile!(
        run_int8_avx512, "avx512f,avx512vnni", u8, i8, i32, 8, 3, 16, group 4, _mm512_setzero_si512(),
        |p: *const i8| _mm512_loadu_si512(p.cast()), |p: *const u8| _mm512_set1_epi32(p.cast::<i32>().read_unaligned()),
        |sum, a, b| _mm512_dpbusd_epi32(sum, a, b), |p: *mut i32| _mm512_loadu_si512(p.cast()),
        |x, y| _mm512_add_epi32(x, y), |p: *mut i32, v| _mm512_storeu_si512(p.cast(), v)
    );
    tile!(
        run_int8_avx, "avx2,avxvnni", u8, i8, i32, 6, 2, 8, group 4, _mm256_setzero_si256(),
        |p: *const i8| _mm256_loadu_si256(p.cast()), |p: *const u8| _mm256_set1_epi32(p.cast::<i32>().read_unaligned()),
        |sum, a, b| _mm256_dpbusd_avx_epi32(sum, a, b), |p: *mut i32| _mm256_loadu_si256(p.cast()),
        |x, y| _mm256_add_epi32(x, y), |p: *mut i32, v| _mm256_storeu_si256(p.cast(), v)
    );
    tile!(
        run_int16_avx2, "avx2", i16, i16, i32, 6, 2, 8, group 2, _mm256_setzero_si256(),
        |p: *const i16| _mm256_loadu_si256(p.cast()),
        |p: *const i16| _mm256_set1_epi32(p.cast::<i32>().read_unaligned()),
        |sum, a, b| _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)), |p: *mut i32| _mm256_loadu_si256(p.cast()),
        |x, y| _mm256_add_epi32(x, y), |p: *mut i32, v| _mm256_storeu_si256(p.cast(), v)
    );

    /// bf16: accumulators are fp32 vectors, operands integer vectors of bf16 pairs.
    ///
    /// # Safety
    /// The CPU has the features; the pointers are valid as [`Micro::run`] says.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn run_bf16_avx512(
        groups: usize,
        a: *const u16,
        b: *const u16,
        c: *mut f32,
        ldc: usize,
        first: bool,
    ) {
        // SAFETY: `a` and `b` hold `groups` packed pairs for 8 rows and 48 columns, `c` 8 rows of 48 at stride `ldc`;
        // a 512-bit integer vector and 32 bf16 values are the same bits.
        unsafe {
            let mut sum = [[_mm512_setzero_ps(); 3]; 8];
            for p in 0..groups {
                let mut right = [_mm512_setzero_si512(); 3];
                for (j, right) in right.iter_mut().enumerate() {
                    *right = _mm512_loadu_si512(b.add((p * 48 + j * 16) * 2).cast());
                }
                for (i, sum) in sum.iter_mut().enumerate() {
                    let pair = _mm512_set1_epi32(a.add((p * 8 + i) * 2).cast::<i32>().read_unaligned());
                    let left: __m512bh = std::mem::transmute(pair);
                    for (sum, right) in sum.iter_mut().zip(right) {
                        *sum = _mm512_dpbf16_ps(*sum, left, std::mem::transmute::<__m512i, __m512bh>(right));
                    }
                }
            }
            for (i, sum) in sum.iter().enumerate() {
                for (j, sum) in sum.iter().enumerate() {
                    let at = c.add(i * ldc + j * 16);
                    _mm512_storeu_ps(at, if first { *sum } else { _mm512_add_ps(_mm512_loadu_ps(at), *sum) });
                }
            }
        }
    }

    // Block sizes for 32 to 48 KiB of first-level and 1 MiB (AVX2: 256 KiB) of second-level cache: kc x columns x
    // element size is half the first level, mc x kc x element size at most half the second.
    static F64_AVX512: F64 =
        Micro { name: "fp64 avx512", rows: 8, columns: 24, group: 1, kc: 192, mc: 192, run: run_f64_avx512 };
    static F32_AVX512: F32 =
        Micro { name: "fp32 avx512", rows: 8, columns: 48, group: 1, kc: 192, mc: 384, run: run_f32_avx512 };
    static F64_AVX2: F64 =
        Micro { name: "fp64 avx2", rows: 6, columns: 8, group: 1, kc: 256, mc: 72, run: run_f64_avx2 };
    static F32_AVX2: F32 =
        Micro { name: "fp32 avx2", rows: 6, columns: 16, group: 1, kc: 256, mc: 144, run: run_f32_avx2 };
    static BF16_AVX512: Bf16 =
        Micro { name: "bf16 avx512", rows: 8, columns: 48, group: 2, kc: 256, mc: 256, run: run_bf16_avx512 };
    static INT8_AVX512: Int8 = Micro {
        name: "int8 avx512-vnni",
        rows: 8,
        columns: 48,
        group: 4,
        kc: 512,
        mc: 256,
        run: run_int8_avx512,
    };
    static INT8_AVX: Int8 =
        Micro { name: "int8 avx-vnni", rows: 6, columns: 16, group: 4, kc: 512, mc: 144, run: run_int8_avx };
    static INT16_AVX2: Int16 =
        Micro { name: "int16 avx2", rows: 6, columns: 16, group: 2, kc: 512, mc: 144, run: run_int16_avx2 };
}
