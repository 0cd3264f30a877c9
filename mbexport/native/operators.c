/* The operators of the domain "mbexport", registered with ONNX Runtime where a session asks for this library.

   Graphs hold each of them as a function of standard operators, too (mbexport/graph: fused.py, products.py, joined.py),
   which ONNX Runtime computes where this library is not: what is here computes the same, faster. Nothing is taken on
   trust: sizes that do not fit are an error of the run. */
#include <cpuid.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "onnxruntime_interface.h"

enum { MOST_AXES = 4, TOKENS_OF_A_TASK = 16, ROWS_OF_A_TASK = 8, MOST_ROWS_OF_A_PRODUCT = 128 };

#define EXPORTED __attribute__((visibility("default")))

static const struct kernels *active;

typedef struct {
  Interface ort;
  Allocator *allocator;
  const struct kernels *kernels; /* those that were chosen when the session was made */
  int64_t heads, reach;
  float scale, epsilon, levels;
  int scales;                          /* whether updates have a factor for each row */
  enum { NONE, OF_ROWS, BY_STEP } codes; /* of the result: none, by each row's range, by one step */
} Kernel;

/* Inputs and outputs have a letter each: f float, b bool, i int64, u uint8, * any type; F a float output that may be
   left out. */
typedef struct Definition {
  Operator operator;
  const char *name, *inputs, *outputs;
  size_t least_inputs;    /* what is left of the others may be left out */
  const char *attributes; /* a letter each: h heads, r reach, s scale, e epsilon, l levels; and what the name says:
                             F factors, R codes of rows, S codes by a step */
} Definition;

typedef struct {
  void *data;
  int64_t sizes[MOST_AXES], count, rows, width; /* count = rows * width, the last axis */
  size_t rank;
} Tensor;

#define TRY(call)                     \
  do {                                \
    Status *failed = (call);          \
    if (failed) return failed;        \
  } while (0)

static Status *refuse(const Kernel *k, const char *message) {
  return CREATE_STATUS(k->ort)(INVALID_ARGUMENT, message);
}

static Status *get_input(const Kernel *k, const Context *context, size_t number, Tensor *t) {
  const Value *value;
  Shape *shape;
  TRY(GET_INPUT(k->ort)(context, number, &value));
  if (!value) return refuse(k, "mbexport: an input is missing");
  TRY(GET_DATA(k->ort)((Value *)value, &t->data));
  TRY(GET_SHAPE(k->ort)(value, &shape));
  Status *status = GET_RANK(k->ort)(shape, &t->rank);
  if (!status && t->rank > MOST_AXES) status = refuse(k, "mbexport: an input has too many axes");
  if (!status) status = GET_SIZES(k->ort)(shape, t->sizes, t->rank);
  RELEASE_SHAPE(k->ort)(shape);
  if (status) return status;
  t->rows = 1;
  for (size_t axis = 0; axis + 1 < t->rank; axis++) t->rows *= t->sizes[axis];
  t->width = t->rank ? t->sizes[t->rank - 1] : 1;
  t->count = t->rows * t->width;
  return NULL;
}

/* NULL for an output that the graph leaves out. */
static Status *get_output(const Kernel *k, Context *context, size_t number, const int64_t *sizes, size_t rank,
                          void *data) {
  Value *value;
  TRY(GET_OUTPUT(k->ort)(context, number, sizes, rank, &value));
  if (value) return GET_DATA(k->ort)(value, data);
  *(void **)data = NULL;
  return NULL;
}

static int same_shape(const Tensor *a, const Tensor *b) {
  return a->rank == b->rank && !memcmp(a->sizes, b->sizes, a->rank * sizeof *a->sizes);
}

typedef struct {
  const struct kernels *kernels;
  const void *data;
} Job;

static Status *in_parallel(const Kernel *k, const Context *context, void (*task)(void *, size_t), int64_t tasks,
                           const void *data) {
  Job job = {k->kernels, data};
  return tasks ? PARALLEL_FOR(k->ort)(context, task, (size_t)tasks, 0, &job) : NULL;
}

static int64_t portions(int64_t count, int64_t each) { return (count + each - 1) / each; }

static int64_t end_of(size_t task, int64_t each, int64_t count) {
  int64_t end = ((int64_t)task + 1) * each;
  return end < count ? end : count;
}

