/* Compiled once for each instruction set. */
#include "kernels.h"

#include <math.h>
#include <string.h>

#include "vectors.h"

#define INLINE static inline __attribute__((always_inline))

#include "products.h"

static const float LOG2_E = 1.44269504f; /* softmax takes powers of two, of scores by this */
static const float UNSEEN = -3e38f; /* less than any score; what a key that is not seen scores is -inf */

/* The polynomials of both functions were fitted for the least largest error: 1.9e-9 of 2^r for |r| <= 1 / 2,
   1.2e-9 of erf below 1, 3.0e-11 of -log2(1 - erf) weighted by 1 - erf from there to 4. */

INLINE vec vec_exp2(vec x) { /* 0 below -126 */
  vec n = vec_round(x), r = vec_sub(x, n);
  vec p = vec_all(1.534581201e-4f);
  p = vec_fma(p, r, vec_all(1.339993122e-3f));
  p = vec_fma(p, r, vec_all(9.618488957e-3f));
  p = vec_fma(p, r, vec_all(5.550328777e-2f));
  p = vec_fma(p, r, vec_all(0.2402264689f));
  p = vec_fma(p, r, vec_all(0.6931472057f));
  p = vec_fma(p, r, vec_all(1.0f));
  return vec_ldexp_from(x, vec_all(-126.0f), p, n);
}

INLINE vec vec_erf(vec x) {
  vec a = vec_min(vec_all(4.0f), vec_abs(x)), square = vec_mul(x, x);
  vec p = vec_all(7.854004160e-5f); /* erf(x) / x - 1 */
  p = vec_fma(p, square, vec_all(-8.010240717e-4f));
  p = vec_fma(p, square, vec_all(5.188333666e-3f));
  p = vec_fma(p, square, vec_all(-2.685381559e-2f));
  p = vec_fma(p, square, vec_all(1.128358526e-1f));
  p = vec_fma(p, square, vec_all(-3.761262584e-1f));
  p = vec_fma(p, square, vec_all(1.283791657e-1f));
  vec q = vec_all(-3.130300509e-05f); /* log2(1 - erf(a)) */
  q = vec_fma(q, a, vec_all(6.369099423e-04f));
  q = vec_fma(q, a, vec_all(-6.066940912e-03f));
  q = vec_fma(q, a, vec_all(3.637082453e-02f));
  q = vec_fma(q, a, vec_all(-1.564200121e-01f));
  q = vec_fma(q, a, vec_all(-9.135381692e-01f));
  q = vec_fma(q, a, vec_all(-1.629639906e+00f));
  q = vec_fma(q, a, vec_all(2.718998628e-04f));
  vec above = vec_with_sign(vec_sub(vec_all(1.0f), vec_exp2(q)), x);
  return vec_where_less(a, vec_all(1.0f), vec_fma(p, x, x), above);
}

/* One head of one token, [2 * half], turned by its position's angles and scaled. */
INLINE void rotate(const float *x, const float *cosines, const float *sines, int64_t half, float scale, float *out) {
  vec factor = vec_all(scale);
  for (int64_t i = 0; i < half; i += LANES) {
    vec a = vec_mul(vec_load(x + i), factor), b = vec_mul(vec_load(x + half + i), factor);
    vec cosine = vec_load(cosines + i), sine = vec_load(sines + i);
    vec_store(out + i, vec_sub(vec_mul(a, cosine), vec_mul(b, sine)));
    vec_store(out + half + i, vec_fma(b, cosine, vec_mul(a, sine)));
  }
}

static void gather(const struct attention *a, int64_t token) {
  int64_t text = token / a->length, place = token % a->length, half = a->head / 2;
  for (int64_t h = 0; h < a->heads; h++) {
    int64_t from = (token * a->heads + h) * a->head, to = ((text * a->heads + h) * a->length + place) * a->head;
    rotate(a->keys + from, a->cosines + place * half, a->sines + place * half, half, 1.0f, a->rotated + to);
    memcpy(a->gathered + to, a->values + from, (size_t)a->head * sizeof(float));
  }
}

