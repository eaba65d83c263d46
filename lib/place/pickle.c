/* SPDX-License-Identifier: Apache-2.0 */
/* The interpreter of pickles: a stack of values, marks on it, and a memo.
 *
 *     }        push a dict            {"a": [1]} as a pickle of protocol 2 builds it
 *     X a      push a text
 *     ]        push a list
 *     K 1      push 1
 *     a        append it to the list
 *     s        set the item of the dict: pops key and value
 *
 * Values are small and copied freely. Containers are objects that values refer to by number, and
 * their items form a linked list in one array. So nothing here recurses, however deep a pickle
 * nests or whatever refers to itself, and everything is freed as five arrays. A text is a range of
 * the pickle and is never copied.
 *
 * A pickle's length bounds what it can do: each opcode pushes at most one value, makes at most one
 * object and sets at most one number of the memo, and a value becomes an item at most once. Nothing
 * is popped from below a mark. Nothing is ever imported or called: names are looked up in a table,
 * and for two callables the result is built here. One thread. */
#include "place/pickle.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"

#define NOTHING UINT32_MAX

/* The names that may be imported, and what calling them gives. */
enum { REBUILD_TENSOR, ORDERED_DICT, FIRST_STORAGE };

static const struct known_global {
    const char *module, *name;
    mp_dtype dtype; /* of storages */
} globals[] = {
    [REBUILD_TENSOR] = {"torch._utils", "_rebuild_tensor_v2", 0},
    [ORDERED_DICT] = {"collections", "OrderedDict", 0},
    [FIRST_STORAGE] = {"torch", "FloatStorage", MP_F32},
    {"torch", "DoubleStorage", MP_F64},
    {"torch", "HalfStorage", MP_F16},
    {"torch", "BFloat16Storage", MP_BF16},
    {"torch", "LongStorage", MP_I64},
    {"torch", "IntStorage", MP_I32},
    {"torch", "ShortStorage", MP_I16},
    {"torch", "CharStorage", MP_I8},
    {"torch", "ByteStorage", MP_U8},
};
#define NUM_GLOBALS (sizeof(globals) / sizeof(globals[0]))

static int malformed(const mp_pickle *p, const char *what, mp_error *err)
{
    return mp_fail(err, MP_ERR_INPUT, "pickle: byte %u: %s", p->at, what);
}

/* Doubles the room of an array when it is full. */
static int reserve(void **array, uint64_t count, uint64_t *room, uint64_t size, mp_error *err)
{
    if (count < *room)
        return 0;
    /* Indexes have 32 bits, and UINT32_MAX is NOTHING. */
    uint64_t more = *room ? *room * 2 : 64;
    void *grown = more < UINT32_MAX ? realloc(*array, (size_t)(more * size)) : NULL;
    if (!grown)
        return mp_fail_memory(err);
    *array = grown;
    *room = more;
    return 0;
}

static int push(mp_pickle *p, mp_pickle_value value, mp_error *err)
{
    int rc = reserve((void **)&p->stack, p->num_stack, &p->room_stack, sizeof(*p->stack), err);
    if (rc == 0)
        p->stack[p->num_stack++] = value;
    return rc;
}

/* Values above the last mark, or on the whole stack. */
static uint64_t above_mark(const mp_pickle *p)
{
    return p->num_stack - (p->num_marks > 0 ? p->marks[p->num_marks - 1] : 0);
}

static int pop(mp_pickle *p, mp_pickle_value *value, mp_error *err)
{
    *value = (mp_pickle_value){0};
    if (above_mark(p) == 0)
        return malformed(p, "the stack is empty", err);
    *value = p->stack[--p->num_stack];
    return 0;
}

/* The next `count` bytes. */
static int take(mp_pickle *p, uint64_t count, const unsigned char **bytes, mp_error *err)
{
    *bytes = p->data;
    /* Not at + count > length, which a length from the pickle could overflow. */
    if (count > p->length - p->at)
        return malformed(p, "the pickle ends early", err);
    *bytes = p->data + p->at;
    p->at += (uint32_t)count;
    return 0;
}

