/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a pickle, and as a recording in a .pt file: refused with a message, or all that was
 * read lies inside the input. */
#include "fuzz.h"

#include <math.h>
#include <moepack/place.h>

#include "place/pickle.h"

static void check_value(const mp_pickle *p, mp_pickle_value v)
{
    if (v.kind == MP_PICKLE_TEXT)
        require(v.u.text.at <= p->length && v.u.text.length <= p->length - v.u.text.at, "text");
    else if (v.kind >= MP_PICKLE_LIST && v.kind != MP_PICKLE_GLOBAL)
        require(v.u.index < p->num_objects, "object");
}

static void check_object(const mp_pickle *p, const mp_pickle_object *object)
{
    uint32_t count = 0;
    for (uint32_t i = object->first; i != UINT32_MAX; i = p->items[i].next, count++) {
        require(i < p->num_items && count < p->num_items, "item");
        check_value(p, p->items[i].value);
    }
    require(count == object->count, "number of items");
}

static void check_pickle(const uint8_t *data, size_t size)
{
    mp_pickle p;
    mp_error err = {0};
    mp_pickle_value v = {0};
    uint64_t numbers[3];
    uint32_t count;
    if (mp_pickle_load(&p, data, size, &err) != 0) {
        require_message(&err);
        return;
    }
    check_value(&p, p.root);
    for (uint64_t i = 0; i < p.num_objects; i++)
        check_object(&p, &p.objects[i]);
    if (mp_pickle_get(&p, p.root, "logical_count", &v))
        check_value(&p, v);
    if (mp_pickle_integers(&p, p.root, numbers, 3, &count))
        require(count <= 3, "integers");
    mp_pickle_release(&p);
}

static void check_recording(const uint8_t *data, size_t size)
{
    mp_recording r = {0};
    mp_error err = {0};
    if (mp_recording_add(&r, (const char *)data, size, 0, &err) != 0)
        require_message(&err);
    for (uint64_t i = 0; i < r.steps * r.layers * r.num_logical; i++)
        require(r.count[i] >= 0 && isfinite(r.count[i]), "count");
    mp_recording_release(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check_pickle(data, size);
    check_recording(data, size);
    return 0;
}