/* Both products hold a tile of results in registers, and read one factor as numbers, the other as vectors. */
#if LANES == 16
enum { SCORE_ROWS = 8, SCORE_VECTORS = 3, SUM_ROWS = 6, SUM_VECTORS = 4 };
#else
enum { SCORE_ROWS = 6, SCORE_VECTORS = 2, SUM_ROWS = 6, SUM_VECTORS = 2 };
#endif

/* scores [rows, QUERIES] of up to SCORE_ROWS keys [rows, head] and queries [head, QUERIES]; ``vectors`` of columns */
INLINE void score_tile(const float *keys, int64_t rows, const float *queries, int64_t head, int vectors,
                       float *scores) {
  vec sums[SCORE_ROWS][SCORE_VECTORS];
  const float *key[SCORE_ROWS];
  for (int r = 0; r < SCORE_ROWS; r++) {
    key[r] = keys + (r < rows ? r : 0) * head; /* the last rows may be computed in vain */
    for (int c = 0; c < vectors; c++) sums[r][c] = vec_all(0);
  }
  for (int64_t d = 0; d < head; d++) {
    vec query[SCORE_VECTORS];
    for (int c = 0; c < vectors; c++) query[c] = vec_load(queries + d * QUERIES + c * LANES);
    for (int r = 0; r < SCORE_ROWS; r++) {
      vec k = vec_all(key[r][d]);
      for (int c = 0; c < vectors; c++) sums[r][c] = vec_fma(k, query[c], sums[r][c]);
    }
  }
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < vectors; c++) vec_store(scores + r * QUERIES + c * LANES, sums[r][c]);
}

INLINE void score(const float *keys, int64_t rows, const float *queries, int64_t head, int64_t vectors,
                  float *scores) {
  int64_t c = 0;
#if LANES == 16
  if (vectors == 3) {
    score_tile(keys, rows, queries, head, 3, scores);
    return;
  }
#endif
  for (; c + 2 <= vectors; c += 2) score_tile(keys, rows, queries + c * LANES, head, 2, scores + c * LANES);
  if (c < vectors) score_tile(keys, rows, queries + c * LANES, head, 1, scores + c * LANES);
}

/* sums [SUM_ROWS, stride WIDEST_HEAD] += shares [keys, QUERIES]^T, of as many queries, times values [keys, head] */
INLINE void add_values(const float *shares, const float *values, int64_t head, int64_t keys, int vectors,
                       float *sums) {
  vec held[SUM_ROWS][SUM_VECTORS];
  for (int r = 0; r < SUM_ROWS; r++)
    for (int c = 0; c < vectors; c++) held[r][c] = vec_load(sums + r * WIDEST_HEAD + c * LANES);
  for (int64_t j = 0; j < keys; j++) {
    vec value[SUM_VECTORS];
    for (int c = 0; c < vectors; c++) value[c] = vec_load(values + j * head + c * LANES);
    for (int r = 0; r < SUM_ROWS; r++) {
      vec share = vec_all(shares[j * QUERIES + r]);
      for (int c = 0; c < vectors; c++) held[r][c] = vec_fma(share, value[c], held[r][c]);
    }
  }
  for (int r = 0; r < SUM_ROWS; r++)
    for (int c = 0; c < vectors; c++) vec_store(sums + r * WIDEST_HEAD + c * LANES, held[r][c]);
}

/* What one task of attention holds: queries of one head, and the sums of an online softmax over the keys so far
   (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). */
struct block {
  float queries[WIDEST_HEAD * QUERIES]; /* [head, QUERIES], rotated and scaled */
  float scores[KEYS * QUERIES];         /* [keys, QUERIES], then shares before they are divided */
  float sums[QUERIES * WIDEST_HEAD];    /* [QUERIES, head] */
  float largest[QUERIES], total[QUERIES];
};

/* The keys, counted from ``start`` on and of ``keys``, that some of [count] queries from ``first`` on may see. */
struct span {
  int64_t begin, end;
};

