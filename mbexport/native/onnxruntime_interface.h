/* What is used of ONNX Runtime's C interface for custom operators, declared here: its wheels bring no headers.

   The interface is a table of functions that only grows at its end, so a place in it stays what it is; the structure
   of an operator likewise. https://onnxruntime.ai/docs/api/c/struct_ort_api.html has both in order. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { INTERFACE_VERSION = 17 }; /* the first with all that is used here: ONNX Runtime 1.17 */

typedef struct Status Status; /* NULL where all went well */
typedef struct Value Value;
typedef struct Shape Shape;
typedef struct Context Context;
typedef struct Info Info;
typedef struct Domain Domain;
typedef struct Options Options;
typedef const void *const *Interface;

typedef struct {
  Interface (*get)(uint32_t version);
  const char *(*version)(void);
} InterfaceBase;

typedef struct Allocator {
  uint32_t version;
  void *(*allocate)(struct Allocator *, size_t bytes);
  void (*release)(struct Allocator *, void *);
} Allocator;

typedef enum { ANY_TYPE = 0, FLOAT = 1, UINT8 = 2, INT64 = 7, BOOL = 9 } ElementType;
typedef enum { REQUIRED = 0, OPTIONAL = 1 } Presence;
typedef enum { INVALID_ARGUMENT = 2, OUT_OF_MEMORY = 6 } ErrorCode; /* it calls the latter a runtime exception */

/* Each is called as FUNCTION(interface)(arguments). */
#define ENTRY(interface, place, returns, ...) ((returns(*)(__VA_ARGS__))(interface)[place])
#define CREATE_STATUS(i) ENTRY(i, 0, Status *, ErrorCode, const char *)
#define CREATE_DOMAIN(i) ENTRY(i, 26, Status *, const char *, Domain **)
#define ADD_TO_DOMAIN(i) ENTRY(i, 27, Status *, Domain *, const struct Operator *)
#define ADD_DOMAIN(i) ENTRY(i, 28, Status *, Options *, Domain *)
#define GET_DATA(i) ENTRY(i, 51, Status *, Value *, void **)
#define GET_RANK(i) ENTRY(i, 61, Status *, const Shape *, size_t *)
#define GET_SIZES(i) ENTRY(i, 62, Status *, const Shape *, int64_t *, size_t)
#define GET_SHAPE(i) ENTRY(i, 65, Status *, const Value *, Shape **)
#define GET_FLOAT(i) ENTRY(i, 85, Status *, const Info *, const char *, float *)
#define GET_INT(i) ENTRY(i, 86, Status *, const Info *, const char *, int64_t *)
#define GET_INPUT(i) ENTRY(i, 90, Status *, const Context *, size_t, const Value **)
#define GET_OUTPUT(i) ENTRY(i, 91, Status *, Context *, size_t, const int64_t *, size_t, Value **)
#define RELEASE_SHAPE(i) ENTRY(i, 99, void, Shape *)
#define PARALLEL_FOR(i) ENTRY(i, 274, Status *, const Context *, void (*)(void *, size_t), size_t, size_t, void *)
#define GET_ALLOCATOR(i) ENTRY(i, 278, Status *, const Info *, int, Allocator **)

typedef struct Operator {
  uint32_t version;
  void *(*create_unused)(const struct Operator *, Interface, const Info *);
  const char *(*name)(const struct Operator *);
  const char *(*provider)(const struct Operator *); /* NULL: the CPU's */
  ElementType (*input_type)(const struct Operator *, size_t);
  size_t (*input_count)(const struct Operator *);
  ElementType (*output_type)(const struct Operator *, size_t);
  size_t (*output_count)(const struct Operator *);
  void (*compute_unused)(void *, Context *);
  void (*destroy)(void *);
  Presence (*input_presence)(const struct Operator *, size_t);
  Presence (*output_presence)(const struct Operator *, size_t);
  int (*input_memory)(const struct Operator *, size_t); /* 0: the CPU's own */
  int (*variadic_input_minimum)(const struct Operator *);
  int (*variadic_input_homogeneous)(const struct Operator *);
  int (*variadic_output_minimum)(const struct Operator *);
  int (*variadic_output_homogeneous)(const struct Operator *);
  Status *(*create)(const struct Operator *, Interface, const Info *, void **);
  Status *(*compute)(void *, Context *);
  Status *(*infer_shapes)(const struct Operator *, void *);
  int (*start_version)(const struct Operator *);
  int (*end_version)(const struct Operator *);
  size_t (*in_place)(int **, int **);
  void (*release_in_place)(int *, int *);
  size_t (*aliases)(int **, int **);
  void (*release_aliases)(int *, int *);
} Operator;