static void gather_task(void *job, size_t task) {
  const struct kernels *kernels = ((const Job *)job)->kernels;
  const struct attention *a = ((const Job *)job)->data;
  int64_t end = end_of(task, TOKENS_OF_A_TASK, a->batch * a->length);
  for (int64_t i = (int64_t)task * TOKENS_OF_A_TASK; i < end; i++) kernels->gather(a, i);
}

static void average_task(void *job, size_t task) {
  ((const Job *)job)->kernels->average(((const Job *)job)->data, (int64_t)task);
}

static void attend_task(void *job, size_t task) {
  ((const Job *)job)->kernels->attend(((const Job *)job)->data, (int64_t)task);
}

static Status *attention(void *kernel, Context *context) {
  const Kernel *k = kernel;
  Tensor q, keys, values, cosines, sines, real;
  Tensor *inputs[] = {&q, &keys, &values, &cosines, &sines, &real};
  for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) TRY(get_input(k, context, i, inputs[i]));
  int64_t head = k->heads > 0 && q.width % k->heads == 0 ? q.width / k->heads : 0;
  if (q.rank != 3 || !same_shape(&q, &keys) || !same_shape(&q, &values))
    return refuse(k, "mbexport: queries, keys and values must be [batch, sequence, hidden] alike");
  if (head <= 0 || head % HEAD_STEP || head > WIDEST_HEAD)
    return refuse(k, "mbexport: heads must be 32, 64, 96 or 128 wide");
  if (cosines.rank != 2 || !same_shape(&cosines, &sines) || cosines.width != head / 2 || cosines.rows < q.sizes[1])
    return refuse(k, "mbexport: cosines and sines must be [positions, half a head], for as many positions as tokens");
  if (real.rank != 2 || real.sizes[0] != q.sizes[0] || real.sizes[1] != q.sizes[1])
    return refuse(k, "mbexport: the mask must be [batch, sequence]");
  struct attention a = {
      .queries = q.data, .keys = keys.data, .values = values.data,
      .cosines = cosines.data, .sines = sines.data, .real = real.data,
      .batch = q.sizes[0], .length = q.sizes[1], .heads = k->heads, .head = head,
      .reach = k->reach < q.sizes[1] ? k->reach : q.sizes[1], .scale = k->scale,
  };
  TRY(get_output(k, context, 0, q.sizes, q.rank, &a.out));
  if (q.count == 0) return NULL;
  int64_t means = a.batch * a.heads * head;
  a.rotated = k->allocator->allocate(k->allocator, (size_t)(2 * q.count + means) * sizeof(float));
  if (!a.rotated) return CREATE_STATUS(k->ort)(OUT_OF_MEMORY, "mbexport: no memory for keys and values");
  a.gathered = a.rotated + q.count;
  if (memchr(a.real, 0, (size_t)real.count)) a.means = a.gathered + q.count;
  Status *status = in_parallel(k, context, gather_task, portions(a.batch * a.length, TOKENS_OF_A_TASK), &a);
  if (!status && a.means) status = in_parallel(k, context, average_task, a.batch * a.heads, &a);
  if (!status) status = in_parallel(k, context, attend_task, attention_tasks(&a), &a);
  k->allocator->release(k->allocator, a.rotated);
  return status;
}

static void multiply_task(void *job, size_t task) {
  ((const Job *)job)->kernels->multiply(((const Job *)job)->data, (int64_t)task);
}

static Status *product(void *kernel, Context *context) {
  const Kernel *k = kernel;
  Tensor x, weights;
  TRY(get_input(k, context, 0, &x));
  TRY(get_input(k, context, 1, &weights));
  if (!x.rank || !x.width || weights.rank != 2 || weights.rows != x.width)
    return refuse(k, "mbexport: factors must be [..., in] and [in, out]");
  if (x.width % WIDTH_STEP || weights.width % WIDTH_STEP)
    return refuse(k, "mbexport: the last axis of both factors must be a multiple of 16");
  struct product m = {.x = x.data, .weights = weights.data, .rows = x.rows, .depth = x.width, .width = weights.width};
  x.sizes[x.rank - 1] = weights.width;
  TRY(get_output(k, context, 0, x.sizes, x.rank, &m.out));
  if (!m.rows) return NULL;
  int64_t rows = portions(m.rows, portions(m.rows, MOST_ROWS_OF_A_PRODUCT)), tile = k->kernels->tile_rows;
  m.rows_of_a_task = portions(rows, tile) * tile;
  int64_t tasks = portions(m.rows, m.rows_of_a_task) * portions(m.width, k->kernels->columns);
  return in_parallel(k, context, multiply_task, tasks, &m);
}