/* An unsigned number of `size` bytes, little-endian. */
static int take_number(mp_pickle *p, unsigned size, uint64_t *value, mp_error *err)
{
    const unsigned char *bytes;
    int rc = take(p, size, &bytes, err);
    *value = 0;
    for (unsigned i = size; rc == 0 && i-- > 0;)
        *value = *value << 8 | bytes[i];
    return rc;
}

/* ------------------------------------------------------------------------
 * Containers
 */

static bool is_container(mp_pickle_value v)
{
    return v.kind == MP_PICKLE_LIST || v.kind == MP_PICKLE_TUPLE || v.kind == MP_PICKLE_DICT;
}

static int push_object(mp_pickle *p, mp_pickle_kind kind, mp_pickle_object object, mp_error *err)
{
    int rc =
        reserve((void **)&p->objects, p->num_objects, &p->room_objects, sizeof(*p->objects), err);
    if (rc != 0)
        return rc;
    object.first = object.last = NOTHING;
    object.depth = 1;
    p->objects[p->num_objects] = object;
    return push(p, (mp_pickle_value){kind, {.index = (uint32_t)p->num_objects++}}, err);
}

static int append(mp_pickle *p, uint32_t container, mp_pickle_value value, mp_error *err)
{
    int rc = reserve((void **)&p->items, p->num_items, &p->room_items, sizeof(*p->items), err);
    if (rc != 0)
        return rc;
    mp_pickle_object *object = &p->objects[container];
    uint32_t item = (uint32_t)p->num_items++;
    p->items[item] = (mp_pickle_item){value, NOTHING};
    if (object->last == NOTHING)
        object->first = item;
    else
        p->items[object->last].next = item;
    object->last = item;
    object->count++;
    /* Only a lower bound: what is added to the inner container later is not seen here. It serves to
     * refuse what nobody writes; no code relies on it. */
    if (is_container(value) && p->objects[value.u.index].depth >= object->depth)
        object->depth = p->objects[value.u.index].depth + 1;
    return 0;
}

/* Moves the values from `height` of the stack on into a container. */
static int append_from(mp_pickle *p, uint32_t container, uint64_t height, mp_error *err)
{
    int rc = 0;
    for (uint64_t i = height; rc == 0 && i < p->num_stack; i++)
        rc = append(p, container, p->stack[i], err);
    p->num_stack = height;
    return rc;
}

/* A tuple or list of the values from `height` on. */
static int collect(mp_pickle *p, mp_pickle_kind kind, uint64_t height, mp_error *err)
{
    uint32_t container = (uint32_t)p->num_objects;
    int rc = push_object(p, kind, (mp_pickle_object){0}, err);
    if (rc != 0)
        return rc;
    /* Take it off again so that the values are on top, and put it back once they are in it. */
    mp_pickle_value value = p->stack[--p->num_stack];
    rc = append_from(p, container, height, err);
    return rc != 0 ? rc : push(p, value, err);
}

static int pop_mark(mp_pickle *p, uint64_t *height, mp_error *err)
{
    *height = 0;
    if (p->num_marks == 0)
        return malformed(p, "there is no mark", err);
    *height = p->marks[--p->num_marks];
    return 0;
}

/* Adds the values from `height` on to the container below them. */
static int extend(mp_pickle *p, mp_pickle_kind kind, uint64_t height, mp_error *err)
{
    bool below =
        p->num_stack >= height && height > (p->num_marks > 0 ? p->marks[p->num_marks - 1] : 0);
    if (!below || p->stack[height - 1].kind != kind)
        return malformed(
            p, kind == MP_PICKLE_DICT ? "no dict to set items of" : "no list to append to", err);
    if (kind == MP_PICKLE_DICT && (p->num_stack - height) % 2 != 0)
        return malformed(p, "a key without a value", err);
    return append_from(p, p->stack[height - 1].u.index, height, err);
}

/* The same for the last `count` values. */
static int extend_last(mp_pickle *p, mp_pickle_kind kind, uint64_t count, mp_error *err)
{
    if (above_mark(p) <= count)
        return malformed(p, "the stack is empty", err);
    return extend(p, kind, p->num_stack - count, err);
}