INLINE struct span in_reach(const struct attention *a, int64_t first, int64_t count, int64_t start, int64_t keys) {
  struct span s = {0, keys};
  if (a->reach < 0) return s;
  int64_t begin = first - a->reach - start, end = first + count + a->reach - start;
  s.begin = begin < 0 ? 0 : begin > keys ? keys : begin;
  s.end = end > keys ? keys : end < s.begin ? s.begin : end;
  return s;
}

/* Of a vector of queries, and of as many on either side as share a tile of sums with them. */
INLINE struct span scored(const struct attention *a, int64_t first, int64_t start, int64_t keys) {
  return in_reach(a, first - SUM_ROWS + 1, LANES + 2 * (SUM_ROWS - 1), start, keys);
}

/* Scores of keys that a query does not see become -inf; of a vector of queries, whose first stands at ``first``. */
INLINE vec mask(const struct attention *a, const uint8_t *real, int64_t key, int64_t first, vec scores) {
  if (!real[key]) return vec_all(-INFINITY);
  if (a->reach < 0 || (key - first <= a->reach && first + LANES - 1 - key <= a->reach)) return scores;
  vec distance = vec_abs(vec_add(vec_lane_numbers(), vec_all((float)(first - key))));
  return vec_where_less(distance, vec_all((float)a->reach + 0.5f), scores, vec_all(-INFINITY));
}

/* Scores of [keys] keys from ``start`` on become 2 to them, less the largest so far; sums so far shrink to match. */
INLINE void soften(const struct attention *a, struct block *b, const uint8_t *real, int64_t start, int64_t keys,
                   int64_t first, int64_t vectors) {
  for (int64_t c = 0; c < vectors; c++) {
    float *scores = b->scores + c * LANES;
    struct span some = scored(a, first + c * LANES, start, keys);
    vec before = vec_load(b->largest + c * LANES), largest = before;
    for (int64_t j = some.begin; j < some.end; j++) {
      vec x = mask(a, real, start + j, first + c * LANES, vec_load(scores + j * QUERIES));
      vec_store(scores + j * QUERIES, x);
      largest = vec_max(x, largest);
    }
    vec_store(b->largest + c * LANES, largest);
    vec total = vec_all(0);
    for (int64_t j = some.begin; j < some.end; j++) {
      vec x = vec_exp2(vec_sub(vec_load(scores + j * QUERIES), largest));
      vec_store(scores + j * QUERIES, x);
      total = vec_add(total, x);
    }
    float shrink[LANES];
    vec factor = vec_exp2(vec_sub(before, largest));
    vec_store(shrink, factor);
    vec_store(b->total + c * LANES, vec_fma(vec_load(b->total + c * LANES), factor, total));
    for (int64_t i = 0; i < LANES; i++) {
      if (shrink[i] == 1.0f) continue;
      float *sums = b->sums + (c * LANES + i) * WIDEST_HEAD;
      for (int64_t d = 0; d < a->head; d += LANES) vec_store(sums + d, vec_mul(vec_load(sums + d), vec_all(shrink[i])));
    }
  }
}

/* The mean of all values of a head: what a softmax over equally masked scores gives a query that sees no key. */
static void average(const struct attention *a, int64_t task) {
  const float *values = a->gathered + task * a->length * a->head;
  for (int64_t d = 0; d < a->head; d += LANES) {
    vec sum = vec_all(0);
    for (int64_t j = 0; j < a->length; j++) sum = vec_add(sum, vec_load(values + j * a->head + d));
    vec_store(a->means + task * a->head + d, vec_mul(sum, vec_all(1.0f / (float)a->length)));
  }
}

/* Whether there is a key that the query at a place sees. */
INLINE int sees_some(const struct attention *a, const uint8_t *real, int64_t place) {
  struct span s = in_reach(a, place, 1, 0, a->length);
  for (int64_t j = s.begin; j < s.end; j++)
    if (real[j]) return 1;
  return 0;
}

