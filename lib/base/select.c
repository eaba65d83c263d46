/* SPDX-License-Identifier: Apache-2.0 */
/* Lists of layers and ranks as users type them: "0-3,7,mtp.0".
 *
 * A number means a decoder layer by the number in its name, not by position: if a model's first
 * three layers are dense, "3" is its first MoE layer. Blocks called mtp.0 have numbers of their own
 * and can only be selected by name. Every item has to match something: a list that selects less
 * than the user meant is an error, not an empty run. Overlaps are fine.
 *
 * Marks go into the caller's arrays; there is no other state. */
#include "base/select.h"

#include "base/error.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* One item of a list: a range of numbers, or a name. */
typedef struct item {
    const char *text;
    size_t length;
    bool is_range;
    uint64_t first, last;
} item;

/* Reads digits at *text and moves it behind them. Only digits, no sign and no space: strtoul
 * accepts more, and would take some names for numbers. */
static bool read_number(const char **text, const char *end, uint64_t *number)
{
    const char *p = *text;
    uint64_t n = 0;

    while (p < end && isdigit((unsigned char)*p)) {
        uint64_t digit = (uint64_t)(*p++ - '0');

        if (!mp_mul_u64(n, 10, &n) || !mp_add_u64(n, digit, &n))
            return false;
    }
    if (p == *text)
        return false;
    *text = p;
    *number = n;
    return true;
}

static void parse_item(const char *text, size_t length, item *out)
{
    const char *p = text, *end = text + length;

    *out = (item){.text = text, .length = length};
    if (!read_number(&p, end, &out->first))
        return;
    out->last = out->first;
    if (p < end && *p == '-') {
        p++;
        if (!read_number(&p, end, &out->last))
            return;
    }
    /* "3-" and "5-2" are not ranges, and no layer has such a name, so the item matches nothing and
     * fails. */
    out->is_range = p == end && out->first <= out->last;
}

/* Calls mark for each item; fails on an item that marks nothing. */
static int each_item(const char *list, const char *what,
                     bool (*mark)(const item *it, const void *names, size_t count, bool *selected),
                     const void *names, size_t count, bool *selected, mp_error *err)
{
    const char *p = list;

    for (;;) {
        size_t length = strcspn(p, ",");
        item it;

        parse_item(p, length, &it);
        if (length == 0 || !mark(&it, names, count, selected))
            return mp_fail(err, MP_ERR_USAGE, "list \"%s\": \"%.*s\" names no %s", list,
                           (int)length, p, what);
        if (p[length] == '\0')
            return 0;
        p += length + 1;
    }
}

/* The number that ends "model.layers.3"; false for an MTP block or another name. */
static bool decoder_layer_number(const char *prefix, uint64_t *number)
{
    static const char before[] = ".layers.";
    const char *dot = strrchr(prefix, '.');
    const char *digits = dot ? dot + 1 : prefix;
    size_t head = (size_t)(digits - prefix);
    size_t length = head > 7 ? 8 : 7; /* a prefix may begin with it, without the dot */

    if (strncmp(prefix, "mtp.", 4) == 0 || strstr(prefix, ".mtp.") || head < length ||
        memcmp(digits - length, before + (8 - length), length) != 0)
        return false;
    return read_number(&digits, digits + strlen(digits), number) && *digits == '\0';
}

static bool mark_layers(const item *it, const void *names, size_t count, bool *selected)
{
    const char *const *prefixes = names;
    bool any = false;

    for (size_t i = 0; i < count; i++) {
        uint64_t number;
        bool hit;

        if (it->is_range)
            hit = decoder_layer_number(prefixes[i], &number) && number >= it->first &&
                  number <= it->last;
        else
            hit =
                strlen(prefixes[i]) == it->length && memcmp(prefixes[i], it->text, it->length) == 0;
        selected[i] |= hit;
        any |= hit;
    }
    return any;
}

static bool mark_ranks(const item *it, const void *names, size_t count, bool *selected)
{
    (void)names;
    if (!it->is_range || it->last >= count)
        return false;
    for (uint64_t i = it->first; i <= it->last; i++)
        selected[i] = true;
    return true;
}

int mp_select_layers(const char *list, const char *const *prefixes, size_t count, bool *selected,
                     mp_error *err)
{
    for (size_t i = 0; i < count; i++)
        selected[i] = !list;
    return list ? each_item(list, "layer", mark_layers, prefixes, count, selected, err) : 0;
}

int mp_select_ranks(const char *list, uint32_t ep, bool *selected, mp_error *err)
{
    for (uint32_t i = 0; i < ep; i++)
        selected[i] = !list;
    return list ? each_item(list, "rank", mark_ranks, NULL, ep, selected, err) : 0;
}

int mp_select_layer(const char *name, const char *const *prefixes, size_t count, size_t *index,
                    mp_error *err)
{
    bool *selected = mp_alloc(count, sizeof *selected);
    unsigned found = 0;
    int rc =
        selected ? mp_select_layers(name, prefixes, count, selected, err) : mp_fail_memory(err);

    *index = 0;
    for (size_t i = 0; rc == 0 && i < count; i++) {
        if (selected[i]) {
            *index = i;
            found++;
        }
    }
    free(selected);
    if (rc == 0 && found != 1)
        rc = mp_fail(err, MP_ERR_USAGE, "layer \"%s\": matches %u layers", name, found);
    return rc;
}
