/* SPDX-License-Identifier: Apache-2.0 */
/* diff/diff.h - the two sides of a comparison, what is compared, and reading it. */
#ifndef MP_DIFF_DIFF_H
#define MP_DIFF_DIFF_H

#include <moepack/artifact.h>
#include <moepack/diff.h>
#include <moepack/layout.h>
#include <moepack/model.h>
#include <moepack/place.h>

#include "experts/dumped_rows.h"
#include "experts/packed.h"
#include "experts/stored.h"
#include "pack/pack.h"

/* ------------------------------------------------------------------------
 * Sides, in diff_side.c
 */

typedef enum diff_kind { DIFF_TENSORS, DIFF_MODEL, DIFF_PACK, DIFF_SNAPSHOT } diff_kind;

typedef struct diff_side {
    const char *path; /* as the user has it */
    diff_kind kind;
    bool whole;         /* a model or a directory: weights go with the scales beside them */
    mp_catalog catalog; /* of DIFF_TENSORS and DIFF_SNAPSHOT only its checkpoint and config */
    mp_pack pack;
    struct diff_snapshot *snapshot; /* of DIFF_SNAPSHOT; null elsewhere */
    char *unread;                   /* why experts that are there were not found; or null */
} diff_side;

int mp_diff_side_open(diff_side *side, const char *path, const mp_context *context, mp_error *err);
void mp_diff_side_release(diff_side *side);

/* An MoE layer of a side that has experts. */
typedef struct diff_layer {
    const char *prefix;
    uint64_t number;
    bool mtp;
    uint32_t num_experts;
} diff_layer;

size_t mp_diff_num_layers(const diff_side *side);
int mp_diff_layer_at(const diff_side *side, size_t index, diff_layer *layer, mp_error *err);

/* ------------------------------------------------------------------------
 * What is compared, in diff_list.c
 */

/* All shared experts of a layer as one. */
#define DIFF_WHOLE UINT32_MAX

/* A matrix of an expert, or a tensor. */
typedef struct diff_ref {
    const mp_tensor *tensor; /* null: of an expert */
    size_t layer;
    bool shared;
    uint32_t id; /* of the routed expert; of the shared one, or DIFF_WHOLE */
    mp_projection projection;
} diff_ref;

typedef struct diff_list {
    const diff_side *side[2];
    bool experts;        /* both have experts, which are compared by meaning */
    bool plain;          /* a tensor is what its type says, whatever stands beside it */
    diff_ref (*refs)[2]; /* [report->num_pairs]: what each pair is on either side */
    size_t room;
    size_t room_only[2];
    mp_diff_report *report; /* gets names of pairs, and what is on one side only */
} diff_list;

/* Fills refs, and the report's pairs with names. */
int mp_diff_list_make(diff_list *list, const mp_diff_options *options, mp_error *err);
void mp_diff_list_release(diff_list *list);

/* The quantized weight that a tensor is with the tensors beside it; false if it is none. */
bool mp_diff_weight_beside(const diff_side *side, const mp_tensor *tensor, mp_matrix *matrix,
                           mp_storage *storage, uint64_t *rows, uint64_t *cols);

/* ------------------------------------------------------------------------
 * Reading, in diff_read.c
 */

/* A matrix [rows, cols], or a tensor, on one side. */
typedef struct diff_matrix {
    const diff_side *side;
    const mp_tensor *plain; /* a tensor of plain numbers, or null */
    uint64_t rows, cols;    /* not of plain tensors */
    bool global_divides;    /* the second scale, if any */
    bool again;             /* its bytes are also those of the next pair */
    /* of a checkpoint */
    mp_matrix matrix;
    mp_storage storage;
    /* of a packed directory: part `part` of a side of a slot; slot.pack is null elsewhere */
    mp_packed_side slot;
    unsigned part;
    /* of a snapshot; dumped.parts is null elsewhere */
    mp_dumped_matrix dumped;
} diff_matrix;

/* The matrix that a ref means. copies: set to those of an expert in slots, of which the matrix
 * is the first; null elsewhere. */
int mp_diff_resolve(const diff_side *side, const diff_ref *ref, bool plain, diff_matrix *matrix,
                    const mp_place **copies, uint32_t *num_copies, mp_error *err);

/* Takes another copy of the matrix that a ref means. */
void mp_diff_take_copy(diff_matrix *matrix, const diff_ref *ref, mp_place place);

/* Shared experts of a packed side; all of them count as one where they are one tensor. */
uint32_t mp_diff_packed_shared(const diff_side *side);

/* Lets the system drop its pages, unless they are read again. Never fails. */
void mp_diff_forget(const diff_matrix *matrix);

/* Bytes of its weights or numbers. */
uint64_t mp_diff_matrix_bytes(const diff_matrix *matrix);

/* How the elements of a pair are cut: rows of `cols`, the last of which may be shorter. */
typedef struct diff_cut {
    uint64_t elements, cols;
} diff_cut;

/* Rows that are read at once. */
#define DIFF_TILE_ROWS 128u

/* Rows of a matrix, as they are stored. */
typedef struct diff_rows {
    bool plain;
    mp_dtype dtype;       /* of plain numbers */
    const uint8_t *bytes; /* of plain numbers, `count` of them */
    uint64_t count;
    mp_rows rows; /* else */
} diff_rows;

typedef struct diff_reader {
    const diff_matrix *m;
    diff_cut cut;
    uint8_t *memory;             /* plain numbers, or what the others lie in */
    mp_stored_matrix stored;     /* of a checkpoint */
    mp_dumped_reader dumped;     /* of a snapshot */
    mp_packed_side slot;         /* of a pack, with what follows */
    mp_rows run[2];              /* rows of the slot that are in memory: */
    uint64_t first_row, end_row; /* these */
} diff_reader;

/* Reads what is known of the whole matrix: second scales, packed scales. */
int mp_diff_reader_open(diff_reader *reader, const diff_matrix *matrix, diff_cut cut,
                        mp_error *err);
void mp_diff_reader_close(diff_reader *reader);

/* Rows row0 .. row0+rows-1 of the cut; row0 is a multiple of DIFF_TILE_ROWS, rows at most
 * that. Good until the next read. */
int mp_diff_read(diff_reader *reader, uint64_t row0, uint64_t rows, diff_rows *out, mp_error *err);

/* ------------------------------------------------------------------------
 * Comparing, in diff_compare.c
 */

/* Whether two matrices can be compared bit by bit: the same type, or the same scheme with
 * the same blocks and a second scale of the same kind. */
bool mp_diff_stored_alike(const diff_matrix *a, const diff_matrix *b);

/* Compares codes and scale values. */
int mp_diff_stored_equal(const diff_matrix *a, const diff_matrix *b, diff_cut cut, bool *equal,
                         mp_error *err);

/* Compares values: fills max_abs, rel_l2 and sqnr_db, and equal, of a pair. */
int mp_diff_measure(const diff_matrix *a, const diff_matrix *b, diff_cut cut, mp_diff_pair *pair,
                    mp_error *err);

/* Numbers first .. first+n-1 of plain ones, in diff_plain.c. A C64 is two F32. */
void mp_diff_plain_values(mp_dtype dtype, const uint8_t *bytes, uint64_t first, uint64_t n,
                          double *out);

#endif
