/* What one task of each operator computes, for every instruction set that there is code for.

   Tensors are dense, rows last. The operators have checked all sizes. */
#pragma once
#include <stdint.h>

enum {
  QUERIES = 48,    /* a task's, of attention: three vectors of AVX-512, six of AVX2 */
  KEYS = 192,      /* that are scored at a time: a task's queries and a window of 64 on either side see 176 */
  WIDEST_HEAD = 128,
  HEAD_STEP = 32,  /* heads are a multiple of it wide: two vectors of AVX-512 for either half that rotates */
  WIDTH_STEP = 16, /* and other rows of this */
};

/* Attention of rotated queries and keys (RoPE, "rotate half"), softmax(scale * q k^T) v, where query i sees key j
   if j is no padding and, with a reach >= 0, |i - j| <= reach. A query that sees none takes the mean of all values. */
struct attention {
  const float *queries, *keys, *values; /* [batch, length, heads * head] */
  const float *cosines, *sines;         /* [at least length, head / 2] */
  const uint8_t *real;                  /* [batch, length]: 0 for padding */
  float *rotated, *gathered;            /* [batch, heads, length, head]: room for keys and values, head by head */
  float *means;                         /* [batch, heads, head]: room for means of values; NULL without padding */
  float *out;                           /* as queries */
  int64_t batch, length, heads, head, reach;
  float scale;
};

/* sum = x + update, and the layer normalization of it. */
struct norm {
  const float *x, *update, *weight; /* [rows, width], the same, [width] */
  const float *factors;             /* [rows], what update is multiplied by; NULL for nothing */
  float *scaled;                    /* [rows, width], the result of that; NULL where nothing reads it */
  float *sum;                       /* [rows, width] */
  int64_t width;
  float epsilon;
};

/* gelu(x) * gate, by erf. */
struct gated {
  const float *x, *gate; /* [rows, width] */
  int64_t width;
};

/* 8-bit codes: round(x / step) + levels + 1, within 0 and 255; by row of its largest magnitude / levels. */
struct codes {
  uint8_t *out;     /* [rows, width] */
  float *largest;   /* [rows]; no less than 1e-30. NULL where all rows have one step */
  int64_t width;
  float levels;     /* 127, or 63 for codes of 7 bits */
  float step;
};

/* out = x weights. */
struct product {
  const float *x, *weights; /* [rows, depth], [depth, width]; depth and width multiples of WIDTH_STEP */
  float *out;               /* [rows, width] */
  int64_t rows, depth, width, rows_of_a_task;
};

struct kernels {
  const char *name;
  int64_t tile_rows, columns; /* of products: rows that are multiplied together, columns of a task */
  void (*gather)(const struct attention *, int64_t token);           /* of batch * length */
  void (*average)(const struct attention *, int64_t head);           /* of batch * heads; where there is padding */
  void (*attend)(const struct attention *, int64_t task);            /* of attention_tasks */
  void (*multiply)(const struct product *, int64_t task);            /* of those of its rows times those of its columns, these first */
  void (*add_norm)(const struct norm *, int64_t row, float *normed); /* that row's, as the others' rows */
  void (*gate)(const struct gated *, int64_t row, float *out);
  void (*encode)(const struct codes *, int64_t row, const float *x);
};

extern const struct kernels avx2_kernels, avx512_kernels;

static inline int64_t attention_tasks(const struct attention *a) {
  return a->batch * a->heads * ((a->length + QUERIES - 1) / QUERIES);
}