static int extend_marked(mp_pickle *p, mp_pickle_kind kind, mp_error *err)
{
    uint64_t height;
    int rc = pop_mark(p, &height, err);
    return rc != 0 ? rc : extend(p, kind, height, err);
}

static int collect_marked(mp_pickle *p, mp_pickle_kind kind, mp_error *err)
{
    uint64_t height;
    int rc = pop_mark(p, &height, err);
    return rc != 0 ? rc : collect(p, kind, height, err);
}

static int collect_last(mp_pickle *p, uint64_t count, mp_error *err)
{
    if (above_mark(p) < count)
        return malformed(p, "the stack is empty", err);
    return collect(p, MP_PICKLE_TUPLE, p->num_stack - count, err);
}

static int set_mark(mp_pickle *p, mp_error *err)
{
    if (p->num_marks == sizeof(p->marks) / sizeof(p->marks[0]))
        return malformed(p, "marks nest more than 64 deep", err);
    p->marks[p->num_marks++] = (uint32_t)p->num_stack;
    return 0;
}

/* ------------------------------------------------------------------------
 * Names and calls
 */

static int push_global(mp_pickle *p, const char *module, size_t module_length, const char *name,
                       size_t name_length, mp_error *err)
{
    for (uint32_t g = 0; g < NUM_GLOBALS; g++)
        if (strlen(globals[g].module) == module_length && strlen(globals[g].name) == name_length &&
            memcmp(globals[g].module, module, module_length) == 0 &&
            memcmp(globals[g].name, name, name_length) == 0)
            return push(p, (mp_pickle_value){MP_PICKLE_GLOBAL, {.index = g}}, err);
    char text[2][80];
    size_t lengths[] = {module_length, name_length};
    const char *parts[] = {module, name};
    for (unsigned part = 0; part < 2; part++) {
        size_t n = lengths[part] < 79 ? lengths[part] : 79;
        for (size_t i = 0; i < n; i++)
            text[part][i] = parts[part][i] > 32 && parts[part][i] < 127 ? parts[part][i] : '?';
        text[part][n] = '\0';
    }
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "pickle: it names %s.%s, which counts do not need; nothing was run", text[0],
                   text[1]);
}

/* Two lines: module and name. */
static int read_global(mp_pickle *p, mp_error *err)
{
    const char *line[2];
    size_t length[2];
    for (unsigned i = 0; i < 2; i++) {
        const unsigned char *end = memchr(p->data + p->at, '\n', p->length - p->at);
        if (!end)
            return malformed(p, "the pickle ends early", err);
        line[i] = (const char *)p->data + p->at;
        length[i] = (size_t)(end - (p->data + p->at));
        p->at = (uint32_t)(end - p->data) + 1;
    }
    return push_global(p, line[0], length[0], line[1], length[1], err);
}

static int stack_global(mp_pickle *p, mp_error *err)
{
    mp_pickle_value name, module;
    int rc = pop(p, &name, err);
    if (rc == 0)
        rc = pop(p, &module, err);
    if (rc == 0 && (name.kind != MP_PICKLE_TEXT || module.kind != MP_PICKLE_TEXT))
        rc = malformed(p, "a global that is not named by strings", err);
    if (rc != 0)
        return rc;
    return push_global(p, (const char *)p->data + module.u.text.at, module.u.text.length,
                       (const char *)p->data + name.u.text.at, name.u.text.length, err);
}

/* The first `count` items of a tuple; false if it has fewer. */
static bool tuple_items(const mp_pickle *p, mp_pickle_value tuple, mp_pickle_value *out,
                        uint32_t count)
{
    if (tuple.kind != MP_PICKLE_TUPLE || p->objects[tuple.u.index].count < count)
        return false;
    uint32_t item = p->objects[tuple.u.index].first;
    for (uint32_t i = 0; i < count; i++, item = p->items[item].next)
        out[i] = p->items[item].value;
    return true;
}

/* A persistent id: ('storage', class, key, location, elements). torch.save uses these for storages
 * only; the key says where the numbers are. */