/* A vector of queries of one head, those behind the last as zeros: rotated, scaled, transposed to [head, QUERIES]. */
INLINE void rotate_queries(const struct attention *a, const float *queries, int64_t first, float *out) {
  int64_t half = a->head / 2, hidden = a->heads * a->head, count = a->length - first;
  float rows[LANES * WIDEST_HEAD];
  for (int64_t i = 0; i < LANES; i++) {
    float *row = rows + i * WIDEST_HEAD;
    const float *cosines = a->cosines + (first + i) * half, *sines = a->sines + (first + i) * half;
    if (i < count) rotate(queries + i * hidden, cosines, sines, half, a->scale * LOG2_E, row);
    else memset(row, 0, (size_t)a->head * sizeof(float));
  }
  for (int64_t d = 0; d < a->head; d += LANES) {
    vec square[LANES];
    for (int i = 0; i < LANES; i++) square[i] = vec_load(rows + i * WIDEST_HEAD + d);
    vec_transpose(square);
    for (int i = 0; i < LANES; i++) vec_store(out + (d + i) * QUERIES, square[i]);
  }
}

static void attend(const struct attention *a, int64_t task) {
  int64_t blocks = (a->length + QUERIES - 1) / QUERIES, head = a->head, hidden = a->heads * head;
  int64_t first = task % blocks * QUERIES, h = task / blocks % a->heads, text = task / blocks / a->heads;
  int64_t count = a->length - first < QUERIES ? a->length - first : QUERIES;
  int64_t vectors = (count + LANES - 1) / LANES;
  const float *queries = a->queries + (text * a->length + first) * hidden + h * head;
  const float *keys = a->rotated + (text * a->heads + h) * a->length * head;
  const float *values = a->gathered + (text * a->heads + h) * a->length * head;
  const uint8_t *real = a->real + text * a->length;
  float *out = a->out + (text * a->length + first) * hidden + h * head;

  struct block b;
  for (int64_t i = 0; i < QUERIES; i++) {
    memset(b.sums + i * WIDEST_HEAD, 0, (size_t)head * sizeof(float));
    b.largest[i] = UNSEEN, b.total[i] = 0;
  }
  for (int64_t i = 0; i < count; i += LANES) rotate_queries(a, queries + i * hidden, first + i, b.queries + i);
  int64_t begin = 0, end = a->length;
  if (a->reach >= 0) {
    begin = first > a->reach ? first - a->reach : 0;
    end = end - first - count > a->reach ? first + count + a->reach : end;
  }
  for (int64_t start = begin; start < end; start += KEYS) {
    int64_t some = end - start < KEYS ? end - start : KEYS;
    for (int64_t j = 0; j < some; j += SCORE_ROWS) {
      int64_t rows = some - j < SCORE_ROWS ? some - j : SCORE_ROWS, from = 0, to = vectors;
      while (from < to && scored(a, first + from * LANES, start, some).end <= j) from++;
      while (from < to && scored(a, first + (to - 1) * LANES, start, some).begin >= j + rows) to--;
      score(keys + (start + j) * head, rows, b.queries + from * LANES, head, to - from,
            b.scores + j * QUERIES + from * LANES);
    }
    soften(a, &b, real, start, some, first, vectors);
    for (int64_t i = 0; i < count; i += SUM_ROWS) { /* rows from count on hold anything, and are not written out */
      struct span seen = in_reach(a, first + i, SUM_ROWS, start, some);
      const float *shares = b.scores + seen.begin * QUERIES + i, *from = values + (start + seen.begin) * head;
      float *sums = b.sums + i * WIDEST_HEAD;
      int64_t d = 0, seen_keys = seen.end - seen.begin;
#if LANES == 16
      for (; d + 64 <= head; d += 64) add_values(shares, from + d, head, seen_keys, 4, sums + d);
#endif
      for (; d < head; d += 2 * LANES) add_values(shares, from + d, head, seen_keys, 2, sums + d);
    }
  }
  for (int64_t i = 0; i < count; i++) {
    if (b.total[i] == 0 && !sees_some(a, real, first + i)) {
      memcpy(out + i * hidden, a->means + (text * a->heads + h) * head, (size_t)head * sizeof(float));
      continue;
    }
    vec share = vec_all(b.total[i] == 0 ? NAN : 1.0f / b.total[i]); /* nothing but scores of -inf have no softmax */
    for (int64_t d = 0; d < head; d += LANES)
      vec_store(out + i * hidden + d, vec_mul(vec_load(b.sums + i * WIDEST_HEAD + d), share));
  }
}

