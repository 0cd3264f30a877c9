/* Products with a matrix of weights; part of kernels.c.

   Weights are read where they lie, row by row, so that a file that is mapped needs no other form of them: a task copies
   the columns that it multiplies by while it does so the first time, and has those of the next task fetched meanwhile. */
#pragma once

enum {
#if LANES == 16
  TILE_ROWS = 8, TILE_VECTORS = 3,
#else
  TILE_ROWS = 6, TILE_VECTORS = 2,
#endif
  COLUMNS = TILE_VECTORS * LANES, /* of a task */
  DEPTH = 768,                    /* rows of weights that are copied at a time: the copy stays in the second cache */
};

/* The columns of one task, from some row of the weights on. */
struct panel {
  const float *weights;              /* [depth, stride] */
  const float *next;                 /* the same of the next task; NULL for none */
  int64_t depth, stride;
  float *copy;                       /* [depth, COLUMNS] */
};

/* out [rows, panel stride] = (or, with ``adds``, +=) x [rows, x_stride] times a panel, for up to TILE_ROWS rows.

   The first tile copies the panel; another fetches ``fetched`` rows of the next for every WIDTH_STEP of its own,
   from row ``from`` on. */
INLINE void multiply_tile(const struct panel *p, const float *x, int64_t x_stride, int64_t rows, int vectors, int first,
                          int adds, int64_t from, int64_t fetched, float *out) {
  vec sums[TILE_ROWS][TILE_VECTORS];
  const float *row[TILE_ROWS], *next = fetched ? p->next + from * p->stride : NULL;
  for (int r = 0; r < TILE_ROWS; r++) {
    row[r] = x + (r < rows ? r : 0) * x_stride; /* the last rows may be computed in vain */
    for (int c = 0; c < vectors; c++)
      sums[r][c] = adds ? vec_load(out + (r < rows ? r : 0) * p->stride + c * LANES) : vec_all(0);
  }
  for (int64_t begin = 0; begin < p->depth; begin += WIDTH_STEP) {
    for (int64_t k = begin; k < begin + WIDTH_STEP; k++) {
      vec weights[TILE_VECTORS];
      for (int c = 0; c < vectors; c++) {
        const float *here = p->weights + k * p->stride + c * LANES;
        float *copy = p->copy + k * COLUMNS + c * LANES;
        weights[c] = vec_load(first ? here : copy);
        if (first) {
          vec_store(copy, weights[c]);
          _mm_prefetch(here + WIDTH_STEP * p->stride, _MM_HINT_T0);
        }
      }
      for (int r = 0; r < TILE_ROWS; r++) {
        vec factor = vec_all(row[r][k]);
        for (int c = 0; c < vectors; c++) sums[r][c] = vec_fma(factor, weights[c], sums[r][c]);
      }
    }
    for (int64_t i = 0; i < fetched; i++, next += p->stride)
      for (int c = 0; c < COLUMNS; c += 16) _mm_prefetch(next + c, _MM_HINT_T1);
  }
  for (int r = 0; r < rows && r < TILE_ROWS; r++)
    for (int c = 0; c < vectors; c++) vec_store(out + r * p->stride + c * LANES, sums[r][c]);
}

INLINE void multiply_rows(const struct panel *p, const float *x, int64_t x_stride, int64_t rows, int vectors, int adds,
                          float *out) {
  int64_t others = (rows - 1) / TILE_ROWS, fetched = 0, from = 0;
  if (p->next && others) fetched = (WIDTH_STEP + others - 1) / others;
  multiply_tile(p, x, x_stride, rows, vectors, 1, adds, 0, 0, out);
  for (int64_t r = TILE_ROWS; r < rows; r += TILE_ROWS) {
    if (from >= p->depth) fetched = 0;
    multiply_tile(p, x + r * x_stride, x_stride, rows - r, vectors, 0, adds, from, fetched, out + r * p->stride);
    from += fetched * (p->depth / WIDTH_STEP);
  }
}

static void multiply(const struct product *m, int64_t task) {
  int64_t panels = (m->width + COLUMNS - 1) / COLUMNS, column = task % panels * COLUMNS;
  int64_t first = task / panels * m->rows_of_a_task;
  int64_t rows = m->rows - first < m->rows_of_a_task ? m->rows - first : m->rows_of_a_task;
  int64_t vectors = (m->width - column < COLUMNS ? m->width - column : COLUMNS) / LANES;
  int64_t parts = (m->depth + DEPTH - 1) / DEPTH;
  int64_t step = (m->depth / WIDTH_STEP + parts - 1) / parts * WIDTH_STEP; /* as equal as WIDTH_STEP lets them be */
  int64_t next = column + COLUMNS < m->width ? column + COLUMNS : 0;
  float copy[DEPTH * COLUMNS] __attribute__((aligned(64)));
  for (int64_t begin = 0; begin < m->depth; begin += step) {
    struct panel p = {
        .weights = m->weights + begin * m->width + column, .next = m->weights + begin * m->width + next,
        .depth = m->depth - begin < step ? m->depth - begin : step, .stride = m->width, .copy = copy,
    };
    if (next == 0 && first + rows == m->rows) p.next = NULL;
    const float *x = m->x + first * m->depth + begin;
    float *out = m->out + first * m->width + column;
    if (vectors == TILE_VECTORS) multiply_rows(&p, x, m->depth, rows, TILE_VECTORS, begin > 0, out);
#if LANES == 16 /* the width is a multiple of 16: by 8 lanes there is nothing left */
    else if (vectors == 2) multiply_rows(&p, x, m->depth, rows, 2, begin > 0, out);
    else multiply_rows(&p, x, m->depth, rows, 1, begin > 0, out);
#endif
  }
}