static int push_storage(mp_pickle *p, mp_error *err)
{
    mp_pickle_value id, part[5];
    int rc = pop(p, &id, err);
    if (rc != 0)
        return rc;
    if (!tuple_items(p, id, part, 5) || part[1].kind != MP_PICKLE_GLOBAL ||
        part[1].u.index < FIRST_STORAGE || part[2].kind != MP_PICKLE_TEXT ||
        part[4].kind != MP_PICKLE_INTEGER || part[4].u.integer < 0)
        return malformed(p, "a persistent id that is not a storage", err);
    return push_object(p, MP_PICKLE_STORAGE,
                       (mp_pickle_object){.dtype = globals[part[1].u.index].dtype,
                                          .key = part[2],
                                          .numel = part[4].u.integer},
                       err);
}

/* Calls nothing: the results of the two callables that counts need are built here. */
static int reduce(mp_pickle *p, mp_error *err)
{
    mp_pickle_value args, callable;
    mp_pickle_object tensor = {0};
    int rc = pop(p, &args, err);
    if (rc == 0)
        rc = pop(p, &callable, err);
    if (rc != 0)
        return rc;
    if (callable.kind != MP_PICKLE_GLOBAL || args.kind != MP_PICKLE_TUPLE)
        return malformed(p, "a call of what cannot be called", err);
    if (callable.u.index == ORDERED_DICT && p->objects[args.u.index].count == 0)
        return push_object(p, MP_PICKLE_DICT, tensor, err);
    if (callable.u.index != REBUILD_TENSOR)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "pickle: it calls %s.%s, which counts do not need; nothing was run",
                       globals[callable.u.index].module, globals[callable.u.index].name);
    if (!tuple_items(p, args, tensor.args, 4) || tensor.args[0].kind != MP_PICKLE_STORAGE)
        return malformed(p, "a tensor without storage, offset, sizes and strides", err);
    return push_object(p, MP_PICKLE_TENSOR, tensor, err);
}

/* ------------------------------------------------------------------------
 * The memo
 */

static int remember(mp_pickle *p, uint64_t number, mp_error *err)
{
    if (above_mark(p) == 0)
        return malformed(p, "the stack is empty", err);
    /* Real picklers count up from 0, one per value. */
    if (number > p->length + (uint64_t)65536)
        return malformed(p, "a number of the memo that is too large", err);
    if (number >= p->room_memo) {
        uint64_t room = p->room_memo ? p->room_memo : 64;
        while (room <= number)
            room *= 2;
        mp_pickle_value *memo = realloc(p->memo, (size_t)room * sizeof(*memo));
        /* One may grow and the other fail: keep the new block and the old room. */
        if (memo)
            p->memo = memo;
        bool *set = memo ? realloc(p->memo_set, (size_t)room) : NULL;
        if (!set)
            return mp_fail_memory(err);
        memset(set + p->room_memo, 0, (size_t)(room - p->room_memo));
        p->memo_set = set;
        p->room_memo = room;
    }
    p->num_memo += !p->memo_set[number];
    p->memo_set[number] = true;
    p->memo[number] = p->stack[p->num_stack - 1];
    return 0;
}

static int recall(mp_pickle *p, uint64_t number, mp_error *err)
{
    if (number >= p->room_memo || !p->memo_set[number])
        return mp_fail(err, MP_ERR_INPUT, "pickle: byte %u: memo %u is empty", p->at,
                       (unsigned)number);
    return push(p, p->memo[number], err);
}

/* ------------------------------------------------------------------------
 * Opcodes
 */

static int push_integer(mp_pickle *p, mp_pickle_kind kind, int64_t value, mp_error *err)
{
    return push(p, (mp_pickle_value){kind, {.integer = value}}, err);
}

/* LONG1: two's complement of as many bytes as the first says. */
static int read_long(mp_pickle *p, mp_error *err)
{
    uint64_t size, value = 0;
    int rc = take_number(p, 1, &size, err);
    if (rc == 0 && size > 8)
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "pickle: byte %u: an integer of %u bytes, at most 8 are read", p->at,
                       (unsigned)size);
    if (rc == 0)
        rc = take_number(p, (unsigned)size, &value, err);
    if (size > 0 && size < 8 && value >> (8 * size - 1))
        value |= UINT64_MAX << (8 * size);
    return rc != 0 ? rc : push_integer(p, MP_PICKLE_INTEGER, (int64_t)value, err);
}