/* What is computed row by row: a sum and its norm, or a gated value, or neither; and codes of it, or none. */
struct rows {
  struct norm norm;
  struct gated gated;
  struct codes codes;
  const float *given; /* [rows, width]: what codes are made of, where nothing else is computed */
  float *out;         /* [rows, width]: the norms or gated values; NULL where nothing reads them */
  float *room;        /* [tasks, width]: where they stand then */
  int64_t count, width;
};

static void rows_task(void *job, size_t task) {
  const struct kernels *kernels = ((const Job *)job)->kernels;
  const struct rows *r = ((const Job *)job)->data;
  int64_t end = end_of(task, ROWS_OF_A_TASK, r->count);
  for (int64_t i = (int64_t)task * ROWS_OF_A_TASK; i < end; i++) {
    const float *row = r->given ? r->given + i * r->width : NULL;
    if (!row) {
      float *out = r->out ? r->out + i * r->width : r->room + (int64_t)task * r->width;
      if (r->norm.sum) kernels->add_norm(&r->norm, i, out);
      else kernels->gate(&r->gated, i, out);
      row = out;
    }
    if (r->codes.out) kernels->encode(&r->codes, i, row);
  }
}

/* Computes rows as wide as ``x``, and codes of them, if any; the step is input ``input``, the codes ``output``. */
static Status *compute_rows(const Kernel *k, Context *context, size_t input, size_t output, const Tensor *x,
                            struct rows *r) {
  Tensor step, one = *x;
  one.sizes[one.rank - 1] = 1;
  r->count = x->rows;
  r->width = x->width;
  r->codes = (struct codes){.width = x->width, .levels = k->levels};
  if (k->codes != NONE) TRY(get_output(k, context, output, x->sizes, x->rank, &r->codes.out));
  if (k->codes == OF_ROWS) TRY(get_output(k, context, output + 1, one.sizes, one.rank, &r->codes.largest));
  if (k->codes == BY_STEP) {
    TRY(get_input(k, context, input, &step));
    if (step.count != 1) return refuse(k, "mbexport: there must be one step");
    r->codes.step = *(const float *)step.data;
  }
  int64_t tasks = portions(x->rows, ROWS_OF_A_TASK);
  if (!r->given && !r->out && tasks) {
    r->room = k->allocator->allocate(k->allocator, (size_t)(tasks * x->width) * sizeof(float));
    if (!r->room) return CREATE_STATUS(k->ort)(OUT_OF_MEMORY, "mbexport: no memory for rows");
  }
  Status *status = in_parallel(k, context, rows_task, tasks, r);
  if (r->room) k->allocator->release(k->allocator, r->room);
  return status;
}

static Status *add_norm(void *kernel, Context *context) {
  const Kernel *k = kernel;
  struct rows r = {0};
  struct norm *n = &r.norm;
  Tensor x, update, weight, factors;
  size_t further = k->scales ? 1 : 0; /* an input behind those of AddNorm, an output in front of its outputs */
  TRY(get_input(k, context, 0, &x));
  TRY(get_input(k, context, 1, &update));
  TRY(get_input(k, context, 2, &weight));
  if (!same_shape(&x, &update) || weight.count != x.width || x.width % WIDTH_STEP)
    return refuse(k, "mbexport: both summands must be alike, their width a multiple of 16 and the weight's");
  *n = (struct norm){.x = x.data, .update = update.data, .weight = weight.data,
                     .width = x.width, .epsilon = k->epsilon};
  if (k->scales) {
    TRY(get_input(k, context, 3, &factors));
    if (factors.count != x.rows) return refuse(k, "mbexport: there must be a factor for each row");
    n->factors = factors.data;
    TRY(get_output(k, context, 0, x.sizes, x.rank, &n->scaled));
  }
  TRY(get_output(k, context, further, x.sizes, x.rank, &n->sum));
  TRY(get_output(k, context, further + 1, x.sizes, x.rank, &r.out));
  return compute_rows(k, context, 3 + further, 2 + further, &x, &r);
}

