/* Vectors of floats of one instruction set: 16 by AVX-512, 8 by AVX2 and FMA.

   Where an operand is NaN, vec_max and vec_min give the second one: a value that may be NaN stands there. */
#pragma once
#include <immintrin.h>
#include <stdint.h>

#if defined(__AVX512F__)
#define LANES 16
typedef __m512 vec;
static inline vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vec_store(float *p, vec x) { _mm512_storeu_ps(p, x); }
static inline vec vec_all(float x) { return _mm512_set1_ps(x); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
static inline vec vec_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
static inline vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
static inline vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }
static inline vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); }
static inline vec vec_abs(vec a) { return _mm512_abs_ps(a); }
static inline vec vec_round(vec a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* a * 2^n for whole n from -126 to 127, by lane: 0 where x < least; NaN stays NaN */
static inline vec vec_ldexp_from(vec x, vec least, vec a, vec n) {
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ), a, n);
}
static inline vec vec_with_sign(vec magnitude, vec sign) {
  __m512i bits = _mm512_set1_epi32(INT32_MAX); /* of the magnitude */
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bits, _mm512_castps_si512(magnitude),
                                                       _mm512_castps_si512(sign), 0xca));
}
/* by lane: x < limit ? a : b */
static inline vec vec_where_less(vec x, vec limit, vec a, vec b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), b, a);
}
static inline vec vec_lane_numbers(void) {
  return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
static inline float vec_sum(vec a) { return _mm512_reduce_add_ps(a); }
/* Pairs of every four rows done: [4 g + j] holds columns j, 4 + j, 8 + j and 12 + j of rows 4 g to 4 g + 3. */
static inline void vec_join_quads(vec *rows) {
  for (int j = 0; j < 4; j++) {
    vec even = _mm512_shuffle_f32x4(rows[j], rows[4 + j], 0x88), odd = _mm512_shuffle_f32x4(rows[j], rows[4 + j], 0xdd);
    vec even2 = _mm512_shuffle_f32x4(rows[8 + j], rows[12 + j], 0x88);
    vec odd2 = _mm512_shuffle_f32x4(rows[8 + j], rows[12 + j], 0xdd);
    rows[j] = _mm512_shuffle_f32x4(even, even2, 0x88);
    rows[4 + j] = _mm512_shuffle_f32x4(odd, odd2, 0x88);
    rows[8 + j] = _mm512_shuffle_f32x4(even, even2, 0xdd);
    rows[12 + j] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
  }
}
#define UNPACK(half, kind, a, b) _mm512_unpack##half##_##kind(a, b)
#define AS_PAIRS(a) _mm512_castps_pd(a)
#define AS_FLOATS(a) _mm512_castpd_ps(a)
static inline void vec_store_codes(uint8_t *p, vec x) { /* rounds; 0 to 255 */
  _mm_storeu_si128((__m128i *)p, _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(x)));
}
#else
#define LANES 8
typedef __m256 vec;
static inline vec vec_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vec_store(float *p, vec x) { _mm256_storeu_ps(p, x); }
static inline vec vec_all(float x) { return _mm256_set1_ps(x); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline vec vec_add(vec a, vec b) { return _mm256_add_ps(a, b); }
static inline vec vec_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
static inline vec vec_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
static inline vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }
static inline vec vec_min(vec a, vec b) { return _mm256_min_ps(a, b); }
static inline vec vec_abs(vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline vec vec_round(vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vec vec_ldexp_from(vec x, vec least, vec a, vec n) {
  __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  vec y = _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  return _mm256_and_ps(y, _mm256_cmp_ps(x, least, _CMP_NLT_UQ));
}
static inline vec vec_with_sign(vec magnitude, vec sign) {
  __m256 bit = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_andnot_ps(bit, magnitude), _mm256_and_ps(bit, sign));
}
static inline vec vec_where_less(vec x, vec limit, vec a, vec b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, limit, _CMP_LT_OQ));
}
static inline vec vec_lane_numbers(void) { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
static inline float vec_sum(vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
static inline void vec_join_quads(vec *rows) {
  for (int j = 0; j < 4; j++) {
    vec low = _mm256_permute2f128_ps(rows[j], rows[4 + j], 0x20);
    rows[4 + j] = _mm256_permute2f128_ps(rows[j], rows[4 + j], 0x31);
    rows[j] = low;
  }
}
#define UNPACK(half, kind, a, b) _mm256_unpack##half##_##kind(a, b)
#define AS_PAIRS(a) _mm256_castps_pd(a)
#define AS_FLOATS(a) _mm256_castpd_ps(a)
static inline void vec_store_codes(uint8_t *p, vec x) {
  __m256i whole = _mm256_cvtps_epi32(x);
  __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(words, words));
}
#endif

/* A square of LANES rows becomes its transpose. */
static inline void vec_transpose(vec *rows) {
  for (int i = 0; i < LANES; i += 4) {
    vec a = UNPACK(lo, ps, rows[i], rows[i + 1]), b = UNPACK(lo, ps, rows[i + 2], rows[i + 3]);
    vec c = UNPACK(hi, ps, rows[i], rows[i + 1]), d = UNPACK(hi, ps, rows[i + 2], rows[i + 3]);
    rows[i] = AS_FLOATS(UNPACK(lo, pd, AS_PAIRS(a), AS_PAIRS(b)));
    rows[i + 1] = AS_FLOATS(UNPACK(hi, pd, AS_PAIRS(a), AS_PAIRS(b)));
    rows[i + 2] = AS_FLOATS(UNPACK(lo, pd, AS_PAIRS(c), AS_PAIRS(d)));
    rows[i + 3] = AS_FLOATS(UNPACK(hi, pd, AS_PAIRS(c), AS_PAIRS(d)));
  }
  vec_join_quads(rows);
}