static int read_text(mp_pickle *p, unsigned size, mp_error *err)
{
    uint64_t length;
    const unsigned char *bytes;
    int rc = take_number(p, size, &length, err);
    uint32_t at = p->at;
    if (rc == 0)
        rc = take(p, length, &bytes, err);
    if (rc != 0)
        return rc;
    return push(p, (mp_pickle_value){MP_PICKLE_TEXT, {.text = {at, (uint32_t)length}}}, err);
}

/* BINFLOAT: the one number that is big-endian. */
static int read_real(mp_pickle *p, mp_error *err)
{
    const unsigned char *bytes;
    uint64_t bits = 0;
    mp_pickle_value value = {.kind = MP_PICKLE_REAL};
    int rc = take(p, 8, &bytes, err);
    for (unsigned i = 0; rc == 0 && i < 8; i++)
        bits = bits << 8 | bytes[i];
    memcpy(&value.u.real, &bits, sizeof(bits));
    return rc != 0 ? rc : push(p, value, err);
}

static int numbered(mp_pickle *p, unsigned size, int run(mp_pickle *, uint64_t, mp_error *),
                    mp_error *err)
{
    uint64_t number;
    int rc = take_number(p, size, &number, err);
    return rc != 0 ? rc : run(p, number, err);
}

static int read_integer(mp_pickle *p, unsigned size, mp_error *err)
{
    uint64_t value;
    int rc = take_number(p, size, &value, err);
    if (rc != 0)
        return rc;
    return push_integer(p, MP_PICKLE_INTEGER, size == 4 ? (int32_t)(uint32_t)value : (int64_t)value,
                        err);
}

static int check_protocol(mp_pickle *p, mp_error *err)
{
    uint64_t version;
    int rc = take_number(p, 1, &version, err);
    if (rc == 0 && (version < 2 || version > 5))
        rc = mp_fail(err, MP_ERR_UNSUPPORTED, "pickle: protocol %u, 2 to 5 are read",
                     (unsigned)version);
    return rc;
}

/* Frames are a hint for reading from streams, and all of the pickle is in memory. */
static int skip_frame(mp_pickle *p, mp_error *err)
{
    const unsigned char *length;
    return take(p, 8, &length, err);
}

/* clang-format off */
static int run_opcode(mp_pickle *p, unsigned char opcode, mp_error *err)
{
    switch (opcode) {
    case 0x80: return check_protocol(p, err);                           /* PROTO */
    case 0x95: return skip_frame(p, err);                               /* FRAME */
    case '(':  return set_mark(p, err);                                 /* MARK */
    case 'N':  return push_integer(p, MP_PICKLE_NONE, 0, err);          /* NONE */
    case 0x88: return push_integer(p, MP_PICKLE_BOOL, 1, err);          /* NEWTRUE */
    case 0x89: return push_integer(p, MP_PICKLE_BOOL, 0, err);          /* NEWFALSE */
    case 'J':  return read_integer(p, 4, err);                          /* BININT */
    case 'K':  return read_integer(p, 1, err);                          /* BININT1 */
    case 'M':  return read_integer(p, 2, err);                          /* BININT2 */
    case 0x8a: return read_long(p, err);                                /* LONG1 */
    case 'G':  return read_real(p, err);                                /* BINFLOAT */
    case 'X':  return read_text(p, 4, err);                             /* BINUNICODE */
    case 0x8c: return read_text(p, 1, err);                             /* SHORT_BINUNICODE */
    case '}':  return push_object(p, MP_PICKLE_DICT, (mp_pickle_object){0}, err);  /* EMPTY_DICT */
    case ']':  return push_object(p, MP_PICKLE_LIST, (mp_pickle_object){0}, err);  /* EMPTY_LIST */
    case ')':  return push_object(p, MP_PICKLE_TUPLE, (mp_pickle_object){0}, err); /* EMPTY_TUPLE */
    case 't':  return collect_marked(p, MP_PICKLE_TUPLE, err);          /* TUPLE */
    case 0x85: return collect_last(p, 1, err);                          /* TUPLE1 */
    case 0x86: return collect_last(p, 2, err);                          /* TUPLE2 */
    case 0x87: return collect_last(p, 3, err);                          /* TUPLE3 */
    case 'l':  return collect_marked(p, MP_PICKLE_LIST, err);           /* LIST */
    case 'a':  return extend_last(p, MP_PICKLE_LIST, 1, err);               /* APPEND */
    case 'e':  return extend_marked(p, MP_PICKLE_LIST, err);            /* APPENDS */
    case 's':  return extend_last(p, MP_PICKLE_DICT, 2, err);               /* SETITEM */
    case 'u':  return extend_marked(p, MP_PICKLE_DICT, err);            /* SETITEMS */
    case 'q':  return numbered(p, 1, remember, err);                    /* BINPUT */
    case 'r':  return numbered(p, 4, remember, err);                    /* LONG_BINPUT */
    case 0x94: return remember(p, p->num_memo, err);                    /* MEMOIZE */
    case 'h':  return numbered(p, 1, recall, err);                      /* BINGET */
    case 'j':  return numbered(p, 4, recall, err);                      /* LONG_BINGET */
    case 'c':  return read_global(p, err);                              /* GLOBAL */
    case 0x93: return stack_global(p, err);                             /* STACK_GLOBAL */
    case 'Q':  return push_storage(p, err);                             /* BINPERSID */
    case 'R':  return reduce(p, err);                                   /* REDUCE */
    default:
        return mp_fail(err, MP_ERR_UNSUPPORTED,
                       "pickle: byte %u: opcode 0x%02x, which counts do not need; nothing was "
                       "run", p->at - 1, opcode);
    }
}
/* clang-format on */

