/* SPDX-License-Identifier: Apache-2.0 */
/*
 * place/pickle.h - the data of a pickle, without running what it says.
 *
 * A pickle is a program for a stack machine that can import and call anything. This interpreter
 * knows the opcodes that plain data needs, and the few names that torch.save writes for tensors;
 * everything else is refused by its name. Tensors come out as a storage's key, an offset, sizes and
 * strides; the numbers themselves are elsewhere in the archive.
 *
 * Opcodes: Lib/pickletools.py of Python.
 */
#ifndef MP_PLACE_PICKLE_H
#define MP_PLACE_PICKLE_H

#include <moepack/base.h>

typedef enum mp_pickle_kind {
    MP_PICKLE_NONE,
    MP_PICKLE_BOOL,
    MP_PICKLE_INTEGER,
    MP_PICKLE_REAL,
    MP_PICKLE_TEXT,
    MP_PICKLE_LIST,
    MP_PICKLE_TUPLE,
    MP_PICKLE_DICT,
    MP_PICKLE_GLOBAL, /* one of the names that are known */
    MP_PICKLE_STORAGE,
    MP_PICKLE_TENSOR
} mp_pickle_kind;

typedef struct mp_pickle_value {
    mp_pickle_kind kind;
    union {
        int64_t integer; /* also of bool */
        double real;
        struct {
            uint32_t at, length; /* in the pickle */
        } text;
        uint32_t index; /* of an object, or of a global */
    } u;
} mp_pickle_value;

/* An item of a list, tuple or dict, where key and value alternate. */
typedef struct mp_pickle_item {
    mp_pickle_value value;
    uint32_t next; /* UINT32_MAX: the last one */
} mp_pickle_item;

typedef struct mp_pickle_object {
    uint32_t first, last, count; /* list, tuple, dict: items */
    uint32_t depth;              /* of nesting, 1 for one without containers in it */
    mp_dtype dtype;              /* storage */
    mp_pickle_value key;         /* storage: a text */
    int64_t numel;               /* storage */
    mp_pickle_value args[4];     /* tensor: storage, offset, sizes, strides */
} mp_pickle_object;

typedef struct mp_pickle {
    const unsigned char *data;
    uint32_t length, at;
    mp_pickle_object *objects;
    mp_pickle_item *items;
    mp_pickle_value *stack;
    mp_pickle_value *memo;
    bool *memo_set;
    uint64_t num_objects, num_items, num_stack, num_memo; /* in use; num_memo: numbers set */
    uint64_t room_objects, room_items, room_stack, room_memo;
    uint32_t marks[64]; /* heights of the stack */
    uint32_t num_marks;
    mp_pickle_value root;
} mp_pickle;

/* Interprets a pickle, which has to outlive the result.
 * MP_ERR_UNSUPPORTED for an opcode or a name that is not known; MP_ERR_INPUT for a stack, a mark or
 * a memo that is not there, or an end that is. */
int mp_pickle_load(mp_pickle *p, const void *data, uint64_t length, mp_error *err);
void mp_pickle_release(mp_pickle *p);

/* The value of a key of a dict, the last where there are several; false if there is none, or no
 * dict. */
bool mp_pickle_get(const mp_pickle *p, mp_pickle_value dict, const char *key,
                   mp_pickle_value *value);

/* Integers of a tuple or list; false unless it has 0 to `most` items and all are integers of 0 or
 * more. */
bool mp_pickle_integers(const mp_pickle *p, mp_pickle_value tuple, uint64_t *out, uint32_t most,
                        uint32_t *count);

/* Containers below which the root must not nest: deeper ones are no data of anybody. */
#define MP_PICKLE_DEPTH 64

#endif