static Status *gated_gelu(void *kernel, Context *context) {
  const Kernel *k = kernel;
  struct rows r = {0};
  Tensor x, gate;
  TRY(get_input(k, context, 0, &x));
  TRY(get_input(k, context, 1, &gate));
  if (!same_shape(&x, &gate) || x.width % WIDTH_STEP)
    return refuse(k, "mbexport: value and gate must be alike, their width a multiple of 16");
  r.gated = (struct gated){.x = x.data, .gate = gate.data, .width = x.width};
  TRY(get_output(k, context, 0, x.sizes, x.rank, &r.out));
  return compute_rows(k, context, 2, 1, &x, &r);
}

static Status *codes_of_rows(void *kernel, Context *context) {
  const Kernel *k = kernel;
  struct rows r = {0};
  Tensor x;
  TRY(get_input(k, context, 0, &x));
  if (x.width % WIDTH_STEP) return refuse(k, "mbexport: rows must be a multiple of 16 wide");
  r.given = x.data;
  return compute_rows(k, context, 1, 0, &x, &r);
}

/* What the functions compute once for all layers, and attention here does not read: empty tensors. */
static Status *nothing(void *kernel, Context *context, size_t outputs) {
  int64_t none = 0;
  void *data;
  for (size_t i = 0; i < outputs; i++) TRY(get_output(kernel, context, i, &none, 1, &data));
  return NULL;
}
static Status *local_windows(void *kernel, Context *context) { return nothing(kernel, context, 8); }
static Status *sighted_windows(void *kernel, Context *context) { return nothing(kernel, context, 10); }
static Status *global_mask(void *kernel, Context *context) { return nothing(kernel, context, 5); }

static const Definition *definition(const Operator *o) { return (const Definition *)o; }
static const char *name(const Operator *o) { return definition(o)->name; }
static const char *provider(const Operator *o) { return (void)o, NULL; }
static int default_memory(const Operator *o, size_t i) { return (void)o, (void)i, 0; }
static int one(const Operator *o) { return (void)o, 1; }
static ElementType type(char letter) {
  switch (letter) {
    case 'f': case 'F': return FLOAT;
    case 'b': return BOOL;
    case 'i': return INT64;
    case 'u': return UINT8;
    default: return ANY_TYPE;
  }
}
static ElementType input_type(const Operator *o, size_t i) { return type(definition(o)->inputs[i]); }
static size_t input_count(const Operator *o) { return strlen(definition(o)->inputs); }
static ElementType output_type(const Operator *o, size_t i) { return type(definition(o)->outputs[i]); }
static size_t output_count(const Operator *o) { return strlen(definition(o)->outputs); }
static Presence input_presence(const Operator *o, size_t i) {
  return i < definition(o)->least_inputs ? REQUIRED : OPTIONAL;
}
static Presence output_presence(const Operator *o, size_t i) {
  return definition(o)->outputs[i] == 'F' ? OPTIONAL : REQUIRED;
}

static Status *read_attributes(Kernel *k, const char *letters, const Info *info) {
  for (; *letters; letters++) {
    switch (*letters) {
      case 'h': TRY(GET_INT(k->ort)(info, "heads", &k->heads)); break;
      case 'r': TRY(GET_INT(k->ort)(info, "reach", &k->reach)); break;
      case 's': TRY(GET_FLOAT(k->ort)(info, "scale", &k->scale)); break;
      case 'e': TRY(GET_FLOAT(k->ort)(info, "epsilon", &k->epsilon)); break;
      case 'l': TRY(GET_FLOAT(k->ort)(info, "levels", &k->levels)); break;
      case 'F': k->scales = 1; break;
      default: k->codes = *letters == 'R' ? OF_ROWS : BY_STEP;
    }
  }
  return GET_ALLOCATOR(k->ort)(info, 0, &k->allocator);
}

static Status *create(const Operator *o, Interface ort, const Info *info, void **kernel) {
  Kernel *k = calloc(1, sizeof *k);
  if (!k) return CREATE_STATUS(ort)(OUT_OF_MEMORY, "mbexport: no memory for an operator");
  k->ort = ort;
  k->kernels = active;
  k->reach = -1;
  Status *status = read_attributes(k, definition(o)->attributes, info);
  if (status)
    free(k);
  else
    *kernel = k;
  return status;
}