int mp_pickle_load(mp_pickle *p, const void *data, uint64_t length, mp_error *err)
{
    int rc = 0;
    *p = (mp_pickle){.data = data, .length = (uint32_t)length};
    if (length > UINT32_MAX / 2)
        return mp_fail(err, MP_ERR_UNSUPPORTED, "pickle: more than 2 GiB");
    while (rc == 0) {
        const unsigned char *opcode;
        rc = take(p, 1, &opcode, err);
        if (rc == 0 && *opcode == '.') {
            rc = pop(p, &p->root, err);
            break;
        }
        if (rc == 0)
            rc = run_opcode(p, *opcode, err);
    }
    if (rc != 0)
        mp_pickle_release(p);
    return rc;
}

void mp_pickle_release(mp_pickle *p)
{
    free(p->objects);
    free(p->items);
    free(p->stack);
    free(p->memo);
    free(p->memo_set);
    *p = (mp_pickle){0};
}

/* ------------------------------------------------------------------------
 * Looking at the result
 */

bool mp_pickle_get(const mp_pickle *p, mp_pickle_value dict, const char *key,
                   mp_pickle_value *value)
{
    bool found = false;
    if (dict.kind != MP_PICKLE_DICT)
        return false;
    for (uint32_t i = p->objects[dict.u.index].first; i != NOTHING;) {
        const mp_pickle_item *k = &p->items[i], *v = &p->items[k->next];
        if (k->value.kind == MP_PICKLE_TEXT && k->value.u.text.length == strlen(key) &&
            memcmp(p->data + k->value.u.text.at, key, strlen(key)) == 0) {
            /* No break: the last of several wins, as in Python. */
            *value = v->value;
            found = true;
        }
        i = v->next;
    }
    return found;
}

bool mp_pickle_integers(const mp_pickle *p, mp_pickle_value tuple, uint64_t *out, uint32_t most,
                        uint32_t *count)
{
    if (tuple.kind != MP_PICKLE_TUPLE && tuple.kind != MP_PICKLE_LIST)
        return false;
    const mp_pickle_object *object = &p->objects[tuple.u.index];
    if (object->count > most)
        return false;
    *count = 0;
    for (uint32_t i = object->first; i != NOTHING; i = p->items[i].next) {
        mp_pickle_value v = p->items[i].value;
        if (v.kind != MP_PICKLE_INTEGER || v.u.integer < 0)
            return false;
        out[(*count)++] = (uint64_t)v.u.integer;
    }
    return true;
}