static void add_norm(const struct norm *n, int64_t row, float *normed) {
  const float *x = n->x + row * n->width, *update = n->update + row * n->width;
  float *sum = n->sum + row * n->width, width = (float)n->width;
  vec total = vec_all(0), squares = vec_all(0), factor = vec_all(n->factors ? n->factors[row] : 1.0f);
  for (int64_t i = 0; i < n->width; i += LANES) {
    vec scaled = vec_mul(vec_load(update + i), factor), y = vec_add(vec_load(x + i), scaled);
    if (n->scaled) vec_store(n->scaled + row * n->width + i, scaled);
    vec_store(sum + i, y);
    total = vec_add(total, y);
  }
  vec mean = vec_all(vec_sum(total) / width);
  for (int64_t i = 0; i < n->width; i += LANES) {
    vec y = vec_sub(vec_load(sum + i), mean);
    squares = vec_fma(y, y, squares);
  }
  vec inverse = vec_all(1.0f / sqrtf(vec_sum(squares) / width + n->epsilon));
  for (int64_t i = 0; i < n->width; i += LANES) {
    vec y = vec_mul(vec_sub(vec_load(sum + i), mean), inverse);
    vec_store(normed + i, vec_mul(y, vec_load(n->weight + i)));
  }
}

static void gate(const struct gated *g, int64_t row, float *out) {
  const float *values = g->x + row * g->width, *gates = g->gate + row * g->width;
  for (int64_t i = 0; i < g->width; i += LANES) {
    vec x = vec_load(values + i), erf = vec_erf(vec_mul(x, vec_all(0.70710678f)));
    vec gelu = vec_mul(vec_fma(x, erf, x), vec_all(0.5f));
    vec_store(out + i, vec_mul(gelu, vec_load(gates + i)));
  }
}

/* The largest magnitude of a row, which becomes NaN once a number is not finite: no code can say that. */
INLINE float largest_of(const float *x, int64_t width) {
  vec most = vec_all(1e-30f), nothing = vec_all(0);
  for (int64_t i = 0; i < width; i += LANES) {
    vec y = vec_load(x + i);
    most = vec_max(vec_abs(y), most);
    nothing = vec_fma(y, vec_all(0), nothing);
  }
  float lanes[LANES], largest = 0;
  vec_store(lanes, most);
  for (int i = 0; i < LANES; i++) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest + vec_sum(nothing);
}

static void encode(const struct codes *e, int64_t row, const float *x) {
  uint8_t *out = e->out + row * e->width;
  vec zero = vec_all(e->levels + 1), factor = vec_all(1.0f / e->step);
  if (e->largest) {
    e->largest[row] = largest_of(x, e->width);
    factor = vec_all(e->levels / e->largest[row]);
  }
  for (int64_t i = 0; i < e->width; i += LANES) {
    vec code = vec_add(vec_round(vec_mul(vec_load(x + i), factor)), zero);
    vec_store_codes(out + i, vec_min(vec_max(code, vec_all(0)), vec_all(255)));
  }
}

#if LANES == 16
const struct kernels avx512_kernels = {"AVX-512", TILE_ROWS, COLUMNS,
                                       gather, average, attend, multiply, add_norm, gate, encode};
#else
const struct kernels avx2_kernels = {"AVX2", TILE_ROWS, COLUMNS,
                                       gather, average, attend, multiply, add_norm, gate, encode};
#endif