#define DEFINE(name_, inputs_, least_inputs_, outputs_, attributes_, compute_)                                       \
  {.operator= {.version = INTERFACE_VERSION, .name = name, .provider = provider, .input_type = input_type,           \
               .input_count = input_count, .output_type = output_type, .output_count = output_count, .destroy = free, \
               .input_presence = input_presence, .output_presence = output_presence, .input_memory = default_memory, \
               .variadic_input_minimum = one, .variadic_input_homogeneous = one, .variadic_output_minimum = one,     \
               .variadic_output_homogeneous = one, .create = create, .compute = compute_},                           \
   .name = name_, .inputs = inputs_, .least_inputs = least_inputs_, .outputs = outputs_, .attributes = attributes_}

static const Definition definitions[] = {
    DEFINE("LocalAttention", "fffffb**********", 14, "f", "hrs", attention),
    DEFINE("GlobalAttention", "fffffb*****", 11, "f", "hs", attention),
    DEFINE("LocalWindows", "b", 1, "iifiiibi", "", local_windows),
    DEFINE("SightedWindows", "b", 1, "iifiiibibb", "", sighted_windows),
    DEFINE("GlobalMask", "b", 1, "bbfff", "", global_mask),
    DEFINE("Product", "ff", 2, "f", "", product),
    DEFINE("AddNorm", "fff", 3, "ff", "e", add_norm),
    DEFINE("AddNormCodes", "ffff", 4, "fFu", "elS", add_norm),
    DEFINE("AddNormCodesOfRows", "fff", 3, "fFuf", "elR", add_norm),
    DEFINE("ScaledAddNormCodes", "fffff", 5, "FfFu", "elFS", add_norm),
    DEFINE("ScaledAddNormCodesOfRows", "ffff", 4, "FfFuf", "elFR", add_norm),
    DEFINE("GatedGelu", "ff", 2, "f", "", gated_gelu),
    DEFINE("GatedGeluCodes", "fff", 3, "Fu", "lS", gated_gelu),
    DEFINE("GatedGeluCodesOfRows", "ff", 2, "Fuf", "lR", gated_gelu),
    DEFINE("CodesOfRows", "f", 1, "uf", "lR", codes_of_rows),
};

/* The widest vectors that the CPU has instructions for and the system saves, in bits: 512, 256 or 0. Not by
   __builtin_cpu_supports, which knows nothing where the compiler's own library does not set it up. */
static int widest_vectors(void) {
  unsigned a, b, c, d, saved, unused;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_FMA) || !(c & bit_OSXSAVE)) return 0;
  __asm__ volatile("xgetbv" : "=a"(saved), "=d"(unused) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2) || (saved & 0x06) != 0x06) return 0;
  return (b & bit_AVX512F) && (saved & 0xe6) == 0xe6 ? 512 : 256;
}

/* Chooses by name, or the best for this CPU where that is NULL; what is chosen, NULL where this CPU has neither. */
EXPORTED const char *mbexport_choose_kernels(const char *name_) {
  int bits = widest_vectors();
  const struct kernels *found = bits >= 256 ? &avx2_kernels : NULL;
  if (bits >= 512 && !(name_ && !strcmp(name_, avx2_kernels.name))) found = &avx512_kernels;
  if (!found || (name_ && strcmp(name_, found->name))) return NULL;
  active = found;
  return found->name;
}

/* What ONNX Runtime calls when a session's options name this library. */
EXPORTED Status *RegisterCustomOps(Options *options, const InterfaceBase *base) {
  Interface ort = base->get(INTERFACE_VERSION);
  Domain *domain;
  if (!ort) return NULL; /* before 1.17: that release has said so */
  if (!active && !mbexport_choose_kernels(NULL))
    return CREATE_STATUS(ort)(INVALID_ARGUMENT, "mbexport: this CPU has no AVX2");
  TRY(CREATE_DOMAIN(ort)("mbexport", &domain)); /* lives as long as the process, as sessions may */
  for (size_t i = 0; i < sizeof definitions / sizeof *definitions; i++)
    TRY(ADD_TO_DOMAIN(ort)(domain, &definitions[i].operator));
  return ADD_DOMAIN(ort)(options, domain);
}
