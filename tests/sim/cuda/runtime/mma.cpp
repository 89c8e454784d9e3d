// Warp-wide matrix instructions.
//
// The tensor core as published measurements describe it (Fasi, Higham, Mikaitis, Pranesh 2021; Khattak, Mikaitis
// 2025): products are exact; they and the accumulator are aligned to the largest exponent among them, cut (not
// rounded) to `significand` bits counted from there, and added; the sum is cut to a float. Sums in which nothing is
// cut, such as those of small integers, are exact in any order.
//
// fp64 is a chain of IEEE fused multiply-adds; int8 wraps modulo 2^32.
#include <math.h>
#include <string.h>

#include "runtime.h"

namespace {

typedef float Floats __attribute__((vector_size(32)));
typedef int Ints __attribute__((vector_size(32)));

constexpr u32 M = 16, N = 8, MAX_K = 32;
constexpr int EXPONENT = 0x7f800000;
// Scaling below works in float while the largest product is at least 2^-87: anything that underflows is cut anyway.
constexpr int SMALLEST = 40 << 23;
// 32 products and the accumulator, each below 2^25, fit an int.
constexpr u32 MOST_BITS_IN_INT = 25;

float decode_f8(u32 x, int exponent_bits, int mantissa_bits, bool has_infinity) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(x >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = static_cast<int>(x) & ((1 << mantissa_bits) - 1);
  float value;
  if (has_infinity && exponent == (1 << exponent_bits) - 1) {
    value = mantissa == 0 ? INFINITY : NAN;
  } else if (!has_infinity && (x & 0x7f) == 0x7f) {
    value = NAN;
  } else if (exponent == 0) {
    value = ldexpf(static_cast<float>(mantissa), 1 - bias - mantissa_bits);
  } else {
    value = ldexpf(static_cast<float>(mantissa | 1 << mantissa_bits), exponent - bias - mantissa_bits);
  }
  return x & 0x80 ? -value : value;
}

struct F8Tables {
  float e4m3[256], e5m2[256];
  F8Tables() {
    for (u32 i = 0; i < 256; ++i) {
      e4m3[i] = decode_f8(i, 4, 3, false);
      e5m2[i] = decode_f8(i, 5, 2, true);
    }
  }
};
const F8Tables f8;

float of_bits(u32 x) {
  float y;
  memcpy(&y, &x, sizeof y);
  return y;
}

// The 4 bytes of one register as numbers; `out` is `stride` floats apart. Returns how many there were.
void decode(u32 format, u32 word, float* out, u32 stride) {
  switch (format) {
    case 2: out[0] = of_bits(word & 0xffffe000u); break;  // tf32: the low 13 bits are not looked at
    case 3:
      out[0] = ws_decode_f16(static_cast<u16>(word));
      out[stride] = ws_decode_f16(static_cast<u16>(word >> 16));
      break;
    case 4:
      out[0] = of_bits(word << 16);
      out[stride] = of_bits(word & 0xffff0000u);
      break;
    default: {
      const float* table = format == 5 ? f8.e4m3 : f8.e5m2;
      for (u32 i = 0; i < 4; ++i) out[i * stride] = table[word >> (8 * i) & 0xff];
    }
  }
}

// |s| cut to its highest 24 bits.
int cut_to_float(int s) {
  const u32 magnitude = s < 0 ? 0u - static_cast<u32>(s) : static_cast<u32>(s);
  if (magnitude < 1u << 24) return s;
  const int low = 8 - __builtin_clz(magnitude);
  const int cut = static_cast<int>(magnitude >> low << low);
  return s < 0 ? -cut : cut;
}

// One element in double precision: for infinities, NaNs, extreme exponents and wide accumulators.
float sum_wide(const float* a, const Floats* b, u32 column, u32 k_count, float c, u32 significand) {
  double products[MAX_K], plain = c;
  int largest = fabs(c) > 0 && isfinite(c) ? ilogb(c) : -100000;
  for (u32 k = 0; k < k_count; ++k) {
    products[k] = static_cast<double>(a[k]) * static_cast<double>(b[k][column]);
    plain += products[k];
    if (products[k] != 0 && isfinite(products[k]) && ilogb(products[k]) > largest) largest = ilogb(products[k]);
  }
  if (!isfinite(plain) || largest == -100000) return static_cast<float>(plain);
  const int scale = static_cast<int>(significand) - 1 - largest;
  double sum = trunc(ldexp(c, scale));
  for (u32 k = 0; k < k_count; ++k) sum += trunc(ldexp(products[k], scale));
  if (sum == 0) return 0;
  const int spare = ilogb(sum) - 23;
  if (spare > 0) sum = ldexp(trunc(ldexp(sum, -spare)), spare);
  return static_cast<float>(ldexp(sum, -scale));
}

void multiply_floats(const float (*a)[MAX_K], const Floats* b, float (*c)[N], u32 k_count, u32 significand) {
  for (u32 i = 0; i < M; ++i) {
    Floats products[MAX_K], sum_before;
    memcpy(&sum_before, c[i], sizeof sum_before);
    Ints largest = (Ints)sum_before & 0x7fffffff;
    for (u32 k = 0; k < k_count; ++k) {
      products[k] = a[i][k] * b[k];
      const Ints size = (Ints)products[k] & 0x7fffffff;
      largest = size > largest ? size : largest;
    }
    Ints exponent = largest & EXPONENT;
    const Ints odd = (exponent == EXPONENT) | ((largest != 0) & (exponent < SMALLEST));
    bool wide = significand > MOST_BITS_IN_INT;
    for (u32 j = 0; j < N; ++j) wide |= odd[j] != 0;
    if (wide) {
      for (u32 j = 0; j < N; ++j) c[i][j] = sum_wide(a[i], b, j, k_count, c[i][j], significand);
      continue;
    }
    exponent = exponent < SMALLEST ? (Ints){} + SMALLEST : exponent;
    const int shift = static_cast<int>(significand - 1) << 23;
    const Floats scale = (Floats)(shift + (254 << 23) - exponent);
    const Floats unit = (Floats)(exponent - shift);
    // The conversion to int cuts toward zero.
    Ints sum = __builtin_convertvector(sum_before * scale, Ints);
    for (u32 k = 0; k < k_count; ++k) sum += __builtin_convertvector(products[k] * scale, Ints);
    for (u32 j = 0; j < N; ++j) sum[j] = cut_to_float(sum[j]);
    const Floats result = __builtin_convertvector(sum, Floats) * unit;
    memcpy(c[i], &result, sizeof result);
  }
}

// Fragment layouts of m16n8kK: lane = 4 * group + quad.
// a: rows group and group + 8 (registers 0, 2 and 1, 3), K words quad and quad + 4 (registers 0, 1 and 2, 3);
// b: column group, K words quad and quad + 4; d: rows group and group + 8, columns 2 * quad and 2 * quad + 1.
void compute_floats(const WsMma* mma, u32 significand) {
  const u32 format = mma->format;
  const u32 per_word = format == 2 ? 1 : format == 3 || format == 4 ? 2 : 4;
  float a[M][MAX_K], c[M][N];
  alignas(32) float b[MAX_K][N];
  for (u32 lane = 0; lane < 32; ++lane) {
    const u32 group = lane / 4, quad = lane % 4;
    u32 left[4], right[2];
    memcpy(left, mma->a[lane], sizeof left);
    memcpy(right, mma->b[lane], sizeof right);
    for (u32 r = 0; r < 4; ++r) decode(format, left[r], &a[group + r % 2 * 8][(quad + r / 2 * 4) * per_word], 1);
    for (u32 r = 0; r < 2; ++r) decode(format, right[r], &b[(quad + r * 4) * per_word][group], N);
    const float* d = static_cast<const float*>(mma->d[lane]);
    memcpy(&c[group][quad * 2], d, 8);
    memcpy(&c[group + 8][quad * 2], d + 2, 8);
  }
  multiply_floats(a, reinterpret_cast<const Floats*>(b), c, 8 * per_word, significand);
  for (u32 lane = 0; lane < 32; ++lane) {
    float* d = static_cast<float*>(mma->d[lane]);
    memcpy(d, &c[lane / 4][lane % 4 * 2], 8);
    memcpy(d + 2, &c[lane / 4 + 8][lane % 4 * 2], 8);
  }
}

void compute_s8(const WsMma* mma) {
  int a[M][MAX_K];
  Ints b[MAX_K];
  for (u32 lane = 0; lane < 32; ++lane) {
    const u32 group = lane / 4, quad = lane % 4;
    signed char left[16], right[8];
    memcpy(left, mma->a[lane], sizeof left);
    memcpy(right, mma->b[lane], sizeof right);
    for (u32 i = 0; i < 16; ++i) a[group + i / 4 % 2 * 8][quad * 4 + i / 8 * 16 + i % 4] = left[i];
    for (u32 i = 0; i < 8; ++i) b[quad * 4 + i / 4 * 16 + i % 4][group] = right[i];
  }
  Ints c[M];
  for (u32 i = 0; i < M; ++i) {
    c[i] = (Ints){};
    for (u32 k = 0; k < MAX_K; ++k) c[i] += a[i][k] * b[k];  // at most 2^19: the wrap comes with the accumulator
  }
  for (u32 lane = 0; lane < 32; ++lane) {
    s32* d = static_cast<s32*>(mma->d[lane]);
    for (u32 e = 0; e < 4; ++e) {
      const u32 sum = static_cast<u32>(d[e]) + static_cast<u32>(c[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2]);
      d[e] = static_cast<s32>(sum);
    }
  }
}

// m8n8k4: a is row lane / 4, k = lane % 4; b is column lane / 4, k = lane % 4; d is row lane / 4, two columns.
void compute_f64(const WsMma* mma) {
  double a[8][4], b[8][4];
  for (u32 lane = 0; lane < 32; ++lane) {
    memcpy(&a[lane / 4][lane % 4], mma->a[lane], 8);
    memcpy(&b[lane / 4][lane % 4], mma->b[lane], 8);
  }
  for (u32 lane = 0; lane < 32; ++lane) {
    double* d = static_cast<double*>(mma->d[lane]);
    const double* row = a[lane / 4];
    const double (*columns)[4] = &b[lane % 4 * 2];
    double even = d[0], odd = d[1];
    for (u32 k = 0; k < 4; ++k) {
      even = fma(row[k], columns[0][k], even);
      odd = fma(row[k], columns[1][k], odd);
    }
    d[0] = even;
    d[1] = odd;
  }
}

}  // namespace

float ws_decode_f16(u16 bits) {
  const u32 sign = static_cast<u32>(bits & 0x8000u) << 16;
  const u32 exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 31) return of_bits(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  return of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

void ws_mma_compute(const WsMma* mma, u32 significand) {
  switch (mma->format) {
    case 0: compute_f64(mma); break;
    case 7: compute_s8(mma); break;
    default: compute_floats(mma, significand);
  }
}
